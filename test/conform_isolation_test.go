package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformIsolationCases() []conformCase {
	return []conformCase{
		{
			name: "network, IPC and PID namespaces", run: conformNamespaces,
			proves: []string{
				"LinuxPodSandboxConfig.security_context", "LinuxSandboxSecurityContext.namespace_options", "LinuxContainerSecurityContext.namespace_options",
				"NamespaceOption.network", "NamespaceOption.ipc", "NamespaceOption.pid", "NamespaceOption.target_id",
			},
			refuses: []string{"NamespaceOption.network", "NamespaceOption.ipc", "NamespaceOption.pid", "NamespaceOption.target_id"},
		},
		{
			name: "the pause process", run: conformPause,
			proves: []string{
				"LinuxSandboxSecurityContext.run_as_user", "LinuxSandboxSecurityContext.run_as_group", "LinuxSandboxSecurityContext.supplemental_groups",
				"LinuxSandboxSecurityContext.supplemental_groups_policy", "LinuxSandboxSecurityContext.readonly_rootfs",
				"LinuxSandboxSecurityContext.seccomp", "LinuxSandboxSecurityContext.seccomp_profile_path",
			},
			refuses: []string{
				"LinuxSandboxSecurityContext.run_as_user", "LinuxSandboxSecurityContext.run_as_group", "LinuxSandboxSecurityContext.supplemental_groups",
				"LinuxSandboxSecurityContext.supplemental_groups_policy", "LinuxSandboxSecurityContext.seccomp", "LinuxSandboxSecurityContext.seccomp_profile_path",
				"PodSandboxConfig.windows",
			},
		},
		{
			name: "sysctls", run: conformSysctls,
			proves: []string{"LinuxPodSandboxConfig.sysctls"}, refuses: []string{"LinuxPodSandboxConfig.sysctls"},
		},
		{
			name: "ports of the node", run: conformPorts,
			proves: []string{
				"PodSandboxConfig.port_mappings", "PortMapping.protocol", "PortMapping.container_port", "PortMapping.host_port", "PortMapping.host_ip",
			},
			refuses: []string{"PortMapping.protocol", "PortMapping.container_port", "PortMapping.host_port", "PortMapping.host_ip"},
		},
		{
			name: "capabilities", run: conformCapabilities,
			proves: []string{
				"LinuxContainerSecurityContext.capabilities", "Capability.add_capabilities", "Capability.drop_capabilities", "Capability.add_ambient_capabilities",
			},
			refuses: []string{"Capability.add_capabilities", "Capability.drop_capabilities", "Capability.add_ambient_capabilities"},
		},
		{
			name: "no new privileges and a read-only root", run: conformPrivileges,
			proves: []string{"LinuxContainerSecurityContext.no_new_privs", "LinuxContainerSecurityContext.readonly_rootfs"},
		},
		{
			name: "masked and read-only paths", run: conformPaths,
			proves: []string{"LinuxContainerSecurityContext.masked_paths", "LinuxContainerSecurityContext.readonly_paths"},
		},
		{
			name: "seccomp", run: conformSeccomp,
			proves: []string{
				"LinuxContainerSecurityContext.seccomp", "LinuxContainerSecurityContext.seccomp_profile_path", "SecurityProfile.profile_type",
				"SecurityProfile.localhost_ref",
			},
			refuses: []string{"LinuxContainerSecurityContext.seccomp", "LinuxContainerSecurityContext.seccomp_profile_path", "SecurityProfile.profile_type", "SecurityProfile.localhost_ref"},
		},
		{
			name: "devices", run: conformDevices,
			proves:  []string{"ContainerConfig.devices", "Device.container_path", "Device.host_path", "Device.permissions"},
			refuses: []string{"Device.host_path", "Device.permissions"},
		},
		{
			name: "both families of addresses", run: conformAddresses,
			proves: []string{"PodSandboxNetworkStatus.additional_ips", "PodIP.ip"},
		},
		{name: "the pod's configuration, again", run: conformSandboxConfig, proves: []string{"CreateContainerRequest.sandbox_config"}},
		{name: "a node without a network", run: conformNotReady, proves: []string{"RuntimeCondition.reason", "RuntimeCondition.message"}},
	}
}

const readNamespaces = "for kind in net ipc pid uts; do readlink /proc/self/ns/$kind; done"

// namespacesOf are the node's own where the pod asks for NODE.
func ownNamespaces(c *conform, kinds ...string) (all []string) {
	for _, kind := range kinds {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, own)
	}
	return all
}

func conformNamespaces(c *conform) {
	inside := func(id string) []string {
		return strings.Fields(string(c.exec(id, shell(readNamespaces)...).GetStdout()))
	}
	// Each container has processes of its own, and shares the rest with its pod.
	box, pod := c.pod(nil)
	first, second := c.sleeperIn(box, pod, nil), c.sleeperIn(box, pod, nil)
	a, b, node := inside(first), inside(second), ownNamespaces(c, "net", "ipc", "pid", "uts")
	for i, kind := range []string{"net", "ipc", "pid", "uts"} {
		if shared := kind != "pid"; (a[i] == b[i]) != shared || a[i] == node[i] {
			c.t.Errorf("%s: %s, %s, the node's is %s", kind, a[i], b[i], node[i])
		}
	}
	target := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		k.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: first}
	})
	if got := inside(target); got[2] != a[2] {
		c.t.Errorf("the target's pid namespace is %s, want %s", got[2], a[2])
	}
	shared, sharedPod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	one := func(k *cri.ContainerConfig) { k.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD }
	a, b = inside(c.sleeperIn(shared, sharedPod, one)), inside(c.sleeperIn(shared, sharedPod, one))
	if a[2] != b[2] || a[2] == node[2] {
		c.t.Errorf("pid namespaces %s and %s of one pod", a[2], b[2])
	}
	all := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	host, hostPod := c.pod(func(p *cri.PodSandboxConfig) { p.Hostname, p.Linux.SecurityContext.NamespaceOptions = "", all })
	if got := inside(c.sleeperIn(host, hostPod, func(k *cri.ContainerConfig) { k.Linux.SecurityContext.NamespaceOptions = all })); fmt.Sprint(got) != fmt.Sprint(node) {
		c.t.Errorf("namespaces %s, the node's are %s", got, node)
	}
	for word, o := range map[string]*cri.NamespaceOption{
		"namespace_options.network": {Network: cri.NamespaceMode_CONTAINER}, "namespace_options.ipc": {Ipc: cri.NamespaceMode_TARGET},
		"namespace_options.pid": {Pid: cri.NamespaceMode_TARGET}, "is unknown": {Pid: 17},
	} {
		c.refusedPod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions = o }, word)
	}
	for word, o := range map[string]*cri.NamespaceOption{
		"target_id": {Pid: cri.NamespaceMode_TARGET}, "namespace_options.pid": {Pid: cri.NamespaceMode_POD},
		"namespace_options.network": {Pid: cri.NamespaceMode_CONTAINER, Network: cri.NamespaceMode_NODE},
		"namespace_options.ipc":     {Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_NODE},
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Linux.SecurityContext.NamespaceOptions = o }, word)
	}
}

// pauseStatus reads /proc/<pid>/status of the pod's pause process, by field.
func (c *conform) pauseStatus(box string) (pid int, status map[string]string) {
	c.t.Helper()
	a, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	var info struct{ Pause struct{ Pid int } }
	if err := json.Unmarshal([]byte(a.GetInfo()["info"]), &info); err != nil || info.Pause.Pid == 0 {
		c.t.Fatalf("info %s, %v", a.GetInfo(), err)
	}
	data, err := os.ReadFile(procFile(info.Pause.Pid, "status"))
	if err != nil {
		c.t.Fatal(err)
	}
	status = map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	return info.Pause.Pid, status
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

func conformPause(c *conform) {
	sharing := func(change func(*cri.LinuxSandboxSecurityContext)) func(*cri.PodSandboxConfig) {
		return func(p *cri.PodSandboxConfig) {
			p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
			change(p.Linux.SecurityContext)
		}
	}
	box, _ := c.pod(sharing(func(s *cri.LinuxSandboxSecurityContext) {
		s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &cri.Int64Value{Value: 1234}, &cri.Int64Value{Value: 77}, []int64{2000}
		s.SupplementalGroupsPolicy, s.ReadonlyRootfs = cri.SupplementalGroupsPolicy_Strict, true
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}))
	pid, status := c.pauseStatus(box)
	if status["Uid"] != "1234 1234 1234 1234" || status["Gid"] != "77 77 77 77" || status["Groups"] != "77 2000" || status["Seccomp"] != "2" {
		c.t.Errorf("uid %s, gid %s, groups %s, seccomp %s", status["Uid"], status["Gid"], status["Groups"], status["Seccomp"])
	}
	mounts, err := os.ReadFile(procFile(pid, "mountinfo"))
	if err != nil || len(strings.Fields(string(mounts))) < 6 || !strings.HasPrefix(strings.Fields(string(mounts))[5], "ro") {
		c.t.Errorf("root of the pause process: %s, %v", mounts, err)
	}
	// The deprecated field, and nothing at all.
	box, _ = c.pod(sharing(func(s *cri.LinuxSandboxSecurityContext) {
		//lint:ignore SA1019 older kubelets send it
		s.SeccompProfilePath = "runtime/default"
	}))
	if _, status := c.pauseStatus(box); status["Seccomp"] != "2" || status["Uid"] != "0 0 0 0" {
		c.t.Errorf("seccomp %s, uid %s", status["Seccomp"], status["Uid"])
	}
	box, _ = c.pod(sharing(func(*cri.LinuxSandboxSecurityContext) {}))
	if _, status := c.pauseStatus(box); status["Seccomp"] != "0" {
		c.t.Errorf("seccomp %s without a profile", status["Seccomp"])
	}
	for word, change := range map[string]func(*cri.LinuxSandboxSecurityContext){
		"run_as_user":                func(s *cri.LinuxSandboxSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -5} },
		"run_as_group":               func(s *cri.LinuxSandboxSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 5} },
		"supplemental_groups":        func(s *cri.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{-1} },
		"supplemental_groups_policy": func(s *cri.LinuxSandboxSecurityContext) { s.SupplementalGroupsPolicy = 7 },
		"localhost_ref": func(s *cri.LinuxSandboxSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost}
		},
		"/absent": func(s *cri.LinuxSandboxSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/absent"}
		},
		//lint:ignore SA1019 older kubelets send it
		"seccomp_profile_path": func(s *cri.LinuxSandboxSecurityContext) { s.SeccompProfilePath = "nonsense" },
	} {
		c.refusedPod(func(p *cri.PodSandboxConfig) { change(p.Linux.SecurityContext) }, word)
	}
	c.refusedPod(func(p *cri.PodSandboxConfig) { p.Windows = &cri.WindowsPodSandboxConfig{} }, "windows")
}

func conformSysctls(c *conform) {
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shmmax": "4096", "fs.mqueue.msg_max": "33"}
	})
	c.sees(c.sleeperIn(box, pod, nil), "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max", "77\n4096\n33\n")
	before, err := os.ReadFile("/proc/sys/kernel/shmmax")
	if err != nil {
		c.t.Fatal(err)
	}
	for name, value := range map[string]string{"kernel.core_pattern": "|/evil", "vm.swappiness": "1", "kernel.shmmax": "1+kernel.core_pattern=x", "net.ipv4.no_such": "1", "kernel/../x": "1"} {
		c.refusedPod(func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{name: value} }, "sysctl", name)
	}
	// In a namespace that is the node's, it would be the node's.
	c.refusedPod(func(p *cri.PodSandboxConfig) {
		p.Linux.Sysctls, p.Linux.SecurityContext.NamespaceOptions.Ipc = map[string]string{"kernel.shmmax": "9"}, cri.NamespaceMode_NODE
	}, "sysctl", "kernel.shmmax")
	c.refusedPod(func(p *cri.PodSandboxConfig) {
		p.Hostname, p.Linux.Sysctls = "", map[string]string{"net.ipv4.ip_forward": "0"}
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}, "sysctl", "net.ipv4.ip_forward")
	if after, err := os.ReadFile("/proc/sys/kernel/shmmax"); err != nil || string(after) != string(before) {
		c.t.Errorf("the node's shmmax is %s now, %v", after, err)
	}
}

// The rules of the portmap plugin are read for UDP and SCTP: busybox serves neither.
func conformPorts(c *conform) {
	port := 20000 + pods.Add(10)
	gateway := fmt.Sprintf("10.%d.%d.1", 200+c.number/250, c.number%250)
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.PortMappings = []*cri.PortMapping{
			{ContainerPort: 80, HostPort: port, HostIp: gateway}, {ContainerPort: 81}, {ContainerPort: 53, HostPort: port, Protocol: cri.Protocol_UDP},
			{ContainerPort: 99, HostPort: port, Protocol: cri.Protocol_SCTP},
		}
	})
	c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		k.Command = shell("mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www")
	})
	caller := c.sleeper(nil)
	c.await("the page on the node's port", func() error {
		got := c.exec(caller, "wget", "-q", "-O", "-", fmt.Sprintf("http://%s:%d/", gateway, port))
		if string(got.GetStdout()) != "page\n" {
			return fmt.Errorf("%d %s", got.GetExitCode(), got.GetStderr())
		}
		return nil
	})
	rules := c.iptables()
	for _, want := range []string{
		fmt.Sprintf("-d %s/32 -p tcp -m tcp --dport %d", gateway, port), fmt.Sprintf("-p udp -m udp --dport %d", port),
		fmt.Sprintf("-p sctp -m sctp --dport %d", port),
	} {
		if !strings.Contains(rules, want) {
			c.t.Errorf("no rule %q in\n%s", want, rules)
		}
	}
	if ip := c.sandbox(box).GetNetwork().GetIp(); strings.Contains(rules, ip+":81") || !strings.Contains(rules, ip+":53") {
		c.t.Errorf("rules of %s:\n%s", ip, rules)
	}
	for word, m := range map[string]*cri.PortMapping{
		"port_mappings.protocol": {Protocol: 9, ContainerPort: 1, HostPort: 1}, "port_mappings.host_port": {ContainerPort: 1, HostPort: 70000},
		"port_mappings.container_port": {ContainerPort: -1, HostPort: 1}, "port_mappings.host_ip": {ContainerPort: 1, HostPort: 1, HostIp: "300.1.1.1"},
	} {
		c.refusedPod(func(p *cri.PodSandboxConfig) { p.PortMappings = []*cri.PortMapping{m} }, word)
	}
}

func conformCapabilities(c *conform) {
	const netAdmin, sysTime, chown = 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_SYS_TIME, 1 << unix.CAP_CHOWN
	sets := func(change func(*cri.Capability), user int64) map[string]uint64 {
		c.t.Helper()
		id := c.sleeper(func(k *cri.ContainerConfig) {
			k.Linux.SecurityContext.Capabilities, k.Linux.SecurityContext.RunAsUser = &cri.Capability{}, &cri.Int64Value{Value: user}
			change(k.Linux.SecurityContext.Capabilities)
		})
		found := map[string]uint64{}
		for line := range strings.Lines(string(c.exec(id, "grep", "^Cap", "/proc/1/status").GetStdout())) {
			var name string
			var bits uint64
			if _, err := fmt.Sscanf(line, "%s %x", &name, &bits); err != nil {
				c.t.Fatal(err)
			}
			found[name] = bits
		}
		return found
	}
	want := func(what string, got map[string]uint64, name string, with, without uint64) {
		c.t.Helper()
		if got[name]&with != with || got[name]&without != 0 {
			c.t.Errorf("%s: %s %x, want with %x and without %x", what, name, got[name], with, without)
		}
	}
	held, err := os.ReadFile("/proc/self/status")
	if err != nil {
		c.t.Fatal(err)
	}
	_, bounding, _ := strings.Cut(string(held), "CapBnd:")
	var all uint64
	if _, err := fmt.Sscanf(bounding, "%x", &all); err != nil {
		c.t.Fatal(err)
	}
	got := sets(func(k *cri.Capability) {
		k.AddCapabilities, k.DropCapabilities = []string{"NET_ADMIN"}, []string{"CHOWN"}
	}, 0)
	for _, set := range []string{"CapEff:", "CapPrm:", "CapBnd:"} {
		want("add and drop", got, set, netAdmin, chown|sysTime)
	}
	want("add and drop", got, "CapInh:", 0, ^uint64(0)) // CVE-2022-27652
	want("add and drop", got, "CapAmb:", 0, ^uint64(0))
	got = sets(func(k *cri.Capability) { k.AddCapabilities, k.DropCapabilities = []string{"ALL"}, []string{"SYS_TIME"} }, 0)
	want("all but one", got, "CapEff:", all&^sysTime, sysTime)
	got = sets(func(k *cri.Capability) {
		k.AddCapabilities, k.DropCapabilities = []string{"CAP_CHOWN"}, []string{"ALL"}
	}, 0)
	want("one alone", got, "CapEff:", chown, ^uint64(chown))
	got = sets(func(k *cri.Capability) { k.AddAmbientCapabilities = []string{"NET_ADMIN"} }, 1000)
	for _, set := range []string{"CapEff:", "CapPrm:", "CapBnd:", "CapAmb:", "CapInh:"} {
		want("ambient", got, set, netAdmin, sysTime)
	}
	got = sets(func(k *cri.Capability) { k.AddCapabilities = []string{"NET_ADMIN"} }, 1000)
	want("of another user", got, "CapEff:", 0, ^uint64(0))
	want("of another user", got, "CapAmb:", 0, ^uint64(0))
	for field, k := range map[string]*cri.Capability{
		"add_capabilities": {AddCapabilities: []string{"FLY"}}, "drop_capabilities": {DropCapabilities: []string{"FLY"}},
		"add_ambient_capabilities": {AddAmbientCapabilities: []string{"FLY"}},
	} {
		c.refusedContainer(func(config *cri.ContainerConfig) { config.Linux.SecurityContext.Capabilities = k }, field, "FLY")
	}
}

func conformPrivileges(c *conform) {
	for _, on := range []bool{true, false} {
		id := c.sleeper(func(k *cri.ContainerConfig) {
			k.Linux.SecurityContext.NoNewPrivs, k.Linux.SecurityContext.ReadonlyRootfs = on, on
		})
		bit, wrote := 0, "wrote\n"
		if on {
			bit, wrote = 1, ""
		}
		c.sees(id, "grep NoNewPrivs /proc/1/status | cut -f2; touch /x 2>/dev/null && echo wrote", fmt.Sprintf("%d\n%s", bit, wrote))
		c.sees(id, "touch /dev/shm/x && echo wrote", "wrote\n")
	}
}

// The lists are the pod's: what it does not name is seen.
func conformPaths(c *conform) {
	id := c.sleeper(func(k *cri.ContainerConfig) {
		k.Linux.SecurityContext.MaskedPaths, k.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/version", "/proc/scsi", "/proc/absent"}, []string{"/proc/sys", "/proc/absent"}
	})
	c.sees(id, "wc -c < /proc/version; awk '$2 == \"/proc/sys\" { print $4 }' /proc/mounts | cut -c1-3; grep -c /proc/kcore /proc/mounts", "0\nro,\n0\n")
	open := c.sleeper(nil)
	c.sees(open, "grep -c Linux /proc/version; grep -c '/proc/' /proc/mounts", "1\n0\n")
}

func conformSeccomp(c *conform) {
	profile := filepath.Join(c.t.TempDir(), "profile.json")
	text := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	const look = "grep ^Seccomp: /proc/1/status | cut -f2; mkdir /made 2>&1"
	kind := func(p *cri.SecurityProfile) func(*cri.LinuxContainerSecurityContext) {
		return func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = p }
	}
	old := func(path string) func(*cri.LinuxContainerSecurityContext) {
		return func(s *cri.LinuxContainerSecurityContext) {
			//lint:ignore SA1019 older kubelets send it
			s.SeccompProfilePath = path
		}
	}
	local := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: profile}
	const refusedMkdir = "mkdir: can't create directory '/made': Operation not supported\n"
	for _, tt := range []struct {
		what   string
		change func(*cri.LinuxContainerSecurityContext)
		want   string
	}{
		{"RuntimeDefault", kind(&cri.SecurityProfile{}), "2\n"}, {"Unconfined", kind(&cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}), "0\n"},
		{"Localhost", kind(local), "2\n" + refusedMkdir}, {"none", kind(nil), "0\n"}, {"old default", old("runtime/default"), "2\n"},
		{"old unconfined", old("unconfined"), "0\n"}, {"old local", old("localhost/" + profile), "2\n" + refusedMkdir},
		{"both", func(s *cri.LinuxContainerSecurityContext) { old("unconfined")(s); kind(local)(s) }, "2\n" + refusedMkdir},
	} {
		id := c.sleeper(func(k *cri.ContainerConfig) { tt.change(k.Linux.SecurityContext) })
		if got := string(c.exec(id, shell(look)...).GetStdout()); got != tt.want {
			c.t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
	if err := os.WriteFile(profile+".bad", []byte("{"), 0o644); err != nil {
		c.t.Fatal(err)
	}
	for word, p := range map[string]*cri.SecurityProfile{
		"profile type 9": {ProfileType: 9}, "localhost_ref": {ProfileType: cri.SecurityProfile_RuntimeDefault, LocalhostRef: profile},
		"not an absolute path": {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "relative"},
		"/absent":              {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/absent"},
		profile + ".bad":       {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: profile + ".bad"},
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Linux.SecurityContext.Seccomp = p }, word)
	}
	c.refusedContainer(func(k *cri.ContainerConfig) { old("nonsense")(k.Linux.SecurityContext) }, "seccomp_profile_path", "nonsense")
}

func conformDevices(c *conform) {
	dir := filepath.Join(c.t.TempDir(), "many")
	if err := os.MkdirAll(dir+"/deeper", 0o755); err != nil {
		c.t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"null-too": 3, "deeper/zero-too": 5} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			c.t.Fatal(err)
		}
	}
	id := c.sleeper(func(k *cri.ContainerConfig) {
		k.Devices = []*cri.Device{
			{HostPath: "/dev/full", ContainerPath: "/dev/brim", Permissions: "rwm"}, {HostPath: "/dev/kmsg", ContainerPath: "/dev/kmsg", Permissions: "w"},
			{HostPath: dir, ContainerPath: "/dev/many", Permissions: "r"},
		}
	})
	c.sees(id, "echo x 2>&1 > /dev/brim; head -c 2 /dev/many/deeper/zero-too | wc -c", "sh: write error: No space left on device\n2\n")
	// The kernel decides what the cgroup lets through, on the node's own nodes, too.
	c.sees(id, "head -c1 /dev/kmsg > /dev/null 2>&1 || echo no read; ls /dev | grep -c ^fuse", "no read\n0\n")
	for word, d := range map[string]*cri.Device{
		"/dev/absent": {HostPath: "/dev/absent", ContainerPath: "/dev/x", Permissions: "r"}, "permissions": {HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"},
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Devices = []*cri.Device{d} }, "devices", word)
	}
}

func conformAddresses(c *conform) {
	box, pod := c.pod(nil)
	network := c.sandbox(box).GetNetwork()
	if len(network.GetAdditionalIps()) != 1 {
		c.t.Fatalf("network %v", network)
	}
	second := network.GetAdditionalIps()[0].GetIp()
	id := c.sleeperIn(box, pod, nil)
	c.sees(id, "ip -o addr show eth0 | grep -c -e ' "+network.GetIp()+"/' -e ' "+second+"/'", "2\n")
	c.sees(id, "grep -c -e '^"+network.GetIp()+"' -e '^"+second+"' /etc/hosts", "2\n")
}

// The pod is the one of pod_sandbox_id, whatever the copy of its configuration says.
func conformSandboxConfig(c *conform) {
	box, pod := c.pod(nil)
	other := c.podConfig()
	config := c.containerConfig(c.image, "sleep", "3600")
	id := c.create(box, other, config)
	c.startContainer(id)
	c.sees(id, "hostname", pod.Hostname+"\n")
	if got := c.container(id).GetLogPath(); got != logOf(pod, config) {
		c.t.Errorf("log path %s", got)
	}
}

func conformNotReady(c *conform) {
	bare := newNode(c.t, options{bare: true})
	if s := bare.condition(cri.NetworkReady); s.GetStatus() || s.GetReason() != "NetworkPluginNotReady" || !strings.Contains(s.GetMessage(), bare.path("cni")) {
		c.t.Errorf("condition %v", s)
	}
	_, err := bare.RunPodSandbox(bare.ctx(), &cri.RunPodSandboxRequest{Config: bare.podConfig()})
	c.refused(err, codes.Unavailable, "network is not ready")
}
