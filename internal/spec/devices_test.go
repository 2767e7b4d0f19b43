package spec

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
)

func TestCheckDeviceNamesWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		host, inside, access string
		words                []string
	}{
		{"/dev/fuse", "/dev/x", "rwm", nil},
		{"", "/dev/x", "r", []string{"host_path", "empty"}},
		{"/dev/fuse", "", "r", []string{"container_path", "empty"}},
		{"dev/fuse", "/dev/x", "r", []string{"host_path", "absolute"}},
		{"/dev/fuse", "dev/x", "r", []string{"container_path", "absolute", "dev/x"}},
		{"/dev/fu\x00se", "/dev/x", "r", []string{"host_path", "NUL"}},
		{"/dev/fuse", "/dev/" + strings.Repeat("x", 256), "r", []string{"container_path", "longer"}},
		{"/dev/fuse", strings.Repeat("/x", 2048), "r", []string{"container_path", "longer"}},
		{"/dev/fuse", "/dev/x", "", []string{"permissions", "/dev/x"}},
		{"/dev/fuse", "/dev/x", "rx", []string{"permissions", "rx"}},
	} {
		err := CheckDevice(&cri.Device{HostPath: tt.host, ContainerPath: tt.inside, Permissions: tt.access})
		if (err != nil) != (tt.words != nil) {
			t.Errorf("%.20q, %.20q, %q: %v", tt.host, tt.inside, tt.access, err)
		}
		for _, word := range tt.words {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%v does not name %q", err, word)
			}
		}
	}
}

func TestBindDevices(t *testing.T) {
	mode := new(specs.LinuxDevice).FileMode
	unasked, asked := Device{LinuxDevice: specs.LinuxDevice{Path: "/dev/sda", Type: "b", Major: 8, FileMode: mode}, OfNode: true},
		Device{LinuxDevice: specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: mode}}
	null := Device{LinuxDevice: specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
	given := []Device{unasked, asked, null}
	s := &specs.Spec{Linux: &specs.Linux{}, Mounts: []specs.Mount{{Destination: "/dev"}}}
	for _, d := range given {
		s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
	}
	s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/cdi"})
	if err := BindDevices(s, given, func(d specs.LinuxDevice) (string, error) { return "/nodes" + d.Path, nil }); err != nil {
		t.Fatal(err)
	}
	if l := s.Linux.Devices; len(l) != 2 || l[0].Path != "/dev/sda" || l[1].Path != "/dev/null" {
		t.Errorf("devices %v", l)
	}
	if m := s.Mounts; len(m) != 3 || m[1].Destination != "/dev/fuse" || m[1].Source != "/nodes/dev/fuse" || m[2].Destination != "/dev/cdi" {
		t.Errorf("mounts %v", m)
	}
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Major: 1, Minor: 5}}
	if err := BindDevices(s, nil, nil); fault.Of(err) != fault.InvalidArgument {
		t.Errorf("zero at /dev/null: %v", err)
	}
	s.Linux.Devices, given[0] = []specs.LinuxDevice{{Path: "/dev/x"}}, Device{}
	broken := errors.New("no node")
	if err := BindDevices(s, given, func(specs.LinuxDevice) (string, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestDevicesBelongToMappedIDs(t *testing.T) {
	n := Namespaces{UIDs: specs.LinuxIDMapping{HostID: 1 << 20, Size: 100}, GIDs: specs.LinuxIDMapping{HostID: 1 << 21, Size: 50}}
	for _, tt := range []struct{ uid, gid, wantUID, wantGID uint32 }{{0, 6, 0, 6}, {99, 49, 99, 49}, {100, 50, 0, 0}} {
		if uid, gid := n.OwnerInside(specs.LinuxDevice{UID: &tt.uid, GID: &tt.gid}); uid != tt.wantUID || gid != tt.wantGID {
			t.Errorf("%d:%d is %d:%d inside", tt.uid, tt.gid, uid, gid)
		}
	}
	if uid, gid := n.OwnerInside(specs.LinuxDevice{}); uid != 0 || gid != 0 {
		t.Errorf("nobody's is %d:%d", uid, gid)
	}
}

func TestMountsInTheKernelsFileSystems(t *testing.T) {
	for _, tt := range []struct {
		target         string
		runc, proc, ok bool
	}{
		{"/process", true, false, true}, {"/proc", true, false, false}, {"/proc", true, true, true}, {"/proc/", false, false, true},
		{"/proc/cpuinfo", true, false, true}, {"/proc/version", true, false, false}, {"/proc/version", false, false, true},
		{"/x/../proc/1", true, false, false}, {"/sys/firmware", true, false, true},
	} {
		if err := CheckKernelPlace(tt.target, tt.runc, tt.proc); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	for target, want := range map[string]bool{
		"/proc": false, "/proc/version": true, "/proc/1/mem": false, "/proc/self": false, "/sys/firmware": true, "/sys/fs/cgroup/x": false,
		"/sys/class/net/eth0": false, "/proc/sys/net/x": false, "/system/x": false, "/etc": false,
	} {
		if got := KernelFile(target); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
}

func TestCheckSeccomp(t *testing.T) {
	local := &cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p"}}
	for text, ok := range map[string]bool{`{"defaultAction":"SCMP_ACT_ALLOW"}`: true, `{`: false, ``: false} {
		if err := CheckSeccomp(local, []byte(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	// A profile of the docker form looks at the capabilities.
	text := `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_BPF"]}}]}`
	if err := CheckSeccomp(local, []byte(text)); err != nil {
		t.Error(err)
	}
	if err := CheckSeccomp(nil, []byte("{")); err != nil {
		t.Errorf("without a Localhost profile: %v", err)
	}
}
