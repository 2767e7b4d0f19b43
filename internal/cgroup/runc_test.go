package cgroup

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// container is one of runc's, in a group that the code under test has named.
type container struct {
	t            *testing.T
	id, root, in string
}

// runContainer makes a container that sleeps. The systemd driver needs systemd as
// PID 1; the integration tests in the VM have it.
func runContainer(t *testing.T, g Group) *container {
	t.Helper()
	const busybox = "/bin/busybox"
	for _, program := range []string{"runc", busybox} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	c := &container{t: t, id: "crio-unit-" + strconv.Itoa(os.Getpid()), root: filepath.Join(dir, "state"), in: filepath.Join(dir, "bundle")}
	if err := os.MkdirAll(filepath.Join(c.in, "rootfs/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(c.in, "rootfs/bin/sleep")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.runc("spec", "--bundle", c.in)
	c.configure(g.OCIPath())
	t.Cleanup(func() { _ = exec.Command("runc", "--root", c.root, "delete", "--force", c.id).Run() })
	c.runc("run", "--detach", "--bundle", c.in, c.id)
	return c
}

func (c *container) configure(cgroupsPath string) {
	c.t.Helper()
	name := filepath.Join(c.in, "config.json")
	var config map[string]any
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/sleep", "1000"}
	config["linux"].(map[string]any)["cgroupsPath"] = cgroupsPath
	if data, err = json.Marshal(config); err == nil {
		err = os.WriteFile(name, data, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// runc runs without pipes, which a detached process would keep open.
func (c *container) runc(args ...string) []byte {
	c.t.Helper()
	out, err := os.Create(filepath.Join(c.t.TempDir(), "out"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(c.t.Context(), "runc", append([]string{"--root", c.root}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, readErr := os.ReadFile(out.Name())
	if err != nil || readErr != nil {
		c.t.Fatalf("runc %v: %v, %v\n%s", args, err, readErr, text)
	}
	return text
}

// groupsNamed are all directories of that name in all hierarchies of the machine.
func groupsNamed(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(base, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.HasSuffix(path, name) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The names have to be those of the directories that the runtime makes: everything
// that kills, counts and removes relies on it.
func TestNamesAreThoseOfRunc(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers are root's")
	}
	tree, err := Open(Cgroupfs)
	if err != nil {
		t.Fatal(err)
	}
	parent := parentName(t)
	g, err := tree.ContainerGroup(parent, "1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweep(t, tree.group(parent, parent).dirs) })
	c := runContainer(t, g)
	if got := groupsNamed(t, g.OCIPath()); !slices.Equal(got, g.dirs) {
		t.Errorf("runc made %v, computed are %v", got, g.dirs)
	}
	var state struct{ Pid int }
	if err := json.Unmarshal(c.runc("state", c.id), &state); err != nil {
		t.Fatal(err)
	}
	wantInside(t, g, state.Pid)
	if data, err := os.ReadFile(g.OOMFile()); err != nil || !bytes.Contains(data, []byte("oom_kill ")) {
		t.Errorf("%s: %q, %v", g.OOMFile(), data, err)
	}

	sub := g.Sub("exec-1")
	if err := sub.Create(); err != nil {
		t.Fatal(err)
	}
	c.runc(append(append([]string{"exec", "--detach"}, sub.ExecArgs()...), c.id, "/bin/sleep", "1000")...)
	if execs := wantPids(t, sub, 1); len(execs) == 1 {
		wantInside(t, sub, execs[0])
	}
	wantPids(t, g, 2)
	if err := sub.Kill(limit(t)); err != nil {
		t.Fatal(err)
	}
	if err := sub.Remove(limit(t)); err != nil {
		t.Fatal(err)
	}
	wantPids(t, g, 1)
	if err := g.Kill(limit(t)); err != nil {
		t.Fatal(err)
	}
	wantPids(t, g, 0)
	if err := g.Remove(limit(t)); err != nil {
		t.Fatal(err)
	}
	if left := groupsNamed(t, g.OCIPath()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// wantInside looks the process up in each hierarchy of the group.
func wantInside(t *testing.T, g Group, pid int) {
	t.Helper()
	for _, file := range g.JoinFiles() {
		data, err := os.ReadFile(file)
		if err != nil || !slices.Contains(strings.Fields(string(data)), strconv.Itoa(pid)) {
			t.Errorf("pid %d is not in %s: %q, %v", pid, file, data, err)
		}
	}
}
