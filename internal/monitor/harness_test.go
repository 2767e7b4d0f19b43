package monitor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
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

// build holds the programs, made once for all tests, or before them where
// MONITOR_TEST_BUILD says so.
var build string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if build = os.Getenv("MONITOR_TEST_BUILD"); build != "" {
			return m.Run() // in a virtual machine, which has no compiler
		}
		flag.Parse()
		if flag.Lookup("test.fuzzworker").Value.String() == "true" {
			return m.Run() // the fuzz targets run no program
		}
		dir, err := os.MkdirTemp("", "monitor-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		build = dir
		if keep := os.Getenv("MONITOR_TEST_KEEP"); keep != "" {
			build = keep
		}
		defer os.RemoveAll(dir)
		if err := makeAll(build); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// makeAll makes the monitors, the fuzz target and the helpers.
func makeAll(dir string) error {
	if out, err := exec.Command("make", "-s", "-C", "../../conmon", "all", "asan", "fuzz", "BUILD="+dir).CombinedOutput(); err != nil {
		return fmt.Errorf("make: %w\n%s", err, out)
	}
	return helpers(dir)
}

// helpers makes what the tests need besides: the guest, what containers have of
// busybox, and a conmon under valgrind.
func helpers(dir string) error {
	guest := exec.Command("gcc", "-O2", "-Wall", "-Werror", "-static", "-o", dir+"/test-guest", "testdata/guest.c")
	if out, err := guest.CombinedOutput(); err != nil {
		return fmt.Errorf("guest: %w\n%s", err, out)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/busybox", busybox, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(dir+"/valgrind", 0o755); err != nil {
		return err
	}
	// Its children are the runtime's business: valgrind is silent in them.
	script := "#!/bin/sh\nexec valgrind -q --error-exitcode=99 --child-silent-after-fork=yes --log-file=$VALGRIND_LOG.%p " +
		dir + "/conmon \"$@\"\n"
	return os.WriteFile(dir+"/valgrind/conmon", []byte(script), 0o755)
}

// builds are the monitor as it ships, the one with sanitizers, and in the full run
// the shipped one under valgrind. MONITOR_TEST_ONLY takes one of them, for a machine
// that cannot have the others.
func builds() []string {
	if only := os.Getenv("MONITOR_TEST_ONLY"); only != "" {
		return []string{only}
	}
	return torture([]string{"conmon", "asan/conmon"}, []string{"conmon", "asan/conmon", "valgrind/conmon"})
}

// onBuilds runs a test on all builds.
func onBuilds(t *testing.T, test func(t *testing.T, conmon string)) {
	t.Helper()
	needRoot(t)
	for _, name := range builds() {
		t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) { test(t, filepath.Join(build, name)) })
	}
}

func needRoot(t testing.TB) {
	if os.Getuid() != 0 {
		t.Skip("the OCI runtime needs root")
	}
}

// bundle is what a test's container differs in.
type bundle struct {
	args    []string
	files   map[string]string // of its root file system
	hostPID bool
	tty     bool
	memory  int64
	unified map[string]string // of cgroup v2
	parent  string            // of the container's cgroup
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
	must(t, place(filepath.Join(build, "busybox"), c.rootfs+"/bin/busybox"))
	must(t, place(filepath.Join(build, "test-guest"), c.rootfs+"/bin/guest"))
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
		OOMFile: oomFile(b.parent + "/crio-test-" + id),
		Env: []string{
			"ASAN_OPTIONS=detect_leaks=0:log_path=" + filepath.Join(root, "sanitizer"),
			"UBSAN_OPTIONS=print_stacktrace=1:log_path=" + filepath.Join(root, "sanitizer"),
			"VALGRIND_LOG=" + filepath.Join(root, "valgrind"),
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
		c.spec.KillCgroup = append(c.spec.KillCgroup, filepath.Join(hierarchy, b.parent, "crio-test-"+id))
	}
	own := filepath.Join(controller("pids"), "crio-test-conmon-"+id)
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
	reports, _ := filepath.Glob(filepath.Join(root, "[sv]a[nl]*"))
	for _, name := range reports {
		text, _ := os.ReadFile(name)
		if strings.Contains(name, "sanitizer") || strings.Contains(string(text), "==") {
			t.Errorf("%s: %s", name, text)
		}
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
	linux := m{"namespaces": namespaces, "cgroupsPath": b.parent + "/crio-test-" + id}
	if b.memory > 0 {
		linux["resources"] = m{"memory": m{"limit": b.memory, "swap": b.memory}, "unified": b.unified}
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
		if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); filepath.Base(link) == "conmon" || strings.Contains(link, "memcheck") {
			return pid
		}
	}
	t.Fatal("there is no monitor")
	return 0
}

// unified: the node has cgroup v2 alone.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// controller is the mount point that has it.
func controller(name string) string {
	if unified() {
		return "/sys/fs/cgroup"
	}
	return filepath.Join("/sys/fs/cgroup", name)
}

// oomFile has the counter of a cgroup.
func oomFile(path string) string {
	if unified() {
		return filepath.Join("/sys/fs/cgroup", path, "memory.events")
	}
	return filepath.Join("/sys/fs/cgroup/memory", path, "memory.oom_control")
}

// hierarchies are the mount points of cgroup v1, or the one of v2.
func hierarchies(t *testing.T) []string {
	if unified() {
		return []string{"/sys/fs/cgroup"}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var dirs []string
	for line := range strings.Lines(string(data)) {
		if before, after, _ := strings.Cut(line, " - "); strings.HasPrefix(after, "cgroup ") {
			dirs = append(dirs, strings.Fields(before)[4])
		}
	}
	return dirs
}

// place puts a program into a rootfs: linked, or copied to another file system.
func place(program, path string) error {
	if err := os.Link(program, path); err == nil {
		return nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o755)
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
