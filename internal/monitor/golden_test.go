package monitor

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// step is one line of a transcript.
type step struct {
	line int
	// what is "connect", ">" or "<".
	what string
	// form is hexadecimal, '?' for any digit; open: with any rest.
	form string
	open bool
}

// transcript reads a file of testdata.
func transcript(t *testing.T, name string) []step {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	var steps []step
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		form, open := strings.CutSuffix(strings.Join(fields[1:], ""), "*")
		steps = append(steps, step{line: number, what: fields[0], form: form, open: open})
	}
	if len(steps) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return steps
}

func (s step) bytes(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString(s.form)
	if err != nil {
		t.Fatalf("line %d: %v", s.line, err)
	}
	return b
}

func (s step) matches(b []byte) error {
	got := hex.EncodeToString(b)
	if len(got) < len(s.form) || len(got) > len(s.form) && !s.open {
		return fmt.Errorf("line %d: got %s, want %s", s.line, got, s.form)
	}
	for i, want := range []byte(s.form) {
		if want != '?' && want != got[i] {
			return fmt.Errorf("line %d: got %s, want %s", s.line, got, s.form)
		}
	}
	return nil
}

// TestGoldenTranscripts: this conmon talks to the daemons of all builds before.
func TestGoldenTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/protocol-v*.txt")
	must(t, err)
	if len(files) == 0 {
		t.Fatal("there is no transcript")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			onBuilds(t, func(t *testing.T, conmon string) {
				c := bundle{args: []string{"/bin/cat"}}.make(t, conmon)
				c.spec.Stdin = true
				hold := make(chan struct{})
				defer close(hold)
				// The monitor stays after the end as long as its first client has not acknowledged.
				conn, _, err := Start(timeout(t), c.spec, func(Exit, error) { <-hold })
				must(t, err)
				defer conn.Close()
				var socket *net.UnixConn
				buffer := make([]byte, maxPacket)
				for _, s := range transcript(t, filepath.Base(file)) {
					switch s.what {
					case "connect":
						socket, err = dial(timeout(t), c.spec.RunDir)
						must(t, err)
						defer socket.Close()
						must(t, socket.SetDeadline(time.Now().Add(patience)))
					case ">":
						_, err := socket.Write(s.bytes(t))
						must(t, err)
					case "<":
						n, err := socket.Read(buffer)
						if err != nil {
							t.Fatalf("line %d: %v", s.line, err)
						}
						if err := s.matches(buffer[:n]); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
		})
	}
}

// play is a monitor that follows a transcript. It returns the directory it listens in.
func play(t *testing.T, name string) (dir string, end chan error) {
	t.Helper()
	dir = t.TempDir()
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unixpacket"})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	end = make(chan error, 1)
	steps := transcript(t, name)
	go func() {
		var socket *net.UnixConn
		buffer := make([]byte, maxPacket)
		for _, s := range steps {
			var err error
			switch s.what {
			case "connect":
				if socket, err = listener.AcceptUnix(); err == nil {
					defer socket.Close()
				}
			case ">":
				var n int
				if n, err = socket.Read(buffer); err == nil {
					err = s.matches(buffer[:n])
				}
			case "<":
				var b []byte
				if b, err = hex.DecodeString(s.form); err == nil {
					_, err = socket.Write(b)
				}
			}
			if err != nil {
				end <- fmt.Errorf("line %d: %w", s.line, err)
				return
			}
		}
		end <- nil
	}()
	return dir, end
}

// TestNewerAndOlderMonitors: this daemon talks to the monitors of other builds.
func TestNewerAndOlderMonitors(t *testing.T) {
	dir, end := play(t, "newer-monitor.txt")
	conn, status, err := Connect(timeout(t), dir, func(Exit, error) {})
	must(t, err)
	want := Status{State: Running, Pid: 12345, StartTicks: 513, StartedAt: 0x01020304, Dropped: 9}
	if status != want {
		t.Errorf("got %+v", status)
	}
	want.Dropped = 10
	if status, err = conn.Status(timeout(t)); err != nil || status != want {
		t.Errorf("got %+v, %v", status, err)
	}
	if err := conn.Reopen(timeout(t)); !errors.Is(err, unix.EROFS) {
		t.Errorf("reopen: %v", err)
	}
	must(t, conn.Resize(timeout(t), 24, 80))
	must(t, conn.Kill(timeout(t), unix.SIGTERM))
	if _, err := Attach(timeout(t), dir, allOutput); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("attach: %v", err)
	}
	must(t, <-end)
	conn.Close()
}
