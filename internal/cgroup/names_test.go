package cgroup

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// treeV1 has the hierarchies that a name shows in; it touches no file.
func treeV1(driver string) *Tree {
	return &Tree{driver: driver, version: 1, roots: map[string]string{
		"memory": base + "/memory", "pids": base + "/pids", "freezer": base + "/freezer",
		"cpu": base + "/cpu,cpuacct", "cpuacct": base + "/cpu,cpuacct",
	}}
}

func treeV2(driver string) *Tree {
	return &Tree{driver: driver, version: 2, roots: map[string]string{wholeTree: base}, own: "/system.slice/crio.service"}
}

func TestExpandSlice(t *testing.T) {
	for name, want := range map[string]string{
		"-.slice":      "/",
		"system.slice": "/system.slice",
		"a-b-c.slice":  "/a.slice/a-b.slice/a-b-c.slice",
		"a.b-c.slice":  "/a.b.slice/a.b-c.slice",
		"kubepods-burstable-pod1234_5678.slice": "/kubepods.slice/kubepods-burstable.slice/" +
			"kubepods-burstable-pod1234_5678.slice",
	} {
		if got := expandSlice(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestPodOOMFile(t *testing.T) {
	for _, tt := range []struct {
		tree         *Tree
		parent, want string
	}{
		{treeV2(Cgroupfs), "/kubepods/podx", base + "/kubepods/podx/memory.events"},
		{treeV2(Systemd), "kubepods-podx.slice", base + "/kubepods.slice/kubepods-podx.slice/memory.events"},
		{treeV2(Cgroupfs), "", ""},
		{treeV2(Cgroupfs), "/", ""},
		{treeV2(Systemd), "-.slice", ""},
		{treeV2(Systemd), "no-slice", ""},
		{treeV1(Cgroupfs), "/kubepods/podx", ""},
	} {
		if got := tt.tree.PodOOMFile(tt.parent); got != tt.want {
			t.Errorf("v%d %s %q: %q, want %q", tt.tree.version, tt.tree.driver, tt.parent, got, tt.want)
		}
	}
}

func TestContainerGroup(t *testing.T) {
	for _, c := range []struct{ driver, parent, oci, path string }{
		{Cgroupfs, "", "/crio.pods/crio-1", "/crio.pods/crio-1"},
		{Cgroupfs, "/", "/crio-1", "/crio-1"},
		{Cgroupfs, "/kubepods/besteffort/podx", "/kubepods/besteffort/podx/crio-1", "/kubepods/besteffort/podx/crio-1"},
		{Cgroupfs, "kubepods//./podx/", "/kubepods/podx/crio-1", "/kubepods/podx/crio-1"},
		{Cgroupfs, "/a..b/...", "/a..b/.../crio-1", "/a..b/.../crio-1"},
		{Systemd, "", "system.slice:crio:1", "/system.slice/crio-1.scope"},
		{Systemd, "a-b.slice", "a-b.slice:crio:1", "/a.slice/a-b.slice/crio-1.scope"},
		{Systemd, "/a.slice/a-b.slice", "a-b.slice:crio:1", "/a.slice/a-b.slice/crio-1.scope"},
		{Systemd, "/a.slice/a-b.slice/", "a-b.slice:crio:1", "/a.slice/a-b.slice/crio-1.scope"},
	} {
		g, err := treeV1(c.driver).ContainerGroup(c.parent, "1")
		want := []string{base + "/cpu,cpuacct" + c.path, base + "/freezer" + c.path, base + "/memory" + c.path, base + "/pids" + c.path}
		if err != nil || g.OCIPath() != c.oci || !slices.Equal(g.dirs, want) {
			t.Errorf("v1 %s %q: got %s in %v, %v, want %s in %v", c.driver, c.parent, g.OCIPath(), g.dirs, err, c.oci, want)
		}
		if g.KillDir() != base+"/pids"+c.path || g.OOMFile() != base+"/memory"+c.path+"/memory.oom_control" {
			t.Errorf("v1 %s %q: kill %s, oom %s", c.driver, c.parent, g.KillDir(), g.OOMFile())
		}
		g, err = treeV2(c.driver).ContainerGroup(c.parent, "1")
		if err != nil || g.OCIPath() != c.oci || !slices.Equal(g.dirs, []string{base + c.path}) {
			t.Errorf("v2 %s %q: got %s in %v, %v, want %s", c.driver, c.parent, g.OCIPath(), g.dirs, err, c.oci)
		}
		if g.KillDir() != base+c.path || g.OOMFile() != base+c.path+"/memory.events" {
			t.Errorf("v2 %s %q: kill %s, oom %s", c.driver, c.parent, g.KillDir(), g.OOMFile())
		}
	}
}

func TestBadParentsAreRefused(t *testing.T) {
	for driver, parents := range map[string][]string{
		Cgroupfs: {"..", "/a/../../b", "a/..", "/a\nb", "/a\x00"},
		Systemd: {
			"/", "kubepods", "a.slice/b", "a.service", ".slice", "-.slice", "-a.slice", "a-.slice", "a--b.slice",
			"a:b.slice", "/kubepods/podx",
		},
	} {
		for _, parent := range parents {
			for _, tree := range []*Tree{treeV1(driver), treeV2(driver)} {
				if g, err := tree.ContainerGroup(parent, "1"); err == nil {
					t.Errorf("%s: %q was taken as %s", driver, parent, g.OCIPath())
				} else if !strings.Contains(err.Error(), strconv.Quote(parent)) {
					t.Errorf("%s: %q: the error does not name it: %v", driver, parent, err)
				}
				if missing, err := tree.MissingParents(parent); err == nil {
					t.Errorf("%s: %q lacks %v", driver, parent, missing)
				}
			}
		}
	}
}

func TestMonitorGroup(t *testing.T) {
	for _, c := range []struct {
		tree         *Tree
		parent, want string
	}{
		{treeV1(Cgroupfs), "", "/crio.monitors/crio-conmon-1"},
		{treeV1(Systemd), "", "/crio.monitors/crio-conmon-1"},
		{treeV2(Cgroupfs), "", "/crio.monitors/crio-conmon-1"},
		{treeV2(Systemd), "", "/system.slice/crio.service/monitors/crio-conmon-1"},
		{treeV2(Systemd), "system.slice", "/system.slice/crio-conmon-1"},
		{treeV2(Systemd), "a-b.slice", "/a.slice/a-b.slice/crio-conmon-1"},
		{treeV2(Systemd), "/a.slice/a-b.slice", "/a.slice/a-b.slice/crio-conmon-1"},
		{treeV1(Cgroupfs), "my/monitors", "/my/monitors/crio-conmon-1"},
	} {
		g, err := c.tree.MonitorGroup(c.parent, "1")
		if err != nil || g.OCIPath() != c.want || !strings.HasSuffix(g.KillDir(), c.want) {
			t.Errorf("v%d %s %q: got %s, %v, want %s", c.tree.version, c.tree.driver, c.parent, g.OCIPath(), err, c.want)
		}
	}
	g, err := treeV1(Cgroupfs).MonitorGroup("m", "1")
	if want := []string{base + "/cpu,cpuacct/m/crio-conmon-1", base + "/memory/m/crio-conmon-1", base + "/pids/m/crio-conmon-1"}; err != nil || !slices.Equal(g.dirs, want) {
		t.Errorf("directories of a monitor: %v, %v, want %v", g.dirs, err, want)
	}
	if want := []string{base + "/freezer/m/crio-conmon-1"}; !slices.Equal(g.older, want) {
		t.Errorf("directories of an older daemon's monitor: %v, want %v", g.older, want)
	}
	if g, err := treeV1(Cgroupfs).MonitorGroup("/a/../b", "1"); err == nil {
		t.Errorf("a parent with .. was taken as %s", g.OCIPath())
	}
}

// "pod" would put the monitor under the memory limit of what it watches.
func TestCVE_2019_14891_MonitorStaysOutOfThePod(t *testing.T) {
	for _, tree := range []*Tree{treeV1(Cgroupfs), treeV2(Cgroupfs), treeV1(Systemd), treeV2(Systemd)} {
		byDefault, err := tree.MonitorGroup("", "1")
		if err != nil {
			t.Fatal(err)
		}
		if g, err := tree.MonitorGroup("pod", "1"); err != nil || g.OCIPath() != byDefault.OCIPath() {
			t.Errorf("v%d %s: the monitor would be in %s, %v", tree.version, tree.driver, g.OCIPath(), err)
		}
	}
}

func TestSubGroups(t *testing.T) {
	for _, c := range []struct {
		tree       *Tree
		dirs, args []string
	}{
		{treeV1(Cgroupfs), []string{base + "/pids/p/crio-1/exec", base + "/freezer/p/crio-1/exec"}, []string{"--cgroup", "pids:exec", "--cgroup", "freezer:exec"}},
		{treeV2(Cgroupfs), []string{base + "/p/crio-1/exec"}, []string{"--cgroup", "exec"}},
	} {
		g, err := c.tree.ContainerGroup("/p", "1")
		if err != nil {
			t.Fatal(err)
		}
		sub := g.Sub("exec")
		if !slices.Equal(sub.dirs, c.dirs) || sub.KillDir() != c.dirs[0] || !slices.Equal(sub.ExecArgs(), c.args) {
			t.Errorf("v%d: %v, %s, %v", c.tree.version, sub.dirs, sub.KillDir(), sub.ExecArgs())
		}
		all := g.SubEverywhere("exec")
		if len(all.dirs) != len(g.dirs) || all.KillDir() != c.dirs[0] || !slices.Equal(all.ExecArgs(), []string{"--cgroup", "exec"}) {
			t.Errorf("v%d, everywhere: %v, %s, %v", c.tree.version, all.dirs, all.KillDir(), all.ExecArgs())
		}
	}
	noFreezer := treeV1(Cgroupfs)
	delete(noFreezer.roots, "freezer")
	g, err := noFreezer.ContainerGroup("/p", "1")
	if err != nil {
		t.Fatal(err)
	}
	if sub := g.Sub("exec"); !slices.Equal(sub.dirs, []string{base + "/pids/p/crio-1/exec"}) || len(sub.ExecArgs()) != 2 {
		t.Errorf("without a freezer: %v, %v", sub.dirs, sub.ExecArgs())
	}
}

func TestMissingParents(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "there/half"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		driver, parent string
		want           []string
	}{
		{Cgroupfs, "", nil},
		{Cgroupfs, "/", nil},
		{Cgroupfs, "/there/half", nil},
		{Cgroupfs, "/there/half/new", []string{"/there/half/new"}},
		{Cgroupfs, "a/b/c", []string{"/a", "/a/b", "/a/b/c"}},
		// The default is nobody's in particular: the pod must not take it with it.
		{Cgroupfs, "/crio.pods/x", []string{"/crio.pods/x"}},
		{Systemd, "", nil},
		{Systemd, "a-b.slice", nil},
	} {
		for _, tree := range []*Tree{
			{driver: c.driver, version: 1, roots: map[string]string{"memory": root, "pids": "/nowhere"}},
			{driver: c.driver, version: 2, roots: map[string]string{wholeTree: root}},
		} {
			if got, err := tree.MissingParents(c.parent); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("v%d %s %q: got %v, %v, want %v", tree.version, c.driver, c.parent, got, err, c.want)
			}
			// What was made for another pod is there, and is made for this one, too.
			if got, err := tree.MissingParents(c.parent, "/there/half", "/elsewhere"); c.parent == "/there/half" && c.driver == Cgroupfs {
				if err != nil || !slices.Equal(got, []string{c.parent}) {
					t.Errorf("v%d: of another pod: %v, %v", tree.version, got, err)
				}
			}
		}
	}
}

func TestFindV1(t *testing.T) {
	const (
		memory  = "30 25 0:25 / /sys/fs/cgroup/memory rw,nosuid shared:9 master:1 - cgroup cgroup rw,memory\n"
		pids    = "31 25 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
		cpu     = "32 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
		systemd = "33 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
		unified = "34 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
		other   = "35 25 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n36 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	)
	both := map[string]string{"memory": base + "/memory", "pids": base + "/pids"}
	for name, c := range map[string]struct {
		mountinfo string
		want      map[string]string
	}{
		"two hierarchies": {other + memory + pids, both},
		"all": {memory + pids + cpu + systemd + unified, map[string]string{
			"memory": base + "/memory", "pids": base + "/pids", "cpu": base + "/cpu,cpuacct", "cpuacct": base + "/cpu,cpuacct",
			"name=systemd": base + "/systemd", "unified": base + "/unified",
		}},
		// Whoever prepares a chroot binds /sys into it, and unmounts it some day.
		"views elsewhere": {memory + pids + strings.ReplaceAll(memory+pids+unified, " /sys", " /chroot/sys"), both},
		"no pids":         {memory + cpu, nil},
		"no memory":       {pids + unified, nil},
		"v1 in a chroot":  {strings.ReplaceAll(memory+pids, " /sys", " /chroot/sys"), nil},
		"an endless line": {memory + pids + strings.Repeat("x", 1<<20), nil},
		"short lines":     {"\n-\n - \n1 2 - cgroup\n" + memory + pids, both},
		"nothing":         {"", nil},
	} {
		tree := &Tree{version: 1, roots: map[string]string{}}
		err := tree.findV1(strings.NewReader(c.mountinfo))
		if c.want == nil && err == nil {
			t.Errorf("%s: accepted as %v", name, tree.roots)
		}
		if c.want != nil && (err != nil || !maps.Equal(tree.roots, c.want)) {
			t.Errorf("%s: got %v, %v, want %v", name, tree.roots, err, c.want)
		}
		if c.want != nil && !tree.wholePids {
			t.Errorf("%s: pids is a part", name)
		}
	}
	// What is in a container without a cgroup namespace: its own part of each hierarchy.
	tree := &Tree{version: 1, roots: map[string]string{}}
	part := strings.ReplaceAll(memory+pids, " / /sys", " /docker/1 /sys")
	if err := tree.findV1(strings.NewReader(part)); err != nil || tree.wholePids || !maps.Equal(tree.roots, both) {
		t.Errorf("a part of pids: %v, %+v", err, tree)
	}
}
