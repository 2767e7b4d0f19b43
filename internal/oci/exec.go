package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MaxOutput is the most that ExecSync returns of one stream; what is beyond is
// dropped without an error (ExecSyncResponse.stdout, .stderr).
const MaxOutput = 16 << 20

// drainTime is how long the output of a finished command is waited for when a
// process that it left behind holds a pipe open.
const drainTime = 200 * time.Millisecond

// Exec is one command to run in a running container.
type Exec struct {
	ID      string
	Process *specs.Process
	// Reaper is the monitor's binary: its exec mode becomes the parent of the command.
	// The runtime itself cannot stay the parent, for it would wait for whoever the
	// command leaves behind with its output.
	Reaper string
	// PidFile is made by the runtime and removed at the end; for a runtime with a sandbox
	// it is the caller's to make and to remove, and what KillCommand needs.
	PidFile string
	// StdioUID and StdioGID are whose the pipes of the command are, by the IDs of the node.
	StdioUID, StdioGID int
	// CgroupArgs are options of the exec command that put it and all that it forks
	// into a cgroup of its own; none leaves it in the container's.
	CgroupArgs []string
}

// Output of a finished command.
type Output struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// ExecSync runs the command to its end and returns its output. When ctx ends first
// the runtime is killed and ctx's error returned; the command itself is the caller's
// to kill, by its cgroup. An error otherwise means that the
// command did not run.
func (r Runtime) ExecSync(ctx context.Context, e Exec) (Output, error) {
	process, err := processFile(e.Process)
	if err != nil {
		return Output{}, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	defer process.Close()
	log, err := memfile("exec-log")
	if err != nil {
		return Output{}, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	defer log.Close()

	cmd := r.command(e)
	if !r.Sandbox {
		defer os.Remove(e.PidFile)
	}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{process, log}
	// Its own process group: a signal to the daemon's must not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := newStream()
	if err != nil {
		return Output{}, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	defer stdout.close()
	stderr, err := newStream()
	if err != nil {
		return Output{}, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	defer stderr.close()
	for _, s := range []*stream{stdout, stderr} {
		if err := s.w.Chown(e.StdioUID, e.StdioGID); err != nil {
			return Output{}, fmt.Errorf("exec %s: %w", e.ID, err)
		}
	}
	cmd.Stdout, cmd.Stderr = stdout.w, stderr.w
	if err := cmd.Start(); err != nil {
		return Output{}, fmt.Errorf("exec %s: %w", e.ID, err)
	}
	stdout.start()
	stderr.start()
	code, err := wait(ctx, cmd)
	stdout.finish()
	stderr.finish()
	if err != nil {
		return Output{}, err
	}
	if text := loggedError(log); code != 0 && text != "" {
		return Output{}, fmt.Errorf("exec %s: %s", e.ID, text)
	}
	return Output{Stdout: stdout.kept, Stderr: stderr.kept, ExitCode: code}, nil
}

// command is what runs the process description and logs into the extra files, 3 and 4 in
// the runtime; it reads and writes them by path and closes them before the command runs.
// One with a sandbox has nothing on the node that a reaper could wait for.
func (r Runtime) command(e Exec) *exec.Cmd {
	global := append(r.GlobalArgs(), "--log", "/proc/self/fd/4", "--log-format", "json", "exec", "--process", "/proc/self/fd/3")
	if r.Sandbox {
		return exec.Command(r.Path, append(global, "--internal-pid-file", e.PidFile, e.ID)...)
	}
	return exec.Command(e.Reaper, slices.Concat([]string{"exec", e.PidFile, e.oomScoreAdj(), r.Path}, global,
		[]string{"--detach", "--pid-file", e.PidFile}, e.CgroupArgs, []string{e.ID})...)
}

// oomScoreAdj is the process's, which runtimes do not give to a command.
func (e Exec) oomScoreAdj() string {
	if e.Process.OOMScoreAdj == nil {
		return ""
	}
	return strconv.Itoa(*e.Process.OOMScoreAdj)
}

// wait returns the exit code in the shell's form: 128+n for signal n.
func wait(ctx context.Context, cmd *exec.Cmd) (int32, error) {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-done
		return 0, ctx.Err()
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, errors.New("exec: the wait status has an unknown type")
	}
	if status.Signaled() {
		return 128 + int32(status.Signal()), nil
	}
	return int32(status.ExitStatus()), nil
}

// processFile holds the process description in memory: nothing to clean up, on no disk.
func processFile(p *specs.Process) (*os.File, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	f, err := memfile("exec-process")
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func memfile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// loggedError is the last error that the runtime logged; "" when the failure was the command's own.
func loggedError(log *os.File) string {
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return ""
	}
	text := ""
	for d := json.NewDecoder(io.LimitReader(log, 1<<20)); ; {
		var line struct{ Level, Msg string }
		if d.Decode(&line) != nil {
			return text
		}
		if line.Level == "error" {
			text = line.Msg
		}
	}
}

// stream collects one output of a command, up to MaxOutput.
type stream struct {
	r, w *os.File
	done chan struct{}
	kept []byte // the reader's until done is closed
}

func newStream() (*stream, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &stream{r: r, w: w, done: make(chan struct{})}, nil
}

// start begins to read; our copy of the write end goes, so that EOF can come.
func (s *stream) start() {
	s.w.Close()
	go func() {
		defer close(s.done)
		buf := make([]byte, 32<<10)
		for {
			n, err := s.r.Read(buf)
			s.kept = append(s.kept, buf[:min(n, MaxOutput-len(s.kept))]...)
			if err != nil {
				return
			}
		}
	}()
}

// finish waits for EOF, at most drainTime, and ends the reader.
func (s *stream) finish() {
	if err := s.r.SetReadDeadline(time.Now().Add(drainTime)); err != nil {
		s.r.Close()
	}
	<-s.done
}

func (s *stream) close() {
	s.r.Close()
	s.w.Close()
}
