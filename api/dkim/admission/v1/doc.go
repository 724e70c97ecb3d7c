// Package admissionv1 is what dkimzone asks a provider's own system before a domain gets keys, generated from admission.proto
// beside it. A provider implements the service; docs/limits.md has the same in JSON.
package admissionv1
