// Leash runs a command that must not outlive the one who started it: it ends the command as soon as its own standard
// input reaches the end, which happens when the starter closes it or dies, however it dies. It exists because a test
// binary's statics are never dropped, and a server left behind holds a port, a disk and a processor for ever.
//
//	leash PIDFILE COMMAND [ARGUMENT...]
//
// The command's process id is written to PIDFILE, whole or not at all, so that a test may signal the command itself.
// Its standard input is empty; its output, environment and directory are the leash's. Signals that ask a process to do
// something are passed on. The leash's exit code is the command's, or 128 plus the signal that ended it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
)

func main() {
	if len(os.Args) < 3 {
		fail(errors.New("usage: leash PIDFILE COMMAND [ARGUMENT...]"))
	}
	// The kernel ties a parent-death signal to the thread that forked, so that thread must stay.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)

	command := exec.Command(os.Args[2], os.Args[3:]...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = boundToParent()
	if err := command.Start(); err != nil {
		fail(err)
	}
	if err := writeWhole(os.Args[1], strconv.Itoa(command.Process.Pid)); err != nil {
		_ = command.Process.Kill()
		fail(err)
	}
	go func() {
		for caught := range signals {
			_ = command.Process.Signal(caught)
		}
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = command.Process.Kill()
	}()
	os.Exit(exitCode(command.Wait()))
}

func exitCode(err error) int {
	var ended *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &ended):
		fail(err)
	}
	if state, known := ended.Sys().(syscall.WaitStatus); known && state.Signaled() {
		return 128 + int(state.Signal())
	}
	return ended.ExitCode()
}

func writeWhole(path, text string) error {
	part := path + ".part"
	if err := os.WriteFile(part, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(part, path)
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "leash: %v\n", err)
	os.Exit(127)
}
