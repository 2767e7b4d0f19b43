package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/stdio"
	"github.com/crio-minimal/crio/internal/sys"
)

// Exec is one command to run in a running container.
type Exec struct {
	ID string
	// Process has Terminal set where the command is to have one.
	Process *specs.Process
	// Reaper is the monitor's binary: its exec mode becomes the parent of the command.
	// The runtime itself cannot stay the parent, for it would wait for whoever the
	// command leaves behind with its output.
	Reaper string
	// PidFile is made by the runtime and removed at the end; for a runtime with a sandbox
	// it is the caller's to make and to remove, and what KillCommand needs. Beside it is,
	// for a moment, the socket by which a terminal comes.
	PidFile string
	// StdioUID and StdioGID are whose the pipes of the command are, by the IDs of the node.
	StdioUID, StdioGID int
	// CgroupArgs are options of the exec command that put it and all that it forks
	// into a cgroup of its own; none leaves it in the container's.
	CgroupArgs []string
}

// Exec runs the command to its end and returns its exit code, in the shell's form: 128+n
// for signal n. When ctx ends first the runtime is killed and ctx's error returned; the
// command itself is the caller's to kill, by its cgroup. An error otherwise means that
// the command did not run, or that its output was not taken.
func (r Runtime) Exec(ctx context.Context, e Exec, s stdio.Streams) (code int32, err error) {
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("exec %s: %w", e.ID, err)
		}
	}()
	process, err := processFile(e.Process)
	if err != nil {
		return 0, err
	}
	defer process.Close()
	log, err := memfile("exec-log")
	if err != nil {
		return 0, err
	}
	defer log.Close()

	cmd := r.command(e)
	if !r.Sandbox {
		defer os.Remove(e.PidFile)
	}
	// Paths are short in it, whatever the layout: that of a socket has 107 bytes.
	cmd.Dir = filepath.Dir(e.PidFile)
	cmd.ExtraFiles = []*os.File{process, log}
	// Its own process group: a signal to the daemon's must not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	run := runPipes
	if e.Process.Terminal {
		run = runTerminal
	}
	code, err = run(ctx, cmd, e, s)
	if text := loggedError(log); err == nil && code != 0 && text != "" {
		return 0, errors.New(text)
	}
	return code, err
}

// command is what runs the process description and logs into the extra files, 3 and 4 in
// the runtime; it reads and writes them by path and closes them before the command runs.
// One with a sandbox has nothing on the node that a reaper could wait for.
func (r Runtime) command(e Exec) *exec.Cmd {
	global := append(r.GlobalArgs(), "--log", "/proc/self/fd/4", "--log-format", "json", "exec", "--process", "/proc/self/fd/3")
	if e.Process.Terminal {
		global = append(global, "--console-socket", filepath.Base(e.consolePath()))
	}
	if r.Sandbox {
		return exec.Command(r.Path, append(global, "--internal-pid-file", e.PidFile, e.ID)...)
	}
	return exec.Command(e.Reaper, slices.Concat([]string{"exec", e.PidFile, e.oomScoreAdj(), r.Path}, global,
		[]string{"--detach", "--pid-file", e.PidFile}, e.CgroupArgs, []string{e.ID})...)
}

func (e Exec) consolePath() string { return e.PidFile + ".tty" }

// oomScoreAdj is the process's, which runtimes do not give to a command.
func (e Exec) oomScoreAdj() string {
	if e.Process.OOMScoreAdj == nil {
		return ""
	}
	return strconv.Itoa(*e.Process.OOMScoreAdj)
}

// pipes are those of one command, and whose they are.
type pipes struct {
	uid, gid     int
	theirs, ours []*os.File
}

// make returns the command's end and ours.
func (p *pipes) make(commandReads bool) (theirs, ours *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	theirs, ours = w, r
	if commandReads {
		theirs, ours = r, w
	}
	p.theirs, p.ours = append(p.theirs, theirs), append(p.ours, ours)
	return theirs, ours, theirs.Chown(p.uid, p.gid)
}

// runPipes runs a command that has pipes for what the client takes part in, and
// /dev/null for the rest.
func runPipes(ctx context.Context, cmd *exec.Cmd, e Exec, s stdio.Streams) (int32, error) {
	p := pipes{uid: e.StdioUID, gid: e.StdioGID}
	defer func() { closeFiles(p.theirs); closeFiles(p.ours) }()
	var in, out, errs *os.File
	if s.Input != nil {
		theirs, ours, err := p.make(true)
		if err != nil {
			return 0, err
		}
		cmd.Stdin, in = theirs, ours
	}
	if s.Out != nil {
		theirs, ours, err := p.make(false)
		if err != nil {
			return 0, err
		}
		cmd.Stdout, out = theirs, ours
	}
	if s.Err != nil {
		theirs, ours, err := p.make(false)
		if err != nil {
			return 0, err
		}
		cmd.Stderr, errs = theirs, ours
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	closeFiles(p.theirs)
	if in != nil {
		s.Input(in)
	}
	var copies []*stdio.Output
	if out != nil {
		copies = append(copies, stdio.CopyOutput(s.Out, out))
	}
	if errs != nil {
		copies = append(copies, stdio.CopyOutput(s.Err, errs))
	}
	sys.Failpoint("exec", "runtime started")
	code, err := wait(ctx, cmd)
	if err != nil {
		closeFiles(p.ours) // nobody waits for the rest
	}
	for _, c := range copies {
		err = errors.Join(err, c.Finish())
	}
	return code, err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// wait returns the exit code in the shell's form.
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
		return 0, errors.New("the wait status has an unknown type")
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
