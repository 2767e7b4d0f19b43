package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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
