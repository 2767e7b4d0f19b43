package oci

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// A command that had ended before the runtime that started it lost its exit code: the
// reaper took it for somebody else's orphan.
func TestExecOfACommandThatEndsBeforeTheRuntime(t *testing.T) {
	build := os.Getenv("CRIO_BUILD")
	if build == "" {
		build = "../../build"
	}
	reaper, err := filepath.Abs(filepath.Join(build, "conmon"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(reaper); err != nil {
		t.Fatalf("%v: run make all", err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	// The command waits for the end of its parent, and so is the reaper's child while the
	// runtime still runs, which goes on until the command is a zombie or reaped.
	runtime := Runtime{Root: t.TempDir(), Path: script(t, fmt.Sprintf(`
sh -c '(while [ -e /proc/$$ ]; do :; done; echo out; exit 42) & echo $! > %[1]s'
read -r pid < %[1]s
while read -r _ _ state _ < /proc/$pid/stat && [ "$state" != Z ]; do :; done 2> /dev/null
exit 0
`, pidFile))}
	out, err := runtime.ExecSync(t.Context(), Exec{ID: "x", Process: &specs.Process{}, Reaper: reaper, PidFile: pidFile})
	if err != nil || out.ExitCode != 42 || string(out.Stdout) != "out\n" {
		t.Errorf("exit code %d, stdout %q, %v", out.ExitCode, out.Stdout, err)
	}
}

// A command with a terminal that had ended before the daemon looked for the terminal lost
// all its output: the connection that brought it was closed unseen.
func TestTerminalOfACommandThatHasEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tty")
	listener, err := sys.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, _, err := conn.WriteMsgUnix([]byte("terminal"), unix.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	noMore(listener)
	console, err := receiveConsole(t.Context(), listener)
	if err != nil {
		t.Fatal(err)
	}
	console.Close()
}

// Without a connection nobody waits for one.
func TestRuntimeThatEndsWithoutATerminal(t *testing.T) {
	listener, err := sys.Listen(filepath.Join(t.TempDir(), "tty"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	noMore(listener)
	if console, err := receiveConsole(t.Context(), listener); err == nil {
		console.Close()
		t.Error("a terminal that nobody sent")
	}
}
