package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	module    = "github.com/crio-minimal/crio/"
	buildTags = "containers_image_openpgp exclude_graphdriver_btrfs"
)

// levels are the floors of the house, lowest first. A package imports only from below
// its own floor, so that packages of one floor do not know each other.
var levels = [][]string{
	// leaves
	{"internal/sys", "internal/untrusted", "internal/fault", "internal/version", "internal/telemetry", "internal/event", "internal/stdio"},
	// values
	{"internal/pod", "internal/spec", "pkg/config"},
	// drivers
	{
		"internal/oci", "internal/monitor", "internal/cgroup", "internal/netns", "internal/network",
		"internal/rootfs", "internal/record", "internal/image", "internal/cdi", "internal/apparmor", "internal/selinux",
	},
	{"internal/engine", "internal/stats", "internal/stream"},
	// The self-test is a client, of the socket and of the drivers that know the node.
	{"server", "internal/selftest"},
	{"cmd/crio"},
}

// allowed says which packages may import what is dangerous or heavy.
var allowed = []struct {
	imports string // a package, or with a "/" at its end all below it
	by      []string
	reason  string
}{
	{"go.podman.io/", []string{"internal/image", "internal/rootfs"}, "the storage libraries stay behind two doors"},
	{"github.com/containernetworking/", []string{"internal/network"}, "CNI stays behind one door"},
	{"tags.cncf.io/", []string{"internal/cdi"}, "CDI stays behind one door"},
	{"github.com/moby/profiles/apparmor", []string{"internal/apparmor"}, "it starts apparmor_parser, which only the daemon's start may do"},
	{"github.com/opencontainers/selinux/", []string{"internal/selinux"}, "SELinux stays behind one door"},
	{"os/exec", []string{"internal/oci", "internal/monitor", "internal/network", "cmd/crio"}, "only runtimes, monitors, CNI plugins and the self-test's daemon are processes that crio starts"},
	{"github.com/urfave/cli/", []string{"cmd/crio"}, "only the command has a command line"},
	{"github.com/BurntSushi/toml", []string{"pkg/config"}, "only the configuration is TOML"},
	{"testing", nil, "what tests need has no place in the daemon"},
}

func TestArrowsPointDown(t *testing.T) {
	floors := map[string]int{}
	for floor, packages := range levels {
		for _, name := range packages {
			floors[name] = floor
		}
	}
	for _, p := range packages(t) {
		floor, ok := floors[p.name]
		if !ok {
			t.Errorf("%s has no floor: give it one in levels", p.name)
			continue
		}
		for _, imported := range p.imports {
			if ours, ok := strings.CutPrefix(imported, module); ok {
				if below, ok := floors[ours]; !ok || below >= floor {
					t.Errorf("%s imports %s, which is not below it", p.name, ours)
				}
			}
			for _, a := range allowed {
				if matches(imported, a.imports) && !slices.Contains(a.by, p.name) {
					t.Errorf("%s imports %s: %s", p.name, imported, a.reason)
				}
			}
		}
	}
}

// TestConfigIsLight guards those who import pkg/config for its type alone.
func TestConfigIsLight(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../pkg/config").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dependency := range strings.FieldsSeq(string(out)) {
		first, _, _ := strings.Cut(dependency, "/")
		own := dependency == module+"pkg/config" || strings.HasPrefix(dependency, "github.com/BurntSushi/toml")
		if strings.Contains(first, ".") && !own {
			t.Errorf("pkg/config depends on %s", dependency)
		}
	}
}

func matches(imported, pattern string) bool {
	if strings.HasSuffix(pattern, "/") {
		return strings.HasPrefix(imported, pattern)
	}
	return imported == pattern
}

type goPackage struct {
	name    string // without the module
	imports []string
}

// packages lists what the daemon is made of: all packages of the module that it
// depends on, without their tests.
func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-tags", buildTags, "-json=ImportPath,Imports", "../cmd/crio").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if name, ok := strings.CutPrefix(p.ImportPath, module); ok {
			all = append(all, goPackage{name, p.Imports})
		}
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages", len(all))
	}
	return all
}
