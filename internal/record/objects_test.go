package record

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

func open(t *testing.T, root, kind string) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(root, kind), filepath.Join(root, "quarantine"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func handler() pod.Handler {
	return pod.Handler{Name: "fast", Path: "/usr/bin/crun", Root: "/run/crio/oci/fast", Systemd: true, Args: []string{"--a"}, Sandbox: true}
}

// fullSandbox has no empty field, and texts that JSON has to escape.
func fullSandbox() pod.Sandbox {
	return pod.Sandbox{
		ID: pod.NewID(), Phase: pod.SandboxReady, Handler: handler(), CreatedAt: 1<<62 + 1, BootID: "b-1", StopRequested: true,
		Config: &cri.PodSandboxConfig{
			Metadata:    &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u-1", Attempt: 4_000_000_000},
			Hostname:    "web",
			Annotations: map[string]string{"text": "<a> & \"b\"\n\u2028\U0001F433", "empty": ""},
			Linux:       &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/podu-1", Sysctls: map[string]string{"net.a": "1"}},
		},
		Network: &pod.Network{
			Name: "crio", Config: json.RawMessage(`{"cniVersion":"1.0.0","big":12345678901234567890}`),
			Result: json.RawMessage(`{"ips":[{"address":"10.0.0.2/24"}]}`), IPs: []string{"10.0.0.2", "fd00::2"},
		},
		ProcessLabel: "system_u:system_r:container_t:s0:c1,c2", MountLabel: "system_u:object_r:container_file_t:s0:c1,c2",
		Cgroups: []string{"/kubepods", "/kubepods/podu-1"}, Pause: &pod.Process{Pid: 4711, StartTicks: 1<<64 - 1},
		Overhead: &cri.LinuxContainerResources{CpuShares: 1}, Resources: &cri.LinuxContainerResources{CpuShares: 2},
	}
}

func fullContainer() pod.Container {
	return pod.Container{
		ID: pod.NewID(), SandboxID: pod.NewID(), Phase: pod.ContainerExited, Handler: handler(),
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "nginx", Attempt: 2}, Args: []string{"-c", "sleep 1 && echo '<>'"},
			Envs: []*cri.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "A", Value: []byte{0xff, 0}}},
		},
		CgroupParent: "kubepods.slice", ImageID: "sha256:1", ImageName: "nginx:1", ImageRef: "localhost/nginx@sha256:2", Rootfs: "/rootfs",
		ImageMounts: []pod.ImageMount{{Mount: 1, ImageID: "sha256:3", ImageRef: "localhost/data@sha256:4"}},
		BootID:      "b-1", LogPath: "/var/log/pods/web/0.log", User: &cri.LinuxContainerUser{Uid: 1, Gid: 2, SupplementalGroups: []int64{3}},
		StopSignal: 3, CreatedAt: 1, StartedAt: 2, FinishedAt: 1<<62 + 3, StartRequested: true,
		Init: pod.Process{Pid: 1, StartTicks: 2}, ExitCode: -1, Signal: 9, OOMKilled: true,
		Reason: pod.ReasonOOMKilled, Message: "out of memory\x00", LogDropped: 1<<64 - 1,
		Resources: &cri.LinuxContainerResources{CpuShares: 3}, Update: &cri.LinuxContainerResources{OomScoreAdj: -4},
	}
}

// wantNoEmptyField keeps the round trip complete when a field is added to pod.
func wantNoEmptyField(t *testing.T, value any) {
	t.Helper()
	for field, v := range reflect.ValueOf(value).Fields() {
		if v.IsZero() {
			t.Errorf("the test does not fill %T.%s", value, field.Name)
		}
	}
}

// sameMessage tells nil from empty, as proto.Equal does for typed pointers.
func sameMessage[T proto.Message](a, b T) bool {
	return a.ProtoReflect().IsValid() == b.ProtoReflect().IsValid() && proto.Equal(a, b)
}

func sameSandbox(a, b pod.Sandbox) bool {
	same := sameMessage(a.Config, b.Config) && sameMessage(a.Overhead, b.Overhead) && sameMessage(a.Resources, b.Resources)
	a.Config, a.Overhead, a.Resources = nil, nil, nil
	b.Config, b.Overhead, b.Resources = nil, nil, nil
	return same && reflect.DeepEqual(a, b)
}

func sameContainer(a, b pod.Container) bool {
	same := sameMessage(a.Config, b.Config) && sameMessage(a.User, b.User) &&
		sameMessage(a.Resources, b.Resources) && sameMessage(a.Update, b.Update)
	a.Config, a.User, a.Resources, a.Update = nil, nil, nil, nil
	b.Config, b.User, b.Resources, b.Update = nil, nil, nil, nil
	return same && reflect.DeepEqual(a, b)
}

func loadSandboxes(t *testing.T, root string) ([]pod.Sandbox, []Broken) {
	t.Helper()
	all, broken, err := Sandboxes{open(t, root, "pods")}.LoadAll(nobodyIsDead)
	if err != nil {
		t.Fatal(err)
	}
	return all, broken
}

func TestSandboxRoundTrip(t *testing.T) {
	full := fullSandbox()
	wantNoEmptyField(t, full)
	wantNoEmptyField(t, *full.Network)
	wantNoEmptyField(t, full.Handler)
	for name, value := range map[string]pod.Sandbox{
		"full": full, "smallest": {ID: pod.NewID(), Config: &cri.PodSandboxConfig{}},
	} {
		for _, synced := range []bool{false, true} {
			root := t.TempDir()
			// The second save replaces the first.
			old := value
			old.Phase, old.Config = pod.SandboxCreating, &cri.PodSandboxConfig{Hostname: "old"}
			s := Sandboxes{open(t, root, "pods")}
			for _, v := range []pod.Sandbox{old, value} {
				if err := s.Save(v); err != nil {
					t.Fatal(err)
				}
				if synced {
					if err := s.Sync(v.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
			all, broken := loadSandboxes(t, root)
			if len(broken) > 0 || len(all) != 1 || !sameSandbox(all[0], value) {
				t.Errorf("%s: %+v came back as %+v, %v", name, value, all, broken)
			}
		}
	}
}

func TestContainerRoundTrip(t *testing.T) {
	full := fullContainer()
	wantNoEmptyField(t, full)
	for name, value := range map[string]pod.Container{
		"full": full, "without a user": {ID: pod.NewID(), Config: &cri.ContainerConfig{}},
		"root": {ID: pod.NewID(), Config: &cri.ContainerConfig{}, User: &cri.LinuxContainerUser{}},
	} {
		root := t.TempDir()
		if err := (Containers{open(t, root, "containers")}).Save(value); err != nil {
			t.Fatal(err)
		}
		all, broken, err := Containers{open(t, root, "containers")}.LoadAll(nobodyIsDead)
		if err != nil || len(broken) > 0 || len(all) != 1 || !sameContainer(all[0], value) {
			t.Errorf("%s: %+v came back as %+v, %v, %v", name, value, all, broken, err)
		}
	}
}

// The kinds share one quarantine, but each reports its own alone.
func TestKindsShareTheQuarantine(t *testing.T) {
	root := t.TempDir()
	c := Containers{open(t, root, "containers")}
	id := pod.NewID()
	writeRecord(t, open(t, root, "pods"), id, "a pod's")
	writeRecord(t, c.Dir, id, "a container's")
	for range 2 {
		_, pods := loadSandboxes(t, root)
		_, containers, err := c.LoadAll(nobodyIsDead)
		if err != nil || len(pods) != 1 || len(containers) != 1 || pods[0].Path == containers[0].Path {
			t.Errorf("pods: %v, containers: %v, %v", pods, containers, err)
		}
	}
}

// A record of a newer build: what this one does not know has to be there after it
// has changed the rest, and the API's new fields must not make it unreadable.
func TestUnknownFieldsSurvive(t *testing.T) {
	const later = `{"nested":[1,{"a":null}],"big":12345678901234567890}`
	root := t.TempDir()
	value := fullSandbox()
	d := open(t, root, "pods")
	body := map[string]json.RawMessage{}
	var config json.RawMessage
	if err := marshal(&config, value.Config); err != nil {
		t.Fatal(err)
	}
	ours, err := json.Marshal(sandboxBody{Sandbox: value, Config: config})
	if err == nil {
		err = json.Unmarshal(ours, &body)
	}
	if err != nil {
		t.Fatal(err)
	}
	body["Later"] = json.RawMessage(later)
	body["Config"] = json.RawMessage(strings.Replace(string(config), "{", `{"fieldOf2030":{"a":1},`, 1))
	body["Handler"] = json.RawMessage(strings.Replace(string(body["Handler"]), "{", `{"fieldOf2031":[2],`, 1))
	body["Network"] = json.RawMessage(strings.Replace(string(body["Network"]), "{", `{"fieldOf2032":3,`, 1))
	if err := d.Save(value.ID, body, sys.WriteFile); err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(readRecord(t, d, value.ID), `"version":1`, `"version":7`, 1)
	writeRecord(t, d, value.ID, newer)

	// Twice, as two restarts of this build.
	for _, phase := range []pod.SandboxPhase{pod.SandboxNotReady, pod.SandboxRemoving} {
		s := Sandboxes{open(t, root, "pods")}
		all, broken, err := s.LoadAll(nobodyIsDead)
		if err != nil || len(broken) > 0 || len(all) != 1 || !proto.Equal(all[0].Config, value.Config) {
			t.Fatalf("loaded %+v, %v, %v", all, broken, err)
		}
		all[0].Phase, all[0].Network = phase, nil
		if err := s.Save(all[0]); err != nil {
			t.Fatal(err)
		}
		file := readRecord(t, d, value.ID)
		for _, field := range []string{`"version":1`, `"fieldOf2030":{"a":1}`, `"fieldOf2031":[2]`} {
			if !strings.Contains(file, field) {
				t.Errorf("after %s the record has no %s: %s", phase, field, file)
			}
		}
		if !strings.Contains(file, `"Later":`+later) || !strings.Contains(file, `"Network":null`) || !strings.Contains(file, `"Phase":"`+string(phase)+`"`) {
			t.Errorf("after %s the record is %s", phase, file)
		}
	}
	// The fields are the record's, not the ID's.
	if err := d.Delete(value.ID); err != nil {
		t.Fatal(err)
	}
	s := Sandboxes{open(t, root, "pods")}
	if err := s.Save(value); err != nil {
		t.Fatal(err)
	}
	if file := readRecord(t, d, value.ID); strings.Contains(file, "Later") {
		t.Errorf("a fresh record is %s", file)
	}
}

func TestDeleteForgetsUnknownFields(t *testing.T) {
	root := t.TempDir()
	value := fullSandbox()
	s := Sandboxes{open(t, root, "pods")}
	if err := s.Dir.Save(value.ID, map[string]any{"ID": value.ID, "Config": map[string]any{}, "Later": 1}, sys.WriteFile); err != nil {
		t.Fatal(err)
	}
	if _, broken, err := s.LoadAll(nobodyIsDead); err != nil || len(broken) > 0 {
		t.Fatal(broken, err)
	}
	// Twice: the second finds nothing, as after a crash in teardown.
	for range 2 {
		if err := s.Delete(value.ID); err != nil {
			t.Fatal(err)
		}
	}
	if all, broken := loadSandboxes(t, root); len(all)+len(broken) > 0 {
		t.Errorf("after the removal: %+v, %v", all, broken)
	}
	if err := s.Save(value); err != nil {
		t.Fatal(err)
	}
	if file := readRecord(t, s.Dir, value.ID); strings.Contains(file, "Later") {
		t.Errorf("the new record is %s", file)
	}
}

// A record from before updates of resources has in force what was asked for.
func TestRecordsFromBeforeUpdates(t *testing.T) {
	asked := &cri.LinuxContainerResources{CpuShares: 5}
	box, container := fullSandbox(), fullContainer()
	box.Config.Linux.Resources, container.Config.Linux = asked, &cri.LinuxContainerConfig{Resources: asked}
	without := func(dir *Dir, id string) {
		text := readRecord(t, dir, id)
		var record struct{ Body json.RawMessage }
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatal(err)
		}
		var body map[string]json.RawMessage
		if err := json.Unmarshal(record.Body, &body); err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{"Resources", "Update", "Overhead"} {
			delete(body, field)
		}
		if err := dir.Delete(id); err != nil {
			t.Fatal(err)
		}
		if err := dir.Save(id, body, sys.WriteFile); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	s, c := Sandboxes{open(t, root, "pods")}, Containers{open(t, root, "containers")}
	if err := errors.Join(s.Save(box), c.Save(container)); err != nil {
		t.Fatal(err)
	}
	without(s.Dir, box.ID)
	without(c.Dir, container.ID)
	boxes, _, err := s.LoadAll(nobodyIsDead)
	containers, _, err2 := c.LoadAll(nobodyIsDead)
	if err := errors.Join(err, err2); err != nil || len(boxes) != 1 || len(containers) != 1 {
		t.Fatal(err, len(boxes), len(containers))
	}
	if !proto.Equal(boxes[0].Resources, asked) || !proto.Equal(containers[0].Resources, asked) || containers[0].Update != nil {
		t.Errorf("%v, %v", boxes[0].Resources, containers[0].Resources)
	}
}

// Records as earlier daemons wrote them load for ever: a file is added when they change.
func TestRecordsOfEarlierVersions(t *testing.T) {
	root := t.TempDir()
	s, c := Sandboxes{open(t, root, "pods")}, Containers{open(t, root, "containers")}
	for file, d := range map[string]*Dir{"testdata/sandbox.v1.json": s.Dir, "testdata/container.v1.json": c.Dir} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		writeRecord(t, d, seedID(), string(data))
	}
	boxes, broken, err := s.LoadAll(nobodyIsDead)
	containers, more, err2 := c.LoadAll(nobodyIsDead)
	if err := errors.Join(err, err2); err != nil || len(broken)+len(more) > 0 || len(boxes) != 1 || len(containers) != 1 {
		t.Fatal(err, broken, more)
	}
	box, container := fullSandbox(), fullContainer()
	if got := boxes[0]; got.Phase != box.Phase || !proto.Equal(got.Config, box.Config) || !reflect.DeepEqual(got.Network, box.Network) ||
		!reflect.DeepEqual(got.Handler, box.Handler) || !reflect.DeepEqual(got.Pause, box.Pause) {
		t.Errorf("%+v", got)
	}
	if got := containers[0]; got.Phase != container.Phase || !proto.Equal(got.Config, container.Config) || got.Init != container.Init ||
		got.ExitCode != container.ExitCode || got.ImageID != container.ImageID || got.FinishedAt != container.FinishedAt {
		t.Errorf("%+v", got)
	}
}
