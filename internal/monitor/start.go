package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// defaultPath is what an OCI runtime and its hooks find their programs with.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// stderrDelay bounds the wait for the launcher's stderr after it has ended.
const stderrDelay = time.Second

// Start launches a monitor, and returns when the container runs, or with a
// *StartError when the OCI runtime or the monitor refused it. ctx bounds the wait
// only: when it ends first, the error wraps ctx.Err(), and the caller kills the
// monitor's and the container's cgroups.
//
// After a success onExit is called once, in a goroutine of its own: with the exit, or with an error that wraps ErrLost. It is not
// called after an error of Start or once Close was called. The monitor stays until
// onExit has returned, at most about a second.
func Start(ctx context.Context, s Spec, onExit func(Exit, error)) (*Conn, Status, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, Status{}, fmt.Errorf("monitor of %s: %w", s.ID, err)
	}
	c := newConn(ours, s.RunDir, onExit)
	err = launch(ctx, s, theirs)
	theirs.Close()
	go c.read()
	sys.Failpoint("monitor", "launched")
	select {
	case o := <-c.outcome:
		if o.err == nil {
			c.accept()
			sys.Failpoint("monitor", "told of the start")
			return c, o.status, nil
		}
		c.Close()
		var refused *StartError
		if err != nil && !errors.As(o.err, &refused) {
			o.err = err // the launcher's failure says more than the silence after it
		}
		return nil, Status{}, fmt.Errorf("monitor of %s: %w", s.ID, o.err)
	case <-ctx.Done():
		c.Close()
		if err == nil {
			err = errors.New("runtime create and start have not ended")
		}
		return nil, Status{}, fmt.Errorf("monitor of %s: %w: %w", s.ID, err, ctx.Err())
	}
}

// launch runs conmon until it has put itself into the background.
func launch(ctx context.Context, s Spec, socket *os.File) error {
	cmd := exec.CommandContext(ctx, s.Path, s.arguments()...)
	cmd.Env = append([]string{defaultPath}, s.Env...)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{socket}
	// Its last words before it has a background to be in. Whatever holds the pipe
	// after it must not hold us.
	var words limited
	cmd.Stderr = &words
	cmd.WaitDelay = stderrDelay
	if s.CgroupFD > 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: s.CgroupFD}
	}
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if text := strings.TrimSpace(string(words)); text != "" {
		return fmt.Errorf("launch monitor: %s: %w", text, err)
	}
	return fmt.Errorf("launch monitor %s: %w", s.Path, err)
}

// limited keeps the first kilobyte that is written to it.
type limited []byte

func (l *limited) Write(p []byte) (int, error) {
	*l = append(*l, p[:min(len(p), 1024-len(*l))]...)
	return len(p), nil
}

// arguments is conmon's command line.
func (s Spec) arguments() []string {
	args := []string{"--id", s.ID, "--run-dir", s.RunDir, "--runtime", s.Runtime}
	add := func(name string, values ...string) {
		for _, v := range values {
			if v != "" {
				args = append(args, name, v)
			}
		}
	}
	add("--runtime-arg", s.RuntimeArgs...)
	add("--log-path", s.LogPath)
	if s.StdioUID != 0 || s.StdioGID != 0 {
		add("--stdio-uid", strconv.FormatUint(uint64(s.StdioUID), 10))
		add("--stdio-gid", strconv.FormatUint(uint64(s.StdioGID), 10))
	}
	if s.LogSizeMax > 0 {
		add("--log-size-max", strconv.FormatInt(s.LogSizeMax, 10))
	}
	for name, set := range map[string]bool{"--tty": s.TTY, "--stdin": s.Stdin, "--stdin-once": s.StdinOnce, "--sandboxed": s.Sandboxed} {
		if set {
			args = append(args, name)
		}
	}
	if s.CgroupFD <= 0 {
		add("--join-cgroup", s.JoinCgroup...)
	}
	add("--kill-cgroup", s.KillCgroup...)
	add("--oom-file", s.OOMFile)
	add("--pod-oom-file", s.PodOOMFile)
	return args
}

// Connect reaches the monitor of a container that an earlier daemon started, and
// returns when the container is past its creation. An error wraps ErrGone when
// nobody listens. The end may be there already: Status says so, and onExit is called
// as after Start. A container that never ran is an Exit with code 128 and a Message.
func Connect(ctx context.Context, runDir string, onExit func(Exit, error)) (*Conn, Status, error) {
	socket, err := dial(ctx, runDir)
	if err != nil {
		return nil, Status{}, fmt.Errorf("monitor in %s: %w", runDir, err)
	}
	c := newConn(socket, runDir, onExit)
	c.subscribe()
	go c.read()
	select {
	case o := <-c.outcome:
		if o.err != nil {
			c.Close()
			return nil, Status{}, fmt.Errorf("monitor in %s: %w", runDir, o.err)
		}
		c.accept()
		return c, o.status, nil
	case <-ctx.Done():
		c.Close()
		return nil, Status{}, fmt.Errorf("monitor in %s: %w", runDir, ctx.Err())
	}
}

// dial connects to the socket by its directory's descriptor: the path alone may be
// longer than the 107 bytes that unix(7) allows.
func dial(ctx context.Context, runDir string) (*net.UnixConn, error) {
	dir, err := unix.Open(runDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", filepath.Join("/proc/self/fd", strconv.Itoa(dir), socketName))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}
