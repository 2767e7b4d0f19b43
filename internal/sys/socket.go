package sys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits sun_path with its terminating zero (unix(7)).
const maxSocketPath = 107

// Listen makes a stream socket at path, whose mode is perm and never wider. The
// directory may be of any length, the name in it of 80 bytes. A socket that nobody
// answers on any more is replaced; one that somebody answers on is an error. Close
// leaves the file: it may be a successor's by then.
func Listen(path string, perm fs.FileMode) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	name, done, err := shortName(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer done()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The file takes the mode of the socket less the umask (unix(7)), so that
		// nobody can connect before the chmod below.
		var err error
		if ctlErr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(perm.Perm())) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}}
	l, err := config.Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	if err := os.Chmod(name, perm); err != nil {
		_ = ul.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ul, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("the file exists and is not a socket")
	}
	conn, err := Dial(context.Background(), path)
	if err == nil {
		defer conn.Close()
		return fmt.Errorf("pid %s answers on it", peer(conn))
	}
	// A full backlog (EAGAIN) is somebody, too.
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func peer(conn net.Conn) string {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "?"
	}
	pid := "?"
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = strconv.Itoa(int(cred.Pid))
		}
	})
	return pid
}

// Dial connects to the stream socket at path, which may be as long as Listen's.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	name, done, err := shortName(path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	defer done()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return conn, nil
}

// shortName is another name of path that fits sun_path, until done is called.
func shortName(path string) (name string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, base := filepath.Split(path)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, base), func() { _ = unix.Close(fd) }, nil
}

// Notify sends state to the service manager (sd_notify(3)); nil without one.
func Notify(state string) error {
	// net takes a leading @ for the abstract namespace, as sd_notify does.
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify %s: %w", name, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify %s: %w", name, err)
	}
	return nil
}
