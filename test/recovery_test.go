package test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// harms are what can become of a record.
var harms = map[string]func(luck *rand.Rand, good []byte) []byte{
	"cut": func(luck *rand.Rand, good []byte) []byte { return good[:1+luck.IntN(len(good)-2)] },
	"a bit flipped": func(luck *rand.Rand, good []byte) []byte {
		bad := bytes.Clone(good)
		// Not in what surrounds the body: keys match in any case.
		at := bytes.Index(good, []byte(`"body":`)) + len(`"body":`)
		bad[at+luck.IntN(len(good)-at-3)] ^= 1 << luck.IntN(8)
		return bad
	},
	"zeros": func(_ *rand.Rand, good []byte) []byte { return make([]byte, len(good)) },
	"empty": func(*rand.Rand, []byte) []byte { return nil },
	"of no version": func(_ *rand.Rand, good []byte) []byte {
		return bytes.Replace(good, []byte(`"version":1`), []byte(`"version":0`), 1)
	},
	"something else": func(*rand.Rand, []byte) []byte { return []byte(`{"version":1,"sha256":"x","body":[]}`) },
}

// A record that is damaged in whatever way costs the daemon that object alone, and the
// object neither its processes nor its chance to come back.
func TestHarmedRecords(t *testing.T) {
	n, image := readyNode(t, options{})
	luck := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	pod, other := n.podConfig(), n.podConfig()
	box, otherBox := n.runPod(pod), n.runPod(other)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
	otherID := n.runContainer(otherBox, other, n.containerConfig(image, "sleep", "999"))
	before := []proto.Message{n.sandbox(box), n.container(id), n.sandbox(otherBox), n.container(otherID)}
	running := slices.Sorted(maps.Keys(n.pids()))
	var names []string
	for _, kind := range []string{"pods/" + box, "containers/" + id} {
		for _, harm := range slices.Sorted(maps.Keys(harms)) {
			names = append(names, kind+" "+harm)
		}
	}
	var restore func()
	for _, name := range names {
		object, harm, _ := strings.Cut(name, " ")
		record, aside := n.path("state/"+object), n.path("state/quarantine/"+strings.Replace(object, "/", "-", 1))
		n.kill()
		if restore != nil {
			restore()
		}
		good, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		// In the line that counts; without it there is none.
		last := bytes.LastIndexByte(good[:len(good)-1], '\n') + 1
		bad := harms[harm](luck, good[last:])
		if len(bad) > 0 {
			bad = slices.Concat(good[:last], bad)
		}
		if err := os.WriteFile(record, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		restore = func() {
			if err := errors.Join(os.WriteFile(record, good, 0o600), os.Remove(aside)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		n.start()
		if now := slices.Sorted(maps.Keys(n.pids())); !slices.Equal(now, running) {
			t.Errorf("%s: processes %v, and now %v", name, running, now)
		}
		n.wantSame(name, before, func(m proto.Message) bool { return strings.Contains(object, idOf(m)) })
		report := n.status()
		if len(report.Quarantined) != 1 || report.Quarantined[0].Path != aside || report.Quarantined[0].Remedy == "" {
			t.Errorf("%s: set aside: %+v", name, report.Quarantined)
		}
		if kept, err := os.ReadFile(aside); err != nil || !bytes.Equal(kept, bad) {
			t.Errorf("%s: kept %q, %v", name, kept, err)
		}
	}
	n.kill()
	restore()
	n.start()
	n.wantSame("all is put back", before, func(proto.Message) bool { return false })
	if report := n.status(); len(report.Quarantined) > 0 {
		t.Errorf("set aside: %+v", report.Quarantined)
	}
}

func idOf(m proto.Message) string {
	if s, ok := m.(*cri.PodSandboxStatus); ok {
		return s.GetId()
	}
	return m.(*cri.ContainerStatus).GetId()
}

// wantSame wants the status of each object to be what it was, and those that are lost not
// to be found.
func (n *node) wantSame(when string, before []proto.Message, lost func(proto.Message) bool) {
	n.t.Helper()
	for _, m := range before {
		var now proto.Message
		var err error
		if _, sandbox := m.(*cri.PodSandboxStatus); sandbox {
			a, failure := n.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: idOf(m)})
			now, err = a.GetStatus(), failure
		} else {
			a, failure := n.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: idOf(m)})
			now, err = a.GetStatus(), failure
		}
		switch {
		case lost(m) && status.Code(err) != codes.NotFound:
			n.t.Errorf("%s: %v, %v", when, now, err)
		case !lost(m) && (err != nil || !proto.Equal(m, now)):
			n.t.Errorf("%s: %v\ninstead of\n%v\n%v", when, now, m, err)
		}
	}
}

// What crio status says to do about a record that cannot be read does it: when the file is
// deleted, the next start takes away all that there is of the object: processes of any
// handler in any cgroup, layers, namespaces, addresses.
func TestDeletedRecordsAreOrphans(t *testing.T) {
	n, image := readyNode(t, options{conf: fmt.Sprintf("[crio.runtime.runtimes.other]\nruntime_path = %q\n", runtimePath(t, "runc"))})
	pod := n.podConfig()
	pod.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 18998}}
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "other"})
	if err != nil {
		t.Fatal(err)
	}
	box := a.GetPodSandboxId()
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
	sharing := n.podConfig()
	sharing.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	sharingBox := n.runPod(sharing)
	n.before["file run/oci/other"]++ // stays, as any handler's
	n.kill()
	records := []string{"pods/" + box, "containers/" + id, "pods/" + sharingBox}
	for _, record := range records {
		if err := os.WriteFile(n.path("state/"+record), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	if report := n.status(); len(report.Quarantined) != len(records) {
		t.Errorf("set aside: %+v", report.Quarantined)
	}
	if now := n.inventory(); now["file run/containers/"+id] != 1 || now["file run/pods/"+box] != 1 {
		t.Error("something was taken from objects whose records are set aside")
	}
	n.kill()
	for _, record := range records {
		if err := os.Remove(n.path("state/quarantine/" + strings.Replace(record, "/", "-", 1))); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	n.swept(box, id, sharingBox)
	n.removePodCgroups() // the pods' own, which are the kubelet's
	n.startedAnew()
}

// startedAnew makes again what the cgroups of a node without pods have lost.
func (n *node) startedAnew() {
	for name := range n.before {
		if strings.HasPrefix(name, "cgroup ") {
			_ = os.MkdirAll(strings.TrimPrefix(name, "cgroup "), 0o755)
		}
	}
}

// A handler that has left the configuration: its pods are what they were, and can be used,
// stopped and removed; new ones are refused.
func TestHandlerThatIsGone(t *testing.T) {
	const conf = "[crio.runtime.runtimes.other]\nruntime_path = %q\n"
	n, image := readyNode(t, options{conf: fmt.Sprintf(conf, runtimePath(t, "crun"))})
	n.before["file run/oci/other"]++ // stays, as any handler's
	pod := n.podConfig()
	pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "other"})
	if err != nil {
		t.Fatal(err)
	}
	box := a.GetPodSandboxId()
	config := n.containerConfig(image, "sleep", "999")
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	created := n.containerConfig(image, shell("exit 42")...)
	created.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	id, late := n.runContainer(box, pod, config), n.create(box, pod, created)
	before := []proto.Message{n.sandbox(box), n.container(id), n.container(late)}
	n.stop()
	n.reconfigure(fmt.Sprintf(conf, runtimePath(t, "crun")), "")
	n.start()
	n.wantSame("without the handler", before, func(proto.Message) bool { return false })
	if out := n.exec(id, "echo", "here").GetStdout(); string(out) != "here\n" {
		t.Errorf("exec: %q", out)
	}
	n.startContainer(late)
	if s := n.exited(late); s.GetExitCode() != 42 {
		t.Errorf("a container that was created before: %v", s)
	}
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if s := n.container(id); s.GetExitCode() != 137 {
		t.Errorf("at the end: %v", s)
	}
	if _, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: "other"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a new pod of it: %v", err)
	}
}

// An address that IPAM has given twice, since a power cut took its notes: the pod that is
// gone takes it from nobody. What is garbled in CNI's cache keeps no pod from being removed.
func TestAddressesThatAreGivenTwice(t *testing.T) {
	n, image := readyNode(t, options{})
	old := n.podConfig()
	oldBox := n.runPod(old)
	address := func(box string) string { return n.sandbox(box).GetNetwork().GetIp() }
	given := address(oldBox)
	n.powerOff()
	if err := os.RemoveAll(n.path("ipam")); err != nil {
		t.Fatal(err)
	}
	n.start()
	pod := n.podConfig()
	box := n.runPod(pod)
	for i := 0; address(box) != given; i++ {
		if i > 10 {
			t.Fatalf("%s is not given again, but %s", given, address(box))
		}
		pod = n.podConfig()
		box = n.runPod(pod)
	}
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "999"))
	if _, err := n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: oldBox}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: oldBox}); err != nil {
		t.Errorf("remove: %v", err)
	}
	if owner, err := os.ReadFile(n.path(fmt.Sprintf("ipam/test%d/%s", n.number, address(box)))); err != nil || !strings.Contains(string(owner), box) {
		t.Errorf("the address belongs to %q, %v", owner, err)
	}
	if out := string(n.exec(id, "ip", "addr").GetStdout()); !strings.Contains(out, address(box)) {
		t.Errorf("the pod has %s", out)
	}
	for i, file := range glob(n.path("cni-cache/results/*")) {
		text := [...]string{"", "{", `{"kind":"cniCacheV1","result":{"cniVersion":"1.0.0","ips":5}}`}[i%3]
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.kill()
	n.start()
}
