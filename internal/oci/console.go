package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/stdio"
	"github.com/crio-minimal/crio/internal/sys"
)

// runTerminal runs a command that has a terminal. The runtime makes it in the container
// and sends our end over a socket, before the command runs.
func runTerminal(ctx context.Context, cmd *exec.Cmd, e Exec, s stdio.Streams) (int32, error) {
	listener, err := sys.Listen(e.consolePath(), 0o600)
	if err != nil {
		return 0, err
	}
	defer os.Remove(e.consolePath())
	received := make(chan *os.File, 1)
	go func() {
		defer close(received)
		// A runtime that fails sends none, and says why in its log.
		if console, err := receiveConsole(ctx, listener); err == nil {
			received <- console
		}
	}()
	if err := cmd.Start(); err != nil {
		noMore(listener)
		<-received
		return 0, err
	}
	type end struct {
		code int32
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := wait(ctx, cmd)
		noMore(listener)
		ended <- end{code, err}
	}()
	console, ok := <-received
	if !ok {
		result := <-ended
		if result.err == nil && result.code == 0 {
			result.err = errors.New("the runtime sent no terminal")
		}
		return result.code, result.err
	}
	defer console.Close()
	if s.Resized != nil {
		s.Resized(func(rows, cols uint16) { resize(console, rows, cols) })
	}
	if s.Input != nil {
		s.Input(inputOnly{console})
	}
	out := stdio.CopyOutput(cmp.Or[io.Writer](s.Out, io.Discard), console)
	result := <-ended
	if result.err != nil {
		console.Close()
	}
	return result.code, errors.Join(result.err, out.Finish())
}

// inputOnly has no half to close: the end of the client's input is not the terminal's.
type inputOnly struct{ console *os.File }

func (i inputOnly) Write(p []byte) (int, error) { return i.console.Write(p) }
func (i inputOnly) Close() error                { return nil }

// resize tells the terminal its size; one that has gone needs none.
func resize(console *os.File, rows, cols uint16) {
	raw, err := console.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// noMore ends the wait for a connection. One that was made before it is still taken: a
// command that is quick has ended before anybody here looked.
func noMore(listener *net.UnixListener) { _ = listener.SetDeadline(time.Now()) }

// receiveConsole takes the one descriptor that the first connection brings, and closes
// the listener. It waits for the connection until noMore is called.
func receiveConsole(ctx context.Context, listener *net.UnixListener) (*os.File, error) {
	defer listener.Close()
	conn, err := listener.AcceptUnix()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		conn, err = acceptNow(listener)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// A runtime that is stuck between the two is killed after ctx, and only then closes it.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// The sender's name for it comes along, at most a path.
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, unix.PathMax), rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// acceptNow takes a connection that waits already, and does not wait for one: Go's own
// accept does not look any more once its deadline is over.
func acceptNow(listener *net.UnixListener) (*net.UnixConn, error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var acceptErr error
	if err := raw.Control(func(listener uintptr) {
		fd, _, acceptErr = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	}); err != nil || acceptErr != nil {
		return nil, errors.Join(err, acceptErr)
	}
	file := os.NewFile(uintptr(fd), "terminal's connection")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
