package sys

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	pid   int
	start uint64
}

// startCat starts a process that ends with code 0 when its stdin is closed.
func startCat(t *testing.T) child {
	t.Helper()
	c := child{cmd: exec.CommandContext(t.Context(), "cat")}
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	})
	c.stdin, c.pid = stdin, c.cmd.Process.Pid
	if c.start, err = StartTime(c.pid); err != nil || c.start == 0 {
		t.Fatalf("start time %d, %v", c.start, err)
	}
	return c
}

// awaitZombie returns when the process has ended and has not been reaped.
func (c child) awaitZombie(t *testing.T) {
	t.Helper()
	if err := unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

func TestAProcessFromStartToEnd(t *testing.T) {
	c := startCat(t)
	if !Alive(c.pid, c.start) {
		t.Error("a running process is not alive")
	}
	if Alive(c.pid, c.start+1) {
		t.Error("another process with this pid counts as the one that was meant")
	}
	if err := Signal(c.pid, c.start, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.awaitZombie(t)
	if Alive(c.pid, c.start) {
		t.Error("a zombie is alive")
	}
	if start, err := StartTime(c.pid); err != nil || start != c.start {
		t.Errorf("the start time of the zombie is %d, %v, it was %d", start, err, c.start)
	}
	if err := Signal(c.pid, c.start, unix.SIGKILL); err != nil {
		t.Errorf("signal to a zombie: %v", err)
	}
	_ = c.cmd.Wait()
	if got := c.cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal(); got != unix.SIGTERM {
		t.Errorf("it ended by %v", got)
	}
	if Alive(c.pid, c.start) {
		t.Error("a process that was reaped is alive")
	}
	if _, err := StartTime(c.pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the start time of nobody gave %v", err)
	}
	if err := Signal(c.pid, c.start, unix.SIGKILL); err != nil {
		t.Errorf("signal to nobody: %v", err)
	}
}

func TestSignalSparesTheSuccessorOfAPid(t *testing.T) {
	c := startCat(t)
	if err := Signal(c.pid, c.start-1, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = c.stdin.Close()
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("the successor was hit: %v", err)
	}
}

// kill(2) takes 0 and negative numbers for whole groups of processes.
func TestSignalNeverMeansAGroup(t *testing.T) {
	for _, pid := range []int{0, -1, -unix.Getpgrp()} {
		if err := Signal(pid, 0, unix.SIGKILL); err != nil {
			t.Errorf("%d: %v", pid, err)
		}
	}
}

func TestSignalTellsAnInvalidSignal(t *testing.T) {
	c := startCat(t)
	if err := Signal(c.pid, c.start, 1000); !errors.Is(err, unix.EINVAL) {
		t.Errorf("signal 1000 gave %v", err)
	}
}

// A pid that was given on can be the number of a thread by now; pidfd_open refuses those.
func TestSignalOfAPidThatIsAThreadNow(t *testing.T) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil || tid == os.Getpid() {
			continue
		}
		if err := Signal(tid, 1, unix.SIGKILL); err != nil {
			t.Errorf("the process is gone, but Signal said %v", err)
		}
		return
	}
	t.Fatal("the test has one thread only")
}

func TestParseStat(t *testing.T) {
	const tail = " 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3 4\n"
	for name, c := range map[string]struct {
		data string
		want stat
		ok   bool
	}{
		"plain":                 {"7 (cat) S" + tail, stat{'S', 4711}, true},
		"a name like the rest":  {"7 (a) Z 1 2) R" + tail, stat{'R', 4711}, true},
		"a name with a newline": {"7 (a\nb) D" + tail, stat{'D', 4711}, true},
		"an empty name":         {"7 () Z" + tail, stat{'Z', 4711}, true},
		"largest start":         {"7 (x) S 1 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615", stat{'S', 1<<64 - 1}, true},
		"cut before the start":  {"7 (cat) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0", stat{}, false},
		"start is no number":    {"7 (x) S 1 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 x", stat{}, false},
		"no name":               {"7 cat S" + tail, stat{}, false},
		"cut after the name":    {"7 (cat)", stat{}, false},
		"empty":                 {"", stat{}, false},
	} {
		got, ok := parseStat([]byte(c.data))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: got %+v, %v, want %+v, %v", name, got, ok, c.want, c.ok)
		}
	}
}
