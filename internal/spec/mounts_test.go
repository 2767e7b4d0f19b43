package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	private  = cri.MountPropagation_PROPAGATION_PRIVATE
	fromHost = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bothWays = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

func mountAt(target string) Mount {
	return Mount{Source: "/host" + target, Mount: &cri.Mount{ContainerPath: target, HostPath: "/link" + target}}
}

// at returns the one mount on target.
func at(t *testing.T, s *specs.Spec, target string) specs.Mount {
	t.Helper()
	var found []specs.Mount
	for _, m := range s.Mounts {
		if m.Destination == target {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d mounts on %s: %+v", len(found), target, s.Mounts)
	}
	return found[0]
}

func TestMountOptions(t *testing.T) {
	for name, c := range map[string]struct {
		mount  *cri.Mount
		noRRO  bool
		want   string
		refuse []string
	}{
		"plain":                       {mount: &cri.Mount{}, want: "rbind rprivate rw"},
		"readonly":                    {mount: &cri.Mount{Readonly: true}, want: "rbind rprivate ro"},
		"host to container":           {mount: &cri.Mount{Propagation: fromHost}, want: "rbind rslave rw"},
		"bidirectional":               {mount: &cri.Mount{Propagation: bothWays, Readonly: true}, want: "rbind rshared ro"},
		"recursive read-only":         {mount: &cri.Mount{Readonly: true, RecursiveReadOnly: true}, want: "rbind rprivate rro"},
		"mount_options":               {mount: &cri.Mount{MountOptions: []string{"noexec", "nodev", "nosuid"}}, want: "rbind rprivate rw noexec nodev nosuid"},
		"image":                       {mount: &cri.Mount{Readonly: true, Image: &cri.ImageSpec{}}, want: "rbind rprivate ro nosuid nodev"},
		"image with mount_options":    {mount: &cri.Mount{Readonly: true, Image: &cri.ImageSpec{}, MountOptions: []string{"nodev", "noexec"}}, want: "rbind rprivate ro nosuid nodev noexec"},
		"recursive without readonly":  {mount: &cri.Mount{RecursiveReadOnly: true}, refuse: []string{"recursive_read_only", "/data"}},
		"recursive and not private":   {mount: &cri.Mount{Readonly: true, RecursiveReadOnly: true, Propagation: fromHost}, refuse: []string{"recursive_read_only", "/data"}},
		"recursive with old runtime":  {mount: &cri.Mount{Readonly: true, RecursiveReadOnly: true}, noRRO: true, refuse: []string{"recursive_read_only", "/data", "handler"}},
		"unknown propagation":         {mount: &cri.Mount{Propagation: 7}, refuse: []string{"propagation 7", "/data"}},
		"unknown option":              {mount: &cri.Mount{MountOptions: []string{"nodev", "suid"}}, refuse: []string{`"suid"`, "/data"}},
		"an option is not a way out":  {mount: &cri.Mount{Readonly: true, MountOptions: []string{"rw"}}, refuse: []string{`"rw"`}},
		"two options are not one":     {mount: &cri.Mount{MountOptions: []string{"nodev,exec"}}, refuse: []string{"nodev,exec"}},
		"recursive by mount_options":  {mount: &cri.Mount{MountOptions: []string{"rro"}}, refuse: []string{`"rro"`}},
		"options have no empty words": {mount: &cri.Mount{MountOptions: []string{""}}, refuse: []string{`""`}},
	} {
		t.Run(name, func(t *testing.T) {
			c.mount.ContainerPath, c.mount.HostPath = "/data", "/link"
			result, err := Container(podInput(func(in *Input) {
				in.Node.RecursiveReadOnly = !c.noRRO
				in.Mounts = []Mount{{Mount: c.mount, Source: "/resolved"}}
			}))
			if c.refuse != nil {
				wantError(t, err, append(c.refuse, "mounts")...)
				if got := errors.Is(err, ErrRecursiveReadOnly); got != c.noRRO {
					t.Errorf("ErrRecursiveReadOnly is %v for %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m := at(t, result.Spec, "/data")
			if m.Source != "/resolved" || m.Type != "bind" || strings.Join(m.Options, " ") != c.want {
				t.Errorf("got %+v, want %s", m, c.want)
			}
		})
	}
}

// TestVolumes: they are beside the pod's files and mounts, never in their place.
func TestVolumes(t *testing.T) {
	in := podInput(func(in *Input) {
		in.Volumes = []Volume{{"/etc", "/run/etc"}, {"/data", "/run/data"}}
		in.Mounts = []Mount{mountAt("/data")}
		in.Config.Mounts = []*cri.Mount{in.Mounts[0].Mount}
	})
	s := build(t, in)
	if m := at(t, s, "/etc"); m.Source != "/run/etc" || strings.Join(m.Options, " ") != "rbind rprivate rw" {
		t.Errorf("%+v", m)
	}
	if at(t, s, "/etc/hosts").Source != in.Files["/etc/hosts"] || at(t, s, "/data").Source != "/host/data" {
		t.Errorf("a volume hides what is the pod's: %+v", s.Mounts)
	}
	for target, covered := range map[string]bool{"/data": true, "/data/x": true, "/database": false, "/": false, "/etc/hosts": true, "/etc": false} {
		if got := in.Covered(target); got != covered {
			t.Errorf("Covered(%s) = %t", target, got)
		}
	}
	for _, in := range []Input{podInput(), podInput(func(in *Input) { in.Node.ReadOnly = true }), podInput(func(in *Input) { security(in).ReadonlyRootfs = true })} {
		if in.ReadOnlyRoot() != (in.Node.ReadOnly || security(&in).ReadonlyRootfs) || build(t, in).Root.Readonly != in.ReadOnlyRoot() {
			t.Errorf("ReadOnlyRoot is %t", in.ReadOnlyRoot())
		}
	}
}

func TestRefusedMountTargets(t *testing.T) {
	for name, c := range map[string]struct {
		targets []string
		says    string
	}{
		"empty":               {[]string{""}, `""`},
		"relative":            {[]string{"data"}, `"data"`},
		"the root":            {[]string{"/"}, `"/"`},
		"the root in a guise": {[]string{"/a/../."}, `"/a/../."`},
		"twice":               {[]string{"/a", "/a"}, `"/a" is given twice`},
		"twice in a guise":    {[]string{"/a", "//b/../a/"}, "is given twice"},
	} {
		t.Run(name, func(t *testing.T) {
			in := podInput()
			for _, target := range c.targets {
				in.Mounts = append(in.Mounts, mountAt(target))
			}
			_, err := Container(in)
			wantError(t, err, "mounts", c.says)
		})
	}
}

// TestMountOrder: what is mounted on a parent later hides the child.
func TestMountOrder(t *testing.T) {
	in := podInput()
	for _, target := range []string{
		"/etc/app/conf.d/x", "/etc", "/a/b/c", "/dev/shm/deep", "/a", "/proc/self-made", "/a/b", "/dev", "/sys/fs/cgroup/own", "/a-b", "/run//x/",
	} {
		in.Mounts = append(in.Mounts, mountAt(target))
	}
	s := build(t, in)
	for i, m := range s.Mounts {
		for _, later := range s.Mounts[i+1:] {
			if strings.HasPrefix(m.Destination, later.Destination+"/") {
				t.Errorf("%s is mounted before %s, which hides it", m.Destination, later.Destination)
			}
		}
	}
	for _, target := range []string{"/etc", "/etc/resolv.conf", "/a/b/c", "/dev/pts", "/run/x"} {
		at(t, s, target)
	}
	if dev := at(t, s, "/dev"); dev.Type != "bind" || dev.Source != "/host/dev" {
		t.Errorf("the pod's own /dev is lost: %+v", dev)
	}
}

func TestPodFiles(t *testing.T) {
	files := []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}
	for name, c := range map[string]struct {
		change func(*Input)
		access string
	}{
		"writable root": {func(*Input) {}, "rw"},
		// As both other daemons do: the files are shared by the whole pod.
		"readonly_rootfs":      {func(in *Input) { security(in).ReadonlyRootfs = true }, "ro"},
		"the node's read_only": {func(in *Input) { in.Node.ReadOnly = true }, "ro"},
	} {
		s := build(t, podInput(c.change))
		for _, file := range files {
			if m := at(t, s, file); m.Source != podInput().Files[file] || !slices.Equal(m.Options, []string{"rbind", "rprivate", c.access}) {
				t.Errorf("%s: %+v", name, m)
			}
		}
		if m := at(t, s, "/dev/shm"); m.Source != podInput().Shm || !slices.Equal(m.Options, []string{"rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"}) {
			t.Errorf("%s: %+v", name, m)
		}
	}
	for _, target := range append(files, "/dev/shm", "/dev/shm/") {
		s := build(t, podInput(func(in *Input) { in.Mounts = []Mount{mountAt(target)} }))
		if m := at(t, s, strings.TrimSuffix(target, "/")); m.Source != "/host"+target {
			t.Errorf("the pod's own mount does not win: %+v", m)
		}
	}
}

func TestRootfsPropagation(t *testing.T) {
	for name, c := range map[string]struct {
		modes []cri.MountPropagation
		want  string
	}{
		"no mount":                    {nil, ""},
		"private only":                {[]cri.MountPropagation{private, private}, ""},
		"one listens":                 {[]cri.MountPropagation{private, fromHost}, "rslave"},
		"one speaks":                  {[]cri.MountPropagation{bothWays, private}, "rshared"},
		"speaking is above listening": {[]cri.MountPropagation{bothWays, fromHost}, "rshared"},
	} {
		in := podInput()
		for i, mode := range c.modes {
			m := mountAt("/m" + string(rune('0'+i)))
			m.Propagation = mode
			in.Mounts = append(in.Mounts, m)
		}
		if got := build(t, in).Linux.RootfsPropagation; got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// "Any sysfs and procfs mounts are mounted RW" (LinuxContainerSecurityContext.privileged).
func TestKernelMounts(t *testing.T) {
	for _, privileged := range []bool{false, true} {
		s := build(t, podInput(func(in *Input) { security(in).Privileged = privileged }))
		for _, target := range []string{"/sys", "/sys/fs/cgroup"} {
			if readonly := slices.Contains(at(t, s, target).Options, "ro"); readonly == privileged {
				t.Errorf("privileged %v: %+v", privileged, at(t, s, target))
			}
		}
		for _, option := range []string{"nosuid", "noexec", "nodev"} {
			if !slices.Contains(at(t, s, "/proc").Options, option) {
				t.Errorf("/proc is not %s", option)
			}
		}
	}
	host := build(t, podInput(func(in *Input) { in.Namespaces.HostIPC, in.HostMqueue = true, true }))
	if m := at(t, host, "/dev/mqueue"); m.Type != "bind" || m.Source != "/dev/mqueue" {
		t.Errorf("with the node's IPC namespace: %+v", m)
	}
	// It was bound there all the same, and no such pod could be started.
	none := build(t, podInput(func(in *Input) { in.Namespaces.HostIPC = true }))
	if slices.ContainsFunc(none.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/mqueue" }) {
		t.Error("a node without /dev/mqueue: it is mounted")
	}
	if m := at(t, build(t, podInput()), "/dev/mqueue"); m.Type != "mqueue" {
		t.Errorf("with the pod's IPC namespace: %+v", m)
	}
}
