package sys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// longDir is a directory whose path does not fit sun_path by far.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// pathOf is the path of a socket of exactly n bytes, with the longest name promised.
func pathOf(t *testing.T, dir string, n int) string {
	t.Helper()
	const longest = 80
	dir += "/" + strings.Repeat("d", n-len(dir)-1-1-longest)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir + "/" + strings.Repeat("s", longest)
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := Listen(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// The paths around the limit of sun_path, which holds 107 bytes and a zero.
func TestSocketsAtLongPaths(t *testing.T) {
	defer unix.Umask(unix.Umask(0o027))
	short, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	for name, path := range map[string]string{
		"short": short + "/s", "107": pathOf(t, short, 107), "108": pathOf(t, short, 108), "109": pathOf(t, short, 109),
		"far too long": pathOf(t, longDir(t), 600),
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, path)
			info, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != fs.ModeSocket|0o660 {
				t.Errorf("the mode is %v", info.Mode())
			}
			conn, err := Dial(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(server, "hello")
			_ = server.Close()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
				t.Errorf("read %q, %v", got, err)
			}
			_ = l.Close()
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("Close removed the file: %v", err)
			}
		})
	}
}

// Each of them opens a directory for a while.
func TestLongSocketPathsLeakNoDescriptor(t *testing.T) {
	path := filepath.Join(longDir(t), "crio.sock")
	listen(t, path)
	before := len(names(t, "/proc/self/fd"))
	for range 20 {
		if _, err := Listen(path, 0o600); err == nil {
			t.Fatal("the socket of somebody who answers was taken")
		}
		conn, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	if after := len(names(t, "/proc/self/fd")); after > before+10 {
		t.Errorf("%d descriptors became %d", before, after)
	}
}

func TestListenReplacesTheDeadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crio.sock")
	first := listen(t, path)
	if _, err := Listen(path, 0o600); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d answers", os.Getpid())) {
		t.Errorf("the socket of somebody who answers gave %v", err)
	}
	if conn, err := Dial(t.Context(), path); err != nil {
		t.Errorf("the first listener was harmed: %v", err)
	} else {
		_ = conn.Close()
	}
	_ = first.Close()
	listen(t, path)
	if conn, err := Dial(t.Context(), path); err != nil {
		t.Errorf("the second listener does not answer: %v", err)
	} else {
		_ = conn.Close()
	}
}

// A daemon that is too busy to accept is there all the same.
func TestListenSparesABusyListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crio.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn, err := Dial(t.Context(), path)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	if _, err := Listen(path, 0o600); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a full backlog gave %v", err)
	}
}

func TestListenTouchesNoOtherFile(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir} {
		if _, err := Listen(path, 0o600); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if read(t, file) != "precious" {
		t.Error("the file was harmed")
	}
}

func TestSocketErrorsNameThePath(t *testing.T) {
	for name, path := range map[string]string{
		"short": filepath.Join(t.TempDir(), "missing", "s"),
		"long":  filepath.Join(longDir(t), "missing", "s"),
	} {
		if _, err := Dial(t.Context(), path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Dial gave %v", name, err)
		}
		if _, err := Listen(path, 0o600); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Listen gave %v", name, err)
		}
	}
}

func TestNotify(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{filepath.Join(dir, "notify"), "@crio-test-" + filepath.Base(dir)} {
		manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Close()
		if err := manager.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		if err := Notify("READY=1"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		if n, err := manager.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
			t.Errorf("%s: got %q, %v", name, buf[:n], err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "gone"))
	if err := Notify("READY=1"); err == nil {
		t.Error("a manager that is not there was told")
	}
}
