package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A first process that somebody traced was told with code 255: its pidfd is readable
// before its tracer has let go of it.
func TestExitOfATracedProcess(t *testing.T) {
	needRoot(t)
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}, hostPID: true}.make(t, conmon)
		_, status := c.start(t)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		must(t, unix.PtraceSeize(status.Pid))
		must(t, unix.Kill(status.Pid, unix.SIGKILL))
		time.Sleep(100 * time.Millisecond) // the tracer is slow
		_, err := unix.Wait4(status.Pid, nil, unix.WALL, nil)
		must(t, err)
		if x := c.wait(t); x.Code != 137 || x.Signal != 9 {
			t.Errorf("got %+v", x)
		}
	})
}

// The C library keeps three signals for itself: they were not blocked, and ended the
// monitor.
func TestNoSignalEndsTheMonitor(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, _ := c.start(t)
		for sig := unix.Signal(1); sig <= 64; sig++ {
			if sig != unix.SIGKILL && sig != unix.SIGSTOP && sig != unix.SIGSEGV && sig != unix.SIGABRT {
				must(t, unix.Kill(c.monitorPid(t), sig))
			}
		}
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Errorf("after all signals: %v", err)
		}
	})
}

// A request whose context had ended left its deadline on the connection: all later ones
// failed with it.
func TestCancelledRequestLeavesTheConnection(t *testing.T) {
	c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, filepath.Join(build, "conmon"))
	conn, _ := c.start(t)
	for range 100 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Microsecond)
		_, _ = conn.Status(ctx) // in time or not
		cancel()
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Fatalf("a request after one that was cancelled: %v", err)
		}
	}
}

// The monitor's room is bounded. Without any left for the daemon, it was taken for gone.
func TestConnectWithoutRoomIsNotGone(t *testing.T) {
	c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, filepath.Join(build, "conmon"))
	c.start(t)
	for range 140 {
		eventually(t, "the monitor has taken those before", func() bool {
			socket, err := dial(timeout(t), c.spec.RunDir)
			if errors.Is(err, unix.EAGAIN) { // more than its backlog holds have not been
				return false
			}
			must(t, err)
			t.Cleanup(func() { socket.Close() })
			return true
		})
	}
	if _, _, err := Connect(timeout(t), c.spec.RunDir, func(Exit, error) {}); !errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
}

// Output that was there for a client was lost to it when the monitor ended with input of
// the client unread.
func TestTailIsCopiedAfterTheMonitorHasGone(t *testing.T) {
	for range 5 {
		c := waits("seq 1 20000; echo bye").make(t, filepath.Join(build, "conmon"))
		c.spec.Stdin = true
		c.start(t)
		a, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdin: true, Stdout: true})
		must(t, err)
		defer a.Close()
		must(t, a.socket.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
		for range 60 {
			if _, err := a.Write(make([]byte, 4000)); err != nil {
				break // the container does not read
			}
		}
		c.release(t)
		c.wait(t)
		eventually(t, "the monitor ends", func() bool {
			_, err := os.Stat(filepath.Dir(c.spec.JoinCgroup[0]))
			return len(pidsOf(filepath.Dir(c.spec.JoinCgroup[0]))) == 0 || os.IsNotExist(err)
		})
		var out bytes.Buffer
		if err := a.Copy(&out, nil); err != nil || !strings.HasSuffix(out.String(), "bye\n") {
			t.Errorf("%d bytes, %v", out.Len(), err)
		}
	}
}

// A runtime's words that are not UTF-8 made an answer that gRPC refuses to send.
func TestFailureIsUTF8(t *testing.T) {
	c := sh("true").make(t, filepath.Join(build, "conmon"))
	c.spec.Runtime = wrapper(t, "case \" $* \" in *' create '*) printf 'bad \\377 name' >&2; exit 1;; esac")
	var refused *StartError
	_, _, err := Start(timeout(t), c.spec, c.onExit)
	if !errors.As(err, &refused) || !utf8.ValidString(refused.Message) || !strings.Contains(refused.Message, "name") {
		t.Errorf("got %v", err)
	}
}

// Only the last part of the log's path was kept from being a link.
func TestLogPathFollowsNoLinkOnTheWay(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, _ := c.start(t)
		dir, elsewhere := filepath.Dir(c.log), t.TempDir()
		must(t, os.Rename(dir, dir+".moved"))
		must(t, os.Symlink(elsewhere, dir))
		if err := conn.Reopen(timeout(t)); !errors.Is(err, unix.ELOOP) {
			t.Errorf("reopen: %v", err)
		}
		if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
			t.Errorf("made behind the link: %v, %v", left, err)
		}
		must(t, os.Remove(dir))
		must(t, os.Rename(dir+".moved", dir))
	})
}

// A child in a deep group of its own outlived its container.
func TestChildInADeepGroupIsKilled(t *testing.T) {
	if unified() {
		t.Skip("cgroup.kill reaches everything")
	}
	b := sh("sleep 1000 & wait")
	b.hostPID = true
	c := b.make(t, filepath.Join(build, "conmon"))
	conn, status := c.start(t)
	group := ""
	for _, dir := range c.spec.KillCgroup {
		if strings.Contains(dir, "/pids/") {
			group = dir
		}
	}
	child := 0
	eventually(t, "the child", func() bool {
		for _, pid := range pidsOf(group) {
			if pid != status.Pid {
				child = pid
			}
		}
		return child != 0
	})
	deep := group
	for i := range 20 {
		deep = filepath.Join(deep, fmt.Sprint(i))
		must(t, os.Mkdir(deep, 0o755))
	}
	t.Cleanup(func() {
		for ; deep != group; deep = filepath.Dir(deep) {
			_ = unix.Rmdir(deep)
		}
	})
	must(t, os.WriteFile(filepath.Join(deep, "cgroup.procs"), fmt.Append(nil, child), 0))
	must(t, conn.Kill(timeout(t), unix.SIGKILL))
	c.wait(t)
	if len(pidsOf(deep)) > 0 {
		t.Error("it lives after the exit was told")
	}
}

// Clients with input that wait for their turn are not listened to. When they went, they
// kept their places in the bounded table.
func TestClientsThatHaveGoneMakeRoom(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		c.spec.Stdin = true
		c.start(t)
		first, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdin: true})
		must(t, err)
		defer first.Close()
		must(t, first.socket.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
		for range 60 {
			if _, err := first.Write(make([]byte, 4000)); err != nil {
				break // the container does not read: from now on everybody waits
			}
		}
		for range 111 {
			a, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdin: true})
			must(t, err)
			a.Close()
		}
		late, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdout: true})
		must(t, err)
		late.Close()
	})
}
