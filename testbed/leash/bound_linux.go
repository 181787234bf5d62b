package main

import "syscall"

// boundToParent has the kernel kill the command when the leash itself is killed and can no longer do so.
func boundToParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
