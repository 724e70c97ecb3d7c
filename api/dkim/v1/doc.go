// Package dkimv1 is the gRPC API of dkimzone, generated from the .proto files beside it. Their comments are its reference.
package dkimv1
