package test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/selftest"
)

// selftestReport runs `crio selftest -o json` and returns what it says, with its
// exit code.
func (n *node) selftestReport(args ...string) (selftest.Report, int) {
	n.t.Helper()
	args = append([]string{"--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"), "selftest", "-o", "json"}, args...)
	cmd := exec.CommandContext(n.ctx(), binary(n.t, "race/crio"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "TMPDIR="+n.path("tmp"))
	if err := os.MkdirAll(n.path("tmp"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	_ = cmd.Run() // the exit code is the caller's
	var report selftest.Report
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		n.t.Fatalf("%q is no report: %v\n%s", out.String(), err, errs.String())
	}
	return report, cmd.ProcessState.ExitCode()
}

// wantSteps: every step but those with nothing to do works, and says how long it took.
func wantSteps(t *testing.T, steps []selftest.Line, skipped ...string) {
	t.Helper()
	if len(steps) < 14 {
		t.Errorf("%d steps", len(steps))
	}
	for _, l := range steps {
		want := selftest.OK
		if slices.Contains(skipped, l.Name) {
			want = selftest.Skip
		}
		if l.Result != want || l.Milliseconds <= 0 && want == selftest.OK {
			t.Errorf("step %+v", l)
		}
	}
}

func line(t *testing.T, lines []selftest.Line, name string) selftest.Line {
	t.Helper()
	i := slices.IndexFunc(lines, func(l selftest.Line) bool { return l.Name == name })
	if i < 0 {
		t.Fatalf("no line %q in %+v", name, lines)
	}
	return lines[i]
}

func (n *node) imageStatus(ref string) *cri.Image {
	n.t.Helper()
	a, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatal(err)
	}
	return a.GetImage()
}

func TestSelftestOfARunningDaemon(t *testing.T) {
	n, image := readyNode(t, options{})
	report, code := n.selftestReport()
	if code != 0 || !report.Passed() {
		t.Errorf("exit code %d, %+v", code, report)
	}
	wantSteps(t, report.Steps)
	// A real image stays: somebody else may have pulled it.
	ref := n.imageStatus(image).GetRepoTags()[0]
	report, code = n.selftestReport("--image", ref)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	wantSteps(t, report.Steps, "remove image")
	if n.imageStatus(image) == nil {
		t.Error("the image given with --image is gone")
	}
}

func TestSelftestStandaloneLeavesNothing(t *testing.T) {
	n, _ := readyNode(t, options{}) // which compares the rest of the inventory at the end
	outside := func() inventory {
		inv := inventory{}
		for _, pattern := range []string{"/sys/fs/cgroup/*/crio.*", "/sys/fs/cgroup/crio.*", n.path("tmp/*")} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range found {
				inv["file "+path]++
			}
		}
		forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil {
			t.Fatal(err)
		}
		inv["forwarding "+string(forward)]++
		return inv
	}
	before := outside()
	report, code := n.selftestReport("--standalone")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	wantSteps(t, report.Steps)
	for name, count := range outside() {
		// Less may be there: an empty group that all daemons share goes with any of them.
		if count > before[name] {
			t.Errorf("left on the node: %s", name)
		}
	}
}

// An interrupted self-test left its pod running, with all that it had made for it.
func TestInterruptedSelftestLeavesNothing(t *testing.T) {
	n, _ := readyNode(t, options{})
	for _, standalone := range []bool{true, false} {
		for _, after := range []time.Duration{30, 100, 200, 350, 600} {
			args := []string{"--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"), "selftest"}
			if standalone {
				args = append(args, "--standalone")
			}
			cmd := exec.CommandContext(n.ctx(), binary(t, "race/crio"), args...)
			cmd.Env = append(os.Environ(), "TMPDIR="+n.path("tmp"))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := os.MkdirAll(n.path("tmp"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after * time.Millisecond)
			signal(t, cmd.Process.Pid, syscall.SIGTERM)
			_ = cmd.Wait() // failed, or finished before
			left, err := os.ReadDir(n.path("tmp"))
			if err != nil || len(left) > 0 || strings.Contains(out.String(), "panic") || strings.Contains(out.String(), "%!") {
				t.Errorf("standalone %t, interrupted after %d ms: left %v, %v\n%s", standalone, after, left, err, out.String())
			}
		}
	}
}

// What falls short is named with what to do, and the exit code tells.
func TestSelftestSaysWhatFallsShort(t *testing.T) {
	n := newNode(t, options{bare: true})
	report, code := n.selftestReport()
	if code == 0 || report.Passed() {
		t.Errorf("exit code %d without a network", code)
	}
	for _, l := range []selftest.Line{line(t, report.Checks, "cni"), line(t, report.Steps, "status")} {
		if l.Result != selftest.Fail || l.Advice == "" || !strings.Contains(l.Detail, "no CNI configuration in") {
			t.Errorf("%+v", l)
		}
	}
	if l := line(t, report.Steps, "run pod"); l.Result != selftest.Skip {
		t.Errorf("%+v", l)
	}
	n.stop()
	report, code = n.selftestReport()
	if l := line(t, report.Steps, "version"); code == 0 || l.Result != selftest.Fail || !strings.Contains(l.Advice, "start the daemon") {
		t.Errorf("exit code %d without a daemon, %+v", code, l)
	}
}
