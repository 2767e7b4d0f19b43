package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExecSyncTellsStreamsAndCodeApart(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	for _, c := range []struct {
		script, stdout, stderr string
		code                   int32
	}{
		{"echo out; echo err >&2; exit 3", "out\n", "err\n", 3},
		{"true", "", "", 0},
		{"printf 'no newline'", "no newline", "", 0},
		{"kill -TERM $$", "", "", 143},
		{"exit 255", "", "", 255},
		{"not-a-command", "", "sh: not-a-command: not found\n", 127},
	} {
		got := n.exec(id, shell(c.script)...)
		if string(got.GetStdout()) != c.stdout || string(got.GetStderr()) != c.stderr || got.GetExitCode() != c.code {
			t.Errorf("%s: stdout %q, stderr %q, code %d", c.script, got.GetStdout(), got.GetStderr(), got.GetExitCode())
		}
	}
	if _, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/absent"}}); err == nil || !strings.Contains(err.Error(), "/absent") {
		t.Errorf("a command that is not there: %v", err)
	}
}

// CVE-2022-1708: a command that never stops printing costs 16 MiB a stream, not more.
func TestCVE_2022_1708_ExecSyncOutputIsCapped(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	got := n.exec(id, shell("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 9")...)
	const limit = 16 << 20
	if len(got.GetStdout()) != limit || len(got.GetStderr()) != limit || got.GetExitCode() != 9 {
		t.Errorf("stdout %d, stderr %d bytes, code %d", len(got.GetStdout()), len(got.GetStderr()), got.GetExitCode())
	}
	if len(bytes.Trim(got.GetStdout(), "\x00")) != 0 {
		t.Error("the output is not what was printed")
	}
}

// A probe that times out is gone with everything that it forked, however far away.
func TestExecSyncTimeoutLeavesNoProcess(t *testing.T) {
	n, image := readyNode(t, options{env: []string{"CONTAINER_PIDS_LIMIT=64"}})
	pod := n.podConfig()
	// Its first process reaps what is killed, which counts against the limit until then.
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, shell("sleep 99 & wait")...))
	for name, script := range map[string]string{
		"itself":        "exec sleep 3600",
		"child":         "sleep 3600 & wait",
		"own session":   "setsid sleep 3600 & sleep 3600",
		"double fork":   "(sleep 3600 &) ; sleep 3600",
		"ignores TERM":  "trap '' TERM; sleep 3600; sleep 3600",
		"holds outputs": "sleep 3600 >/dev/null 2>&1 & sleep 3600",
		"fork bomb":     "b() { while true; do b & done; }; b 2>/dev/null & exec sleep 3600",
	} {
		begun := time.Now()
		_, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: shell(script), Timeout: 1})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begun); took < time.Second || took > 5*time.Second {
			t.Errorf("%s: it took %s", name, took)
		}
		if out := string(n.exec(id, "ps").GetStdout()); strings.Contains(out, "3600") {
			t.Errorf("%s: left running:\n%s", name, out)
		}
	}
}

// The answer does not wait for a daemon that the command has started, and the daemon lives.
func TestExecSyncLeavesADaemonThatASuccessfulCommandStarted(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	begun := time.Now()
	if got := n.exec(id, shell("sleep 3600 & echo started")...); string(got.GetStdout()) != "started\n" {
		t.Errorf("%v", got)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if out := string(n.exec(id, "ps").GetStdout()); !strings.Contains(out, "sleep 3600") {
		t.Errorf("it is gone:\n%s", out)
	}
}

func TestExecOfAnEndedContainerIsRefused(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "true"))
	n.exited(id)
	if _, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
}

// A container that does not run yet, and one that is frozen: the command is refused or
// given up at its time, and works when the container does.
func TestExecBeforeTheStartAndInAFrozenContainer(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.create(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	command := &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 1}
	if _, err := n.ExecSync(n.ctx(), command); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("before the start: %v", err)
	}
	n.startContainer(id)
	file, frozen, thawed := n.freezer(id)
	n.order(file, frozen)
	begun := time.Now()
	if _, err := n.ExecSync(n.ctx(), command); err == nil {
		t.Error("a command ran in a frozen container")
	}
	if took := time.Since(begun); took > waitTime {
		t.Errorf("in a frozen container it took %s", took)
	}
	n.answersInTime()
	n.order(file, thawed)
	n.exec(id, "true")
	if out := string(n.exec(id, "ps").GetStdout()); strings.Contains(out, "true") {
		t.Errorf("the command of the frozen container is left:\n%s", out)
	}
}

// A container that is being made or started takes no command yet, and is neither held up
// nor spoiled by it.
func TestExecWhileTheContainerIsMadeAndStarted(t *testing.T) {
	dir := t.TempDir()
	n, image := readyNode(t, options{failpoints: true, env: []string{"CRIO_FAILPOINTS=" + dir}})
	k := killNode{node: n, dir: dir}
	pod := n.podConfig()
	box, id := n.runPod(pod), ""
	k.forget()
	var config *cri.ContainerConfig
	steps := []struct {
		stage string
		do    func() error
	}{
		{"create container: spec", func() error {
			config = n.containerConfig(image, "sleep", "99")
			return second(n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod}))
		}},
		{"start container: monitor, runtime create and start", func() error {
			return second(n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}))
		}},
	}
	for _, step := range steps {
		at := killPoint{name: step.stage, nth: 1}
		k.arm(at)
		answer := make(chan error, 1)
		go func() { answer <- step.do() }()
		writer := k.held(at)
		for _, o := range n.status().Objects {
			if o.Kind == "container" {
				id = o.ID
			}
		}
		begun := time.Now()
		_, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 1})
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", step.stage, err)
		}
		if took := time.Since(begun); took > waitTime {
			t.Errorf("%s: it took %s", step.stage, took)
		}
		k.release(writer)
		if err := <-answer; err != nil {
			t.Errorf("%s: %v", step.stage, err)
		}
	}
	n.exec(id, "true")
}

// freezer is the file that freezes the container's cgroup, with what it takes (cgroup-v2.rst,
// freezer-subsystem.rst).
func (n *node) freezer(id string) (file, frozen, thawed string) {
	n.t.Helper()
	inv := inventory{}
	n.cgroups(inv)
	for name := range inv {
		dir := strings.TrimPrefix(name, "cgroup ")
		if !strings.Contains(filepath.Base(dir), id) || strings.Contains(dir, "conmon") {
			continue
		}
		if _, err := os.Stat(dir + "/freezer.state"); err == nil {
			return dir + "/freezer.state", "FROZEN", "THAWED"
		}
		if _, err := os.Stat(dir + "/cgroup.freeze"); err == nil {
			return dir + "/cgroup.freeze", "1", "0"
		}
	}
	n.t.Fatalf("container %s has no cgroup that can be frozen", id)
	return "", "", ""
}

// A command that a killed daemon had under way is ended by the next one.
func TestExecOfAKilledDaemonIsEnded(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	go func() {
		_, _ = n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: shell("touch /begun; sleep 3600")})
	}()
	n.await("the command", func() error {
		if code := n.exec(id, "test", "-e", "/begun").GetExitCode(); code != 0 {
			return fmt.Errorf("code %d", code)
		}
		return nil
	})
	n.kill()
	n.start()
	n.await("its end", func() error {
		if out := string(n.exec(id, "ps").GetStdout()); strings.Contains(out, "3600") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if marks, err := os.ReadDir(n.path("run/containers/" + id)); err != nil || strings.Contains(fmt.Sprint(marks), "exec-") {
		t.Errorf("%v, %v", marks, err)
	}
}
