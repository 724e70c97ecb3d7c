package app

import "runtime"

// ballast is never touched, so it takes no memory itself, but lets that much more
// garbage gather before it is collected. What dkimd keeps is little beside what a
// call of its own, and of etcd in the same process, lets go of: without it a
// quarter of a provisioning's CPU time goes into collections.
const ballast = 64 << 20

// holdBallast holds the ballast until release is called.
func holdBallast() (release func()) {
	held := make([]byte, ballast)
	return func() { runtime.KeepAlive(held) }
}
