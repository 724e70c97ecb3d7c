//go:build !linux

package agent

import "os"

// lockFile locks nothing: that one agent works in a directory is up to who starts it.
func lockFile(*os.File) error { return nil }
