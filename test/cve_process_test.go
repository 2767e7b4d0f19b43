package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// S8: CVE-2022-2995, CVE-2023-25173. The primary group is among the supplementary ones of
// the first process and of an exec: what is denied to the group stays denied.
func TestCVE_2022_2995_ThePrimaryGroupIsAmongTheGroups(t *testing.T) {
	withRuntimes(t, func(c *conform, r *fixture.Registry) {
		number := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
		for _, tt := range []struct {
			user   string // of the image
			change func(*cri.LinuxContainerSecurityContext)
			want   string // gid, groups
		}{
			{"member", func(*cri.LinuxContainerSecurityContext) {}, "500 500 600"},
			{"member:others", func(*cri.LinuxContainerSecurityContext) {}, "600 600"},
			{"4321:77", func(*cri.LinuxContainerSecurityContext) {}, "77 77"},
			{"member:77", func(s *cri.LinuxContainerSecurityContext) {
				s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{88}, cri.SupplementalGroupsPolicy_Strict
			}, "77 77 88"},
			{"", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = number(4321), number(77) }, "77 77"},
			{"", func(s *cri.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = number(500), number(77), []int64{88}
			}, "77 77 88 600"},
			{"", func(s *cri.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = number(500), number(77), []int64{88}
				s.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
			}, "77 77 88"},
		} {
			image := c.image
			denied := strings.Fields(tt.want)[0]
			if tt.user != "" {
				image = c.madeImage(r, fixture.ImageSpec{Config: imgspec.ImageConfig{User: tt.user}})
			}
			id := c.sleeper(func(k *cri.ContainerConfig) {
				k.Image.Image = image
				tt.change(k.Linux.SecurityContext)
			})
			for _, process := range []string{"1", "self"} {
				c.sees(id, "echo $(awk '/^Gid:/ {print $2}' /proc/"+process+"/status) $(grep ^Groups: /proc/"+process+"/status | cut -d: -f2 | tr ' ' '\n' | sort -n)", tt.want+"\n")
			}
			if told := fmt.Sprint(c.container(id).GetUser().GetLinux().GetSupplementalGroups()); !strings.Contains(told+" ", denied) {
				c.t.Errorf("the status tells the groups %s, without %s", told, denied)
			}
		}
	})
}

// S9: CVE-2022-31030, CVE-2022-1708. A command that prints for ever costs the daemon its
// limit, and no file, until its time is up.
func TestCVE_2022_31030_EndlessOutputOfExec(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	for name, script := range map[string]string{
		"lines": "yes", "zeros": "cat /dev/zero", "errors": "cat /dev/zero >&2", "both": "cat /dev/zero >&2 & exec cat /dev/zero", "a line without an end": "cat /dev/zero | tr '\\0' a",
	} {
		grown := n.grown(func() {
			_, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: shell(script), Timeout: 3})
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s: %v", name, err)
			}
		})
		// Two streams of 16 MiB, with what append throws away, in a daemon that is
		// built to find races and so needs more.
		if grown > 512<<20 {
			t.Errorf("%s: the daemon's memory grew by %d MiB", name, grown>>20)
		}
	}
	files, err := filepath.Glob(n.path("run/containers/" + id + "/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if size := stat(t, path).Size; size > 1<<20 {
			t.Errorf("%s has %d bytes", path, size)
		}
	}
}

// S10: CVE-2022-27652, CVE-2018-1000400. Capabilities that nobody asked to be ambient are
// neither inheritable nor ambient, of the first process or of an exec, of any user.
func TestCVE_2022_27652_CapabilitiesAreNotHandedOn(t *testing.T) {
	withRuntimes(t, func(c *conform, _ *fixture.Registry) {
		box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
		for _, asked := range []*cri.Capability{nil, {AddCapabilities: []string{"NET_ADMIN", "SYS_PTRACE"}}, {AddCapabilities: []string{"ALL"}}, {DropCapabilities: []string{"ALL"}}} {
			for _, user := range []int64{0, 1000, 65534} {
				for _, privileged := range []bool{false, true} {
					id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
						k.Linux.SecurityContext.Capabilities, k.Linux.SecurityContext.Privileged = asked, privileged
						k.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: user}
					})
					const none = "0000000000000000"
					c.sees(id, "cat /proc/1/status /proc/self/status | awk '/^Cap(Inh|Amb):/ {print $1 $2}' | sort -u", "CapAmb:"+none+"\nCapInh:"+none+"\n")
					if user != 0 {
						c.sees(id, "cat /proc/1/status /proc/self/status | awk '/^Cap(Eff|Prm):/ {print $1 $2}' | sort -u", "CapEff:"+none+"\nCapPrm:"+none+"\n")
					}
				}
			}
		}
	})
}

// sysctls of the node that an attack, or a mistake, would change.
func readSysctls(t *testing.T, names ...string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	for _, name := range names {
		data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			t.Fatal(err)
		}
		seen[name] = strings.TrimSpace(string(data))
	}
	return seen
}

// restored puts the node's sysctls back after a test that has failed.
func restored(t *testing.T, before map[string]string) {
	t.Helper()
	for name, want := range before {
		if got := readSysctls(t, name)[name]; got != want {
			t.Errorf("the node's %s is %q now, and was %q", name, got, want)
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(want), 0); err != nil {
				t.Error(err)
			}
		}
	}
}

// S11: CVE-2022-0811. No value and no name of a sysctl is read as more than one sysctl, nor
// as one of another place.
func TestCVE_2022_0811_SysctlsInSysctls(t *testing.T) {
	n, image := readyNode(t, options{})
	c := &conform{node: n}
	defer restored(t, readSysctls(t, "kernel.core_pattern", "kernel.shmmax", "kernel.shm_rmid_forced", "vm.swappiness"))
	const evil = "kernel.core_pattern=|/evil"
	for _, tt := range []struct{ name, value string }{
		{"kernel.shm_rmid_forced", "1+" + evil}, {"kernel.shm_rmid_forced", "1\n" + evil}, {"kernel.shm_rmid_forced", "1\r" + evil},
		{"kernel.shm_rmid_forced", "1," + evil}, {"kernel.shm_rmid_forced", "1;" + evil}, {"kernel.shm_rmid_forced", "1\x00" + evil},
		{"kernel.shm_rmid_forced=1+kernel.core_pattern", "|/evil"}, {"kernel.shm_rmid_forced=1\nkernel.core_pattern", "|/evil"}, {"kernel.core_pattern", "|/evil"},
		{"kernel/core_pattern", "|/evil"}, {"kernel.shmmax/../core_pattern", "|/evil"}, {"net.ipv4/../../kernel/core_pattern", "|/evil"}, {"net...kernel.core_pattern", "|/evil"},
		{"net./../kernel/core_pattern", "|/evil"}, {"/kernel/core_pattern", "|/evil"}, {" kernel.core_pattern", "|/evil"}, {"fs.mqueue./../../kernel/core_pattern", "|/evil"},
		{"", "|/evil"}, {"vm.swappiness", "1"},
	} {
		c.refusedPod(func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{tt.name: tt.value} }, "sysctl")
	}
	// A blank is fine where the kernel takes one; what it reads of a number ends there.
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Linux.Sysctls = map[string]string{
			"net.ipv4.ip_local_port_range": "2000 3000", "net.ipv4.ping_group_range": "0\t77", "kernel.shm_rmid_forced": "1 " + evil, "kernel.msgmax": "",
		}
	})
	c.sees(c.runContainer(box, pod, c.containerConfig(image, "sleep", "99")), "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/ipv4/ping_group_range", "2000\t3000\n0\t77\n")
}

// S12: CVE-2022-0532. In a namespace of the node's a sysctl would be the node's.
func TestCVE_2022_0532_SysctlsOfTheNode(t *testing.T) {
	n, _ := readyNode(t, options{})
	c := &conform{node: n}
	network := map[string]string{"net.ipv4.ip_forward": "0", "net.ipv4.ip_unprivileged_port_start": "77", "net.core.somaxconn": "77", "kernel.hostname": "evil", "kernel.domainname": "evil"}
	ipc := map[string]string{
		"kernel.shmmax": "4096", "kernel.shmall": "77", "kernel.shmmni": "77", "kernel.shm_rmid_forced": "1", "kernel.msgmax": "77", "kernel.msgmnb": "77",
		"kernel.msgmni": "77", "kernel.sem": "77 77 77 77", "fs.mqueue.msg_max": "77", "fs.mqueue.queues_max": "77",
	}
	for _, all := range []map[string]string{network, ipc} {
		for name, value := range all {
			if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(name, ".", "/")); errors.Is(err, os.ErrNotExist) {
				continue
			}
			defer restored(t, readSysctls(t, name))
			c.refusedPod(func(p *cri.PodSandboxConfig) {
				p.Linux.Sysctls = map[string]string{name: value}
				o := p.Linux.SecurityContext.NamespaceOptions
				if _, ok := network[name]; ok {
					p.Hostname, o.Network = "", cri.NamespaceMode_NODE
				} else {
					o.Ipc = cri.NamespaceMode_NODE
				}
			}, "sysctl", name)
		}
	}
	// And with both, since one might be looked at alone.
	c.refusedPod(func(p *cri.PodSandboxConfig) {
		o := p.Linux.SecurityContext.NamespaceOptions
		p.Hostname, o.Network, o.Ipc, o.Pid = "", cri.NamespaceMode_NODE, cri.NamespaceMode_NODE, cri.NamespaceMode_NODE
		p.Linux.Sysctls = map[string]string{"kernel.shmmax": "4096"}
	}, "sysctl", "kernel.shmmax")
}

// S13: CVE-2019-14891. The memory of a pod can be used up by whatever it runs, and its
// monitors are not among what the kernel kills for it: they tell.
func TestCVE_2019_14891_TheMonitorOutlivesTheMemory(t *testing.T) {
	withRuntimes(t, func(c *conform, _ *fixture.Registry) {
		box, pod := c.pod(nil)
		parent := filepath.Join("/sys/fs/cgroup/memory", pod.Linux.CgroupParent)
		limit := "memory.limit_in_bytes"
		if cgroupV2() || strings.HasSuffix(parent, ".slice") {
			c.t.Skip("the limit of the pod is set as the kubelet does it with cgroup v1 and cgroupfs")
		}
		other := c.sleeperIn(box, pod, nil)
		config := c.containerConfig(c.image, shell("read go; for i in 1 2 3 4 5 6; do tail /dev/zero & done; exec tail /dev/zero")...)
		config.Stdin = true
		bomb := c.runContainer(box, pod, config)
		if err := os.WriteFile(filepath.Join(parent, limit), []byte("33554432"), 0); err != nil {
			c.t.Fatal(err)
		}
		for _, id := range []string{bomb, other} {
			own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.monitorOf(id)))
			if err != nil || strings.Contains(string(own), pod.Linux.CgroupParent+"/") {
				c.t.Errorf("the monitor is in the pod's cgroup, %v:\n%s", err, own)
			}
		}
		watching := c.monitorOf(other)
		c.sends(bomb, "go\n")
		if s := c.exited(bomb); s.GetReason() != "OOMKilled" || s.GetExitCode() != 137 {
			c.t.Errorf("the bomb's end is told as %s, exit code %d", s.GetReason(), s.GetExitCode())
		}
		if pid := c.monitorOf(other); pid != watching {
			c.t.Errorf("the monitor was %d and is %d", watching, pid)
		}
		if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: other}); err != nil {
			c.t.Error(err)
		}
		if s := c.container(other); s.GetReason() == "MonitorLost" || s.GetExitCode() != 137 {
			c.t.Errorf("the other container's end is told as %s, exit code %d", s.GetReason(), s.GetExitCode())
		}
	})
}

// S18: CVE-2026-46680, CVE-2024-40635. An image's USER that is no plain number of a user is
// neither taken for one nor looked up, although its passwd has it as root.
func TestCVE_2026_46680_OddUsersOfAnImage(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: r})
	c := &conform{node: n}
	odd := []string{"4294967296", "4294967295", "-1", "00", "0x0", "+0", " 0", "0 ", "root\n", "\nroot", "00000000000000000000", "1e1", "18446744073709551616", "-0", "root\x00"}
	var passwd, group strings.Builder
	for _, name := range append(slices.Clone(odd), "root", "1000") {
		name = strings.Trim(name, "\n\x00")
		fmt.Fprintf(&passwd, "%s:x:0:0::/root:/bin/sh\n", name)
		fmt.Fprintf(&group, "%s:x:0:\n", name)
	}
	files := []fixture.File{{Path: "etc/passwd", Data: []byte(passwd.String())}, {Path: "etc/group", Data: []byte(group.String())}}
	box, pod := c.pod(nil)
	for _, user := range odd {
		for _, whole := range []string{user, "1000:" + user} {
			if whole == "0x0" || whole == "1e1" || whole == "1000:0x0" || whole == "1000:1e1" {
				continue // plain names, which an image may have
			}
			image := n.bareImage(r, fixture.ImageSpec{Layers: [][]fixture.File{files}, Config: imgspec.ImageConfig{User: whole}})
			config := n.containerConfig(image, "true")
			_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "user") {
				t.Errorf("USER %q: %v", whole, err)
			}
			// By this the kubelet tells whether runAsNonRoot is kept.
			if i := n.imageStatus(image); whole == user && i.GetUid().GetValue() != 0 {
				t.Errorf("USER %q is told as user %v", whole, i.GetUid())
			}
		}
	}
	for user, want := range map[string]string{"1000": "1000 0\n", "root": "0 0\n", "2147483647": "2147483647 0\n", "": "0 0\n"} {
		image := n.madeImage(r, fixture.ImageSpec{Layers: [][]fixture.File{files}, Config: imgspec.ImageConfig{User: user}})
		id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
		c.sees(id, "echo $(id -u) $(id -g)", want)
	}
}

// S22: GHSA-7ww5-4wqc-m92c. Where nobody chose what is masked, the node's power meter is,
// by which keys of others can be read.
func TestGHSA_7ww5_4wqc_m92c_ThePowerMeterIsMasked(t *testing.T) {
	withRuntimes(t, func(c *conform, _ *fixture.Registry) {
		const meter = "/sys/devices/virtual/powercap"
		box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
		config := c.containerConfig(c.image, "sleep", "99")
		config.Linux.SecurityContext = nil
		id := c.runContainer(box, pod, config)
		for _, of := range []string{id, box} {
			if masked := c.specOf(of).Linux.MaskedPaths; !slices.Contains(masked, meter) {
				c.t.Errorf("%s masks %v", of, masked)
			}
		}
		c.sees(id, "ls "+meter+" 2>/dev/null; grep -c '^tmpfs /sys/firmware ' /proc/mounts", "1\n")
	})
}

// S24: CVE-2020-15257. No socket of ours can be reached without its file, whatever namespace
// one is in, and those with a file by root alone, by the file's mode and by the monitor's own look.
func TestCVE_2020_15257_OurSocketsAreOurs(t *testing.T) {
	n, image := readyNode(t, options{})
	c := &conform{node: n, image: image}
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Hostname, p.Linux.SecurityContext.Privileged = "", true
		p.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	})
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		k.Linux.SecurityContext.Privileged = true
		k.Linux.SecurityContext.NamespaceOptions = pod.Linux.SecurityContext.NamespaceOptions
	})
	c.sees(id, "grep -c ' @' /proc/net/unix", "0\n")
	if out := string(c.exec(id, "cat", "/proc/net/unix").GetStdout()); !strings.Contains(out, "crio.sock") {
		t.Errorf("the container does not see the node's sockets:\n%s", out)
	}
	sockets := map[string]os.FileMode{n.socket: 0o660}
	found, err := filepath.Glob(n.path("run/containers/" + id + "/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if stat(t, path).Mode&unix.S_IFMT == unix.S_IFSOCK {
			sockets[path] = 0o600
		}
	}
	if len(sockets) < 2 {
		t.Fatalf("the monitor has no socket: %v", found)
	}
	for path, mode := range sockets {
		if st := stat(t, path); st.Mode&0o777 != uint32(mode) || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("%s of %d:%d has mode %o", path, st.Uid, st.Gid, st.Mode)
		}
		if err := knock(path, 12345); !errors.Is(err, unix.EACCES) {
			t.Errorf("a stranger at %s: %v", path, err)
		}
		if err := knock(path, 0); err != nil {
			t.Errorf("root at %s: %v", path, err)
		}
		if mode != 0o600 {
			continue
		}
		// With the file open the monitor still looks who it is.
		if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(filepath.Dir(path), 0o755)); err != nil {
			t.Fatal(err)
		}
		if err := knock(path, 12345); !errors.Is(err, errShown) {
			t.Errorf("a stranger at the open %s: %v", path, err)
		}
		if err := knock(path, 0); err != nil {
			t.Errorf("root at the open %s: %v", path, err)
		}
	}
}

var errShown = errors.New("the connection was closed at once")

// knock connects to a socket as somebody, and tells why not, or that it was shown the door.
func knock(path string, uid int) error {
	answer := make(chan error)
	go func() {
		// The thread is somebody else from here on, in another directory, and ends with the goroutine.
		runtime.LockOSThread()
		answer <- func() error {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir(filepath.Dir(path))); err != nil {
				return err
			}
			if uid != 0 {
				for _, call := range [][2]uintptr{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, uintptr(uid)}, {unix.SYS_SETRESUID, uintptr(uid)}} {
					first := call[1]
					if call[0] == unix.SYS_SETGROUPS {
						first = 0
					}
					if _, _, errno := syscall.RawSyscall(call[0], first, call[1], call[1]); errno != 0 {
						return errno
					}
				}
			}
			for _, kind := range []int{unix.SOCK_SEQPACKET, unix.SOCK_STREAM} {
				err := connect(filepath.Base(path), kind)
				if !errors.Is(err, unix.EPROTOTYPE) {
					return err
				}
			}
			return unix.EPROTOTYPE
		}()
	}()
	return <-answer
}

func connect(name string, kind int) error {
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(300 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return err
	}
	n, err := unix.Read(fd, make([]byte, 1))
	if n == 0 && err == nil || errors.Is(err, unix.ECONNRESET) {
		return errShown
	}
	return nil
}
