// Package coredump keeps what is in a process's memory, private keys above all,
// out of core files.
package coredump
