package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformUsersCases() []conformCase {
	const options = "NamespaceOption.userns_options"
	return []conformCase{
		{
			name: "users own what is in the pod", run: conformUsersOwn,
			proves: []string{options, "UserNamespace.mode", "UserNamespace.uids", "UserNamespace.gids", "IDMapping.host_id", "IDMapping.length"},
		},
		{
			name: "user namespaces that are refused", run: conformUsersRefused,
			refuses: []string{
				options, "UserNamespace.mode", "UserNamespace.uids", "UserNamespace.gids", "IDMapping.host_id", "IDMapping.container_id",
				"IDMapping.length", "Mount.uidMappings", "Mount.gidMappings",
			},
		},
		{name: "users on the host network", run: conformUsersHostNetwork, proves: []string{"RuntimeFeatures.user_namespaces_host_network"}},
		{name: "users who share processes", run: conformUsersShare, proves: []string{options}},
		{name: "users of mounts", run: conformUsersMounts, proves: []string{"Mount.uidMappings", "Mount.gidMappings", "IDMapping.container_id"}},
		{name: "users with powers", run: conformUsersPrivileged, proves: []string{options}},
		{name: "status tells of users", run: conformUsersStatus, proves: []string{"RuntimeHandlerFeatures.user_namespaces"}},
	}
}

const mappedLength = 64 << 10

// usersFrom is a user namespace as the kubelet makes them.
func usersFrom(host uint32) *cri.UserNamespace {
	return &cri.UserNamespace{
		Mode: cri.NamespaceMode_POD,
		Uids: []*cri.IDMapping{{HostId: host, Length: mappedLength}}, Gids: []*cri.IDMapping{{HostId: host + mappedLength, Length: mappedLength}},
	}
}

func containerUsers(users *cri.UserNamespace, pid cri.NamespaceMode) func(*cri.ContainerConfig) {
	return func(config *cri.ContainerConfig) {
		config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		config.Linux.SecurityContext.NamespaceOptions.Pid = pid
	}
}

func podUsers(users *cri.UserNamespace) func(*cri.PodSandboxConfig) {
	return func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users }
}

// wantOwner looks from the node at what a container has made.
func (c *conform) wantOwner(path string, uid, gid uint32) {
	c.t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		c.t.Error(err)
		return
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		c.t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// upper is the directory on the node with what a container in a user namespace has written.
func (c *conform) upper(id string) string {
	c.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, c.path("run/containers/"+id+"/rootfs")) {
			_, rest, _ := strings.Cut(line, "upperdir=")
			path, _, _ := strings.Cut(rest, ",")
			if !filepath.IsAbs(path) {
				path = filepath.Join(c.layers(), path)
			}
			return path
		}
	}
	c.t.Fatalf("the root file system of %s is not mounted", id)
	return ""
}

// Root inside is root of the image's files and of the pod's namespaces, and nobody on
// the node. Pods with other maps share the image.
func conformUsersOwn(c *conform) {
	for _, base := range []uint32{1 << 20, 1 << 24} {
		users := usersFrom(base)
		box, pod := c.pod(func(p *cri.PodSandboxConfig) {
			podUsers(users)(p)
			p.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "kernel.shmmni": "77"}
		})
		config := c.containerConfig(c.image, shell("echo out > /dev/stdout; echo err > /dev/stderr; exec sleep 3600")...)
		config.WorkingDir = "/made/for/it"
		config.Linux.SecurityContext.SupplementalGroups = []int64{2000}
		config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		id := c.runContainer(box, pod, config)
		c.awaitLog(logOf(pod, config), "stdout F out")
		c.awaitLog(logOf(pod, config), "stderr F err")
		c.sees(id, "tr -s ' ' < /proc/self/uid_map", fmt.Sprintf(" 0 %d %d\n", base, mappedLength))
		c.sees(id, "tr -s ' ' < /proc/self/gid_map", fmt.Sprintf(" 0 %d %d\n", base+mappedLength, mappedLength))
		c.sees(id, "id -u; id -G", "0\n0 2000\n")
		c.sees(id, "stat -c %u:%g / /etc /bin/busybox . /dev/shm /etc/resolv.conf", strings.Repeat("0:0\n", 6))
		c.sees(id, "pwd; touch f; chown 77:78 f; stat -c %u:%g f", "/made/for/it\n77:78\n")
		c.sees(id, "echo x > /bin/new && rm /bin/yes && cat /bin/new", "x\n")
		c.sees(id, "touch /dev/shm/x && echo x >> /etc/hosts && echo > /dev/null && echo ok", "ok\n")
		c.sees(id, "cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname", "77\n1024\n"+pod.Hostname+"\n")
		c.sees(id, "nc -l -p 80 & sleep 0.2; netstat -ltn | grep -c :80", "1\n")
		c.sees(id, "echo x > /dev/stdout", "x\n")
		c.sees(id, "ls -d /sys/class/net/eth0; grep -c ' /sys sysfs ro' /proc/mounts", "/sys/class/net/eth0\n1\n")
		// Its limits are its own (CVE-2025-47291).
		c.sees(id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", "67108864\n")
		upper := c.upper(id)
		c.wantOwner(upper+"/made/for/it", base, base+mappedLength)
		c.wantOwner(upper+"/made/for/it/f", base+77, base+mappedLength+78)
		c.wantOwner(upper+"/bin/new", base, base+mappedLength)
		for _, kind := range []string{"user", "net", "ipc", "uts"} {
			own, err := os.Readlink("/proc/self/ns/" + kind)
			if inside := strings.TrimSpace(string(c.exec(id, "readlink", "/proc/self/ns/"+kind).GetStdout())); err != nil || inside == own || inside == "" {
				c.t.Errorf("%s namespace %q, the node's is %q, %v", kind, inside, own, err)
			}
		}
		if got := c.sandbox(box).GetLinux().GetNamespaces().GetOptions().GetUsernsOptions(); got.String() != users.String() {
			c.t.Errorf("sandbox status: %v", got)
		}
	}
}

func conformUsersRefused(c *conform) {
	const base = 1 << 20
	for _, tt := range []struct {
		change func(*cri.NamespaceOption)
		words  []string
	}{
		{func(o *cri.NamespaceOption) {
			o.UsernsOptions.Uids = append(o.UsernsOptions.Uids, o.UsernsOptions.Uids[0])
		}, []string{"userns_options.uids", "2 mappings"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Gids = nil }, []string{"userns_options.gids", "0 mappings"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].Length = 0 }, []string{"userns_options.uids", "length"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 1<<32 - 1 }, []string{"userns_options.gids", "host_id"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 2 }, []string{"userns_options.uids", "host_id"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 }, []string{"userns_options.uids", "container_id"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_CONTAINER }, []string{"userns_options.mode", "CONTAINER"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_TARGET }, []string{"userns_options.mode", "TARGET"}},
		{func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_NODE }, []string{"userns_options", "NODE has no mappings"}},
		{func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE }, []string{"namespace_options.pid", "userns_options"}},
		{func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE }, []string{"namespace_options.ipc", "userns_options"}},
	} {
		c.refusedPod(func(p *cri.PodSandboxConfig) {
			podUsers(usersFrom(base))(p)
			tt.change(p.Linux.SecurityContext.NamespaceOptions)
		}, tt.words...)
	}
	c.refusedPod(func(p *cri.PodSandboxConfig) {
		podUsers(usersFrom(base))(p)
		p.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: mappedLength}
	}, "user 65536")
	node := &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
	c.refusedContainer(containerUsers(usersFrom(base), cri.NamespaceMode_CONTAINER), "userns_options", "the node's")
	box, pod := c.pod(podUsers(usersFrom(base)))
	one := []*cri.IDMapping{{Length: 1}}
	for _, tt := range []struct {
		change func(*cri.ContainerConfig)
		words  []string
	}{
		{containerUsers(nil, cri.NamespaceMode_CONTAINER), []string{"userns_options", "the node's"}},
		{containerUsers(node, cri.NamespaceMode_CONTAINER), []string{"userns_options", "the node's"}},
		{containerUsers(usersFrom(base+1), cri.NamespaceMode_CONTAINER), []string{"userns_options", "1048577"}},
		{containerUsers(usersFrom(base), cri.NamespaceMode_NODE), []string{"namespace_options.pid"}},
		{func(k *cri.ContainerConfig) {
			containerUsers(usersFrom(base), cri.NamespaceMode_CONTAINER)(k)
			k.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: mappedLength}
		}, []string{"user 65536"}},
		{func(k *cri.ContainerConfig) {
			containerUsers(usersFrom(base), cri.NamespaceMode_CONTAINER)(k)
			k.Linux.SecurityContext.SupplementalGroups = []int64{mappedLength}
		}, []string{"group 65536"}},
		{func(k *cri.ContainerConfig) {
			containerUsers(usersFrom(base), cri.NamespaceMode_CONTAINER)(k)
			k.Mounts = []*cri.Mount{{HostPath: c.t.TempDir(), ContainerPath: "/m", UidMappings: one}}
		}, []string{"mounts: uidMappings", "gidMappings", "/m"}},
		{func(k *cri.ContainerConfig) {
			containerUsers(usersFrom(base), cri.NamespaceMode_CONTAINER)(k)
			k.Mounts = []*cri.Mount{{HostPath: c.t.TempDir(), ContainerPath: "/m", GidMappings: one}}
		}, []string{"mounts: gidMappings", "uidMappings", "/m"}},
		{func(k *cri.ContainerConfig) {
			containerUsers(usersFrom(base), cri.NamespaceMode_CONTAINER)(k)
			k.Mounts = []*cri.Mount{{HostPath: c.t.TempDir(), ContainerPath: "/m", UidMappings: one, GidMappings: []*cri.IDMapping{{}}}}
		}, []string{"mounts: gidMappings", "length"}},
	} {
		config := c.containerConfig(c.image, "sleep", "3600")
		tt.change(config)
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, codes.InvalidArgument, tt.words...)
	}
	// NODE is the same as nothing.
	box, pod = c.pod(podUsers(node))
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		c.t.Fatal(err)
	}
	c.sees(c.sleeperIn(box, pod, nil), "readlink /proc/self/ns/user", own+"\n")
}

func conformUsersHostNetwork(c *conform) {
	users := usersFrom(1 << 20)
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		podUsers(users)(p)
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		containerUsers(users, cri.NamespaceMode_CONTAINER)(k)
		k.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	net, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		c.t.Fatal(err)
	}
	c.sees(id, "readlink /proc/self/ns/net; tr -s ' ' < /proc/self/uid_map", net+fmt.Sprintf("\n 0 %d %d\n", 1<<20, mappedLength))
	c.sees(id, "ls -d /sys/class/net/lo; grep ' /sys ' /proc/mounts | cut -d' ' -f2-4 | grep -c ' ro,'", "/sys/class/net/lo\n1\n")
	c.sees(id, "touch /new; ip link add x type bridge 2>/dev/null || echo refused", "refused\n")
}

func conformUsersShare(c *conform) {
	users := usersFrom(1 << 20)
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		podUsers(users)(p)
		p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		p.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 7}
	})
	first := c.sleeperIn(box, pod, containerUsers(users, cri.NamespaceMode_POD))
	c.sleeperIn(box, pod, containerUsers(users, cri.NamespaceMode_POD))
	c.sees(first, "ps | grep -c 'sleep 360[0]'; ps | grep -c '/paus[e]'; stat -c %u:%g /proc/1", "2\n1\n7:0\n")

	box, pod = c.pod(podUsers(users))
	target := c.sleeperIn(box, pod, containerUsers(users, cri.NamespaceMode_CONTAINER))
	joins := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		containerUsers(users, cri.NamespaceMode_TARGET)(k)
		k.Linux.SecurityContext.NamespaceOptions.TargetId = target
	})
	c.sees(joins, "ps | grep -c 'sleep 360[0]'; ls -d /proc/1/root/bin", "2\n/proc/1/root/bin\n")
}

// What a volume's owner is on the node, the same user is inside of an idmapped mount; in
// another one the node's files are nobody's.
func conformUsersMounts(c *conform) {
	const base = 1 << 20
	users := usersFrom(base)
	host := filepath.Join(c.t.TempDir(), "closed")
	for _, dir := range []string{host, host + "/volume", host + "/plain"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			c.t.Fatal(err)
		}
	}
	for name, owner := range map[string]int{"volume": 1000, "volume/file": 1000, "plain/file": 0} {
		path := filepath.Join(host, name)
		if strings.HasSuffix(name, "file") {
			if err := os.WriteFile(path, []byte("text\n"), 0o644); err != nil {
				c.t.Fatal(err)
			}
		}
		if err := os.Chown(path, owner, owner); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Chmod(host+"/plain", 0o755); err != nil {
		c.t.Fatal(err)
	}
	box, pod := c.pod(podUsers(users))
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		containerUsers(users, cri.NamespaceMode_CONTAINER)(k)
		k.Linux.SecurityContext.RunAsUser, k.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 1000}
		k.Mounts = []*cri.Mount{
			{HostPath: host + "/volume", ContainerPath: "/volume", UidMappings: users.Uids, GidMappings: users.Gids},
			{HostPath: host + "/volume", ContainerPath: "/fixed", UidMappings: users.Uids, GidMappings: users.Gids, Readonly: true},
			{HostPath: host + "/volume/file", ContainerPath: "/one", UidMappings: users.Uids, GidMappings: users.Gids},
			{HostPath: host + "/plain", ContainerPath: "/plain"},
		}
	})
	c.sees(id, "stat -c %u:%g /volume /volume/file /fixed/file /one /plain/file", strings.Repeat("1000:1000\n", 4)+"65534:65534\n")
	c.sees(id, "cat /plain/file; echo new > /volume/new; touch /fixed/x 2>/dev/null || echo refused", "text\nrefused\n")
	c.wantOwner(host+"/volume/new", 1000, 1000)
	mounts := c.container(id).GetMounts()
	if len(mounts) != 4 || len(mounts[0].GetUidMappings()) != 1 || mounts[0].GetUidMappings()[0].GetHostId() != base {
		c.t.Errorf("status: %v", mounts)
	}
}

// A privileged container has all capabilities, over its own user namespace only.
func conformUsersPrivileged(c *conform) {
	users := usersFrom(1 << 20)
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		podUsers(users)(p)
		p.Linux.SecurityContext.Privileged = true
	})
	id := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		containerUsers(users, cri.NamespaceMode_CONTAINER)(k)
		k.Linux.SecurityContext.Privileged = true
		k.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: -997, MemoryLimitInBytes: 64 << 20}
	})
	c.sees(id, "mkdir /m; mount -t tmpfs none /m && echo mounted; echo 1 > /proc/sys/kernel/panic 2>/dev/null || echo refused", "mounted\nrefused\n")
	c.sees(id, "ls -d /dev/kmsg /dev/null", "/dev/kmsg\n/dev/null\n")
	terminal := c.containerConfig(c.image, shell("tty; stat -c %u:%g $(tty); exec sleep 3600")...)
	containerUsers(users, cri.NamespaceMode_CONTAINER)(terminal)
	terminal.Linux.SecurityContext.Privileged, terminal.Tty = true, true
	c.runContainer(box, pod, terminal)
	c.awaitLog(logOf(pod, terminal), "/dev/pts/0")
	c.awaitLog(logOf(pod, terminal), "0:5")
}

func conformUsersStatus(c *conform) {
	a, err := c.Status(c.ctx(), &cri.StatusRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	if !a.GetFeatures().GetUserNamespacesHostNetwork() {
		c.t.Error("user_namespaces_host_network is not told")
	}
	for _, h := range a.GetRuntimeHandlers() {
		if !h.GetFeatures().GetUserNamespaces() {
			c.t.Errorf("handler %q does not tell user_namespaces", h.GetName())
		}
	}
}
