package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformPathsCases() []conformCase {
	return []conformCase{
		{
			name: "devices of users", run: conformUsersDevices,
			proves: []string{"ContainerConfig.devices", "Device.container_path", "Device.host_path", "Device.permissions", "ContainerConfig.CDI_devices"},
		},
		{
			name: "devices that are none", run: conformDevicesRefused,
			refuses: []string{"Device.host_path", "Device.container_path", "Device.permissions"},
		},
		{
			name: "paths that are none", run: conformPathsRefused,
			refuses: []string{
				"Mount.host_path", "Mount.container_path", "ContainerConfig.working_dir", "SecurityProfile.localhost_ref", "PortMapping.host_ip",
			},
		},
		{name: "mounts in the kernel's file systems", run: conformKernelPlaces, refuses: []string{"Mount.container_path"}},
		{name: "files that do not answer", run: conformNoAnswer, refuses: []string{"SecurityProfile.localhost_ref"}},
	}
}

// deviceIn makes a device of memory (mem(4)) in the case's directory.
func (c *conform) deviceIn(dir, name string, minor uint32, mode uint32, owner int) string {
	c.t.Helper()
	path := filepath.Join(dir, name)
	for _, err := range []error{
		unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(1, minor))), os.Chown(path, owner, owner+1), os.Chmod(path, os.FileMode(mode)),
	} {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return path
}

// cdiNodes describes vendor.test/KIND=one, which is nothing but devices.
const cdiNodes = `cdiVersion: "0.7.0"
kind: "vendor.test/%s"
devices:
- name: one
  containerEdits:
    deviceNodes:
    - {path: /dev/thing, hostPath: /dev/zero, permissions: r, uid: 1000, gid: 3000, fileMode: 384}
    - {path: /dev/log, type: c, major: 1, minor: 11, permissions: r, uid: 1000, fileMode: 438}
`

// conformUsersDevices: a node for users is the one that was asked for, whatever the
// machine has at that place, and belongs to who owns it on the machine.
func conformUsersDevices(c *conform) {
	const null, zero, full = 3, 5, 7
	dir := c.t.TempDir()
	own, other := c.deviceIn(dir, "zero-too", zero, 0o600, 0), c.deviceIn(dir, "full-too", full, 0o640, 1000)
	many := filepath.Join(dir, "many")
	if err := os.Mkdir(many, 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.deviceIn(many, "null-too", null, 0o666, 70000)
	kind := fmt.Sprintf("users%d", pods.Add(1))
	for _, variable := range c.env {
		if list, ok := strings.CutPrefix(variable, cdiSpecDirs); ok {
			first, _, _ := strings.Cut(list, ",")
			path := filepath.Join(first, kind+".yaml")
			if err := os.WriteFile(path, fmt.Appendf(nil, cdiNodes, kind), 0o644); err != nil {
				c.t.Fatal(err)
			}
			c.t.Cleanup(func() { _ = os.Remove(path) })
		}
	}
	users := usersFrom(1 << 20)
	box, pod := c.pod(podUsers(users))
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		containerUsers(users, cri.NamespaceMode_CONTAINER)(k)
		k.Devices = []*cri.Device{
			{HostPath: own, ContainerPath: "/dev/kmsg", Permissions: "r"}, {HostPath: other, ContainerPath: "/dev/no/such/on/the/node", Permissions: "rw"},
			{HostPath: own, ContainerPath: own, Permissions: "rw"}, {HostPath: many, ContainerPath: "/dev/many", Permissions: "rwm"},
			{HostPath: "/dev/null", ContainerPath: "/dev/null", Permissions: "rw"},
		}
		k.CDIDevices = []*cri.CDIDevice{{Name: "vendor.test/" + kind + "=one"}}
	})
	for script, want := range map[string]string{
		"stat -c '%t:%T %a %u:%g' /dev/kmsg /dev/no/such/on/the/node " + own: "1:5 600 0:1\n1:7 640 1000:1001\n1:5 600 0:1\n",
		"head -c 2 /dev/kmsg | wc -c; head -c 3 " + own + " | wc -c":         "2\n3\n",
		"echo x 2>&1 > /dev/no/such/on/the/node":                             "sh: write error: No space left on device\n",
		"stat -c '%t:%T %a %u:%g' /dev/many/null-too; echo x > /dev/null":    "1:3 666 0:0\n",
		"stat -c '%t:%T %a %u:%g' /dev/thing; head -c 3 /dev/thing | wc -c":  "1:5 600 1000:3000\n3\n",
		"(echo x >/dev/log) 2>&1 | grep -o 'Operation not'":                  "Operation not\n",
	} {
		c.sees(id, script, want)
	}
	c.removeAndLook(id)
	whole := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		containerUsers(users, cri.NamespaceMode_CONTAINER)(k)
		k.Tty, k.Devices = true, []*cri.Device{{HostPath: "/dev", ContainerPath: "/dev", Permissions: "rw"}}
	})
	c.sees(whole, "stat -c %u /dev/fuse /dev/kmsg; readlink /dev/ptmx; ls /dev/pts/0", "0\n0\npts/ptmx\n/dev/pts/0\n")
	config := c.containerConfig(c.image, "true")
	containerUsers(users, cri.NamespaceMode_CONTAINER)(config)
	config.Devices = []*cri.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/null", Permissions: "r"}}
	_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	c.refused(err, codes.InvalidArgument, "devices", "/dev/null")
}

// removeAndLook: what was mounted for a container is gone with it.
func (c *conform) removeAndLook(id string) {
	c.t.Helper()
	if _, err := c.RemoveContainer(c.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		c.t.Error(err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), id) {
		c.t.Errorf("mounts of %s are left, %v", id, err)
	}
}

// long are paths that no kernel takes.
var longName, longPath = "/" + strings.Repeat("x", 256), strings.Repeat("/x", 2100)

func conformDevicesRefused(c *conform) {
	dir := c.t.TempDir()
	file, loop := filepath.Join(dir, "file"), filepath.Join(dir, "loop")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Symlink(loop, loop); err != nil {
		c.t.Fatal(err)
	}
	box, pod := c.pod(nil)
	for _, tt := range []struct {
		host, inside, access string
		words                []string
	}{
		{"", "/dev/x", "r", []string{"host_path", "empty"}}, {"dev/null", "/dev/x", "r", []string{"host_path", "dev/null", "absolute"}},
		{file, "/dev/x", "r", []string{"host_path", file, "neither"}}, {dir, "/dev/x", "r", []string{"host_path", dir, "no device"}}, {"/dev", "/proc/x", "r", []string{"container_path", "/proc/x"}},
		{"/dev/pts", "/dev/x", "r", []string{"host_path", "/dev/pts"}}, {"/dev/absent", "/dev/x", "r", []string{"host_path", "/dev/absent", "no such file"}},
		{file + "/x", "/dev/x", "r", []string{"host_path", "not a directory"}}, {loop, "/dev/x", "r", []string{"host_path", loop, "symbolic links"}},
		{longName, "/dev/x", "r", []string{"host_path"}}, {longPath, "/dev/x", "r", []string{"host_path"}}, {"/dev/nu\x00ll", "/dev/x", "r", []string{"host_path", "NUL"}},
		{"/dev/null", "", "r", []string{"container_path", "empty"}}, {"/dev/null", "dev/x", "r", []string{"container_path", "dev/x", "absolute"}},
		{"/dev/null", "/proc/x", "r", []string{"container_path", "/proc/x"}}, {"/dev/null", "/sys/x", "r", []string{"container_path", "/sys/x"}},
		{"/dev/null", "/dev/ptmx", "r", []string{"container_path", "/dev/ptmx"}}, {"/dev/null", "/dev/x", "", []string{"permissions", "/dev/x"}},
		{dir, "/dev/x", "rx", []string{"permissions", "rx"}},
	} {
		config := c.containerConfig(c.image, "true")
		config.Devices = []*cri.Device{{HostPath: tt.host, ContainerPath: tt.inside, Permissions: tt.access}}
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, codes.InvalidArgument, append(tt.words, "devices")...)
	}
}

func conformPathsRefused(c *conform) {
	dir := c.t.TempDir()
	file, loop, broken := filepath.Join(dir, "file"), filepath.Join(dir, "loop"), filepath.Join(dir, "broken")
	for path, text := range map[string]string{file: "", broken: "{"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Symlink(loop, loop); err != nil {
		c.t.Fatal(err)
	}
	box, pod := c.pod(nil)
	refused := func(change func(*cri.ContainerConfig), words ...string) {
		c.t.Helper()
		config := c.containerConfig(c.image, "true")
		change(config)
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, codes.InvalidArgument, words...)
	}
	for path, word := range map[string]string{
		file + "/x": "not a directory", loop: "symbolic links", longName: "too long", longPath: "too long", "/tmp/a\x00b": "invalid argument", "/absent": "/absent",
	} {
		refused(func(k *cri.ContainerConfig) { k.Mounts = []*cri.Mount{{HostPath: path, ContainerPath: "/m"}} }, "mounts", "host_path", word)
	}
	for _, path := range []string{longName, longPath, "/a\x00b"} {
		refused(func(k *cri.ContainerConfig) { k.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: path}} }, "mounts", "container_path")
	}
	for path, word := range map[string]string{"/bin/busybox": "/bin/busybox", "/bin/busybox/x": "not a directory", longName: "too long", longPath: "too long", "/a\x00b": "invalid"} {
		refused(func(k *cri.ContainerConfig) { k.WorkingDir = path }, "working_dir", word)
	}
	for path, word := range map[string]string{dir: dir, loop: "symbolic links", file + "/x": "not a directory", "/a\x00b": "invalid", "/dev/zero": "regular", broken: broken} {
		profile := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: path}
		refused(func(k *cri.ContainerConfig) { k.Linux.SecurityContext.Seccomp = profile }, "seccomp", word)
		for _, pid := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD} {
			c.refusedPod(func(p *cri.PodSandboxConfig) {
				p.Linux.SecurityContext.Seccomp, p.Linux.SecurityContext.NamespaceOptions.Pid = profile, pid
			}, "seccomp", "localhost_ref", word)
		}
	}
	c.refusedPod(func(p *cri.PodSandboxConfig) {
		p.PortMappings = []*cri.PortMapping{{ContainerPort: 1, HostPort: 1, HostIp: "fe80::1%eth0"}}
	}, "port_mappings.host_ip", "fe80::1%eth0", "zone")
}

// conformKernelPlaces: what is made starts, what would not start is not made.
func conformKernelPlaces(c *conform) {
	dir := c.t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("ours\n"), 0o644); err != nil {
		c.t.Fatal(err)
	}
	box, pod := c.pod(nil)
	for _, tt := range []struct {
		host, inside string
		runc, crun   bool
	}{
		{file, "/proc/cpuinfo", true, true}, {file, "/proc/version", false, true}, {file, "/proc/absent", false, false},
		{dir, "/proc/cpuinfo", false, false}, {dir, "/proc", false, true}, {"/proc", "/proc", true, true}, {dir, "/sys/kernel", true, true},
		{dir, "/sys/absent", false, false}, {file, "/sys/kernel", false, false}, {"/sys", "/sys", true, true},
	} {
		config := c.containerConfig(c.image, "true")
		config.Mounts = []*cri.Mount{{HostPath: tt.host, ContainerPath: tt.inside}}
		made, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		if want := tt.runc && c.handler == "runc" || tt.crun && c.handler == "crun"; !want {
			c.refused(err, codes.InvalidArgument, "mounts", "container_path", tt.inside)
			continue
		}
		if err != nil {
			c.t.Errorf("%s at %s: %v", tt.host, tt.inside, err)
			continue
		}
		if _, err := c.StartContainer(c.ctx(), &cri.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
			c.t.Errorf("%s at %s: %v", tt.host, tt.inside, err)
		}
	}
}

// conformNoAnswer: a pipe that nobody writes holds nobody up.
func conformNoAnswer(c *conform) {
	pipe := filepath.Join(c.t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		c.t.Fatal(err)
	}
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, "true")
	config.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: pipe}
	ctx, cancel := context.WithTimeout(c.ctx(), 20*time.Second)
	defer cancel()
	_, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	c.refused(err, codes.InvalidArgument, "seccomp", pipe, "regular")
	sandbox := c.podConfig()
	sandbox.Linux.SecurityContext.Seccomp = config.Linux.SecurityContext.Seccomp
	_, err = c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	c.refused(err, codes.InvalidArgument, "seccomp", pipe, "regular")
}
