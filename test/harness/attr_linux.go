package harness

import "syscall"

// childAttr ends the child when the test binary is killed, as by a timeout.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
