package kubelet

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/crio-minimal/crio/test/fixture"
)

// process is a program that is started again and again, a daemon or a kubelet. Its output
// is beside the kubelet's program, and stays there until the next run of the tests.
type process struct {
	log   string
	cmd   *exec.Cmd
	ended chan struct{}
	// down are the times in which a test had it ended: from when to when.
	down [][2]time.Time
	// stops are the times at which it was asked to end.
	stops []time.Time
	// left are the times at which a test has left a session with it that was not at its end.
	left []time.Time
	// marked is a length of the log, for sinceMark.
	marked int
}

func newProcess(t *testing.T, log string) *process {
	t.Helper()
	p := &process{log: filepath.Join(filepath.Dir(fixture.Binary(t, "kubelet/guest")), log)}
	check(t, os.WriteFile(p.log, nil, 0o644))
	return p
}

func (p *process) start(t *testing.T, name string, args ...string) {
	t.Helper()
	output, err := os.OpenFile(p.log, os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	defer output.Close()
	cmd, ended := exec.Command(name, args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1 atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	check(t, cmd.Start())
	p.cmd, p.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
}

// mark remembers where the log is.
func (p *process) mark(t *testing.T) {
	t.Helper()
	p.marked = len(readFile(t, p.log))
}

// sinceMark is what was logged after the mark.
func (p *process) sinceMark(t *testing.T) string {
	t.Helper()
	return readFile(t, p.log)[p.marked:]
}

func (p *process) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process as a crash does.
func (p *process) kill() {
	if p.alive() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// stop ends the process as systemd does.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.stops = append(p.stops, time.Now())
	check(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.ended:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("%s ends with %d", p.cmd.Path, code)
		}
	case <-time.After(waitTime):
		p.kill()
		t.Errorf("%s does not end on SIGTERM", p.cmd.Path)
	}
}
