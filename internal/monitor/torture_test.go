package monitor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lineWidth is that of the numbered lines of `guest lines`.
const lineWidth = 100

// numbered checks that one log after the other goes on with the next number, and
// removes it.
type numbered struct {
	lines uint64
	bytes int64
}

func (v *numbered) take(name, ending string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	// Of "2026-11-21T08:02:34.123456789Z stdout F 000000000001....", by position.
	const numberAt, header = 40, "YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ stdout F "
	want := len(header) + lineWidth - 1 + len(ending)
	for {
		record, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(record) == 0 {
			return os.Remove(name)
		}
		if err != nil {
			return fmt.Errorf("%s, after line %d: torn record %.120q: %w", name, v.lines, record, err)
		}
		if len(record) != want || record[10] != 'T' || record[29] != 'Z' || string(record[30:numberAt]) != " stdout F " {
			return fmt.Errorf("%s, after line %d: malformed record %.160q", name, v.lines, record)
		}
		number, err := strconv.ParseUint(string(record[numberAt:numberAt+12]), 10, 64)
		if err != nil || number != v.lines+1 {
			return fmt.Errorf("%s: line %d follows line %d: %.120q", name, number, v.lines, record)
		}
		v.lines++
		v.bytes += int64(len(record))
	}
}

// TestReopenTorture: a writer at full speed, a reopen every 50 ms, no line lost,
// doubled or malformed, whoever else is there or is not.
func TestReopenTorture(t *testing.T) {
	for name, way := range map[string]struct{ tty, stopped, dead bool }{
		"plain": {}, "stopped client": {stopped: true}, "daemon dead": {dead: true}, "terminal": {tty: true},
	} {
		t.Run(name, func(t *testing.T) {
			onBuilds(t, func(t *testing.T, conmon string) {
				duration := torture(800*time.Millisecond, 30*time.Second)
				ending := "\n"
				b := bundle{args: []string{"/bin/guest", "lines", fmt.Sprint(duration.Milliseconds()), fmt.Sprint(lineWidth)}, tty: way.tty}
				if way.tty {
					ending = "\r\n"
				}
				c := b.make(t, conmon)
				conn, _ := c.start(t)
				if way.stopped {
					a, err := Attach(timeout(t), c.spec.RunDir, allOutput)
					must(t, err)
					defer a.Close()
				}
				reopen := func() error { return conn.Reopen(timeout(t)) }
				if way.dead {
					conn.Close()
					reopen = func() error { return c.reopenAlone(t) }
				}
				files := make(chan string, 10_000)
				read := make(chan error, 1)
				var v numbered
				go func() {
					for name := range files {
						if err := v.take(name, ending); err != nil {
							read <- err
							return
						}
					}
					read <- nil
				}()
				reopens := 0
				for end := time.Now().Add(duration + patience); ; reopens++ {
					time.Sleep(50 * time.Millisecond) // the rhythm that is asked for
					moved := fmt.Sprintf("%s.%d", c.log, reopens)
					must(t, os.Rename(c.log, moved))
					err := reopen()
					if err == nil {
						files <- moved
						continue
					}
					if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrGone) && !errors.Is(err, unix.ESRCH) || time.Now().After(end) {
						t.Fatalf("reopen: %v", err)
					}
					// The container has ended while this was on its way.
					files <- moved
					if _, err := os.Stat(c.log); err == nil {
						files <- c.log
					}
					break
				}
				close(files)
				must(t, <-read)
				x, err := ReadExit(c.spec.RunDir)
				must(t, err)
				if x.Code != 0 || x.Dropped != 0 || v.lines == 0 || x.Written != v.lines*uint64(lineWidth-2+len(ending)) {
					t.Errorf("got %+v for %d lines", x, v.lines)
				}
				t.Logf("%d lines, %d reopens, %d MB of log", v.lines, reopens, v.bytes>>20)
			})
		})
	}
}

// reopenAlone is a reopen by somebody who is not the daemon.
func (c *container) reopenAlone(t *testing.T) error {
	socket, err := dial(timeout(t), c.spec.RunDir)
	if err != nil {
		return err
	}
	defer socket.Close()
	if _, err := socket.Write(encode(typeReopen, 1, nil)); err != nil {
		return ErrGone
	}
	buffer := make([]byte, maxPacket)
	n, err := socket.Read(buffer)
	if err != nil {
		return ErrGone
	}
	p, err := decode(buffer[:n])
	if err == nil && p.errno != 0 {
		err = p.errno
	}
	return err
}

// inParallel runs n cases, some at a time, and stops at the first failures.
func inParallel(t *testing.T, n, together int, run func(t *testing.T, i int)) {
	t.Helper()
	var next, failed atomic.Int64
	t.Run("all", func(t *testing.T) {
		for worker := range together {
			t.Run(fmt.Sprint("worker ", worker), func(t *testing.T) {
				t.Parallel()
				for i := int(next.Add(1)) - 1; i < n && failed.Load() < 5; i = int(next.Add(1)) - 1 {
					if !t.Run(strconv.Itoa(i), func(t *testing.T) { run(t, i) }) {
						failed.Add(1)
					}
				}
			})
		}
	})
}

// fatal are the signals whose default action ends a process.
func fatal() []int {
	var all []int
	for sig := 1; sig <= 64; sig++ {
		switch unix.Signal(sig) {
		case unix.SIGCHLD, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGWINCH:
		case 32, 33: // the C library's own
		default:
			all = append(all, sig)
		}
	}
	return all
}

// TestManyExits: all codes and fatal signals, many at once.
func TestManyExits(t *testing.T) {
	needRoot(t)
	signals := fatal()
	inParallel(t, torture(340, 10_000), torture(10, 50), func(t *testing.T, i int) {
		conmon := filepath.Join(build, builds()[i%2%len(builds())])
		if i%(256+len(signals)) < 256 {
			code := int32(i % (256 + len(signals)))
			c := sh(fmt.Sprintf("echo %d; exit %d", i, code)).make(t, conmon)
			if x := c.run(t); x.Code != code || x.Signal != 0 || x.OOM || x.Dropped != 0 {
				t.Errorf("got %+v, want code %d", x, code)
			}
			if got := output(records(t, c.log), "stdout"); got != fmt.Sprintln(i) {
				t.Errorf("log %q", got)
			}
			return
		}
		sig := signals[i%(256+len(signals))-256]
		// As PID 1 of a namespace it would not die of most of them.
		c := bundle{args: []string{"/bin/guest", "die", strconv.Itoa(sig)}, hostPID: true}.make(t, conmon)
		if x := c.run(t); x.Code != int32(128+sig) || x.Signal != sig || x.OOM {
			t.Errorf("got %+v, want signal %d", x, sig)
		}
	})
}

// TestLastBytesBeforeTheEnd: a container that ends 1 ms after a mebibyte.
func TestLastBytesBeforeTheEnd(t *testing.T) {
	const size = 1 << 20
	onBuilds(t, func(t *testing.T, conmon string) {
		for range torture(5, 100) {
			c := bundle{args: []string{"/bin/guest", "bytes", strconv.Itoa(size)}}.make(t, conmon)
			if x := c.run(t); x.Code != 0 || x.Written != size || x.Dropped != 0 {
				t.Errorf("got %+v", x)
			}
			if got := output(records(t, c.log), "stdout"); got != string(bytes.Repeat([]byte{'x'}, size))+"\n" {
				t.Errorf("the log has %d bytes", len(got)-1)
			}
		}
	})
}

// pod makes a parent cgroup with a memory limit for several containers.
func pod(t *testing.T, name string, memory int64) string {
	t.Helper()
	parent := "/crio-test-pod-" + name
	dir := filepath.Join(controller("memory"), parent)
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { // after the containers' own
		// A hybrid node has a unified hierarchy as well, without controllers.
		for _, h := range append(hierarchies(t), "/sys/fs/cgroup/unified") {
			eventually(t, "the pod's cgroup is removed", func() bool {
				err := unix.Rmdir(filepath.Join(h, parent))
				return err == nil || errors.Is(err, unix.ENOENT)
			})
		}
	})
	files := map[string]string{"memory.limit_in_bytes": "", "memory.memsw.limit_in_bytes": ""}
	if unified() {
		must(t, os.WriteFile(dir+"/cgroup.subtree_control", []byte("+memory"), 0))
		files = map[string]string{"memory.max": "", "memory.swap.max": "0"}
	} else {
		must(t, os.WriteFile(dir+"/memory.use_hierarchy", []byte("1"), 0))
	}
	for _, file := range []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max"} {
		value, ok := files[file]
		if !ok {
			continue
		}
		if value == "" {
			value = strconv.FormatInt(memory, 10)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
	return parent
}

// TestOOM: no kill of the kernel's is missed, and none is made up.
func TestOOM(t *testing.T) {
	needRoot(t)
	const limit = 16 << 20
	conmon := func(i int) string { return filepath.Join(build, builds()[i%2%len(builds())]) }
	cases := map[string]func(t *testing.T, i int){
		"1 ms after the start": func(t *testing.T, i int) {
			c := bundle{args: []string{"/bin/guest", "eat"}, memory: limit}.make(t, conmon(i))
			if x := c.run(t); !x.OOM || x.Code != 137 {
				t.Errorf("got %+v", x)
			}
		},
		"child": func(t *testing.T, i int) {
			b := sh("guest eat; exit 3")
			b.memory = limit
			if x := b.make(t, conmon(i)).run(t); !x.OOM || x.Code != 3 || x.Signal != 0 {
				t.Errorf("got %+v", x)
			}
		},
		"sidecar": func(t *testing.T, i int) {
			parent := pod(t, fmt.Sprint("sidecar-", i), 2*limit)
			own := bundle{args: []string{"/bin/sleep", "1000"}, parent: parent}.make(t, conmon(i))
			own.spec.PodOOMFile = oomFile(parent)
			conn, _ := own.start(t)
			sidecar := bundle{args: []string{"/bin/guest", "eat"}, parent: parent}.make(t, conmon(i+1))
			if x := sidecar.run(t); !x.OOM || x.Code != 137 {
				t.Errorf("the sidecar: %+v", x)
			}
			must(t, conn.Kill(timeout(t), unix.SIGKILL))
			if x := own.wait(t); x.OOM || x.Signal != 9 {
				t.Errorf("the other: %+v", x)
			}
		},
	}
	if unified() {
		cases["memory.oom.group"] = func(t *testing.T, i int) {
			b := sh("guest eat & sleep 1000 & wait; exit 3")
			b.memory, b.unified = limit, map[string]string{"memory.oom.group": "1"}
			if x := b.make(t, conmon(i)).run(t); !x.OOM || x.Code != 137 {
				t.Errorf("got %+v", x)
			}
		}
		cases["cgroup removed at once"] = func(t *testing.T, i int) {
			parent := pod(t, fmt.Sprint("removed-", i), 4*limit)
			c := bundle{args: []string{"/bin/guest", "eat"}, memory: limit, parent: parent}.make(t, conmon(i))
			c.spec.PodOOMFile = oomFile(parent)
			stop := c.removeAtOnce(t)
			defer stop()
			if x := c.run(t); !x.OOM || x.Code != 137 {
				t.Errorf("got %+v", x)
			}
		}
	}
	for name, run := range cases {
		t.Run(name, func(t *testing.T) { inParallel(t, torture(8, 200), 4, run) })
	}
}

// removeAtOnce removes the container's memory cgroup in the moment in which it is empty,
// as systemd does, and sees it before the monitor as often as not.
func (c *container) removeAtOnce(t *testing.T) (stop func()) {
	dir := filepath.Dir(c.spec.OOMFile)
	var end atomic.Bool
	var done sync.WaitGroup
	done.Go(func() {
		populated := false
		for !end.Load() {
			procs, _ := os.ReadFile(dir + "/cgroup.procs")
			populated = populated || len(procs) > 0
			if populated && unix.Rmdir(dir) == nil {
				return
			}
		}
	})
	return func() { end.Store(true); done.Wait() }
}

// TestSIGKILLIsNotOOM, where the cgroup is removed at once.
func TestSIGKILLIsNotOOM(t *testing.T) {
	needRoot(t)
	inParallel(t, torture(40, 1000), 4, func(t *testing.T, i int) {
		c := bundle{args: []string{"/bin/sleep", "1000"}, memory: 64 << 20}.make(t, filepath.Join(build, builds()[i%2%len(builds())]))
		conn, _ := c.start(t)
		stop := c.removeAtOnce(t)
		defer stop()
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		if x := c.wait(t); x.OOM || x.Signal != 9 || x.Code != 137 {
			t.Errorf("got %+v", x)
		}
	})
}
