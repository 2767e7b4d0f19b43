package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformSandboxCases() []conformCase {
	return []conformCase{
		{
			name: "a pod's names", run: conformPodNames,
			proves: []string{
				"RunPodSandbox", "RunPodSandboxRequest.config", "RunPodSandboxResponse.pod_sandbox_id",
				"PodSandboxConfig.metadata", "PodSandboxMetadata.name", "PodSandboxMetadata.uid", "PodSandboxMetadata.namespace",
				"PodSandboxMetadata.attempt", "PodSandboxConfig.labels", "PodSandboxConfig.annotations",
				"PodSandboxStatus", "PodSandboxStatusRequest.pod_sandbox_id", "PodSandboxStatusResponse.status",
				"PodSandboxStatus.id", "PodSandboxStatus.metadata", "PodSandboxStatus.labels", "PodSandboxStatus.annotations",
				"PodSandboxStatus.created_at", "PodSandboxStatus.state",
			},
			refuses: []string{"PodSandboxConfig.metadata"},
		},
		{
			name: "lists of pods", run: conformPodList,
			proves: []string{
				"ListPodSandbox", "ListPodSandboxRequest.filter", "ListPodSandboxResponse.items", "PodSandboxFilter.id",
				"PodSandboxFilter.state", "PodSandboxStateValue.state", "PodSandboxFilter.label_selector", "PodSandbox.id",
				"PodSandbox.metadata", "PodSandbox.state", "PodSandbox.created_at", "PodSandbox.labels", "PodSandbox.annotations",
				"PodSandbox.runtime_handler", "PodSandboxStatus.runtime_handler", "RunPodSandboxRequest.runtime_handler",
				"StopPodSandbox", "StopPodSandboxRequest.pod_sandbox_id", "RemovePodSandbox", "RemovePodSandboxRequest.pod_sandbox_id",
			},
			refuses: []string{"RunPodSandboxRequest.runtime_handler"},
		},
		{
			name: "a pod's status with its containers", run: conformPodStatus,
			proves: []string{
				"PodSandboxStatusRequest.verbose", "PodSandboxStatusResponse.info", "PodSandboxStatusResponse.containers_statuses",
				"PodSandboxStatusResponse.timestamp", "PodSandboxStatus.network", "PodSandboxNetworkStatus.ip",
				"PodSandboxStatus.linux", "LinuxPodSandboxStatus.namespaces", "Namespace.options",
			},
		},
		{
			name: "hostname and name servers", run: conformNames,
			proves:  []string{"PodSandboxConfig.hostname", "PodSandboxConfig.dns_config", "DNSConfig.servers", "DNSConfig.searches", "DNSConfig.options"},
			refuses: []string{"PodSandboxConfig.hostname", "DNSConfig.servers"},
		},
		{
			name: "log directory", run: conformLogDirectory,
			proves:  []string{"PodSandboxConfig.log_directory", "ContainerConfig.log_path", "ContainerStatus.log_path"},
			refuses: []string{"ContainerConfig.log_path"},
		},
	}
}

func conformPodNames(c *conform) {
	odd := map[string]string{"a/b": "ü\n\x01\"\\", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true", "": ""}
	id, config := c.pod(func(p *cri.PodSandboxConfig) {
		p.Metadata.Attempt = 7
		p.Labels, p.Annotations = maps.Clone(odd), maps.Clone(odd)
	})
	s := c.sandbox(id)
	m := s.GetMetadata()
	if s.GetId() != id || m.GetName() != config.Metadata.Name || m.GetUid() != config.Metadata.Uid || m.GetNamespace() != "test" || m.GetAttempt() != 7 {
		c.t.Errorf("%v", s)
	}
	if !maps.Equal(s.GetLabels(), odd) || !maps.Equal(s.GetAnnotations(), odd) {
		c.t.Errorf("labels %q, annotations %q, want %q", s.GetLabels(), s.GetAnnotations(), odd)
	}
	if s.GetCreatedAt() <= 0 || s.GetState() != cri.PodSandboxState_SANDBOX_READY {
		c.t.Errorf("created at %d, %s", s.GetCreatedAt(), s.GetState())
	}
	for _, change := range []func(*cri.PodSandboxMetadata){
		func(m *cri.PodSandboxMetadata) { m.Name = "" }, func(m *cri.PodSandboxMetadata) { m.Uid = "" },
		func(m *cri.PodSandboxMetadata) { m.Namespace = "" }, func(m *cri.PodSandboxMetadata) { m.Name = "a;K8S_POD_NAME=b" },
	} {
		c.refusedPod(func(p *cri.PodSandboxConfig) { change(p.Metadata) }, "metadata")
	}
	_, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: strings.Repeat("0", 64)})
	c.refused(err, codes.NotFound, strings.Repeat("0", 64))
}

func conformPodList(c *conform) {
	mark := map[string]string{"conform": c.t.Name()}
	first, _ := c.pod(func(p *cri.PodSandboxConfig) { p.Labels = mark; p.Annotations = map[string]string{"k": "v"} })
	config := c.podConfig()
	config.Labels = map[string]string{"conform": c.t.Name(), "second": "yes"}
	answer, err := c.RunPodSandbox(c.ctx(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: c.handler})
	if err != nil {
		c.t.Fatal(err)
	}
	second := answer.GetPodSandboxId()
	c.made = append(c.made, second)
	list := func(f *cri.PodSandboxFilter) (ids string) {
		c.t.Helper()
		if f.LabelSelector == nil {
			f.LabelSelector = mark
		}
		l, err := c.ListPodSandbox(c.ctx(), &cri.ListPodSandboxRequest{Filter: f})
		if err != nil {
			c.t.Fatal(err)
		}
		for _, s := range l.GetItems() {
			ids += s.GetId() + " "
		}
		return ids
	}
	if _, err := c.StopPodSandbox(c.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: first}); err != nil {
		c.t.Fatal(err)
	}
	state := func(s cri.PodSandboxState) *cri.PodSandboxFilter {
		return &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: s}}
	}
	for _, tt := range []struct {
		filter *cri.PodSandboxFilter
		want   string
	}{
		{&cri.PodSandboxFilter{}, second + " " + first + " "}, {&cri.PodSandboxFilter{Id: first}, first + " "},
		{&cri.PodSandboxFilter{Id: first[:20]}, first + " "}, {&cri.PodSandboxFilter{Id: first, LabelSelector: config.Labels}, ""},
		{state(cri.PodSandboxState_SANDBOX_NOTREADY), first + " "}, {state(cri.PodSandboxState_SANDBOX_READY), second + " "},
		{&cri.PodSandboxFilter{LabelSelector: config.Labels}, second + " "},
	} {
		if got := list(tt.filter); got != tt.want {
			c.t.Errorf("%v lists %q, want %q", tt.filter, got, tt.want)
		}
	}
	l, err := c.ListPodSandbox(c.ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: first}})
	if err != nil || len(l.GetItems()) != 1 {
		c.t.Fatalf("%v, %v", l, err)
	}
	item, s := l.GetItems()[0], c.sandbox(first)
	if item.GetMetadata().String() != s.GetMetadata().String() || item.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY ||
		item.GetCreatedAt() != s.GetCreatedAt() || !maps.Equal(item.GetLabels(), mark) || item.GetAnnotations()["k"] != "v" || item.GetRuntimeHandler() != "" {
		c.t.Errorf("listed %v, status %v", item, s)
	}
	l, err = c.ListPodSandbox(c.ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: second}})
	if err != nil || len(l.GetItems()) != 1 || l.GetItems()[0].GetRuntimeHandler() != c.handler {
		c.t.Errorf("%v, %v: want handler %s", l, err, c.handler)
	}
	if got := c.sandbox(second).GetRuntimeHandler(); got != c.handler {
		c.t.Errorf("runtime handler %q, want %q", got, c.handler)
	}
	for range 2 { // both calls are idempotent
		if _, err := c.StopPodSandbox(c.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: second}); err != nil {
			c.t.Error(err)
		}
		if _, err := c.RemovePodSandbox(c.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: first}); err != nil {
			c.t.Error(err)
		}
	}
	if got := list(&cri.PodSandboxFilter{}); got != second+" " {
		c.t.Errorf("after a removal: %q", got)
	}
	_, err = c.RunPodSandbox(c.ctx(), &cri.RunPodSandboxRequest{Config: c.podConfig(), RuntimeHandler: "absent"})
	c.refused(err, codes.InvalidArgument, `"absent"`)
}

func conformPodStatus(c *conform) {
	box, pod := c.pod(nil)
	id := c.sleeperIn(box, pod, nil)
	a, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	if len(a.GetContainersStatuses()) != 1 || a.GetContainersStatuses()[0].String() != c.container(id).String() {
		c.t.Errorf("containers %v", a.GetContainersStatuses())
	}
	if a.GetTimestamp() < a.GetStatus().GetCreatedAt() || !strings.HasPrefix(a.GetInfo()["info"], "{") {
		c.t.Errorf("timestamp %d, info %q", a.GetTimestamp(), a.GetInfo())
	}
	c.sees(id, "ip -o -4 addr show eth0 | awk '{print $4}'", a.GetStatus().GetNetwork().GetIp()+"/24\n")
	if got, want := a.GetStatus().GetLinux().GetNamespaces().GetOptions(), pod.Linux.SecurityContext.NamespaceOptions; got.String() != want.String() {
		c.t.Errorf("namespaces %v, want %v", got, want)
	}
	plain, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box})
	if err != nil || len(plain.GetInfo()) != 0 {
		c.t.Errorf("info without verbose: %v, %v", plain.GetInfo(), err)
	}
}

func conformNames(c *conform) {
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53", "2001:db8::53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5", "edns0"}}
	})
	id := c.sleeperIn(box, pod, nil)
	c.sees(id, "hostname; cat /etc/hostname; grep -q "+pod.Hostname+" /etc/hosts && echo listed", pod.Hostname+"\n"+pod.Hostname+"\nlisted\n")
	c.sees(id, "cat /etc/resolv.conf", "search a.test b.test\noptions ndots:5 edns0\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n")
	c.refusedPod(func(p *cri.PodSandboxConfig) { p.Hostname = "" }, "hostname")
	c.refusedPod(func(p *cri.PodSandboxConfig) { p.Hostname = "a b" }, "hostname")
	c.refusedPod(func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Servers: []string{"1.2.3.4\nsearch x"}} }, "dns_config")
}

func conformLogDirectory(c *conform) {
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, shell("echo out; echo err >&2")...)
	config.LogPath = "deep/er/0.log"
	id := c.runContainer(box, pod, config)
	want := filepath.Join(pod.LogDirectory, "deep/er/0.log")
	if s := c.exited(id); s.GetLogPath() != want {
		c.t.Errorf("log path %s, want %s", s.GetLogPath(), want)
	}
	streams := map[string]string{}
	for _, r := range c.log(want) {
		streams[r.stream] += r.text
	}
	if fmt.Sprint(streams) != "map[stderr:err stdout:out]" {
		c.t.Errorf("log %v", streams)
	}
	silent := c.containerConfig(c.image, shell("echo out")...)
	silent.LogPath = ""
	if s := c.exited(c.runContainer(box, pod, silent)); s.GetLogPath() != "" || s.GetExitCode() != 0 {
		c.t.Errorf("without a log: %v", s)
	}
	for _, path := range []string{"../escape.log", "/absolute.log", "a/../../b.log"} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.LogPath = path }, "log_path")
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(pod.LogDirectory), "escape.log")); err == nil {
		c.t.Error("a log outside of the pod's directory")
	}
}
