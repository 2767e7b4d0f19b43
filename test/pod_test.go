package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// The main job: an image from a registry with TLS and credentials, two pods on a
// real network, one serving the other, a log, a command, and nothing left.
func TestPodServesAnotherPod(t *testing.T) {
	registry := fixture.StartRegistry(t, fixture.RegistryOptions{TLS: true, Username: "user", Password: "secret"})
	ref := registry.Push(t, "private/web", "v1", fixture.BusyboxImage(t, "sleep", "1"))
	n := newNode(t, options{registry: registry})

	_, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err == nil {
		t.Fatal("the registry let us in without credentials")
	}
	pulled, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: ref}, Auth: &cri.AuthConfig{Username: "user", Password: "secret"},
	})
	if err != nil {
		t.Fatal(err)
	}
	web, client := n.podConfig(), n.podConfig()
	webBox, clientBox := n.runPod(web), n.runPod(client)
	address := n.sandbox(webBox).GetNetwork().GetIp()

	server := n.containerConfig(pulled.GetImageRef(), shell("mkdir /www; echo page > /www/index.html; echo serving; echo trouble >&2; exec httpd -f -p 80 -h /www")...)
	n.runContainer(webBox, web, server)
	n.awaitLog(logOf(web, server), "serving")
	caller := n.runContainer(clientBox, client, n.containerConfig(pulled.GetImageRef(), "sleep", "999"))
	var got *cri.ExecSyncResponse
	n.await("the page", func() error {
		if got = n.exec(caller, "wget", "-q", "-O", "-", "http://"+address+"/"); got.GetExitCode() != 0 {
			return fmt.Errorf("exit code %d: %s", got.GetExitCode(), got.GetStderr())
		}
		return nil
	})
	if string(got.GetStdout()) != "page\n" {
		t.Errorf("the page is %q", got.GetStdout())
	}
	n.awaitLog(logOf(web, server), "trouble")
	for _, r := range n.log(logOf(web, server)) {
		if r.text == "serving" && r.stream != "stdout" || r.text == "trouble" && r.stream != "stderr" || r.tag != "F" {
			t.Errorf("record %+v", r)
		}
	}
	if got := n.exec(caller, "hostname"); string(got.GetStdout()) != client.GetHostname()+"\n" {
		t.Errorf("hostname is %q", got.GetStdout())
	}
}

// A port of the node leads into the pod, by the portmap plugin.
func TestHostPort(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	pod.PortMappings = []*cri.PortMapping{
		{ContainerPort: 80, HostPort: 18080}, {ContainerPort: 81}, {ContainerPort: 53, HostPort: 18053, Protocol: cri.Protocol_UDP},
	}
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www")...)
	n.runContainer(box, pod, config)
	caller := n.podConfig()
	id := n.runContainer(n.runPod(caller), caller, n.containerConfig(image, "sleep", "99"))
	gateway := fmt.Sprintf("10.%d.%d.1", 200+n.number/250, n.number%250)
	n.await("the page on the node's port", func() error {
		got := n.exec(id, "wget", "-q", "-O", "-", "http://"+gateway+":18080/")
		if string(got.GetStdout()) != "page\n" {
			return fmt.Errorf("%d %s", got.GetExitCode(), got.GetStderr())
		}
		return nil
	})
}

func TestRunPodSandboxTwiceIsOneSandbox(t *testing.T) {
	n, _ := readyNode(t, options{})
	pod := n.podConfig()
	ids := make([]string, 8)
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() {
			a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod})
			if err != nil {
				t.Errorf("at once: %v", err)
			}
			ids[i] = a.GetPodSandboxId()
		})
	}
	wait.Wait()
	again := n.runPod(pod)
	for _, id := range ids {
		if id != again {
			t.Errorf("ids %s and %s for one pod", id, again)
		}
	}
	list, err := n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 1 {
		t.Errorf("%d sandboxes, %v", len(list.GetItems()), err)
	}
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: again}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod}); status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), again) {
		t.Errorf("the metadata of a stopped sandbox: %v", err)
	}
	pod.Metadata.Attempt++
	if next := n.runPod(pod); next == again {
		t.Error("the next attempt has the same id")
	}
}

func TestCreateContainerTwiceIsOneContainer(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	ids := make([]string, 8)
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() { ids[i] = n.create(box, pod, config) })
	}
	wait.Wait()
	again := n.create(box, pod, config)
	for _, id := range ids {
		if id != again {
			t.Errorf("ids %s and %s for one container", id, again)
		}
	}
	for range 2 {
		n.startContainer(again) // the second answers a repeated request
	}
}

// Without CAP_SYS_RESOURCE the kernel refuses what such pods ask for; with it, not.
func TestNegativeOOMScoreAndPrivileged(t *testing.T) {
	n, image := readyNode(t, options{env: []string{"CONTAINER_DEFAULT_ULIMITS=nofile=1048576:1048576"}})
	allowed, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	pod.Linux.SecurityContext.Privileged = true
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	config.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: -997}
	config.Linux.SecurityContext.Privileged = true
	for range 2 {
		config.Metadata.Attempt++
		id := n.runContainer(box, pod, config)
		out := string(n.exec(id, shell("cat /proc/1/oom_score_adj; grep CapBnd /proc/self/status; ls /dev/kmsg; touch /proc/sys/kernel/hostname")...).GetStdout())
		held, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, bounding, _ := strings.Cut(string(held), "CapBnd:")
		bounding, _, _ = strings.Cut(bounding, "\n")
		if !strings.Contains(out, bounding) || !strings.Contains(out, "/dev/kmsg") {
			t.Errorf("inside: %s\nthe daemon's bounding set:%s", out, bounding)
		}
		if canLower := strings.HasPrefix(out, "-997\n"); !canLower && !strings.HasPrefix(out, "0\n") {
			t.Errorf("oom_score_adj: %s", out)
		}
	}
	// Told once, and only where something is lacking.
	for _, message := range []string{"oom_score_adj -997", "privileged: the daemon itself lacks", "RLIMIT_NOFILE 1048576"} {
		if count := strings.Count(n.output.String(), message); count != 1-allowed {
			t.Errorf("%q is logged %d times", message, count)
		}
	}
}

func TestSharedPIDNamespaceHasABuiltInReaper(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	box := n.runPod(pod)
	var ids []string
	for range 2 {
		config := n.containerConfig(image, shell("(sleep 0.1 &); exec sleep 99")...)
		config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		ids = append(ids, n.runContainer(box, pod, config))
	}
	n.await("one namespace with pause as its first process and no zombie", func() error {
		out := string(n.exec(ids[0], "ps").GetStdout())
		if strings.Count(out, "sleep 99") != 2 || !strings.Contains(out, "/pause") || strings.Contains(out, "sleep]") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if list, err := n.images.ListImages(n.ctx(), &cri.ListImagesRequest{}); err != nil || len(list.GetImages()) != 1 {
		t.Errorf("a pause image was pulled: %v, %v", list.GetImages(), err)
	}
	// Without its first process the namespace is gone, and with it the pod.
	info := n.exec(ids[0], shell("kill -TERM 1; sleep 5")...)
	if info.GetExitCode() == 0 {
		t.Errorf("a command outlived its namespace: %s", info)
	}
	n.await("a sandbox that is not ready", func() error {
		if s := n.sandbox(box); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("it is %s", s.GetState())
		}
		return nil
	})
	for _, id := range ids {
		if s := n.exited(id); s.GetExitCode() != 137 {
			t.Errorf("exit code %d", s.GetExitCode())
		}
	}
}

func TestStopIsAskedKilledAndIdempotent(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	polite := n.runContainer(box, pod, n.containerConfig(image, shell("trap 'exit 7' TERM; echo up; while true; do sleep 0.01; done")...))
	stubborn := n.containerConfig(image, shell("trap '' TERM; echo up; while true; do sleep 0.01; done")...)
	stubbornID := n.runContainer(box, pod, stubborn)
	n.awaitLog(logOf(pod, stubborn), "up")
	n.await("the trap", func() error { time.Sleep(100 * time.Millisecond); return nil })
	stop := func(id string, seconds int64) error {
		_, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: seconds})
		return err
	}
	if err := stop(polite, 20); err != nil {
		t.Fatal(err)
	}
	if s := n.container(polite); s.GetExitCode() != 7 || s.GetReason() != "Error" || s.GetFinishedAt() < s.GetStartedAt() {
		t.Errorf("after a polite stop: %v", s)
	}
	// A long stop is under way: status and exec go on, and a second stop shortens it.
	long := make(chan error, 1)
	go func() { long <- stop(stubbornID, 86400) }()
	if got := n.exec(stubbornID, "echo", "alive"); string(got.GetStdout()) != "alive\n" {
		t.Errorf("exec during a stop: %v", got)
	}
	begun := time.Now()
	if err := stop(stubbornID, 0); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("a stop with 0 took %s while another waits a day", took)
	}
	if err := <-long; err != nil {
		t.Errorf("the long stop: %v", err)
	}
	if s := n.container(stubbornID); s.GetExitCode() != 137 {
		t.Errorf("after a kill: %v", s)
	}
	for _, id := range []string{polite, stubbornID, strings.Repeat("0", 64)} {
		if err := stop(id, 1); err != nil {
			t.Errorf("a second stop: %v", err)
		}
	}
}

func TestReopenedLogLosesNothing(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("i=0; until [ -e /v/end ]; do i=$((i+1)); echo line $i; done; echo $i > /v/lines")...)
	shared := t.TempDir()
	config.Mounts = []*cri.Mount{{HostPath: shared, ContainerPath: "/v"}}
	id := n.runContainer(box, pod, config)
	path := logOf(pod, config)
	reopen := func(file int) error {
		t.Helper()
		if err := os.Rename(path, fmt.Sprintf("%s.%04d", path, file)); err != nil {
			t.Fatal(err)
		}
		_, err := n.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id})
		return err
	}
	for file := range 200 {
		if err := reopen(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(shared, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.exited(id)
	if err := reopen(200); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("of an ended container: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("an error of ReopenContainerLog left a new file")
	}
	parts, err := filepath.Glob(path + "*") // sorted
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, part := range parts {
		for _, r := range n.log(part) {
			if lines++; r.text != fmt.Sprintf("line %d", lines) {
				t.Fatalf("%s: %q instead of line %d", part, r.text, lines)
			}
		}
	}
	if written, err := os.ReadFile(filepath.Join(shared, "lines")); err != nil || string(written) != fmt.Sprintln(lines) {
		t.Errorf("%d lines of %s, %v", lines, written, err)
	}
}

func TestOOMKilledIsTold(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("tail /dev/zero")...)
	config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	if s := n.exited(n.runContainer(box, pod, config)); s.GetReason() != "OOMKilled" || s.GetExitCode() != 137 {
		t.Errorf("%s, exit code %d", s.GetReason(), s.GetExitCode())
	}
	// A kill is not an OOM kill, however alike they look from outside.
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if s := n.container(id); s.GetReason() != "Error" || s.GetExitCode() != 137 {
		t.Errorf("a kill: %s, exit code %d", s.GetReason(), s.GetExitCode())
	}
}

func TestStartFailureIsToldAndTheContainerCanBeRemoved(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.create(box, pod, n.containerConfig(image, "/does/not/exist"))
	_, err := n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("start: %v", err)
	}
	s := n.container(id)
	if s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetReason() != "StartError" || s.GetExitCode() != 128 || !strings.Contains(s.GetMessage(), "/does/not/exist") {
		t.Errorf("status: %v", s)
	}
	if _, err := n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
}

// Whatever is asked twice, or of what is not there, has the answer of the proto.
func TestAbsentObjects(t *testing.T) {
	n, _ := readyNode(t, options{})
	absent := strings.Repeat("0", 64)
	for name, err := range map[string]error{
		"stop pod":         second(n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: absent})),
		"remove pod":       second(n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: absent})),
		"stop container":   second(n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: absent})),
		"remove container": second(n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: absent})),
		"remove image":     second(n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "localhost/absent:v1"}})),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"pod status":       second(n.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: absent})),
		"container status": second(n.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: absent})),
		"start":            second(n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: absent})),
		"exec":             second(n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: absent, Cmd: []string{"x"}})),
		"create":           second(n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: absent, Config: n.containerConfig("x", "y")})),
		"update":           second(n.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: absent, Linux: &cri.LinuxContainerResources{}})),
		"update pod":       second(n.UpdatePodSandboxResources(n.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: absent})),
		"reopen":           second(n.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: absent})),
	} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "localhost/absent:v1"}}); err != nil || a.GetImage() != nil {
		t.Errorf("image status: %v, %v", a, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestListsFilterAndStatusesReturnWhatWasGiven(t *testing.T) {
	n, image := readyNode(t, options{})
	pod, other := n.podConfig(), n.podConfig()
	pod.Labels = map[string]string{"app": "web", "tier": "front"}
	pod.Annotations = map[string]string{"odd/key": "a\n\"b\"\t{}", "org.systemd.property.CPUQuota": "1"}
	box := n.runPod(pod)
	otherBox := n.runPod(other)
	config := n.containerConfig(image, "sleep", "99")
	config.Labels, config.Annotations = map[string]string{"a": "1"}, map[string]string{"x": "\x01y"}
	id := n.runContainer(box, pod, config)
	created := n.create(box, pod, n.containerConfig(image, "true"))
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: otherBox}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		filter *cri.PodSandboxFilter
		want   []string
	}{
		"none": {nil, []string{otherBox, box}}, "id": {&cri.PodSandboxFilter{Id: box}, []string{box}},
		"beginning of id": {&cri.PodSandboxFilter{Id: box[:13]}, []string{box}},
		"label":           {&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, []string{box}},
		"labels":          {&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "back"}}, nil},
		"ready":           {&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}, []string{box}},
		"id and state":    {&cri.PodSandboxFilter{Id: box, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}, nil},
	} {
		list, err := n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{Filter: c.filter})
		var got []string
		for _, s := range list.GetItems() {
			got = append(got, s.GetId())
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("pods by %s: %v, %v", name, got, err)
		}
	}
	for name, c := range map[string]struct {
		filter *cri.ContainerFilter
		want   []string
	}{
		"none": {nil, []string{created, id}}, "pod": {&cri.ContainerFilter{PodSandboxId: otherBox}, nil},
		"state": {&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_CREATED}}, []string{created}},
		"label": {&cri.ContainerFilter{LabelSelector: map[string]string{"a": "1"}}, []string{id}},
	} {
		list, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{Filter: c.filter})
		var got []string
		for _, s := range list.GetContainers() {
			got = append(got, s.GetId())
			if s.GetImageId() != image {
				t.Errorf("image id %s, pulled %s", s.GetImageId(), image)
			}
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("containers by %s: %v, %v", name, got, err)
		}
	}
	s := n.sandbox(box)
	if fmt.Sprint(s.GetAnnotations()) != fmt.Sprint(pod.GetAnnotations()) || fmt.Sprint(s.GetLabels()) != fmt.Sprint(pod.GetLabels()) || s.GetCreatedAt() <= 0 {
		t.Errorf("sandbox status: %v", s)
	}
	if c := n.container(id); fmt.Sprint(c.GetAnnotations()) != fmt.Sprint(config.GetAnnotations()) || c.GetLogPath() != logOf(pod, config) || c.GetImageId() != image {
		t.Errorf("container status: %v", c)
	}
	quiet, err := n.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box})
	if err != nil || len(quiet.GetInfo()) != 0 {
		t.Errorf("info without verbose: %v, %v", quiet.GetInfo(), err)
	}
	loud, err := n.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
	if err != nil || len(loud.GetInfo()) == 0 || len(loud.GetContainersStatuses()) != 2 {
		t.Errorf("verbose: %v, %v", loud, err)
	}
	spec, err := os.ReadFile(n.path("run/containers/" + id + "/config.json"))
	if err != nil || bytes.Contains(spec, []byte("org.systemd")) {
		t.Errorf("annotations reach the OCI runtime: %v", err)
	}
}

func TestImageFsInfoAndRemoveImage(t *testing.T) {
	registry := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := fixture.BusyboxImage(t, "true")
	n := newNode(t, options{registry: registry})
	id := n.pull(registry.Push(t, "one", "v1", img))
	if again := n.pull(registry.Push(t, "two", "v2", img)); again != id || id != img.ID {
		t.Errorf("ids %s, %s, %s", id, again, img.ID)
	}
	info, err := n.images.ImageFsInfo(n.ctx(), &cri.ImageFsInfoRequest{})
	if err != nil || len(info.GetImageFilesystems()) != 1 || info.GetImageFilesystems()[0].GetUsedBytes().GetValue() < 1<<20 || len(info.GetContainerFilesystems()) != 1 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: registry.Host + "/one:v1"}}); err != nil {
		t.Fatal(err)
	}
	list, err := n.images.ListImages(n.ctx(), &cri.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 0 {
		t.Errorf("removing one name left %v, %v", list.GetImages(), err)
	}
}
