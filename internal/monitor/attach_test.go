package monitor

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var allOutput = Streams{Stdout: true, Stderr: true}

// session is an attachment whose output is being taken.
type session struct {
	*Attachment
	out, err bytes.Buffer
	end      chan error
}

func (c *container) attach(t *testing.T, s Streams) *session {
	t.Helper()
	a, err := Attach(timeout(t), c.spec.RunDir, s)
	must(t, err)
	t.Cleanup(func() { a.Close() })
	x := &session{Attachment: a, end: make(chan error, 1)}
	go func() { x.end <- a.Copy(&x.out, &x.err) }()
	return x
}

// wait returns when all of the output was taken.
func (s *session) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.end:
		must(t, err)
	case <-time.After(patience):
		t.Fatal("the attachment does not end")
	}
}

// waits is a container that writes when the test has created the file "go".
func waits(then string) bundle {
	return sh("while ! [ -e /go ]; do sleep 0.02; done; " + then)
}

func (c *container) release(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile(c.rootfs+"/go", nil, 0o600))
}

func TestAttachedClientsGetTheirStreams(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits("echo out; echo err >&2; seq 1 20000; printf end; exit 3").make(t, conmon)
		c.start(t)
		var numbers strings.Builder
		for i := range 20000 {
			fmt.Fprintln(&numbers, i+1)
		}
		stdout, stderr := "out\n"+numbers.String()+"end", "err\n"
		both, alsoBoth := c.attach(t, allOutput), c.attach(t, allOutput)
		onlyOut, onlyErr := c.attach(t, Streams{Stdout: true}), c.attach(t, Streams{Stderr: true})
		left := c.attach(t, allOutput)
		left.Close()
		c.release(t)
		if x := c.wait(t); x.Code != 3 || x.Dropped != 0 {
			t.Errorf("got %+v", x)
		}
		for name, test := range map[string]struct {
			s        *session
			out, err string
		}{
			"both": {both, stdout, stderr}, "also both": {alsoBoth, stdout, stderr},
			"stdout": {onlyOut, stdout, ""}, "stderr": {onlyErr, "", stderr},
		} {
			test.s.wait(t)
			if test.s.out.String() != test.out || test.s.err.String() != test.err {
				t.Errorf("%s: %d and %d bytes, want %d and %d", name, test.s.out.Len(), test.s.err.Len(), len(test.out), len(test.err))
			}
		}
		if got := output(records(t, c.log), "stdout"); got != stdout+"\n" {
			t.Errorf("the log has %d bytes, want %d", len(got), len(stdout)+1)
		}
	})
}

func TestAttachBeforeTheStartMissesNothing(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("echo first; exit 0").make(t, conmon)
		hold := filepath.Join(t.TempDir(), "go")
		c.spec.Runtime = wrapper(t, "case \"$*\" in *create*) while ! [ -e "+hold+" ]; do sleep 0.02; done;; esac\nexec /usr/sbin/runc \"$@\"")
		started := make(chan error, 1)
		go func() {
			_, _, err := Start(timeout(t), c.spec, c.onExit)
			started <- err
		}()
		var s *session
		eventually(t, "the monitor listens", func() bool {
			_, err := os.Stat(filepath.Join(c.spec.RunDir, socketName))
			return err == nil
		})
		s = c.attach(t, allOutput)
		must(t, os.WriteFile(hold, nil, 0o600))
		must(t, <-started)
		s.wait(t)
		if s.out.String() != "first\n" {
			t.Errorf("got %q", s.out.String())
		}
		c.wait(t)
	})
}

// noise is input that no stage may change.
func noise(t *testing.T, n int) []byte {
	b := make([]byte, n)
	_, err := rand.Read(b)
	must(t, err)
	return b
}

func TestStdinReachesTheContainerWhole(t *testing.T) {
	// Less than the queue of a client: on a busy machine this one may read late.
	size := torture(1<<18, 64<<20)
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/cat"}}.make(t, conmon)
		c.spec.Stdin, c.spec.StdinOnce = true, true
		c.start(t)
		s := c.attach(t, Streams{Stdin: true, Stdout: true, Stderr: true})
		input := noise(t, size)
		_, err := s.Write(input)
		must(t, err)
		must(t, s.CloseWrite()) // stdin_once: cat sees its end, and its output still comes
		if x := c.wait(t); x.Code != 0 {
			t.Errorf("got %+v", x)
		}
		s.wait(t)
		if !bytes.Equal(s.out.Bytes(), input) {
			t.Errorf("%d bytes came back of %d", s.out.Len(), len(input))
		}
	})
}

func TestStdinOfAClientThatLeftIsDelivered(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("sleep 0.3; exec cat").make(t, conmon)
		c.spec.Stdin, c.spec.StdinOnce = true, true
		c.start(t)
		a, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdin: true, Stdout: true})
		must(t, err)
		input := bytes.Repeat([]byte("0123456789abcde\n"), 100_000/16)
		_, err = a.Write(input)
		must(t, err)
		a.Close() // with replies that nobody read
		if x := c.wait(t); x.Code != 0 {
			t.Errorf("got %+v", x)
		}
		if got := output(records(t, c.log), "stdout"); got != string(input) {
			t.Errorf("%d bytes of %d arrived", len(got), len(input))
		}
	})
}

func TestStdinStaysOpenForTheNextClient(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/cat"}}.make(t, conmon)
		c.spec.Stdin = true
		conn, _ := c.start(t)
		watch := c.attach(t, Streams{Stdout: true})
		for _, line := range []string{"one\n", "two\n", "three\n"} {
			s := c.attach(t, Streams{Stdin: true})
			_, err := s.Write([]byte(line))
			must(t, err)
			must(t, s.CloseWrite())
			if _, err := s.Write([]byte("late")); err == nil {
				// The reply comes later than the write.
				eventually(t, "input after its end is refused", func() bool {
					_, err = s.Write([]byte("late"))
					return errors.Is(err, unix.EINVAL)
				})
			}
			s.Close()
		}
		eventually(t, "all was echoed", func() bool {
			return output(records(t, c.log), "stdout") == "one\ntwo\nthree\n"
		})
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		c.wait(t)
		watch.wait(t)
		if watch.out.String() != "one\ntwo\nthree\n" {
			t.Errorf("got %q", watch.out.String())
		}
	})
}

// A container that does not read its stdin holds its writers, and nobody else.
func TestUnreadInputStallsNobodyElse(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits("seq 1 1000; while ! [ -e /on ]; do sleep 0.02; done; exec cat >/dev/null").make(t, conmon)
		c.spec.Stdin, c.spec.StdinOnce = true, true
		conn, _ := c.start(t)
		writer := c.attach(t, Streams{Stdin: true, Stdout: true})
		must(t, writer.socket.SetWriteDeadline(time.Now().Add(500*time.Millisecond)))
		_, err := writer.Write(make([]byte, 16<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("16 MiB were taken: %v", err)
		}
		other := c.attach(t, Streams{Stdout: true})
		second := c.attach(t, Streams{Stdin: true, Stdout: true})
		_, err = second.Write([]byte("behind it\n"))
		must(t, err)
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Error(err)
		}
		must(t, conn.Reopen(timeout(t)))
		c.release(t)
		eventually(t, "output goes on", func() bool {
			return strings.HasSuffix(output(records(t, c.log), "stdout"), "\n1000\n")
		})
		writer.Close() // its input is half way, and nobody polls for its end
		cpu := schedstat(t, c.monitorPid(t))
		time.Sleep(300 * time.Millisecond) // the quantity that is measured
		if used := schedstat(t, c.monitorPid(t)) - cpu; used > 50*time.Millisecond {
			t.Errorf("%v of CPU time while it waits for the container", used)
		}
		must(t, os.WriteFile(c.rootfs+"/on", nil, 0o600))
		second.Close()
		if x := c.wait(t); x.Code != 0 {
			t.Errorf("got %+v", x)
		}
		other.wait(t)
	})
}

func TestInputAfterTheContainerClosedItIsRefused(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("exec <&-; exec sleep 1000").make(t, conmon)
		c.spec.Stdin = true
		conn, _ := c.start(t)
		s := c.attach(t, Streams{Stdin: true})
		eventually(t, "input is refused", func() bool {
			_, err := s.Write([]byte("x"))
			return errors.Is(err, unix.EPIPE)
		})
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		c.wait(t)
	})
}

func TestStoppedAttachedClientStallsNothing(t *testing.T) {
	lines := torture(300_000, 3_000_000)
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits(fmt.Sprintf("seq 1 %d; exec sleep 1000", lines)).make(t, conmon)
		conn, _ := c.start(t)
		stopped, err := Attach(timeout(t), c.spec.RunDir, allOutput)
		must(t, err)
		defer stopped.Close()
		c.release(t)
		eventually(t, "the log has all of it", func() bool {
			data, err := os.ReadFile(c.log)
			return err == nil && bytes.HasSuffix(data, fmt.Appendf(nil, " %d\n", lines))
		})
		var got bytes.Buffer
		if err := stopped.Copy(&got, &got); !errors.Is(err, ErrBehind) {
			t.Errorf("got %v after %d bytes", err, got.Len())
		}
		var want strings.Builder
		for i := 1; want.Len() < got.Len(); i++ {
			fmt.Fprintln(&want, i)
		}
		if got.Len() < 64<<10 || want.String()[:got.Len()] != got.String() {
			t.Errorf("it had %d bytes in its queue, and they are not the first ones", got.Len())
		}
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		c.wait(t)
	})
}

func TestAttachToATerminal(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		b := sh("stty -echo; echo ready; read line; echo got $line >&2; exec cat")
		b.tty = true
		c := b.make(t, conmon)
		c.spec.Stdin, c.spec.StdinOnce = true, true
		conn, _ := c.start(t)
		s := c.attach(t, Streams{Stdin: true, Stdout: true, Stderr: true})
		eventually(t, "the terminal is ready", func() bool {
			return strings.Contains(output(records(t, c.log), "stdout"), "ready")
		})
		_, err := s.Write([]byte("a line\n"))
		must(t, err)
		eventually(t, "it was read", func() bool {
			return strings.Contains(output(records(t, c.log), "stdout"), "got a line")
		})
		must(t, s.CloseWrite()) // ends the input, not the terminal
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Error(err)
		}
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		c.wait(t)
		s.wait(t)
		if got := s.out.String(); !strings.HasSuffix(got, "got a line\r\n") || s.err.Len() != 0 {
			t.Errorf("got %q and %q", got, s.err.String())
		}
	})
}

func TestAttachRefusals(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		hold := make(chan struct{})
		reached := make(chan struct{})
		conn, _, err := Start(timeout(t), c.spec, func(Exit, error) { close(reached); <-hold })
		must(t, err)
		defer conn.Close()
		if _, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdin: true}); !errors.Is(err, unix.EBADF) {
			t.Errorf("stdin where there is none: %v", err)
		}
		if _, err := Attach(timeout(t), c.spec.RunDir, Streams{}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("nothing: %v", err)
		}
		if _, err := Attach(timeout(t), t.TempDir(), allOutput); !errors.Is(err, ErrGone) {
			t.Errorf("nobody: %v", err)
		}
		if err := request(t, c, encode(typeInput, 1, []byte("x"))); err != unix.EINVAL {
			t.Errorf("input without an attachment: %v", err)
		}
		if err := request(t, c, encode(typeHello, 1, nil), encode(typeAttach, 2, []byte{2, 0, 0, 0})); err != unix.EBUSY {
			t.Errorf("attach of a subscriber: %v", err)
		}
		if err := request(t, c, encode(typeAttach, 1, []byte{2, 0, 0, 0}), encode(typeHello, 2, nil)); err != unix.EBUSY {
			t.Errorf("hello of an attached client: %v", err)
		}
		attached := 0
		for range 200 {
			a, err := Attach(timeout(t), c.spec.RunDir, allOutput)
			if err != nil {
				if !errors.Is(err, unix.EUSERS) {
					t.Errorf("one too many: %v", err)
				}
				break
			}
			defer a.Close()
			attached++
		}
		if attached != 112 {
			t.Errorf("%d clients were attached", attached)
		}
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Errorf("the daemon suffers: %v", err)
		}
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		<-reached
		if _, err := Attach(timeout(t), c.spec.RunDir, allOutput); !errors.Is(err, unix.ESRCH) {
			t.Errorf("after the end: %v", err)
		}
		close(hold)
	})
}

// request sends all on one connection and returns the errno of the last.
func request(t *testing.T, c *container, all ...[]byte) error {
	t.Helper()
	socket, err := dial(timeout(t), c.spec.RunDir)
	must(t, err)
	defer socket.Close()
	var p packet
	for _, b := range all {
		p, _ = ask(t, socket, b)
	}
	return p.errno
}

func TestClosedAttachmentEndsItsCopy(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		c.start(t)
		a, err := Attach(timeout(t), c.spec.RunDir, allOutput)
		must(t, err)
		end := make(chan error, 1)
		go func() { end <- a.Copy(io.Discard, io.Discard) }()
		a.Close()
		if err := <-end; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
}
