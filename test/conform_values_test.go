package test

import (
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What could never work is refused at once, with the field's name: not at each start.
func conformValuesCases() []conformCase {
	return []conformCase{
		{
			name: "resources out of range", run: conformResourceValues,
			refuses: []string{
				"LinuxContainerResources.cpu_period", "LinuxContainerResources.cpu_quota", "LinuxContainerResources.cpu_shares",
				"LinuxContainerResources.memory_limit_in_bytes", "LinuxContainerResources.memory_swap_limit_in_bytes",
				"LinuxContainerResources.cpuset_cpus", "LinuxContainerResources.cpuset_mems", "LinuxContainerResources.unified",
				"LinuxPodSandboxConfig.overhead", "LinuxPodSandboxConfig.resources",
				"UpdatePodSandboxResourcesRequest.overhead", "UpdatePodSandboxResourcesRequest.resources",
			},
		},
		{
			name: "resources that are in force", run: conformInForce,
			proves: []string{"ContainerStatus.resources", "LinuxContainerResources.hugepage_limits"},
		},
		{
			name: "values of a pod", run: conformPodValues,
			refuses: []string{
				"NamespaceOption.target_id", "DNSConfig.servers", "DNSConfig.searches", "DNSConfig.options", "PortMapping.host_port",
				"PodSandboxConfig.log_directory",
			},
		},
		{
			name: "values of a container", run: conformContainerValues,
			refuses: []string{
				"NamespaceOption.pid", "NamespaceOption.target_id", "ContainerConfig.command", "ContainerConfig.args", "KeyValue.value",
				"Capability.add_capabilities", "Capability.drop_capabilities", "Capability.add_ambient_capabilities",
				"ContainerConfig.stop_signal", "Mount.propagation", "LinuxContainerSecurityContext.supplemental_groups_policy",
			},
		},
		{name: "ports on the host network", run: conformHostNetworkPorts, proves: []string{"PodSandboxConfig.port_mappings", "PortMapping.host_port"}},
	}
}

// impossible are resources by the field that has to be named.
func impossible() map[string]*cri.LinuxContainerResources {
	return map[string]*cri.LinuxContainerResources{
		"cpu_period 5": {CpuPeriod: 5}, "cpu_quota -5": {CpuQuota: -5}, "cpu_quota 10": {CpuQuota: 10}, "cpu_shares 1": {CpuShares: 1},
		"memory_limit_in_bytes -5": {MemoryLimitInBytes: -5}, "memory_swap_limit_in_bytes -7": {MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: -7},
		`cpuset_cpus "abc"`: {CpusetCpus: "abc"}, `cpuset_cpus "900"`: {CpusetCpus: "900"}, `cpuset_mems "900"`: {CpusetMems: "900"},
		"unified": {Unified: map[string]string{"../memory.max": "1"}},
	}
}

func conformResourceValues(c *conform) {
	box, pod := c.pod(nil)
	made := c.containerConfig(c.image, "sleep", "3600")
	made.Linux.Resources = someLimits()
	id := c.create(box, pod, made)
	for word, r := range impossible() {
		config := c.containerConfig(c.image, "sleep", "3600")
		config.Metadata.Name, config.Linux.Resources = "refused", r
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, codes.InvalidArgument, "resources: "+word)
		c.refused(c.update(id, r), codes.InvalidArgument, "resources: "+word)
		c.refusedPod(func(p *cri.PodSandboxConfig) { p.Linux.Overhead = r }, "overhead: "+word)
		c.refusedPod(func(p *cri.PodSandboxConfig) { p.Linux.Resources = r }, "resources: "+word)
		_, err = c.UpdatePodSandboxResources(c.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: box, Overhead: r})
		c.refused(err, codes.InvalidArgument, "overhead: "+word)
		_, err = c.UpdatePodSandboxResources(c.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: box, Resources: r})
		c.refused(err, codes.InvalidArgument, "resources: "+word)
	}
	// Nothing of them is left, and the container starts.
	if got := c.container(id).GetResources().GetLinux(); got.String() != someLimits().String() {
		c.t.Errorf("status %v, want %v", got, someLimits())
	}
	a, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
	if err != nil || strings.Contains(a.GetInfo()["info"], `"overhead":{`) || len(a.GetContainersStatuses()) != 1 {
		c.t.Errorf("%v, %v", a, err)
	}
	c.startContainer(id)
	c.sameLimits(id, someLimits())
}

// The status tells what the node does, not what it was asked for.
func conformInForce(c *conform) {
	pages := func() []*cri.HugepageLimit { return []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}} }
	id := c.sleeper(func(k *cri.ContainerConfig) {
		k.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100, HugepageLimits: pages(), OomScoreAdj: -999}
	})
	without := c.hugetlbFile(id, "2MB") == ""
	check := func(shares int64) {
		c.t.Helper()
		r := c.container(id).GetResources().GetLinux()
		if r.GetCpuShares() != shares || (len(r.GetHugepageLimits()) == 0) != without {
			c.t.Errorf("status %v, want %d shares, and no huge pages: %t", r, shares, without)
		}
		c.sees(id, "cat /proc/1/oom_score_adj", fmt.Sprintln(r.GetOomScoreAdj()))
	}
	check(100)
	change := &cri.LinuxContainerResources{CpuShares: 200, OomScoreAdj: -998}
	if without {
		change.HugepageLimits = pages()
	}
	if err := c.update(id, change); err != nil {
		c.t.Fatal(err)
	}
	check(200)
}

func conformPodValues(c *conform) {
	for word, change := range map[string]func(*cri.PodSandboxConfig){
		"namespace_options.target_id": func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.TargetId = "someone" },
		"dns_config.servers":          func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.1", ""}} },
		"dns_config.searches":         func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Searches: []string{""}} },
		"dns_config.options":          func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Options: []string{""}} },
		`log_directory "relative"`:    func(p *cri.PodSandboxConfig) { p.LogDirectory = "relative" },
		`log_directory "/a/../b"`:     func(p *cri.PodSandboxConfig) { p.LogDirectory = "/a/../b" },
	} {
		c.refusedPod(change, word)
	}
	// The second is the same address in other words.
	for _, ips := range [][2]string{{"", ""}, {"127.0.0.1", "127.0.0.1"}, {"::1", "0:0::1"}} {
		c.refusedPod(func(p *cri.PodSandboxConfig) {
			p.PortMappings = []*cri.PortMapping{{ContainerPort: 1, HostPort: 9999, HostIp: ips[0]}, {ContainerPort: 2, HostPort: 9999, HostIp: ips[1]}}
		}, "port_mappings.host_port", "9999")
	}
	// None of these takes from another.
	port := 30000 + pods.Add(10)
	c.pod(func(p *cri.PodSandboxConfig) {
		p.PortMappings = []*cri.PortMapping{
			{ContainerPort: 1}, {ContainerPort: 1}, {ContainerPort: 1, HostPort: port, HostIp: "127.0.0.1"},
			{ContainerPort: 1, HostPort: port, HostIp: "127.0.0.2"}, {ContainerPort: 1, HostPort: port, HostIp: "127.0.0.1", Protocol: cri.Protocol_UDP},
		}
	})
}

// The API server makes each port of a pod on the host network a host port, too.
func conformHostNetworkPorts(c *conform) {
	port := 40000 + pods.Add(10)
	c.pod(func(p *cri.PodSandboxConfig) {
		p.Hostname, p.Linux.SecurityContext.NamespaceOptions.Network = "", cri.NamespaceMode_NODE
		p.PortMappings = []*cri.PortMapping{{ContainerPort: port, HostPort: port}, {ContainerPort: port, HostPort: port}}
	})
	if rules := c.iptables(); strings.Contains(rules, fmt.Sprint(port)) {
		c.t.Errorf("port %d in\n%s", port, rules)
	}
}

func conformContainerValues(c *conform) {
	const nul = "a\x00b"
	security := func(change func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
		return func(k *cri.ContainerConfig) { change(k.Linux.SecurityContext) }
	}
	options := func(o *cri.NamespaceOption) func(*cri.ContainerConfig) {
		return security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions = o })
	}
	for word, change := range map[string]func(*cri.ContainerConfig){
		"namespace_options.pid: 7":    options(&cri.NamespaceOption{Pid: 7}),
		"namespace_options.network":   options(&cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, Network: 7}),
		"namespace_options.ipc":       options(&cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, Ipc: 7}),
		"namespace_options.target_id": options(&cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, TargetId: "someone"}),
		"command: word 1":             func(k *cri.ContainerConfig) { k.Command = []string{"sh", nul} },
		"args: word 0":                func(k *cri.ContainerConfig) { k.Args = []string{nul} },
		"the value of KEYSTORE is not UTF-8": func(k *cri.ContainerConfig) {
			k.Envs = []*cri.KeyValue{{Key: "KEYSTORE", Value: []byte("\xff\xfe")}}
		},
		"stop_signal": func(k *cri.ContainerConfig) { k.StopSignal = 999 },
		"propagation 9": func(k *cri.ContainerConfig) {
			k.Mounts = []*cri.Mount{{HostPath: os.TempDir(), ContainerPath: "/m", Propagation: 9}}
		},
		"supplemental_groups_policy": security(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 9 }),
		"seccomp: profile type 9":    security(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = &cri.SecurityProfile{ProfileType: 9} }),
		"apparmor: profile type 9":   security(func(s *cri.LinuxContainerSecurityContext) { s.Apparmor = &cri.SecurityProfile{ProfileType: 9} }),
	} {
		c.refusedContainer(change, word)
	}
	// A privileged container has all capabilities, and yet the names are read.
	box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Privileged = true })
	for field, k := range map[string]*cri.Capability{
		"add_capabilities": {AddCapabilities: []string{"FLY"}}, "drop_capabilities": {DropCapabilities: []string{"FLY"}},
		"add_ambient_capabilities": {AddAmbientCapabilities: []string{"FLY"}},
	} {
		config := c.containerConfig(c.image, "sleep", "3600")
		config.Linux.SecurityContext.Privileged, config.Linux.SecurityContext.Capabilities = true, k
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, codes.InvalidArgument, field, "FLY")
	}
}
