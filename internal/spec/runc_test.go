package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bundle makes what podInput promises: a root file system of busybox, the pod's
// files and its /dev/shm, and nothing pinned.
func bundle(t *testing.T) (dir string, local func(*Input)) {
	t.Helper()
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs runc and root")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	dir = t.TempDir()
	for _, d := range []string{"rootfs/bin", "shm", "data/deeper/still", "still"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, d := range []string{"shm", "still"} {
		err = errors.Join(err, os.Chmod(filepath.Join(dir, d), 0o777))
	}
	for applet := range strings.FieldsSeq("sh id hostname grep tr cat") {
		err = errors.Join(err, os.Symlink("busybox", filepath.Join(dir, "rootfs/bin", applet)))
	}
	for file, text := range map[string]string{"rootfs/bin/busybox": string(busybox), "resolv.conf": "# pod", "hosts": "# pod", "hostname": "web-0", "data/hello": "hi"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("crio-spec-test-%d-%s", os.Getpid(), filepath.Base(dir))
	return dir, func(in *Input) {
		in.Node.OCIVersion, in.Node.CgroupV2 = "1.0.2", cgroupV2()
		in.Node.Capabilities, in.Node.MinOOMScoreAdj = heldHere(t), 0
		in.Rootfs, in.Shm, in.Namespaces, in.CgroupsPath = dir+"/rootfs", dir+"/shm", Namespaces{}, "/"+id
		for target := range in.Files {
			in.Files[target] = filepath.Join(dir, filepath.Base(target))
		}
		in.Mounts = []Mount{
			{Source: dir + "/data", Mount: &cri.Mount{ContainerPath: "/srv/data", Readonly: true, MountOptions: []string{"noexec"}}},
			{Source: dir + "/still", Mount: &cri.Mount{ContainerPath: "/srv/data/deeper/still"}},
		}
	}
}

func cgroupV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func heldHere(t *testing.T) []string {
	t.Helper()
	var caps []string
	for number, name := range KnownCapabilities() {
		if set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0); err == nil && set == 1 {
			caps = append(caps, name)
		}
	}
	return caps
}

// runc runs the specification and returns what its process printed.
func runc(t *testing.T, dir string, s *specs.Spec) string {
	t.Helper()
	data, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(dir+"/config.json", data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	id, root := filepath.Base(s.Linux.CgroupsPath), dir+"/runc"
	t.Cleanup(func() {
		// It is gone already, unless run was cut short.
		_ = exec.Command("runc", "--root", root, "delete", "--force", id).Run()
	})
	out, err := exec.CommandContext(t.Context(), "runc", "--root", root, "run", "--bundle", dir, id).CombinedOutput()
	if err != nil {
		t.Fatalf("runc run: %v\n%s", err, out)
	}
	return string(out)
}

// TestRuncAgrees: the process finds what the specification was to say.
func TestRuncAgrees(t *testing.T) {
	const script = `
echo "uid $(id -u) gid $(id -g) groups $(id -G) host $(hostname) pwd $(pwd) pid $$ lang $LANG"
echo "oom $(cat /proc/self/oom_score_adj) nofile $(ulimit -Sn) $(ulimit -Hn)"
grep -E '^(CapInh|CapPrm|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '
grep ' /srv/data ' /proc/mounts | grep -o noexec
echo "data $(cat /srv/data/hello) version $(grep -c . /proc/version)"
for file in /new /srv/data/new /srv/data/deeper/still/new /etc/hosts /dev/shm/new /dev/null /proc/sys/kernel/domainname; do
	(echo > $file) 2>/dev/null && echo "$file is writable"
done; true`
	const want = `uid 33 gid 34 groups 34 50 host web-0 pwd /srv pid 1 lang C
oom 985 nofile 1024 4096
CapInh: 0000000000000400
CapPrm: 0000000000000400
CapBnd: 0000000000000400
CapAmb: 0000000000000400
NoNewPrivs: 1
Seccomp: 2
noexec
data hi version 0
/srv/data/deeper/still/new is writable
/dev/shm/new is writable
/dev/null is writable
`
	dir, local := bundle(t)
	got := runc(t, dir, build(t, podInput(limitedPod, local, func(in *Input) {
		// What not every machine has.
		in.Config.Linux.Resources.Unified, in.Config.Linux.Resources.HugepageLimits = nil, nil
		in.Config.Command = []string{"/bin/sh", "-c", script}
		security(in).MaskedPaths = []string{"/proc/version"}
		security(in).Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	})))
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestRuncAgreesOnPrivileged: all that the daemon holds, nothing hidden.
func TestRuncAgreesOnPrivileged(t *testing.T) {
	dir, local := bundle(t)
	result, err := Container(podInput(privilegedPod, local, func(in *Input) {
		in.Config.Linux.Resources.OomScoreAdj = -1000 // clamped
		in.Config.Command = []string{"/bin/sh", "-c", "grep -E '^(CapEff|Seccomp):' /proc/self/status | tr '\\t' ' '; grep -c ' /sys sysfs rw' /proc/1/mounts; [ -c /dev/kvm ] && echo kvm"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	var held uint64
	for number, name := range KnownCapabilities() {
		if slices.Contains(heldHere(t), name) {
			held |= 1 << number
		}
	}
	want := fmt.Sprintf("CapEff: %016x\nSeccomp: 0\n1\nkvm\n", held)
	if got := runc(t, dir, result.Spec); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
