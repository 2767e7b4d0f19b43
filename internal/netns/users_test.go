package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/pod"
)

// The namespaces belong to the user namespace: what its root may do is done in them.
func TestCreateInAUserNamespace(t *testing.T) {
	before := mounts(t)
	dir := filepath.Join(t.TempDir(), "ns")
	const base, length = 1 << 20, 1 << 16
	sleeper := filepath.Join(t.TempDir(), "holder")
	if err := os.WriteFile(sleeper, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	k := Kinds{
		Net: true, IPC: true, UTS: true, Hostname: "inside", Holder: sleeper,
		Users:   pod.Users{UIDs: pod.IDRange{Host: base, Length: length}, GIDs: pod.IDRange{Host: base, Length: length}},
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmni": "77", "fs.mqueue.msg_max": "9"},
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Make(t.Context(), k).Pin(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || now != dumpable {
		t.Errorf("dumpable is %d after it was %d, %v", now, dumpable, err)
	}
	inside := func(args ...string) string {
		out, err := exec.Command("nsenter", append([]string{"--user=" + dir + "/user", "--net=" + dir + "/net", "--uts=" + dir + "/uts", "--ipc=" + dir + "/ipc"}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	for want, args := range map[string][]string{
		"0 1048576 65536": {"cat", "/proc/self/uid_map"},
		"77 80 9":         {"cat", "/proc/sys/kernel/shmmni", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/fs/mqueue/msg_max"},
		"allow":           {"cat", "/proc/self/setgroups"},
		"renamed":         {"sh", "-c", "hostname renamed && ip link set lo down && ip link set lo up && hostname"},
	} {
		if got := inside(args...); got != want {
			t.Errorf("%v: %q, want %q", args, got, want)
		}
	}
	if err := Remove(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts are left:\n%s", after)
	}
	k.Holder = "/absent"
	if err := Make(t.Context(), k).Pin(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "/absent") {
		t.Errorf("without the program: %v", err)
	}
	if err := Remove(t.Context(), dir); err != nil {
		t.Error(err)
	}
}
