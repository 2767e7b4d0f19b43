package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// The weaknesses that daemons of this kind have had, each with the test that would find
// it here. A number is that of the entry in the register of them that the tests began with.
//
//	S1   words that become lines of passwd       TestCVE_2026_15809_NoWordBecomesALineOfPasswd
//	S2   endless passwd and group                TestCVE_2025_4437_EndlessUserDatabases
//	S3   log paths that climb, or are links      TestCVE_2025_0750_LogsStayInTheirDirectory
//	S4   checkpoints that come as images         TestCVE_2024_8676_ACheckpointIsAnImage
//	S5   an image's links to the node            TestLinksOfAnImageDoNotLeadOut
//	S6   annotations in the specification        TestCVE_2024_3154_AnnotationsReachNoRuntime
//	S7   annotations that change a container     TestCVE_2023_6476_AnnotationsChangeNoContainer
//	S8   the primary group                       TestCVE_2022_2995_ThePrimaryGroupIsAmongTheGroups
//	S9   output of exec without an end           TestCVE_2022_31030_EndlessOutputOfExec, and its
//	                                             limit: TestCVE_2022_1708_ExecSyncOutputIsCapped
//	S10  inheritable and ambient capabilities    TestCVE_2022_27652_CapabilitiesAreNotHandedOn
//	S11  sysctls in sysctls                      TestCVE_2022_0811_SysctlsInSysctls
//	S12  sysctls of the node's namespaces        TestCVE_2022_0532_SysctlsOfTheNode
//	S13  the monitor and the pod's memory        TestCVE_2019_14891_TheMonitorOutlivesTheMemory
//	S14  labels of an image as orders            TestWordsOfAnImageAreNoOrders
//	S15  what stands where a log is to be        TestCVE_2026_53489_OnlyAFileBecomesALog
//	S16  devices by annotation                   TestConformance, "CDI devices"
//	S17  names of other images in an image       TestWordsOfAnImageAreNoOrders
//	S18  odd users of an image                   TestCVE_2026_46680_OddUsersOfAnImage
//	S19  modes of directories                    TestCVE_2024_25621_NobodyElseSeesOurFiles, and with
//	                                             user namespaces: TestDirectoriesAreClosed
//	S20  layers that are unpacked outside        TestLayersAreUnpackedInside
//	S21  documents without an end                TestDocumentsOfARegistryAreBounded
//	S22  the power meter of the node             TestGHSA_7ww5_4wqc_m92c_ThePowerMeterIsMasked
//	S23  a manifest that is an index, too        TestDocumentsOfARegistryAreBounded
//	S24  sockets that others reach               TestCVE_2020_15257_OurSocketsAreOurs

// withRuntimes runs a test on a node of each runtime.
func withRuntimes(t *testing.T, run func(*conform, *fixture.Registry)) {
	for _, handler := range conformHandlers {
		t.Run(handler, func(t *testing.T) {
			r := fixture.StartRegistry(t, fixture.RegistryOptions{})
			o := conformOptions(t, handler)
			o.registry = r
			n, image := readyNode(t, o)
			run(&conform{n, image, handler}, r)
		})
	}
}

// madeImage pulls busybox with something on top, and removes it with the pods at the end.
func (n *node) madeImage(r *fixture.Registry, spec fixture.ImageSpec) string {
	n.t.Helper()
	spec.Layers = append([][]fixture.File{fixture.Busybox(n.t)}, spec.Layers...)
	spec.Config.Env = append([]string{"PATH=/bin"}, spec.Config.Env...)
	return n.bareImage(r, spec)
}

// bareImage is the same of an image that has nothing but what it is made of.
func (n *node) bareImage(r *fixture.Registry, spec fixture.ImageSpec) string {
	n.t.Helper()
	id := n.pull(r.Push(n.t, "made", fmt.Sprintf("v%d", pods.Add(1)), fixture.BuildImage(n.t, spec)))
	n.t.Cleanup(func() { n.removeAll(); n.dropImages(id) })
	return id
}

// specOf is what the runtime was given.
func (n *node) specOf(id string) *specs.Spec {
	n.t.Helper()
	data, err := os.ReadFile(n.path("run/containers/" + id + "/config.json"))
	if err != nil {
		n.t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		n.t.Fatal(err)
	}
	return &spec
}

// S1: CVE-2026-15809, CVE-2022-4318. Whatever HOME and user are, the container's passwd is
// the image's, byte by byte, and the environment has them as they are, or not at all.
func TestCVE_2026_15809_NoWordBecomesALineOfPasswd(t *testing.T) {
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:500:500::/:/bin/sh\ncr:x:501:501::/a\rb:/bin/sh\n" +
		"bell:x:502:502::/a\x07b:/bin/sh\nrelative:x:503:503::a/b:/bin/sh\nescaped:x:504:504::/a\\nevil:/bin/sh\n"
	file := []fixture.File{{Path: "etc/passwd", Data: []byte(passwd)}}
	withRuntimes(t, func(c *conform, r *fixture.Registry) {
		box, pod := c.pod(nil)
		look := func(image, home string, change func(*cri.ContainerConfig)) {
			c.t.Helper()
			config := c.containerConfig(image, "sleep", "999")
			if change != nil {
				change(config)
			}
			id := c.runContainer(box, pod, config)
			c.sees(id, "cat /etc/passwd", passwd)
			c.sees(id, "grep -c ' /etc/passwd ' /proc/mounts", "0\n")
			for place, env := range map[string]string{
				"the first process": string(c.exec(id, "cat", "/proc/1/environ").GetStdout()),
				"exec":              string(c.exec(id, "cat", "/proc/self/environ").GetStdout()),
			} {
				if strings.Count("\x00"+env, "\x00HOME=") != 1 || !strings.Contains("\x00"+env, "\x00HOME="+home+"\x00") {
					c.t.Errorf("HOME %q of %s is told as %q", home, place, env)
				}
			}
		}
		for _, home := range []string{"/root\nevil:x:0:0::/:/bin/sh", "/a\rb", "/a:0:0", `/root\nevil:x:0:0::/:/bin/sh`} {
			image := c.madeImage(r, fixture.ImageSpec{Layers: [][]fixture.File{file}, Config: imgspec.ImageConfig{Env: []string{"HOME=" + home}, User: "user"}})
			look(image, home, nil)
			look(image, home, func(k *cri.ContainerConfig) { k.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 4321} })
		}
		plain := c.madeImage(r, fixture.ImageSpec{Layers: [][]fixture.File{file}})
		for _, home := range []string{"/root\nevil:x:0:0::/:/bin/sh", "/a\r\x07b", "/a:0:0"} {
			look(plain, home, func(k *cri.ContainerConfig) { k.Envs = []*cri.KeyValue{{Key: "HOME", Value: []byte(home)}} })
		}
		for name, home := range map[string]string{"cr": "/", "bell": "/", "relative": "/", "escaped": `/a\nevil`} {
			look(plain, home, func(k *cri.ContainerConfig) { k.Linux.SecurityContext.RunAsUsername = name })
		}
		for _, name := range []string{"user\nevil", "user\r", "user:0", "user\x00", " user"} {
			c.refusedContainer(func(k *cri.ContainerConfig) { k.Image.Image, k.Linux.SecurityContext.RunAsUsername = plain, name }, "user")
		}
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Envs = []*cri.KeyValue{{Key: "HOME", Value: []byte("/\x00HOME=/x")}} }, "envs", "HOME")
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Envs = []*cri.KeyValue{{Key: "HOME\x00", Value: []byte("/")}} }, "envs", "HOME")
		nul := c.madeImage(r, fixture.ImageSpec{Config: imgspec.ImageConfig{Env: []string{"HOME=/\x00HOME=/x"}}})
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Image.Image = nul }, "env of the image", "HOME")
	})
}

// S4: CVE-2024-8676, CVE-2026-53492, CVE-2026-50195. What says that it is a checkpoint is an
// image like others: its command runs, and what a checkpoint tells of mounts, annotations,
// names and logs is not read.
func TestCVE_2024_8676_ACheckpointIsAnImage(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: r})
	v := newVictim(t)
	told := map[string]string{
		"io.kubernetes.cri-o.annotations.checkpoint.name": "restored", "io.kubernetes.cri-o.annotations.checkpoint.rootfsImageName": "busybox:v1",
		"io.kubernetes.cri-o.annotations.checkpoint.engine.name": "cri-o", "org.criu.checkpoint.container.name": "restored",
		"org.criu.checkpoint.engine.name": "containerd", "io.containerd.runtime.checkpoint": "restored",
	}
	mounts := fmt.Sprintf(`[{"source":%q,"destination":"/stolen","file_type":"directory"}]`, v.dir)
	dump := fmt.Sprintf(`{"ociVersion":"1.0.0","process":{"args":["cat","/stolen/passwd"]},"annotations":{"io.kubernetes.cri-o.Name":"restored","cdi.k8s.io/x":"vendor.test/y=z"},"mounts":[{"source":%q,"destination":"/stolen","type":"bind","options":["rbind"]}]}`, v.dir)
	image := n.madeImage(r, fixture.ImageSpec{
		Annotations: told, Config: imgspec.ImageConfig{Labels: told, Cmd: shell("ls -d /stolen; echo as its image says; sleep 99")},
		Layers: [][]fixture.File{{
			{Path: "spec.dump", Data: []byte(dump)}, {Path: "bind.mounts", Data: []byte(mounts)}, {Path: "checkpoint", Dir: true},
			{Path: "config.dump", Data: []byte(`{"id":"restored","name":"restored","rootfsImageName":"busybox:v1"}`)},
			{Path: "checkpoint/inventory.img", Data: []byte("CRIU")}, {Path: "container.log", Link: v.dir + "/passwd"},
		}},
	})
	pod := n.podConfig()
	config := n.containerConfig(image)
	id := n.runContainer(n.runPod(pod), pod, config)
	n.awaitLog(logOf(pod, config), "stdout F as its image says\n")
	if text, err := os.ReadFile(logOf(pod, config)); err != nil || bytes.Contains(text, []byte("secret")) || !bytes.Contains(text, []byte("/stolen: No such")) {
		t.Errorf("the log is %q, %v", text, err)
	}
	if s := n.container(id).String(); strings.Contains(s, "restored") {
		t.Errorf("the container is %s", s)
	}
	if spec := fmt.Sprintf("%+v", n.specOf(id)); strings.Contains(spec, v.dir) || strings.Contains(spec, "restored") {
		t.Errorf("the specification is the checkpoint's: %s", spec)
	}
	v.unharmed(t)
}

// orders are annotations that daemons and runtimes do, or once did, take for an order.
func orders() map[string]string {
	all := map[string]string{"": "empty", "allowed.test/exactly": "near", "allowed.test": "near", "ALLOWED.test/all/x": "near", "not-allowed.test/all/x": "near"}
	for key, value := range map[string]string{
		"org.systemd.property.TimeoutStopUSec": "uint64 1", "org.systemd.property.ExecStopPost": "[('/bin/touch', ['touch', '/x'], false)]",
		"org.systemd.property.MemoryMax": "uint64 4194304", "run.oci.systemd.subgroup": "evil", "run.oci.hooks.stdout": "/evil", "run.oci.delegate-cgroup": "evil",
		"run.oci.handler": "krun", "run.oci.keep_original_groups": "1", "run.oci.seccomp_fail_unknown_syscall": "0", "run.oci.seccomp.plugins": "/evil",
		"run.oci.mount_context_type": "rootcontext", "run.oci.pidfd_receiver": "/evil", "run.oci.timens_offset": "boottime 1", "run.oci.ambient-caps": "1",
		"module.wasm.image/variant": "compat", "oci.runc.cgroup": "evil", "io.kubernetes.cri-o.Devices": "/dev/kmsg:/dev/evil:rwm",
		"io.kubernetes.cri-o.ShmSize": "1Gi", "io.kubernetes.cri-o.userns-mode": "auto:size=65536", "io.kubernetes.cri-o.umask": "000",
		"io.kubernetes.cri-o.UnifiedCgroup": "memory.high=4096", "io.kubernetes.cri-o.UnifiedCgroupXX": "memory.high=4096", "io.kubernetes.cri-o.LinkLogs": "/evil",
		"io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true", "io.kubernetes.cri-o.DisableFIPS": "true",
		"io.kubernetes.cri-o.seccompNotifierAction": "stop", "io.kubernetes.cri-o.RuntimeHandler": "evil", "io.kubernetes.cri-o.PodLinuxOverhead": `{"memory_limit_in_bytes":4096}`,
		"seccomp-profile.kubernetes.cri-o.io": "unconfined", "cpu-load-balancing.crio.io": "disable", "cpu-quota.crio.io": "disable", "irq-load-balancing.crio.io": "disable",
		"cpu-c-states.crio.io": "disable", "cpu-freq-governor.crio.io": "performance", "cpu-shared.crio.io": "enable", "cpu.shares.crio.io": "2",
		"resources.workload.crio.io/x": `{"cpushares":"2"}`, "target.workload.openshift.io/management": `{"effect":"PreferredDuringScheduling"}`,
		"io.kubernetes.cri-o.annotations.checkpoint.name": "restored", "container.apparmor.security.beta.kubernetes.io/x": "unconfined",
		"seccomp.security.alpha.kubernetes.io/pod": "unconfined", "cdi.k8s.io/x": "vendor.test/x=y", "devices.nri.io/container.x": "[{path: /dev/kmsg}]",
		"blockio.resources.beta.kubernetes.io/pod": "evil", "rdt.resources.beta.kubernetes.io/pod": "evil", "intelrdt.crio.io": "evil",
		"org.opencontainers.image.stopSignal": "SIGKILL", "io.podman.annotations.privileged": "TRUE", "io.containerd.runc.v2.group": "evil",
		"io.katacontainers.config.hypervisor.path": "/evil", "dev.gvisor.spec.mount.x.source": "/", "nvidia.com/gpu": "all",
	} {
		all[key] = value
	}
	return all
}

// S6: CVE-2024-3154. No annotation of a pod or a container reaches the runtime that the
// handler does not allow by name, and the handler's neighbours allow none.
func TestCVE_2024_3154_AnnotationsReachNoRuntime(t *testing.T) {
	o := conformOptions(t, "runc")
	o.conf += fmt.Sprintf("[crio.runtime.runtimes.allowing]\nruntime_path = %q\nallowed_annotations = [\"allowed.test/exact\", \"allowed.test/all/*\"]\n", runtimePath(t, "runc"))
	n, image := readyNode(t, o)
	for _, handler := range []string{"allowing", "crun"} { // which stays with its first container
		if err := os.MkdirAll(n.path("run/oci/"+handler), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n.before = n.settled()
	allowed := map[string]string{"allowed.test/exact": "of the pod", "allowed.test/all/": "of the pod", "allowed.test/all/x.y/z": "of the container", "allowed.test/all/both": "of the container"}
	for handler, want := range map[string]map[string]string{"": nil, "crun": nil, "allowing": allowed} {
		pod := n.podConfig()
		pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		pod.Annotations = orders()
		maps.Copy(pod.Annotations, map[string]string{"allowed.test/exact": "of the pod", "allowed.test/all/": "of the pod", "allowed.test/all/both": "of the pod"})
		a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		config := n.containerConfig(image, "sleep", "99")
		config.Annotations = orders()
		config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		maps.Copy(config.Annotations, map[string]string{"allowed.test/all/x.y/z": "of the container", "allowed.test/all/both": "of the container"})
		id := n.runContainer(a.GetPodSandboxId(), pod, config)
		if got := n.specOf(id).Annotations; !maps.Equal(got, want) {
			t.Errorf("handler %q: the container's specification has %q, want %q", handler, got, want)
		}
		for name := range n.specOf(a.GetPodSandboxId()).Annotations {
			if _, ok := want[name]; !ok {
				t.Errorf("handler %q: the pause process's specification has %s", handler, name)
			}
		}
	}
}

// S7: CVE-2023-6476. A container with all the annotations is the same as one without, seen
// from inside and in the files of its cgroup.
func TestCVE_2023_6476_AnnotationsChangeNoContainer(t *testing.T) {
	withRuntimes(t, func(c *conform, _ *fixture.Registry) {
		look := func(annotations map[string]string) map[string]string {
			named := maps.Clone(annotations)
			box, pod := c.pod(func(p *cri.PodSandboxConfig) { p.Annotations = named })
			config := c.containerConfig(c.image, "sleep", "3600")
			config.Metadata.Name = "same" // some name the container that they are for
			for key, value := range annotations {
				for _, part := range []string{".same", "/same"} {
					named[key+part] = value
				}
			}
			config.Annotations, config.Linux.Resources = annotations, someLimits()
			id := c.runContainer(box, pod, config)
			seen := c.settings(id)
			for _, script := range []string{
				"cat /proc/1/limits /proc/1/oom_score_adj", "grep -e ^Cap -e ^Seccomp: -e ^NoNewPrivs -e _allowed: -e ^Groups -e ^Uid -e ^Umask /proc/1/status", "ls -l /dev | cut -c1-30",
				"awk '$2 != \"/\" {print $2, $3, $4}' /proc/mounts", "readlink /proc/self/ns/user /proc/self/ns/time", "cat /proc/self/uid_map", "tr '\\0' ' ' < /proc/1/cmdline", "ls /",
			} {
				seen[script] = string(c.exec(id, shell(script)...).GetStdout())
			}
			for path, text := range seen {
				seen[path] = strings.NewReplacer(id, "ID", box, "BOX", pod.Hostname, "POD", strings.ReplaceAll(pod.Hostname, "-", "_"), "POD").Replace(text)
			}
			return seen
		}
		with, without := look(orders()), look(nil)
		if len(with) < 20 {
			c.t.Errorf("only %d things were looked at", len(with))
		}
		for what, want := range without {
			if with[what] != want {
				c.t.Errorf("%s: with annotations\n%s\nwithout\n%s", what, with[what], want)
			}
		}
		if !slices.Equal(slices.Sorted(maps.Keys(with)), slices.Sorted(maps.Keys(without))) {
			c.t.Errorf("with annotations there are %d, without %d files", len(with), len(without))
		}
	})
}

// settings are the files of a container's cgroups by which somebody rules it, by
// hierarchy and name, and not those that count.
func (n *node) settings(id string) map[string]string {
	n.t.Helper()
	seen := map[string]string{}
	counters := []string{"usage", "failcnt", "stat", "procs", "tasks", "pressure", "events", "peak", "current", "event_control", "reclaim"}
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		above, name := filepath.Split(path)
		counts := slices.ContainsFunc(counters, func(word string) bool { return strings.Contains(name, word) })
		if err != nil || counts || !entry.Type().IsRegular() || !strings.Contains(above, id) || strings.Contains(above, "monitors") {
			return nil // groups of others come and go
		}
		if text, err := os.ReadFile(path); err == nil {
			hierarchy, _, _ := strings.Cut(strings.TrimPrefix(above, "/sys/fs/cgroup/"), "/")
			seen[hierarchy+" "+name] = string(text)
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return seen
}
