package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// scriptVariable makes the test binary run a script and reap whatever it leaves: PID 1
// of some machines is slow at it, and a zombie is not what these tests are about.
const scriptVariable = "CRIO_TEST_SCRIPT"

func TestMain(m *testing.M) {
	if script := os.Getenv(scriptVariable); script != "" {
		os.Exit(runScript(script))
	}
	os.Exit(m.Run())
}

func runScript(script string) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		return 1
	}
	cmd := exec.CommandContext(context.Background(), "/bin/sh", "-c", script)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return 0
		}
	}
}

// limit ends a test that would hang, so that its cleanup still runs.
func limit(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// liveTrees are the ways in which this machine can be used.
func liveTrees(t *testing.T) map[string]*Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups are root's")
	}
	tree, err := Open(Cgroupfs)
	if err != nil {
		t.Fatal(err)
	}
	if tree.version == 2 {
		return map[string]*Tree{"v2": tree}
	}
	noFreezer := &Tree{driver: Cgroupfs, version: 1, roots: map[string]string{"pids": tree.roots["pids"], "memory": tree.roots["memory"]}}
	trees := map[string]*Tree{"v1": tree, "v1 without a freezer": noFreezer}
	if unified := tree.roots["unified"]; unified != "" {
		trees["v2"] = &Tree{driver: Cgroupfs, version: 2, roots: map[string]string{wholeTree: unified}}
	}
	return trees
}

// parentName is a top-level group of this test alone.
func parentName(t *testing.T) string {
	t.Helper()
	return "/crio-unit-" + filepath.Base(filepath.Dir(t.TempDir())) + fmt.Sprint(os.Getpid())
}

// newGroup makes a container's group in a parent of its own. Both are removed at the
// end, with everything in them, and without the code under test.
func newGroup(t *testing.T, tree *Tree) Group {
	t.Helper()
	parent := parentName(t)
	g, err := tree.ContainerGroup(parent, "1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweep(t, tree.group(parent, parent).dirs) })
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	return g
}

// sweep removes groups, innermost first. Their processes have been killed, but may
// have a moment to go.
func sweep(t *testing.T, dirs []string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		var busy error
		for _, dir := range groupsBelow(dirs) {
			if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
				busy = fmt.Errorf("%s: %w", dir, err)
			}
		}
		if busy == nil {
			return
		}
		if time.Now().After(end) {
			t.Errorf("cannot clean up: %v", busy)
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// groupsBelow are the groups and those inside them, innermost first.
func groupsBelow(dirs []string) []string {
	var all []string
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	slices.Reverse(all)
	return all
}

// start runs a script of the shell in the group and returns when it has written a
// line. All of its processes are killed at the end, whatever group they are in.
func start(t *testing.T, g Group, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), scriptVariable+"="+joining(g)+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range groupsBelow(g.dirs) {
			_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		}
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	})
	awaitIn(t, stdout)
}

// joining is the beginning of a script that is to run in the group.
func joining(g Group) string {
	return "for f in " + strings.Join(g.JoinFiles(), " ") + "; do echo $$ > $f || exit 1; done; "
}

func awaitIn(t *testing.T, stdout io.Reader) {
	t.Helper()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "in\n" {
		t.Fatalf("the script said %q, %v", line, err)
	}
}

func wantPids(t *testing.T, g Group, want int) []int {
	t.Helper()
	pids, err := g.Pids()
	empty, emptyErr := g.Empty()
	if err != nil || emptyErr != nil || len(pids) != want || empty != (want == 0) {
		t.Errorf("%s holds %v, %v, empty %v, %v; want %d processes", g.OCIPath(), pids, err, empty, emptyErr, want)
	}
	return pids
}

func wantGone(t *testing.T, dirs []string) {
	t.Helper()
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}
