package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExitCodeIsTheProcess(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for _, code := range []int32{0, 1, 42, 127, 128, 255} {
			t.Run(fmt.Sprint(code), func(t *testing.T) {
				before := time.Now().UnixNano()
				c := sh(fmt.Sprintf("exit %d", code)).make(t, conmon)
				x := c.run(t)
				if x.Code != code || x.Signal != 0 || x.OOM || x.ID != c.spec.ID || x.Message != "" {
					t.Errorf("got %+v", x)
				}
				if x.StartedAt < before || x.FinishedAt < x.StartedAt || x.FinishedAt > time.Now().UnixNano() {
					t.Errorf("times %d %d", x.StartedAt, x.FinishedAt)
				}
				if fromFile, err := ReadExit(c.spec.RunDir); err != nil || fromFile != x {
					t.Errorf("the record says %+v (%v), the message %+v", fromFile, err, x)
				}
			})
		}
	})
}

func TestSignalEndsAreTold(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGSEGV, unix.SIGABRT} {
			t.Run(unix.SignalName(sig), func(t *testing.T) {
				// As PID 1 of a namespace it would not die of most of them.
				c := bundle{args: []string{"/bin/sleep", "1000"}, hostPID: true}.make(t, conmon)
				conn, _ := c.start(t)
				must(t, conn.Kill(timeout(t), sig))
				if x := c.wait(t); x.Signal != int(sig) || x.Code != 128+int32(sig) || x.OOM {
					t.Errorf("got %+v", x)
				}
			})
		}
	})
}

func TestOtherRuntime(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		b := sh("echo out; echo err >&2; exit 7")
		b.runtime = "/usr/bin/crun"
		c := b.make(t, conmon)
		if x := c.run(t); x.Code != 7 {
			t.Errorf("got %+v", x)
		}
		if all := records(t, c.log); output(all, "stdout") != "out\n" || output(all, "stderr") != "err\n" {
			t.Errorf("log %v", all)
		}
	})
}

func TestReconnectAfterTheDaemonIsGone(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		first, started := c.start(t)
		first.Close()
		conn, status, err := Connect(timeout(t), c.spec.RunDir, c.onExit)
		must(t, err)
		defer conn.Close()
		if status != started || status.State != Running || status.Pid == 0 || status.StartTicks == 0 {
			t.Errorf("status %+v after the restart, %+v before", status, started)
		}
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		if x := c.wait(t); x.Signal != 9 || x.Pid != started.Pid || x.StartedAt != started.StartedAt {
			t.Errorf("got %+v", x)
		}
		if len(c.exits) != 0 {
			t.Error("the closed connection told the exit too")
		}
	})
}

func TestRecordStaysWhenNobodyListens(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("sleep 0.2; exit 9").make(t, conmon)
		conn, _ := c.start(t)
		conn.Close()
		eventually(t, "there is an exit record", func() bool {
			_, err := ReadExit(c.spec.RunDir)
			return !errors.Is(err, fs.ErrNotExist)
		})
		if x, err := ReadExit(c.spec.RunDir); err != nil || x.Code != 9 {
			t.Errorf("got %+v, %v", x, err)
		}
		eventually(t, "the monitor is gone", func() bool {
			conn, _, err := Connect(timeout(t), c.spec.RunDir, func(Exit, error) {})
			if err == nil {
				conn.Close()
			}
			return errors.Is(err, ErrGone)
		})
	})
}

func TestLateClientIsToldTheEnd(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("exit 5").make(t, conmon)
		hold := make(chan struct{})
		reached := make(chan struct{})
		ctx := timeout(t)
		conn, _, err := Start(ctx, c.spec, func(Exit, error) { close(reached); <-hold })
		must(t, err)
		defer conn.Close()
		<-reached // the end is told and not acknowledged: the monitor waits
		// A log that somebody moves away now must not come back (ReopenContainerLog).
		must(t, os.Rename(c.log, c.log+".1"))
		if err := conn.Reopen(ctx); !errors.Is(err, unix.ESRCH) {
			t.Errorf("reopen after the end: %v", err)
		}
		if _, err := os.Stat(c.log); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("reopen after the end made a log: %v", err)
		}
		late, status, err := Connect(ctx, c.spec.RunDir, c.onExit)
		must(t, err)
		defer late.Close()
		if status.State != Exited {
			t.Errorf("state %v", status.State)
		}
		if x := c.wait(t); x.Code != 5 {
			t.Errorf("got %+v", x)
		}
		close(hold)
	})
}

func TestLostMonitorIsNoticedAtOnce(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		best := time.Hour // of some: the machine is shared
		for range 5 {
			c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
			conn, _ := c.start(t)
			pid := c.monitorPid(t)
			began := time.Now()
			must(t, unix.Kill(pid, unix.SIGKILL))
			r := <-c.exits
			best = min(best, time.Since(began))
			if !errors.Is(r.err, ErrLost) {
				t.Errorf("got %+v", r)
			}
			if _, err := conn.Status(timeout(t)); !errors.Is(err, ErrClosed) {
				t.Errorf("status of a lost monitor: %v", err)
			}
		}
		t.Logf("noticed after %v", best)
		if best > 10*time.Millisecond {
			t.Errorf("noticed after %v at best", best)
		}
	})
}

func TestStartFailureHasTheRuntimesWords(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for _, runtime := range []string{"/usr/sbin/runc", "/usr/bin/crun"} {
			t.Run(filepath.Base(runtime), func(t *testing.T) {
				b := bundle{args: []string{"/no/such/program"}, runtime: runtime}
				c := b.make(t, conmon)
				_, _, err := Start(timeout(t), c.spec, c.onExit)
				var refused *StartError
				if !errors.As(err, &refused) || !strings.Contains(strings.ToLower(err.Error()), "no such file") {
					t.Fatalf("got %v", err)
				}
				for _, dir := range c.spec.KillCgroup {
					if pids := pidsOf(dir); len(pids) > 0 {
						t.Errorf("processes %v are left in %s", pids, dir)
					}
				}
				entries, err := os.ReadDir(c.spec.RuntimeArgs[1])
				if err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
					t.Errorf("the runtime keeps %v, %v", entries, err)
				}
				if text, _ := os.ReadFile(c.log); len(text) > 0 {
					t.Errorf("the runtime's words are in the container's log: %s", text)
				}
				if len(c.exits) != 0 {
					t.Error("onExit was called after an error of Start")
				}
			})
		}
	})
}

// failing is a runtime whose create says why on stderr, and whose delete is slow
// enough for a client to come in between.
func failing(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "runtime")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\ncase \"$*\" in *create*) echo because >&2; exit 1;; *delete*) sleep 0.3;; esac\n"), 0o755))
	return path
}

func TestLateClientIsToldTheFailure(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("true").make(t, conmon)
		c.spec.Runtime = failing(t)
		failed := make(chan error, 1)
		go func() {
			_, _, err := Start(timeout(t), c.spec, func(Exit, error) {})
			failed <- err
		}()
		var late *Conn
		eventually(t, "the monitor listens", func() bool {
			conn, _, err := Connect(timeout(t), c.spec.RunDir, c.onExit)
			late = conn
			return err == nil
		})
		defer late.Close()
		var refused *StartError
		if err := <-failed; !errors.As(err, &refused) || !strings.Contains(err.Error(), "because") {
			t.Errorf("got %v", err)
		}
		if x := c.wait(t); x.Code != 128 || !strings.Contains(x.Message, "because") {
			t.Errorf("the second client got %+v", x)
		}
		if text, _ := os.ReadFile(c.log); len(text) > 0 {
			t.Errorf("the runtime's words are in the container's log: %s", text)
		}
	})
}

func TestFailureIsRecordedWhenNobodyListens(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("true").make(t, conmon)
		c.spec.Runtime = failing(t)
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if _, _, err := Start(ctx, c.spec, c.onExit); err == nil {
			t.Fatal("it was started")
		}
		eventually(t, "there is an exit record", func() bool {
			_, err := ReadExit(c.spec.RunDir)
			return !errors.Is(err, fs.ErrNotExist)
		})
		if x, err := ReadExit(c.spec.RunDir); err != nil || x.Code != 128 || !strings.Contains(x.Message, "because") {
			t.Errorf("got %+v, %v", x, err)
		}
	})
}

func TestExitIsNotLostWhereItCannotBeWritten(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, status := c.start(t)
		conn.Close()
		// As good as a full disk: nothing can be created under this name.
		must(t, os.Mkdir(filepath.Join(c.spec.RunDir, "exit.new"), 0o700))
		must(t, unix.Kill(status.Pid, unix.SIGKILL))
		time.Sleep(2500 * time.Millisecond) // longer than the monitor waits for clients
		late, _, err := Connect(timeout(t), c.spec.RunDir, c.onExit)
		must(t, err)
		defer late.Close()
		if x := c.wait(t); x.Signal != 9 {
			t.Errorf("got %+v", x)
		}
	})
}

func TestRuntimeThatIsNotThere(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("true").make(t, conmon)
		c.spec.Runtime = "/no/such/runtime"
		_, _, err := Start(timeout(t), c.spec, c.onExit)
		if err == nil || !strings.Contains(err.Error(), "/no/such/runtime") {
			t.Errorf("got %v", err)
		}
	})
}

func TestMonitorThatIsNotThere(t *testing.T) {
	c := sh("true").make(t, "/no/such/conmon")
	_, _, err := Start(timeout(t), c.spec, c.onExit)
	var refused *StartError
	if !errors.Is(err, fs.ErrNotExist) || errors.As(err, &refused) {
		t.Errorf("got %v", err)
	}
}

// slow is a runtime whose create does not return.
func slow(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "runtime")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\ncase \"$*\" in *create*) exec sleep 1000;; esac\n"), 0o755))
	return path
}

func TestStartWaitsNoLongerThanItsContext(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("true").make(t, conmon)
		c.spec.Runtime = slow(t)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, _, err := Start(ctx, c.spec, c.onExit)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 2*time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
}

func TestKillEndsACreateThatHangs(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("true").make(t, conmon)
		c.spec.Runtime = slow(t)
		failed := make(chan error, 1)
		go func() {
			_, _, err := Start(timeout(t), c.spec, c.onExit)
			failed <- err
		}()
		var socket *Conn
		eventually(t, "the monitor listens", func() bool {
			raw, err := dial(timeout(t), c.spec.RunDir)
			if err != nil {
				return false
			}
			socket = newConn(raw, c.spec.RunDir, func(Exit, error) {})
			go socket.read()
			return true
		})
		defer socket.Close()
		if err := socket.Kill(timeout(t), unix.SIGTERM); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("SIGTERM for a process that is not there yet: %v", err)
		}
		must(t, socket.Kill(timeout(t), unix.SIGKILL))
		var refused *StartError
		if err := <-failed; !errors.As(err, &refused) {
			t.Errorf("got %v", err)
		}
	})
}

func TestWhatTheFirstProcessLeavesIsKilled(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		b := sh("sleep 1000 & setsid sleep 1000 >/dev/null 2>&1 & exit 3")
		b.hostPID = true
		c := b.make(t, conmon)
		began := time.Now()
		if x := c.run(t); x.Code != 3 || x.OOM {
			t.Errorf("got %+v", x)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it took %v", took)
		}
		for _, dir := range c.spec.KillCgroup {
			if pids := pidsOf(dir); len(pids) > 0 {
				t.Errorf("processes %v are left in %s", pids, dir)
			}
		}
	})
}

func TestOOMIsToldByTheCounter(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for name, test := range map[string]struct {
			script string
			signal int
			code   int32
		}{
			"first process": {"exec tail /dev/zero", 9, 137},
			"child":         {"tail /dev/zero; exit 3", 0, 3},
		} {
			t.Run(name, func(t *testing.T) {
				b := sh(test.script)
				b.memory = 32 << 20
				c := b.make(t, conmon)
				if x := c.run(t); !x.OOM || x.Signal != test.signal || x.Code != test.code {
					t.Errorf("got %+v", x)
				}
			})
		}
		t.Run("SIGKILL is not OOM", func(t *testing.T) {
			c := bundle{args: []string{"/bin/sleep", "1000"}, memory: 32 << 20}.make(t, conmon)
			conn, _ := c.start(t)
			must(t, conn.Kill(timeout(t), unix.SIGKILL))
			if x := c.wait(t); x.OOM || x.Signal != 9 {
				t.Errorf("got %+v", x)
			}
		})
	})
}

func TestStdin(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/cat"}}.make(t, conmon)
		if x := c.run(t); x.Code != 0 {
			t.Errorf("without stdin: %+v", x)
		}
		c = bundle{args: []string{"/bin/cat"}}.make(t, conmon)
		c.spec.Stdin = true
		conn, _ := c.start(t)
		select {
		case r := <-c.exits:
			t.Fatalf("stdin was not kept open: %+v", r)
		case <-time.After(200 * time.Millisecond):
		}
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		c.wait(t)
	})
}
