package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLinesKeepTheirBytes(t *testing.T) {
	var lines []string
	for _, n := range []int{0, 1, 4095, 4096, 16383, 16384, 16385, 32768, 32769, 1_000_000} {
		lines = append(lines, strings.Repeat(string(rune('a'+len(lines))), n))
	}
	lines = append(lines, "nul\x00 invalid \xff\xfe utf-8 \r", "", "")
	onBuilds(t, func(t *testing.T, conmon string) {
		for _, end := range []string{"\n", "", "no newline"} {
			t.Run(strconv.Quote(end), func(t *testing.T) {
				content := strings.Join(lines, "\n") + end
				c := bundle{args: []string{"/bin/cat", "/data"}, files: map[string]string{"data": content}}.make(t, conmon)
				x := c.run(t)
				if x.Code != 0 || x.Dropped != 0 {
					t.Errorf("got %+v", x)
				}
				all := records(t, c.log)
				want := content
				if !strings.HasSuffix(content, "\n") {
					want += "\n" // the last line is finished for its reader
				}
				if got := output(all, "stdout"); got != want {
					t.Errorf("%d bytes of output became %d", len(want), len(got))
				}
				// A record is cut only where its line is longer than one.
				full, parts := 0, 0
				for i, r := range all {
					if r.tag == "F" {
						full++
						continue
					}
					parts++
					if len(r.content) != 16384 {
						t.Errorf("record %d is a part of %d bytes", i, len(r.content))
					}
				}
				wantParts := 0
				for line := range strings.Lines(want) {
					wantParts += max(0, (len(line)-2)/16384)
				}
				if full != strings.Count(want, "\n") || parts != wantParts {
					t.Errorf("%d full records and %d parts, want %d and %d", full, parts, strings.Count(want, "\n"), wantParts)
				}
			})
		}
	})
}

func TestLineInPiecesIsOneRecord(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("printf a; printf x >&2; sleep 0.1; printf b; sleep 0.1; echo c; echo y >&2; printf rest").make(t, conmon)
		c.run(t)
		all := records(t, c.log)
		if len(all) != 3 || output(all, "stdout") != "abc\nrest\n" || output(all, "stderr") != "xy\n" {
			t.Errorf("got %q", all)
		}
	})
}

func TestReopenLosesNoLine(t *testing.T) {
	const lines = 400_000
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/seq", "1", strconv.Itoa(lines)}}.make(t, conmon)
		conn, _ := c.start(t)
		var files []string
		for end := false; !end; {
			select {
			case r := <-c.exits:
				must(t, r.err)
				if r.exit.Dropped != 0 {
					t.Errorf("dropped %d", r.exit.Dropped)
				}
				end = true
			case <-time.After(10 * time.Millisecond):
				moved := fmt.Sprintf("%s.%d", c.log, len(files))
				must(t, os.Rename(c.log, moved))
				files = append(files, moved)
				if err := conn.Reopen(timeout(t)); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, unix.ESRCH) {
					t.Fatal(err)
				}
			}
		}
		if _, err := os.Stat(c.log); err == nil {
			files = append(files, c.log)
		}
		all := records(t, files...)
		for i, r := range all {
			if r.content != strconv.Itoa(i+1) || r.tag != "F" {
				t.Fatalf("record %d is %+v", i+1, r)
			}
		}
		if len(all) != lines {
			t.Errorf("%d of %d lines in %d files", len(all), lines, len(files))
		}
	})
}

func TestFailedReopenKeepsTheFile(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("echo one; while ! [ -e /go ]; do sleep 0.02; done; echo two").make(t, conmon)
		conn, _ := c.start(t)
		moved := filepath.Dir(c.log) + ".moved"
		must(t, os.Rename(filepath.Dir(c.log), moved))
		if err := conn.Reopen(timeout(t)); !errors.Is(err, unix.ENOENT) {
			t.Errorf("got %v", err)
		}
		must(t, os.WriteFile(c.rootfs+"/go", nil, 0o600))
		if x := c.wait(t); x.Dropped != 0 {
			t.Errorf("got %+v", x)
		}
		if got := output(records(t, moved+"/0.log"), "stdout"); got != "one\ntwo\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestLogIsARegularFileOnly(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		for name, place := range map[string]func(path string) error{
			"link":      func(path string) error { return os.Symlink(path+".target", path) },
			"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
			"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		} {
			t.Run(name, func(t *testing.T) {
				c := sh("echo x").make(t, conmon)
				must(t, place(c.log))
				_, _, err := Start(timeout(t), c.spec, c.onExit)
				var refused *StartError
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.log) {
					t.Errorf("got %v", err)
				}
				if _, err := os.Stat(c.log + ".target"); err == nil {
					t.Error("the link was followed")
				}
			})
		}
	})
}

func TestFullDiskDropsWholeRecordsAndCounts(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("seq 1 200000; exit 4").make(t, conmon)
		must(t, unix.Mount("tmpfs", filepath.Dir(c.log), "tmpfs", 0, "size=256k"))
		t.Cleanup(func() { _ = unix.Unmount(filepath.Dir(c.log), unix.MNT_DETACH) })
		x := c.run(t)
		if x.Code != 4 || x.Dropped == 0 {
			t.Errorf("got %+v", x)
		}
		for i, r := range records(t, c.log) {
			if r.content != strconv.Itoa(i+1) {
				t.Fatalf("record %d is %+v", i+1, r)
			}
		}
	})
}

func TestLogSizeMaxIsKept(t *testing.T) {
	const limit = 8192
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("seq 1 5000").make(t, conmon)
		c.spec.LogSizeMax = limit
		c.run(t)
		info, err := os.Stat(c.log)
		must(t, err)
		if info.Size() > limit {
			t.Errorf("the log has %d bytes, %d are allowed", info.Size(), limit)
		}
		all := records(t, c.log)
		if len(all) == 0 || all[len(all)-1].content != "5000" {
			t.Errorf("the last line is not in the log: %d records", len(all))
		}
	})
}

func TestNoLogPathDropsOutput(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("seq 1 100000; exit 6").make(t, conmon)
		c.spec.LogPath = ""
		if x := c.run(t); x.Code != 6 || x.Dropped != 0 || x.Written != 0 {
			t.Errorf("got %+v", x)
		}
	})
}

func TestOutputHeldElsewhereIsDrainedForABoundedTime(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := sh("printf partial; : >/ready; exec sleep 1000").make(t, conmon)
		conn, status := c.start(t)
		eventually(t, "it has printed", func() bool {
			_, err := os.Stat(c.rootfs + "/ready")
			return err == nil
		})
		// The test is outside of every cgroup that the monitor may kill in.
		held, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", status.Pid), os.O_WRONLY, 0)
		must(t, err)
		defer held.Close()
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		began := time.Now()
		c.wait(t)
		if took := time.Since(began); took < 300*time.Millisecond || took > 3*time.Second {
			t.Errorf("the exit was told after %v", took)
		}
		if got := output(records(t, c.log), "stdout"); got != "partial\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestTerminal(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		b := sh("echo hello; while ! [ -e /go ]; do sleep 0.02; done; stty size; echo err >&2; exit 8")
		b.tty = true
		c := b.make(t, conmon)
		conn, _ := c.start(t)
		must(t, conn.Resize(timeout(t), 31, 97))
		must(t, os.WriteFile(c.rootfs+"/go", nil, 0o600))
		if x := c.wait(t); x.Code != 8 {
			t.Errorf("got %+v", x)
		}
		if got := output(records(t, c.log), "stdout"); got != "hello\r\n31 97\r\nerr\r\n" {
			t.Errorf("got %q", got)
		}
	})
}
