package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/apparmor"
)

func conformSecurityCases() []conformCase {
	return []conformCase{
		{name: "privileged", run: conformPrivileged, proves: []string{"LinuxContainerSecurityContext.privileged", "LinuxSandboxSecurityContext.privileged"}},
		{
			name: "privileged needs a privileged pod", run: conformPrivilegedPod, proves: []string{"LinuxSandboxSecurityContext.privileged"},
			refuses: []string{"LinuxContainerSecurityContext.privileged"},
		},
		{
			name: "mount propagation", run: conformPropagation, proves: []string{"Mount.propagation"},
		},
		{
			name: "mount propagation needs the source's mount", run: conformPropagationOfSource, proves: []string{"Mount.propagation"},
			refuses: []string{"Mount.propagation"},
		},
		{
			name: "mount options", run: conformMountOptions, proves: []string{"Mount.mount_options", "RuntimeFeatures.mount_options", "StatusResponse.features"},
			refuses: []string{"Mount.mount_options"},
		},
		{
			name: "CDI devices", run: conformCDI, proves: []string{"ContainerConfig.CDI_devices", "CDIDevice.name"},
			refuses: []string{"ContainerConfig.CDI_devices", "CDIDevice.name"},
		},
		{
			name: "apparmor", run: conformAppArmor,
			proves:  []string{"LinuxContainerSecurityContext.apparmor", "LinuxContainerSecurityContext.apparmor_profile", "SecurityProfile.localhost_ref"},
			refuses: []string{"LinuxContainerSecurityContext.apparmor", "LinuxContainerSecurityContext.apparmor_profile", "SecurityProfile.localhost_ref"},
		},
	}
}

// conformPrivileged looks for the eight effects that the proto lists, next to a container
// that asks for the same without being privileged. AppArmor and SELinux have tests of
// their own, since they need another kernel.
func conformPrivileged(c *conform) {
	box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
	made := func(privileged bool) string {
		return c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
			s := k.Linux.SecurityContext
			s.Privileged = privileged
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"CHOWN"}, AddCapabilities: []string{"MKNOD"}}
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/uptime"}, []string{"/proc/sys"}
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		})
	}
	with, without := made(true), made(false)
	held, err := os.ReadFile("/proc/self/status")
	if err != nil {
		c.t.Fatal(err)
	}
	_, all, _ := strings.Cut(string(held), "CapBnd:\t")
	all, _, _ = strings.Cut(all, "\n")
	for script, want := range map[string]struct{ with, without string }{
		// 1: what the daemon holds is all that there is to give.
		"awk '/^CapEff/ {print $2 == \"" + all + "\"}' /proc/self/status": {"1\n", "0\n"},
		// 2
		"test -s /proc/uptime || cat /proc/uptime | wc -w": {"2\n", "0\n"},
		// 3
		"awk '$5 == \"/sys\" || $5 == \"/proc/sys\" {print $5, substr($6, 1, 2)}' /proc/self/mountinfo": {"/sys rw\n", "/sys ro\n/proc/sys ro\n"},
		": >> /proc/sys/kernel/panic && echo opened":                                                    {"opened\n", ""},
		// 4
		"grep -c crio-default /proc/self/attr/current": {"0\n", map[bool]string{true: "1\n", false: "0\n"}[apparmor.Enabled()]},
		// 5
		"awk '/^Seccomp:/ {print $2}' /proc/self/status": {"0\n", "2\n"},
		// 6
		"mknod /k c 1 11 && : > /k && echo opened": {"opened\n", ""},
	} {
		c.sees(with, script, want.with)
		c.sees(without, script, want.without)
	}
	// 7: all of the node's, by type and number.
	nodes, err := filepath.Glob("/dev/*")
	if err != nil {
		c.t.Fatal(err)
	}
	more := 0
	list := string(c.exec(with, shell("stat -c '%n %t:%T' /dev/*")...).GetStdout())
	fewer := string(c.exec(without, shell("stat -c '%n %t:%T' /dev/*")...).GetStdout())
	for _, path := range nodes {
		var st unix.Stat_t
		kind := uint32(0)
		if err := unix.Lstat(path, &st); err == nil {
			kind = st.Mode & unix.S_IFMT
		}
		if kind != unix.S_IFCHR && kind != unix.S_IFBLK || path == "/dev/console" || path == "/dev/ptmx" { // of which each container has its own
			continue
		}
		line := fmt.Sprintf("%s %x:%x\n", path, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		if !strings.Contains(list, line) {
			c.t.Errorf("%q is not in the privileged container:\n%s", line, list)
		}
		if !strings.Contains(fewer, path+" ") {
			more++
		}
	}
	if more == 0 {
		c.t.Error("the container that is not privileged has all of the node's devices, too")
	}
}

func conformPrivilegedPod(c *conform) {
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Linux.SecurityContext.Privileged = true }, "privileged")
	// A pod that may have privileged containers may have others.
	box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
	c.sees(c.sleeperIn(box, pod, nil), "ls /dev/kmsg; awk '$5 == \"/sys\" {print substr($6, 1, 2)}' /proc/self/mountinfo", "ro\n")
}

// mountHere mounts in the tests' own namespace; the caller unmounts.
func (c *conform) mountHere(source, target, kind string, propagation uintptr) (unmount func()) {
	c.t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		c.t.Fatal(err)
	}
	flags := uintptr(0)
	if kind == "" {
		flags = unix.MS_BIND
	}
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		c.t.Fatalf("mount %s: %v", target, err)
	}
	if propagation != 0 {
		if err := unix.Mount("", target, "", propagation|unix.MS_REC, ""); err != nil {
			c.t.Fatal(err)
		}
	}
	return func() { _ = unix.Unmount(target, unix.MNT_DETACH) }
}

const (
	private       = cri.MountPropagation_PROPAGATION_PRIVATE
	fromNode      = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// What is mounted on the node later appears inside, or not, and for BIDIRECTIONAL what
// the container mounts appears on the node.
func conformPropagation(c *conform) {
	dir := c.t.TempDir()
	shared, slave := filepath.Join(dir, "shared"), filepath.Join(dir, "slave")
	defer c.mountHere("node", shared, "tmpfs", unix.MS_SHARED)()
	defer c.mountHere(shared, slave, "", unix.MS_SLAVE)()
	box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		k.Linux.SecurityContext.Privileged = true
		k.Mounts = []*cri.Mount{
			{HostPath: shared, ContainerPath: "/private", Propagation: private},
			{HostPath: shared, ContainerPath: "/told", Propagation: fromNode},
			{HostPath: slave, ContainerPath: "/slave", Propagation: fromNode},
			{HostPath: shared, ContainerPath: "/both", Propagation: bidirectional},
		}
	})
	defer c.mountHere("later", shared+"/later", "tmpfs", 0)()
	for place, want := range map[string]string{"private": "0\n", "told": "1\n", "slave": "1\n", "both": "1\n"} {
		c.sees(id, "grep -c ' /"+place+"/later ' /proc/self/mountinfo", want)
	}
	onNode := func(path string) bool {
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			c.t.Fatal(err)
		}
		return strings.Contains(string(data), " "+path+" ")
	}
	for place, want := range map[string]bool{"private": false, "told": false, "both": true} {
		c.sees(id, fmt.Sprintf("mkdir -p /%s/of-%s && mount -t tmpfs inner /%s/of-%s && echo mounted", place, place, place, place), "mounted\n")
		if reached := onNode(shared + "/of-" + place); reached != want {
			c.t.Errorf("what is mounted in /%s reaches the node: %t, want %t", place, reached, want)
		}
	}
	c.sees(id, "umount /both/of-both", "")
	if onNode(shared + "/of-both") {
		c.t.Error("what was unmounted in the container is still mounted on the node")
	}
}

// The source's own mount decides, not one whose path begins alike; the refusal says
// which mount it is and what to do.
func conformPropagationOfSource(c *conform) {
	dir := c.t.TempDir()
	alike, longer, slave := filepath.Join(dir, "a"), filepath.Join(dir, "ab"), filepath.Join(dir, "slave")
	defer c.mountHere("alike", alike, "tmpfs", unix.MS_SHARED)()
	defer c.mountHere("longer", longer, "tmpfs", unix.MS_PRIVATE)()
	defer c.mountHere(alike, slave, "", unix.MS_SLAVE)()
	if err := os.Mkdir(longer+"/in", 0o755); err != nil {
		c.t.Fatal(err)
	}
	box, pod := c.pod(nil)
	for _, tt := range []struct {
		source      string
		propagation cri.MountPropagation
		refused     string
	}{
		{alike, fromNode, ""},
		{alike, bidirectional, ""},
		{slave, fromNode, ""},
		{slave, bidirectional, "is on the mount " + slave + ", which is not shared: run mount --make-rshared " + slave},
		{longer + "/in", private, ""},
		{longer + "/in", fromNode, "is on the mount " + longer + ", which is not shared or a slave: run mount --make-rshared " + longer},
		{longer + "/in", bidirectional, "is on the mount " + longer + ", which is not shared: run mount --make-rshared " + longer},
	} {
		config := c.containerConfig(c.image, "true")
		config.Mounts = []*cri.Mount{{HostPath: tt.source, ContainerPath: "/data", Propagation: tt.propagation}}
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		if tt.refused == "" {
			c.refused(err, codes.OK)
		} else {
			c.refused(err, codes.FailedPrecondition, "propagation", tt.source, tt.refused)
		}
	}
	c.refusedContainer(func(k *cri.ContainerConfig) {
		k.Mounts = []*cri.Mount{{HostPath: alike, ContainerPath: "/data", Propagation: 9}}
	}, "propagation", "/data")
}

// conformMountOptions runs a program, opens a device and gets an owner's rights on the
// same directory, mounted with each option.
func conformMountOptions(c *conform) {
	s, err := c.Status(c.ctx(), &cri.StatusRequest{})
	if err != nil || !s.GetFeatures().GetMountOptions() {
		c.t.Fatalf("mount_options is not promised: %v, %v", s, err)
	}
	host := c.t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(host+"/run", []byte("#!/bin/sh\necho ran\n"), 0o755),
		unix.Mknod(host+"/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))), os.Chmod(host+"/zero", 0o666),
		// Of busybox's commands this one insists on being root by its mode.
		os.WriteFile(host+"/crontab", busybox, 0o755), os.Chmod(host+"/crontab", 0o755|os.ModeSetuid),
	} {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	options := map[string][]string{
		"plain": nil, "noexec": {"noexec"}, "nodev": {"nodev"}, "nosuid": {"nosuid"}, "all": {"noexec", "nodev", "nosuid"},
	}
	id := c.sleeper(func(k *cri.ContainerConfig) {
		k.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		for place, o := range options {
			k.Mounts = append(k.Mounts, &cri.Mount{HostPath: host, ContainerPath: "/" + place, MountOptions: o, Readonly: place == "all"})
		}
	})
	for command, want := range map[string]map[string]bool{
		"$at/run":            {"plain": true, "noexec": false, "nodev": true, "nosuid": true, "all": false},
		"head -c 1 $at/zero": {"plain": true, "noexec": true, "nodev": false, "nosuid": true, "all": false},
		"$at/crontab -l 2>&1 | grep -v -e suid -e denied | grep crontab": {"plain": true, "noexec": false, "nodev": true, "nosuid": false, "all": false},
	} {
		for place, works := range want {
			if got := c.exec(id, shell("at=/"+place+"; "+command)...); (got.GetExitCode() == 0) != works {
				c.t.Errorf("%s in /%s: exit code %d, %s%s", command, place, got.GetExitCode(), got.GetStdout(), got.GetStderr())
			}
		}
	}
	for _, option := range []string{"suid", "ro", "nodev,exec", ""} {
		c.refusedContainer(func(k *cri.ContainerConfig) {
			k.Mounts = []*cri.Mount{{HostPath: host, ContainerPath: "/data", MountOptions: []string{option}}}
		}, "mount_options", fmt.Sprintf("%q", option))
	}
}

// conformAppArmor is what every kernel can show: TestAppArmorConfines needs one with AppArmor.
func conformAppArmor(c *conform) {
	confined := ""
	if apparmor.Enabled() {
		confined = apparmor.DefaultProfile
	}
	for _, tt := range []struct {
		profile *cri.SecurityProfile
		old     string
		want    string
	}{
		{nil, "", confined}, {appArmorProfile(cri.SecurityProfile_RuntimeDefault, ""), "", confined}, {nil, "runtime/default", confined},
		{appArmorProfile(cri.SecurityProfile_Unconfined, ""), "localhost/absent", ""}, {nil, "unconfined", ""},
	} {
		id := c.sleeper(func(k *cri.ContainerConfig) {
			//lint:ignore SA1019 older kubelets send it
			k.Linux.SecurityContext.Apparmor, k.Linux.SecurityContext.ApparmorProfile = tt.profile, tt.old
		})
		c.sees(id, "cat /proc/self/attr/current 2>/dev/null | grep -o "+apparmor.DefaultProfile, strings.TrimLeft(tt.want+"\n", "\n"))
	}
	old := func(name string) func(*cri.ContainerConfig) {
		return func(k *cri.ContainerConfig) {
			//lint:ignore SA1019 older kubelets send it
			k.Linux.SecurityContext.ApparmorProfile = name
		}
	}
	c.refusedContainer(old("localhost/crio-test-absent"), "apparmor", "crio-test-absent")
	c.refusedContainer(old("nonsense"), "apparmor_profile", "nonsense")
	for _, p := range []*cri.SecurityProfile{
		appArmorProfile(cri.SecurityProfile_Localhost, "crio-test-absent"), appArmorProfile(cri.SecurityProfile_Localhost, ""),
		appArmorProfile(cri.SecurityProfile_RuntimeDefault, "crio-test-absent"), appArmorProfile(7, ""),
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Linux.SecurityContext.Apparmor = p }, "apparmor")
	}
}
