// Package schemapb holds the generated messages that are stored in etcd. Only the packages that store them use it.
package schemapb
