package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// script is a runtime that does what the shell text says.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAcceptedVersionIsTheLowerOfOursAndTheirs(t *testing.T) {
	for maximum, want := range map[string]string{
		"1.0.2-dev": "1.0.2-dev", "1.0.2": "1.0.2", "0.9.0": "0.9.0",
		specs.Version: specs.Version, "1.99.0": specs.Version, "2.0.0": specs.Version,
		"": oldestOCIVersion, "newest": oldestOCIVersion, "1.2": oldestOCIVersion,
	} {
		if got := accepted(maximum); got != want {
			t.Errorf("a runtime that accepts %q is given %q, want %q", maximum, got, want)
		}
	}
}

func TestProbe(t *testing.T) {
	f, err := Probe(t.Context(), "runc")
	if err != nil || !strings.HasPrefix(f.Version, "runc version ") || !strings.HasPrefix(f.OCIVersion, "1.") || !f.RecursiveReadOnly || !f.BindOptions || !f.UserNamespaces {
		t.Errorf("the real runc: %+v, %v", f, err)
	}
	for _, tt := range []struct {
		name, text string
		want       Features
		fails      string
	}{
		{"no features command", `[ $1 = --version ] && echo old 1`, Features{Version: "old 1", OCIVersion: oldestOCIVersion}, ""},
		{"features that are no JSON", `echo hello`, Features{Version: "hello", OCIVersion: oldestOCIVersion}, ""},
		{"without rro", `[ $1 = --version ] && echo v || echo '{"ociVersionMax":"1.0.0","mountOptions":["ro"]}'`, Features{Version: "v", OCIVersion: "1.0.0"}, ""},
		{"bind options", `[ $1 = --version ] && echo v || echo '{"ociVersionMax":"1.0.0","mountOptions":["nosuid","nodev","noexec"],"linux":{"netDevices":{"enabled":true}}}'`, Features{Version: "v", OCIVersion: "1.0.0", BindOptions: true, NetDevices: true}, ""},
		{"two of three bind options", `[ $1 = --version ] && echo v || echo '{"ociVersionMax":"1.0.0","mountOptions":["nosuid","nodev"],"linux":{"netDevices":{}}}'`, Features{Version: "v", OCIVersion: "1.0.0"}, ""},
		{"user namespaces and idmapped mounts", `[ $1 = --version ] && echo v || echo '{"ociVersionMax":"1.0.0","linux":{"namespaces":["net","user"],"mountExtensions":{"idmap":{"enabled":true}}}}'`,
			Features{Version: "v", OCIVersion: "1.0.0", UserNamespaces: true, IDMap: true}, ""},
		{"neither", `[ $1 = --version ] && echo v || echo '{"ociVersionMax":"1.0.0","linux":{"mountExtensions":{"idmap":{}}}}'`, Features{Version: "v", OCIVersion: "1.0.0"}, ""},
		{"failing", "echo first >&2; echo the reason >&2; exit 3", Features{}, "exit status 3: the reason"},
	} {
		f, err := Probe(t.Context(), script(t, tt.text))
		if tt.fails == "" && (err != nil || f != tt.want) {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, f, err, tt.want)
		}
		if tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.fails)
		}
	}
	if _, err := Probe(t.Context(), "/absent/runc"); err == nil || !strings.Contains(err.Error(), "/absent/runc") {
		t.Errorf("an absent runtime: %v", err)
	}
}

// One that hangs is given up, and the error says in which call.
func TestHangingRuntimeIsGivenUp(t *testing.T) {
	r := Runtime{Path: script(t, "exec sleep 60"), Root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(r.Root, "known"), 0o700); err != nil {
		t.Fatal(err)
	}
	for call, do := range map[string]func(context.Context) error{
		"runtime " + r.Path:    func(ctx context.Context) error { _, err := Probe(ctx, r.Path); return err },
		"runtime delete known": func(ctx context.Context) error { return r.Delete(ctx, "known") },
		"runtime kill known":   func(ctx context.Context) error { return r.Kill(ctx, "known", 9) },
		"runtime update known": func(ctx context.Context) error { return r.Update(ctx, "known", &specs.LinuxResources{}) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		begun := time.Now()
		if err := do(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), call) {
			t.Errorf("%s: error %v", call, err)
		}
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("%s took %s", call, took)
		}
		cancel()
	}
}

// What a runtime says when it does not do what it is to.
func TestFailingKillOfARuntime(t *testing.T) {
	for text, want := range map[string]string{
		`[ "$*" = "--root /root kill known 15" ] || exit 1`: "",
		"echo 'no luck' >&2; exit 1":                        "runtime kill known: exit status 1: no luck",
		"kill -9 $$":                                        "runtime kill known: signal: killed: ",
	} {
		err := (Runtime{Path: script(t, text), Root: "/root"}).Kill(t.Context(), "known", 15)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestDelete(t *testing.T) {
	root := t.TempDir()
	if err := (Runtime{Path: "/absent", Root: root}).Delete(t.Context(), "unknown"); err != nil {
		t.Errorf("a container that the runtime does not know: %v", err)
	}
	if err := os.Mkdir(filepath.Join(root, "known"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ text, fails string }{
		{`[ "$*" = "--root ` + root + ` --systemd-cgroup delete known" ] || { echo "$*" >&2; exit 1; }`, ""},
		// Not stopped, or half made.
		{`[ "$*" = "--root ` + root + ` --systemd-cgroup delete --force known" ] || { echo "$*" >&2; exit 1; }`, ""},
		{"echo 'container \"known\" does not exist' >&2; exit 1", ""},
		{"echo 'the kernel says no' >&2; exit 1", "runtime delete known: exit status 1: the kernel says no"},
	} {
		err := (Runtime{Path: script(t, tt.text), Root: root, Systemd: true}).Delete(t.Context(), "known")
		if (err == nil) != (tt.fails == "") || err != nil && err.Error() != tt.fails {
			t.Errorf("%s: %v, want %q", tt.text, err, tt.fails)
		}
	}
}

func TestLoggedErrorIsTheLastOne(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "",
		`{"level":"warning","msg":"careful"}`: "",
		`{"level":"error","msg":"one"}` + "\n" + `{"level":"error","msg":"two"}` + "\n" + `{"level":"info","msg":"three"}`: "two",
		`{"level":"error","msg":"one"}` + "\nnot json":                                                                     "one",
	} {
		log, err := memfile("test")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if got := loggedError(log); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		log.Close()
	}
}

// A runsc that was killed in a delete leaves its lock; the next one finds no container, and
// left it, too.
func TestDeleteOfHalfASandboxLeavesNoLock(t *testing.T) {
	root := t.TempDir()
	lock, other := filepath.Join(root, "known_sandbox:box.lock"), filepath.Join(root, "knownbox_sandbox:box.lock")
	for _, path := range []string{lock, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := (Runtime{Path: script(t, "exit 0"), Root: root, Sandbox: true}).Delete(t.Context(), "known"); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(root + "/*"); err != nil || !slices.Equal(left, []string{other}) {
		t.Errorf("left %v, %v", left, err)
	}
}
