package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	enter := []string{"--net=" + dir + "/net", "--uts=" + dir + "/uts", "--ipc=" + dir + "/ipc"}
	out, err := exec.Command("nsenter", append(enter, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func mounts(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPinKeepsWhatWasMadeAndRemoveLeavesNothing(t *testing.T) {
	before := mounts(t)
	dir := filepath.Join(t.TempDir(), "ns")
	k := Kinds{Net: true, IPC: true, UTS: true, Hostname: "inside", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmni": "77",
	}}
	// Twice: the second call has to replace what the first pinned.
	for range 2 {
		if err := Make(context.Background(), k).Pin(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = Remove(context.Background(), dir) })
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, dir, "hostname"); got != "inside" || got == host {
		t.Errorf("hostname inside is %q, outside %q", got, host)
	}
	if got := run(t, dir, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "80" {
		t.Errorf("net sysctl is %s", got)
	}
	if got := run(t, dir, "cat", "/proc/sys/kernel/shmmni"); got != "77" {
		t.Errorf("ipc sysctl is %s", got)
	}
	if got := run(t, dir, "ip", "-o", "addr", "show", "lo"); !strings.Contains(got, "127.0.0.1/8") {
		t.Errorf("loopback is not up: %s", got)
	}
	if outside, err := os.ReadFile("/proc/sys/kernel/shmmni"); err != nil || strings.TrimSpace(string(outside)) == "77" {
		t.Errorf("the node's own sysctl is %s, %v", outside, err)
	}
	if !Pinned(dir + "/net") {
		t.Error("net is not pinned")
	}
	for range 2 {
		if err := Remove(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if Pinned(dir+"/net") || mounts(t) != before {
		t.Error("mounts are left")
	}
}

func TestPinTellsOfARefusedSysctl(t *testing.T) {
	before := mounts(t)
	dir := filepath.Join(t.TempDir(), "ns")
	err := Make(context.Background(), Kinds{Net: true, Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "no"}}).Pin(context.Background(), dir)
	if err == nil || !strings.Contains(err.Error(), "ip_unprivileged_port_start") {
		t.Errorf("got %v", err)
	}
	if err := Remove(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	if mounts(t) != before {
		t.Error("mounts are left")
	}
}

// Namespaces that nobody pins go with their thread: discarded, with a directory that cannot
// be made, or with a context that has ended.
func TestNothingIsLeftOfWhatWasNotPinned(t *testing.T) {
	before, threads := mounts(t), len(glob(t, "/proc/self/task/*"))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 40 {
		u := Make(t.Context(), Kinds{Net: true, UTS: true, Hostname: "inside"})
		u.Discard()
		u.Discard()
		if err := Make(t.Context(), Kinds{UTS: true}).Pin(t.Context(), file); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("pinned in a file: %v", err)
		}
		if err := Make(ended, Kinds{UTS: true}).Pin(t.Context(), filepath.Join(filepath.Dir(file), "ns")); !errors.Is(err, context.Canceled) {
			t.Errorf("pinned what nobody wants: %v", err)
		}
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts are left:\n%s", after)
	}
	// Go starts some of its own.
	if now := len(glob(t, "/proc/self/task/*")); now > threads+20 {
		t.Errorf("%d threads after %d", now, threads)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPinnedIsNotFooledByALeftFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if Pinned(path) || Pinned(path+"-absent") {
		t.Error("an empty file passes for a namespace")
	}
}

// A pinned PID namespace is that of the process which was meant, also when the process
// has ended, and another one with its pid is refused.
func TestPinPID(t *testing.T) {
	cmd := exec.Command("sleep", "99")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	ticks, err := sys.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := PinPID(filepath.Join(dir, "other"), pid, ticks+1); !errors.Is(err, unix.ESRCH) {
		t.Errorf("pin of another process with the pid: %v", err)
	}
	path := filepath.Join(dir, "pid")
	if err := PinPID(path, pid, ticks); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got, err := os.Stat(path); err != nil || !os.SameFile(got, want) || !Pinned(path) {
		t.Errorf("pinned is %v, %v", got, err)
	}
	for range 2 {
		if err := Unpin(path); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
