// Package interop runs DNS nodes of this repository with name servers and
// validators of others, which "make interop" installs. Its tests have the build
// tag interop, so that "go test ./..." does not need those programs.
package interop
