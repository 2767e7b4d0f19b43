package monitor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait of the tests; what is timed says its own bound.
const patience = 20 * time.Second

// build holds the programs, made once for all tests.
var build string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "monitor-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build = dir
		if out, err := exec.Command("make", "-s", "-C", "../../conmon", "all", "asan", "BUILD="+dir).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "make: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// onBuilds runs a test on the monitor as it ships and on the one with sanitizers.
func onBuilds(t *testing.T, test func(t *testing.T, conmon string)) {
	if os.Getuid() != 0 {
		t.Skip("the OCI runtime needs root")
	}
	for _, name := range []string{"conmon", "asan/conmon"} {
		t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) { test(t, filepath.Join(build, name)) })
	}
}

// bundle is what a test's container differs in.
type bundle struct {
	args    []string
	files   map[string]string // of its root file system
	hostPID bool
	tty     bool
	memory  int64
	runtime string
}

// container is a bundle with a Spec to start it by.
type container struct {
	spec   Spec
	rootfs string
	log    string
	exits  chan result
}

type result struct {
	exit Exit
	err  error
}

func sh(script string) bundle { return bundle{args: []string{"/bin/sh", "-c", script}} }

// make writes the bundle, and sees to it that nothing remains of the container.
func (b bundle) make(t *testing.T, conmon string) *container {
	t.Helper()
	root := t.TempDir()
	id := "t" + strings.ToLower(rand.Text())
	c := &container{rootfs: filepath.Join(root, "rootfs"), log: filepath.Join(root, "log", "0.log"), exits: make(chan result, 2)}
	// Longer than a socket's address may be.
	runDir := filepath.Join(root, strings.Repeat("long", 25), id)
	for _, dir := range []string{runDir, filepath.Dir(c.log), c.rootfs + "/bin", c.rootfs + "/proc", c.rootfs + "/dev"} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	must(t, os.WriteFile(c.rootfs+"/bin/busybox", busybox, 0o755))
	for _, name := range []string{"sh", "cat", "sleep", "setsid", "seq", "tail", "stty", "printf", "kill", "yes", "head", "ls", "dd"} {
		must(t, os.Symlink("busybox", c.rootfs+"/bin/"+name))
	}
	for name, content := range b.files {
		must(t, os.WriteFile(filepath.Join(c.rootfs, name), []byte(content), 0o644))
	}
	config, err := json.Marshal(b.config(c.rootfs, id))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(runDir, "config.json"), config, 0o600))

	runtime := b.runtime
	if runtime == "" {
		runtime = "/usr/sbin/runc"
	}
	c.spec = Spec{
		ID: id, Path: conmon, RunDir: runDir, Runtime: runtime,
		RuntimeArgs: []string{"--root", filepath.Join(root, "oci")},
		LogPath:     c.log, TTY: b.tty, CgroupFD: -1,
		OOMFile: "/sys/fs/cgroup/memory/crio-test-" + id + "/memory.oom_control",
		Env: []string{
			"ASAN_OPTIONS=detect_leaks=0:log_path=" + filepath.Join(root, "sanitizer"),
			"UBSAN_OPTIONS=print_stacktrace=1:log_path=" + filepath.Join(root, "sanitizer"),
		},
	}
	if filepath.Base(runtime) == "crun" {
		// crun 1.8 refuses a node with controllers in both cgroup versions; in a mount
		// namespace of its own it sees one.
		wrapper := filepath.Join(root, "crun")
		must(t, os.WriteFile(wrapper, []byte("#!/bin/sh\n"+
			"exec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "+runtime+" \"$@\"' crun \"$@\"\n"), 0o755))
		c.spec.Runtime = wrapper
	}
	for _, hierarchy := range hierarchies(t) {
		c.spec.KillCgroup = append(c.spec.KillCgroup, filepath.Join(hierarchy, "crio-test-"+id))
	}
	own := "/sys/fs/cgroup/pids/crio-test-conmon-" + id
	must(t, os.Mkdir(own, 0o755))
	c.spec.JoinCgroup = []string{own + "/cgroup.procs"}
	t.Cleanup(func() { c.clean(t, root, own) })
	return c
}

func (c *container) clean(t *testing.T, root, own string) {
	killAll(own)
	for _, dir := range c.spec.KillCgroup {
		killAll(dir)
	}
	_ = exec.Command(c.runtimeForCleanup(), "--root", filepath.Join(root, "oci"), "delete", "--force", c.spec.ID).Run()
	for _, dir := range append(c.spec.KillCgroup, own) {
		eventually(t, "cgroup "+dir+" is removed", func() bool {
			err := unix.Rmdir(dir)
			return err == nil || errors.Is(err, unix.ENOENT)
		})
	}
	if reports, _ := filepath.Glob(filepath.Join(root, "sanitizer*")); len(reports) > 0 {
		text, _ := os.ReadFile(reports[0])
		t.Errorf("sanitizer: %s", text)
	}
}

// runtimeForCleanup is runc for the runtimes that tests make up themselves.
func (c *container) runtimeForCleanup() string {
	if filepath.Base(c.spec.Runtime) == "crun" {
		return c.spec.Runtime
	}
	return "/usr/sbin/runc"
}

// config is the least that the runtime needs.
func (b bundle) config(rootfs, id string) map[string]any {
	type m = map[string]any
	namespaces := []m{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}}
	if !b.hostPID {
		namespaces = append(namespaces, m{"type": "pid"})
	}
	linux := m{"namespaces": namespaces, "cgroupsPath": "/crio-test-" + id}
	if b.memory > 0 {
		linux["resources"] = m{"memory": m{"limit": b.memory, "swap": b.memory}}
	}
	return m{
		"ociVersion": "1.0.0", "hostname": "test", "root": m{"path": rootfs},
		"process": m{
			"terminal": b.tty, "args": b.args, "cwd": "/", "user": m{"uid": 0, "gid": 0},
			"env": []string{"PATH=/bin"}, "oomScoreAdj": 500,
		},
		"mounts": []m{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=620"}},
		},
		"linux": linux,
	}
}

// start starts the container; its end comes on exits.
func (c *container) start(t *testing.T) (*Conn, Status) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, status, err := Start(ctx, c.spec, c.onExit)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(conn.Close)
	return conn, status
}

func (c *container) onExit(x Exit, err error) { c.exits <- result{x, err} }

// wait returns the end.
func (c *container) wait(t *testing.T) Exit {
	t.Helper()
	select {
	case r := <-c.exits:
		if r.err != nil {
			t.Fatalf("exit: %v", r.err)
		}
		return r.exit
	case <-time.After(patience):
		t.Fatal("no exit")
	}
	return Exit{}
}

// run is start and wait.
func (c *container) run(t *testing.T) Exit {
	t.Helper()
	c.start(t)
	return c.wait(t)
}

// record is one line of the CRI log.
type record struct {
	stream, tag, content string
}

var recordForm = regexp.MustCompile(`(?s)^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)$`)

// records validates every line of log files and returns them in order.
func records(t *testing.T, files ...string) []record {
	t.Helper()
	var all []record
	for _, name := range files {
		f, err := os.Open(name)
		must(t, err)
		in := bufio.NewReaderSize(f, 1<<20)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				if line != "" {
					t.Errorf("%s ends in a torn record %.80q", name, line)
				}
				break
			}
			parts := recordForm.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
			if parts == nil {
				t.Fatalf("%s: malformed record %.120q", name, line)
			}
			if _, err := time.Parse(time.RFC3339Nano, parts[1]); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(parts[4]) > 16384 {
				t.Errorf("%s: record with %d bytes of content", name, len(parts[4]))
			}
			all = append(all, record{parts[2], parts[3], parts[4]})
		}
		f.Close()
	}
	return all
}

// output puts a stream together again as its reader would.
func output(all []record, stream string) string {
	var b bytes.Buffer
	for _, r := range all {
		if r.stream != stream {
			continue
		}
		b.WriteString(r.content)
		if r.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// monitorPid finds the monitor by its own cgroup.
func (c *container) monitorPid(t *testing.T) int {
	t.Helper()
	for _, pid := range pidsOf(strings.TrimSuffix(c.spec.JoinCgroup[0], "/cgroup.procs")) {
		if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); link == c.spec.Path {
			return pid
		}
	}
	t.Fatal("there is no monitor")
	return 0
}

// hierarchies are the mount points of cgroup v1, or of v2.
func hierarchies(t *testing.T) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var dirs []string
	for line := range strings.Lines(string(data)) {
		if before, after, _ := strings.Cut(line, " - "); strings.HasPrefix(after, "cgroup ") {
			dirs = append(dirs, strings.Fields(before)[4])
		}
	}
	if len(dirs) == 0 {
		t.Skip("these tests read cgroup v1; cgroup v2 has its own, in a virtual machine")
	}
	return dirs
}

// pidsOf are the processes of a cgroup and of those in it.
func pidsOf(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			data, _ := os.ReadFile(path)
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
		}
		return nil
	})
	return pids
}

func killAll(dir string) {
	for range 100 {
		pids := pidsOf(dir)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// eventually is for what no descriptor tells.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Errorf("not within %v: %s", patience, what)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// torture is the full figure of a test where CRIO_TORTURE is set, and else one that
// keeps the suite short.
func torture[T any](short, full T) T {
	if os.Getenv("CRIO_TORTURE") != "" {
		return full
	}
	return short
}

// wrapper is an OCI runtime that a test makes up as a shell script.
func wrapper(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	return path
}

// schedstat is the CPU time of a process, to the nanosecond.
func schedstat(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	must(t, err)
	first, _, _ := strings.Cut(string(data), " ")
	n, err := strconv.ParseInt(first, 10, 64)
	must(t, err)
	return time.Duration(n)
}
