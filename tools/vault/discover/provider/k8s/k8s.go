// Package k8s takes the place of a package of the module.
package k8s

// Provider is none.
type Provider struct{}
