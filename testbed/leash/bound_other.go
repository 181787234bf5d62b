//go:build !linux

package main

import "syscall"

// boundToParent is empty here: only Linux has a parent-death signal, so a leash must not be killed by force.
func boundToParent() *syscall.SysProcAttr {
	return nil
}
