package cdi

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crio-minimal/crio/internal/fault"
)

const described = `cdiVersion: "0.7.0"
kind: "vendor.test/thing"
containerEdits:
  env: ["ALL=1"]
devices:
- name: one
  containerEdits:
    env: ["ONE=1"]
    deviceNodes: [{path: /dev/thing1, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /etc, containerPath: /srv/etc, options: [ro, bind]}]
    hooks: [{hookName: createContainer, path: /bin/hook, args: [hook, one]}]
    additionalGids: [4711]
    intelRdt: {closID: fast}
- name: two
  containerEdits:
    env: ["TWO=1"]
`

func registry(t *testing.T, files map[string]string) Registry {
	t.Helper()
	low, high := t.TempDir(), t.TempDir()
	for name, text := range files {
		dir := low
		if after, ok := strings.CutPrefix(name, "high/"); ok {
			dir, name = high, after
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Registry{Dirs: []string{low, high, filepath.Join(low, "absent")}}
}

func emptySpec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func TestInjectAddsWhatTheFilesSay(t *testing.T) {
	r := registry(t, map[string]string{"a.yaml": described})
	s := emptySpec()
	warnings, err := r.Inject(s, []string{"vendor.test/thing=one", "vendor.test/thing=one"})
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	if want := []string{"ALL=1", "ONE=1"}; !reflect.DeepEqual(s.Process.Env, want) {
		t.Errorf("env %q, want %q", s.Process.Env, want)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/thing1" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("devices %+v", d)
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow || d[0].Access != "rw" || *d[0].Minor != 3 {
		t.Errorf("device cgroup %+v", d)
	}
	if m := s.Mounts; len(m) != 1 || m[0].Source != "/etc" || m[0].Destination != "/srv/etc" || !slices.Contains(m[0].Options, "ro") {
		t.Errorf("mounts %+v", m)
	}
	if h := s.Hooks; h == nil || len(h.CreateContainer) != 1 || h.CreateContainer[0].Path != "/bin/hook" {
		t.Errorf("hooks %+v", h)
	}
	if g := s.Process.User.AdditionalGids; !reflect.DeepEqual(g, []uint32{4711}) {
		t.Errorf("groups %v", g)
	}
	if s.Linux.IntelRdt == nil || s.Linux.IntelRdt.ClosID != "fast" {
		t.Errorf("intel rdt %+v", s.Linux.IntelRdt)
	}
}

// A file is no reason to refuse what other files describe, and one that comes later counts.
func TestInjectReadsTheFilesAnew(t *testing.T) {
	r := registry(t, map[string]string{"a.yaml": described, "broken.json": `{"cdiVersion": `})
	warnings, err := r.Inject(emptySpec(), []string{"vendor.test/thing=two"})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "broken.json") {
		t.Errorf("%q, %v", warnings, err)
	}
	late := filepath.Join(r.Dirs[1], "late.yaml")
	if err := os.WriteFile(late, []byte(strings.ReplaceAll(described, `"TWO=1"`, `"TWO=late"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	s := emptySpec()
	if _, err := r.Inject(s, []string{"vendor.test/thing=two"}); err != nil || !slices.Contains(s.Process.Env, "TWO=late") {
		t.Errorf("env %q, %v", s.Process.Env, err)
	}
}

func TestInjectRefuses(t *testing.T) {
	r := registry(t, map[string]string{
		"a.yaml": described, "broken.json": `{`,
		"b.yaml": strings.ReplaceAll(described, "thing", "twin"), "c.yaml": strings.ReplaceAll(described, "thing", "twin"),
		"gone.yaml": strings.ReplaceAll(strings.ReplaceAll(described, "thing", "gone"), "/dev/null", "/dev/absent"),
	})
	for name, tt := range map[string]struct {
		device string
		kind   fault.Kind
		words  []string
	}{
		"unknown device":    {"vendor.test/thing=three", fault.NotFound, []string{"vendor.test/thing=three", r.Dirs[0], r.Dirs[1], "broken.json"}},
		"unknown vendor":    {"other.test/thing=one", fault.NotFound, []string{"other.test/thing=one"}},
		"no qualified name": {"thing=one", fault.InvalidArgument, []string{`"thing=one"`, "vendor.com/class=name"}},
		"no name":           {"", fault.InvalidArgument, []string{`""`}},
		"described twice":   {"vendor.test/twin=one", fault.NotFound, []string{"vendor.test/twin=one", "b.yaml", "c.yaml"}},
		"no device node":    {"vendor.test/gone=one", fault.Internal, []string{"vendor.test/gone=one", "/dev/absent"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Inject(emptySpec(), []string{"vendor.test/thing=two", tt.device})
			if err == nil || fault.Of(err) != tt.kind {
				t.Fatalf("%v, kind %d", err, fault.Of(err))
			}
			for _, word := range tt.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("no %q in %v", word, err)
				}
			}
		})
	}
}
