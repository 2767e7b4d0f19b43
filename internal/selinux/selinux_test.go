package selinux

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// policy skips without SELinux: where the tests of CI run there is none, so run them by hand on a node with it.
func policy(t *testing.T) *Policy {
	t.Helper()
	if !selinux.GetEnabled() {
		t.Skip("the kernel has no SELinux")
	}
	p, err := Open(true)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func give(t *testing.T, p *Policy, o *cri.SELinuxOption) Labels {
	t.Helper()
	l, err := p.Pod(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// With three categories there are three levels: each is given once, also by the policy
// of a daemon that comes after, and also when the storage library has cleared its list.
func TestEachPodHasALevelOfItsOwn(t *testing.T) {
	first := policy(t)
	if err := selinux.SetCategoryRange(3); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = selinux.SetCategoryRange(selinux.DefaultCategoryRange) }()
	old := give(t, first, nil)
	selinux.ClearLabels()
	next := &Policy{enabled: true, levels: map[string]int{}}
	next.Reserve(old)
	selinux.ClearLabels()
	seen := map[string]bool{levelOf(old.Process): true}
	var last Labels
	for range 2 {
		last = give(t, next, nil)
		if level := levelOf(last.Process); seen[level] || level != levelOf(last.Mount) || !strings.Contains(level, ":c") {
			t.Errorf("%+v after %v", last, seen)
		}
		seen[levelOf(last.Process)] = true
	}
	// A level that a pod brings may be another's, and is free when both have left.
	twin := give(t, next, &cri.SELinuxOption{Level: levelOf(last.Process)})
	next.Release(last)
	if _, taken := next.levels[levelOf(last.Process)]; !taken {
		t.Error("a level is free although a pod holds it")
	}
	next.Release(twin)
	if l := give(t, next, nil); l != last {
		t.Errorf("the level that is free is %s, given is %s", levelOf(last.Process), levelOf(l.Process))
	}
}

func TestLabelsOfContainers(t *testing.T) {
	p := policy(t)
	pod := give(t, p, &cri.SELinuxOption{Level: "s0:c1,c2"})
	process, mount := "system_u:system_r:container_t:", "system_u:object_r:container_file_t:"
	for name, tt := range map[string]struct {
		options *cri.SELinuxOption
		want    Labels
	}{
		"none":  {nil, Labels{process + "s0:c1,c2", mount + "s0:c1,c2"}},
		"empty": {&cri.SELinuxOption{}, Labels{process + "s0:c1,c2", mount + "s0:c1,c2"}},
		"level": {&cri.SELinuxOption{Level: "s0:c3,c4"}, Labels{process + "s0:c3,c4", mount + "s0:c3,c4"}},
		"type":  {&cri.SELinuxOption{Type: "initrc_t"}, Labels{"system_u:system_r:initrc_t:s0:c1,c2", mount + "s0:c1,c2"}},
	} {
		if got, err := p.Container(pod, tt.options); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tt.want)
		}
	}
	for field, o := range map[string]*cri.SELinuxOption{
		"absent_t": {Type: "absent_t"}, "absent_u": {User: "absent_u"}, "absent_r": {Role: "absent_r"}, "s99": {Level: "s99"},
	} {
		for _, err := range []error{second(p.Pod(o)), second(p.Container(pod, o))} {
			if err == nil || !strings.Contains(err.Error(), "selinux_options") || !strings.Contains(err.Error(), field) {
				t.Errorf("%s: %v", field, err)
			}
		}
	}
}

func second(_ Labels, err error) error { return err }

func TestOptionsThatAreNoPartOfAContext(t *testing.T) {
	for field, o := range map[string]*cri.SELinuxOption{
		"selinux_options.user": {User: "u:r"}, "selinux_options.role": {Role: "r r"}, "selinux_options.type": {Type: "t:s0"},
		"selinux_options.level": {Level: "s0\x00"},
	} {
		if _, err := initOptions(o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if got, err := initOptions(&cri.SELinuxOption{Level: "s0-s0:c1.c5", Type: "t"}); err != nil || strings.Join(got, " ") != "type:t level:s0-s0:c1.c5" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRelabel(t *testing.T) {
	p := policy(t)
	dir := t.TempDir()
	below, aside := filepath.Join(dir, "volume/below/file"), filepath.Join(dir, "aside")
	for _, path := range []string{below, aside} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(aside, filepath.Join(dir, "volume/link")); err != nil {
		t.Fatal(err)
	}
	labelled := func(path, want string, is bool) {
		t.Helper()
		if got, err := selinux.LfileLabel(path); err != nil || (got == want) != is {
			t.Errorf("%s has the label %s, %v", path, got, err)
		}
	}
	l := give(t, p, nil)
	volume := filepath.Join(dir, "volume")
	for _, free := range []Labels{{"", l.Mount}, {strings.Replace(l.Process, "container_t", "spc_t", 1), l.Mount}} {
		if err := p.Relabel(volume, free); err != nil {
			t.Error(err)
		}
		labelled(volume, l.Mount, false)
	}
	if err := p.Relabel(volume, l); err != nil {
		t.Fatal(err)
	}
	for path, is := range map[string]bool{volume: true, filepath.Dir(below): true, below: true, filepath.Join(volume, "link"): true, aside: false} {
		labelled(path, l.Mount, is)
	}
	// One that has been through is not walked again.
	if err := p.LabelFile(below, p.Shared()); err != nil {
		t.Fatal(err)
	}
	if err := p.Relabel(volume, l); err != nil {
		t.Fatal(err)
	}
	labelled(below, p.Shared(), true)
	labelled(below, "system_u:object_r:container_file_t:s0", true)
	for _, path := range []string{"/", "/etc", "/usr", "/usr/bin", "/home", "/root", "/var/lib"} {
		if err := p.Relabel(path, l); !errors.Is(err, ErrProtected) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestWithoutSELinuxNothingIsLabelled(t *testing.T) {
	p := &Policy{levels: map[string]int{}}
	l, err := p.Pod(&cri.SELinuxOption{Type: "t"})
	if err != nil || l != (Labels{}) {
		t.Errorf("%+v, %v", l, err)
	}
	stale := Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	p.Reserve(stale)
	p.Release(stale)
	if l, err := p.Container(stale, nil); err != nil || l != (Labels{}) {
		t.Errorf("%+v, %v", l, err)
	}
	if err := errors.Join(p.Relabel("/etc", stale), p.LabelFile("/etc/passwd", stale.Mount)); err != nil || p.Shared() != "" {
		t.Errorf("%v, %q", err, p.Shared())
	}
}
