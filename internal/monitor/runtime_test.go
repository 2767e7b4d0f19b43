package monitor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startError starts what must not start, and returns why.
func (c *container) startError(t *testing.T) string {
	t.Helper()
	_, _, err := Start(timeout(t), c.spec, c.onExit)
	var refused *StartError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v", err)
	}
	return err.Error()
}

func TestLastWordsOfARuntimeAreKept(t *testing.T) {
	flood := "head -c 3000000 /dev/zero >&2; echo first >&2; echo the reason is this >&2; exit 1"
	onBuilds(t, func(t *testing.T, conmon string) {
		for _, tty := range []bool{false, true} {
			for _, stage := range []string{"create", "start"} {
				t.Run(fmt.Sprint(stage, " tty ", tty), func(t *testing.T) {
					b := sh("sleep 1000")
					b.tty = tty
					c := b.make(t, conmon)
					// More than any pipe holds: a runtime that is not read does not end.
					c.spec.Runtime = wrapper(t, "case \" $* \" in *' "+stage+" '*) "+flood+";; esac\nexec /usr/sbin/runc \"$@\"")
					if text := c.startError(t); !strings.HasSuffix(text, "the reason is this\n") && !strings.HasSuffix(text, "the reason is this") {
						t.Errorf("got %.300q", text)
					}
					x, err := ReadExit(c.spec.RunDir)
					if err != nil || x.Code != 128 || x.Signal != 0 || x.StartedAt != 0 || !strings.Contains(x.Message, "the reason is this") {
						t.Errorf("got %+v, %v", x, err)
					}
				})
			}
		}
	})
}

func TestWordsOfARuntimeThatSucceedsAreNotTheContainers(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("echo mine").make(t, conmon)
		c.spec.Runtime = wrapper(t, "case \" $* \" in *' create '*) echo warning: this and that >&2; echo and more;; esac\nexec /usr/sbin/runc \"$@\"")
		if x := c.run(t); x.Code != 0 {
			t.Errorf("got %+v", x)
		}
		if all := records(t, c.log); len(all) != 1 || all[0].content != "mine" {
			t.Errorf("log %v", all)
		}
	})
}

func TestMissingTerminalIsAnError(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for name, script := range map[string]string{
			"none":   "exit 0",
			"a file": "", // by a client of the test
		} {
			t.Run(name, func(t *testing.T) {
				b := sh("true")
				b.tty = true
				c := b.make(t, conmon)
				if script != "" {
					c.spec.Runtime = wrapper(t, "case \" $* \" in *' create '*) "+script+";; esac")
				} else {
					done := filepath.Join(t.TempDir(), "sent")
					c.spec.Runtime = wrapper(t, "case \" $* \" in *' create '*) while ! [ -e "+done+" ]; do sleep 0.02; done;; esac")
					go sendFile(c.spec.RunDir, done)
				}
				if text := c.startError(t); !strings.Contains(text, "terminal") {
					t.Errorf("got %q", text)
				}
			})
		}
	})
}

// sendFile is a runtime that sends something else than a terminal.
func sendFile(runDir, done string) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		dir, err := unix.Open(runDir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/console", dir))
		unix.Close(dir)
		if err != nil {
			continue
		}
		null, err := os.Open("/dev/null")
		if err == nil {
			_, _, _ = conn.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(int(null.Fd())), nil)
			null.Close()
		}
		conn.Close()
		_ = os.WriteFile(done, nil, 0o600)
		return
	}
}

func TestResizeBeforeTheTerminalExists(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		b := sh("stty size")
		b.tty = true
		c := b.make(t, conmon)
		hold := filepath.Join(t.TempDir(), "go")
		c.spec.Runtime = wrapper(t, "case \" $* \" in *' create '*) while ! [ -e "+hold+" ]; do sleep 0.02; done;; esac\nexec /usr/sbin/runc \"$@\"")
		started := make(chan error, 1)
		go func() {
			_, _, err := Start(timeout(t), c.spec, c.onExit)
			started <- err
		}()
		eventually(t, "the monitor listens", func() bool {
			_, err := os.Stat(filepath.Join(c.spec.RunDir, socketName))
			return err == nil
		})
		size := func(rows, cols byte) []byte { return encode(typeResize, 1, []byte{rows, 0, cols, 0}) }
		if err := request(t, c, size(10, 20), size(99, 98), size(31, 97)); err != unix.Errno(0) {
			t.Errorf("resize: %v", err)
		}
		must(t, os.WriteFile(hold, nil, 0o600))
		must(t, <-started)
		c.wait(t)
		if got := output(records(t, c.log), "stdout"); got != "31 97\r\n" {
			t.Errorf("got %q, the last value wins", got)
		}
	})
}

// A terminal hangs up when nobody has it open, and its monitor sees an end. Programs
// that open the console for each line, as an init system does, live on.
func TestTerminalThatNobodyHasOpenComesBack(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		b := sh("echo one; exec <&- >&- 2>&-; sleep 0.3; echo two >/dev/console; sleep 0.1; echo three >/dev/console")
		b.tty = true
		c := b.make(t, conmon)
		if x := c.run(t); x.Code != 0 {
			t.Errorf("got %+v", x)
		}
		if got := output(records(t, c.log), "stdout"); got != "one\r\ntwo\r\nthree\r\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestNoDescriptorsForClientsIsNoBusyLoop(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, _ := c.start(t)
		pid := c.monitorPid(t)
		var limit unix.Rlimit
		must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit))
		must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: freeDescriptor(t, pid), Max: limit.Max}, nil))
		socket, err := dial(timeout(t), c.spec.RunDir)
		must(t, err)
		defer socket.Close()
		_, err = socket.Write(encode(typeStatus, 7, nil))
		must(t, err)
		cpu := schedstat(t, pid)
		time.Sleep(500 * time.Millisecond) // the quantity that is measured
		if used := schedstat(t, pid) - cpu; used > 100*time.Millisecond {
			t.Errorf("%v of CPU time while a client waits", used)
		}
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Errorf("those who are connected suffer: %v", err)
		}
		must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil))
		if p, _ := ask(t, socket, encode(typeStatus, 8, nil)); p.seq != 7 || p.errno != 0 {
			t.Errorf("afterwards: %+v", p)
		}
	})
}

// freeDescriptor is the number that a process's next one gets.
func freeDescriptor(t *testing.T, pid int) uint64 {
	for n := uint64(0); ; n++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", pid, n)); err != nil {
			return n
		}
	}
}

func TestOtherUsersAreNotServed(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		c.start(t)
		// As if the permissions in the way had been lost: its uid alone decides.
		path := filepath.Join(c.spec.RunDir, socketName)
		must(t, os.Chmod(path, 0o777))
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&1 == 0 {
				must(t, os.Chmod(dir, info.Mode().Perm()|1))
			}
		}
		for uid, want := range map[uint32]string{0: "answered", 65534: "refused"} {
			cmd := exec.Command(filepath.Join(c.rootfs, "bin/guest"), "ask", c.spec.RunDir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			out, err := cmd.CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("uid %d is %q, %v", uid, got, err)
			}
		}
	})
}

func TestNoAbstractSocket(t *testing.T) {
	abstract := func() int {
		data, err := os.ReadFile("/proc/net/unix")
		must(t, err)
		return strings.Count(string(data), " @")
	}
	onBuilds(t, func(t *testing.T, conmon string) {
		before := abstract()
		b := bundle{args: []string{"/bin/sleep", "1000"}, tty: true}
		c := b.make(t, conmon)
		c.start(t)
		if n := abstract(); n != before {
			t.Errorf("%d abstract sockets, %d before", n, before)
		}
	})
}

func TestMonitorCannotBeLookedInto(t *testing.T) {
	needRoot(t)
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("needs setpriv")
	}
	// CAP_SYS_PTRACE would allow it all the same. Without it on both sides, the uid decides.
	without := []string{setpriv, "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"}
	look := func(pid int) error {
		return exec.Command(without[0], append(without[1:], "readlink", fmt.Sprintf("/proc/%d/exe", pid))...).Run()
	}
	control := exec.Command(without[0], append(without[1:], "sleep", "1000")...)
	must(t, control.Start())
	t.Cleanup(func() { _ = control.Process.Kill(); _ = control.Wait() })
	time.Sleep(50 * time.Millisecond) // until it is sleep
	if err := look(control.Process.Pid); err != nil {
		t.Skipf("cannot be told here: %v", err)
	}
	conmon := filepath.Join(build, "conmon")
	c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
	c.spec.Path = wrapper(t, "exec "+strings.Join(without, " ")+" "+conmon+" \"$@\"")
	c.start(t)
	if err := look(c.monitorPid(t)); err == nil {
		t.Error("its uid alone lets others look into it")
	}
}

func TestExecEndsWithItsCommand(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		dir := t.TempDir()
		t.Setenv("VALGRIND_LOG", dir+"/valgrind")
		pid, guest := filepath.Join(dir, "pid"), filepath.Join(build, "test-guest")
		for _, test := range []struct {
			want    int
			runtime []string
		}{
			{4, []string{guest, "detach", pid, "4", "0"}}, // before the runtime does, as many probes
			{0, []string{guest, "detach", pid, "0", "50"}},
			{7, []string{guest, "detach", pid, "7", "150"}},
			{137, []string{guest, "detach", pid, "137", "0"}},
			{143, []string{guest, "detach", pid, "143", "150"}},
			{9, []string{"/bin/sh", "-c", "exit 9"}},
			{125, []string{"/bin/true"}}, // and no command
		} {
			_ = os.Remove(pid)
			cmd := exec.Command(conmon, append([]string{"exec", pid, ""}, test.runtime...)...)
			err := cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != test.want {
				t.Errorf("%s: got %d, want %d (%v)", test.runtime, got, test.want, err)
			}
		}
	})
}
