package monitor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// debian is the monitor to be better than.
const debian = "/usr/bin/conmon"

// figures of one monitor with one container.
type figures struct {
	rate      float64 // MB of content a second
	cpu       float64 // ns a line
	parts     float64 // needless P records
	private   float64 // KiB when idle
	anonymous float64 // KiB of that which is in no file
	burst     float64 // KiB in no file, right after the lines
	pss, rss  float64 // KiB when idle
	exit      float64 // ms from SIGKILL to the file that tells of it
}

// pipeRuntime is an OCI runtime without containers: what both monitors get is the same
// pipe, written by the same program.
const pipeRuntime = `for a; do
	case $previous in --pid-file) pidfile=$a;; --bundle) bundle=$a;; esac
	case $a in create|start|delete|kill|state) verb=$a;; esac
	previous=$a
done
case $verb in create)
	cd "$bundle"
	( while ! [ -e go ]; do sleep 0.01; done; exec %s count %d %d ) &
	echo $! > "$pidfile";;
esac`

// ours starts our monitor in dir; theirs Debian's. Both return its pid and the
// file that tells the exit.
func ours(t *testing.T, dir, runtime string) (int, string) {
	id := filepath.Base(dir)
	spec := Spec{ID: id, Path: ownProgram(t), RunDir: dir, Runtime: runtime, LogPath: dir + "/log", CgroupFD: -1}
	conn, _, err := Start(timeout(t), spec, func(Exit, error) {})
	must(t, err)
	t.Cleanup(conn.Close)
	pid := 0
	entries, err := os.ReadDir("/proc")
	must(t, err)
	for _, e := range entries {
		if link, _ := os.Readlink("/proc/" + e.Name() + "/exe"); link == spec.Path {
			pid, _ = strconv.Atoi(e.Name())
		}
	}
	return pid, dir + "/exit"
}

func theirs(t *testing.T, dir, runtime string) (int, string) {
	id := filepath.Base(dir)
	must(t, os.Mkdir(dir+"/exits", 0o755))
	cmd := exec.Command(debian, "--api-version", "1", "-c", id, "-u", id, "-n", id, "-r", runtime, "-b", dir,
		"-p", dir+"/pid", "-P", dir+"/conmon-pid", "-l", "k8s-file:"+dir+"/log", "--exit-dir", dir+"/exits",
		"--socket-dir-path", dir, "--log-level", "error")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var pid int
	eventually(t, "Debian's conmon runs", func() bool {
		_, err := os.Stat(dir + "/pid")
		data, _ := os.ReadFile(dir + "/conmon-pid")
		pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		return err == nil && pid > 0
	})
	return pid, dir + "/exits/" + id
}

func writerOf(t *testing.T, dir string) int {
	data, err := os.ReadFile(dir + "/pid")
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	must(t, err)
	return pid
}

// benchDir is on tmpfs: the disk is not what is compared.
func benchDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "monitor-bench-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func measure(t *testing.T, lines int, start func(t *testing.T, dir, runtime string) (int, string)) figures {
	dir := benchDir(t)
	runtime := wrapper(t, fmt.Sprintf(pipeRuntime, filepath.Join(build, "test-guest"), lines, lineWidth))
	pid, exitFile := start(t, dir, runtime)
	time.Sleep(300 * time.Millisecond) // until its start is over
	var f figures
	rollup := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	number := func(key string) float64 { return float64(kernelNumber(t, rollup, key)) }
	f.private, f.anonymous = number("Private_Clean")+number("Private_Dirty"), number("Anonymous")
	f.pss, f.rss = number("Pss"), number("Rss")
	cpu, began := schedstat(t, pid), time.Now()
	must(t, os.WriteFile(dir+"/go", nil, 0o600))
	// The last record is the last number.
	last := fmt.Appendf(nil, "%012d", lines/(65536/lineWidth)*(65536/lineWidth)+65536/lineWidth)
	if lines%(65536/lineWidth) == 0 {
		last = fmt.Appendf(nil, "%012d", lines)
	}
	for end := time.Now().Add(60 * time.Second); !bytes.Contains(tail(t, dir+"/log"), last); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log of %d lines is not complete: %.200q", lines, tail(t, dir+"/log"))
		}
	}
	took := time.Since(began)
	f.cpu = float64(schedstat(t, pid)-cpu) / float64(lines)
	f.rate = float64(lines*lineWidth) / took.Seconds() / 1e6
	f.burst = number("Anonymous")
	f.parts = partials(t, dir+"/log")
	killed := time.Now()
	must(t, unix.Kill(writerOf(t, dir), unix.SIGKILL))
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Microsecond) {
		if _, err := os.Stat(exitFile); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no exit file")
		}
	}
	f.exit = time.Since(killed).Seconds() * 1e3
	return f
}

// tail is the end of a file.
func tail(t *testing.T, name string) []byte {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	b := make([]byte, 400)
	n, _ := f.ReadAt(b, max(0, info.Size()-400))
	return b[:n]
}

// partials counts P records of a log of short lines, in which none is needed.
func partials(t *testing.T, name string) float64 {
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	n := 0.0
	for in := bufio.NewScanner(f); in.Scan(); {
		if bytes.Contains(in.Bytes()[:min(60, len(in.Bytes()))], []byte(" stdout P ")) {
			n++
		}
	}
	return n
}

// median of each figure by itself.
func median(all []figures) figures {
	m := all[0]
	pick := func(to *float64, of func(f figures) float64) {
		var values []float64
		for _, f := range all {
			values = append(values, of(f))
		}
		slices.Sort(values)
		*to = values[len(values)/2]
	}
	pick(&m.rate, func(f figures) float64 { return f.rate })
	pick(&m.cpu, func(f figures) float64 { return f.cpu })
	pick(&m.parts, func(f figures) float64 { return f.parts })
	pick(&m.private, func(f figures) float64 { return f.private })
	pick(&m.anonymous, func(f figures) float64 { return f.anonymous })
	pick(&m.burst, func(f figures) float64 { return f.burst })
	pick(&m.pss, func(f figures) float64 { return f.pss })
	pick(&m.rss, func(f figures) float64 { return f.rss })
	pick(&m.exit, func(f figures) float64 { return f.exit })
	return m
}

// TestAgainstDebiansConmon takes ratios in one run, on the same pipe. The machine is
// shared: the median of alternating rounds counts, and what is disturbed is repeated.
func TestAgainstDebiansConmon(t *testing.T) {
	needRoot(t)
	version, err := exec.Command(debian, "--version").Output()
	if err != nil {
		t.Skipf("needs Debian's conmon: %v", err)
	}
	lines, rounds := 655*655*2, torture(3, 15)
	// Three rounds on a machine that builds and tests other things say less than fifteen.
	slack := torture(1.25, 1.0)
	for attempt := range 3 {
		var all, others []figures
		for range rounds {
			all = append(all, measure(t, lines, ours))
			others = append(others, measure(t, lines, theirs))
		}
		a, b := median(all), median(others)
		t.Logf("%d lines of %d bytes, median of %d rounds, against %s", lines, lineWidth, rounds, strings.Fields(string(version))[2])
		t.Logf("throughput      %8.0f MB/s    %8.0f MB/s    ratio %.2f (at least 1.3)", a.rate, b.rate, a.rate/b.rate)
		t.Logf("CPU             %8.1f ns/line %8.1f ns/line ratio %.2f (at most 0.67); %.2f and %.2f ms/MB",
			a.cpu, b.cpu, a.cpu/b.cpu, a.cpu/lineWidth, b.cpu/lineWidth)
		t.Logf("needless P      %8.0f         %8.0f         (%.2f %% of lines; ours none)", a.parts, b.parts, 100*b.parts/float64(lines))
		t.Logf("private memory  %8.0f KiB     %8.0f KiB     ratio %.2f (at most 0.20)", a.private, b.private, a.private/b.private)
		t.Logf("  in no file    %8.0f KiB     %8.0f KiB     ratio %.2f (at most 0.20)", a.anonymous, b.anonymous, a.anonymous/b.anonymous)
		t.Logf("  after lines   %8.0f KiB     %8.0f KiB     ratio %.2f", a.burst, b.burst, a.burst/b.burst)
		t.Logf("PSS, RSS        %4.0f, %4.0f KiB %5.0f, %5.0f KiB ratio %.2f, %.2f", a.pss, a.rss, b.pss, b.rss, a.pss/b.pss, a.rss/b.rss)
		t.Logf("exit is told in %8.2f ms      %8.2f ms      ratio %.2f", a.exit, b.exit, a.exit/b.exit)
		if a.parts != 0 {
			t.Error("needless P records")
		}
		if a.private > b.private/5 || a.anonymous > b.anonymous/5 {
			t.Error("private memory")
		}
		if a.rate*slack >= 1.3*b.rate && a.cpu <= b.cpu*2/3*slack {
			return
		}
		t.Logf("attempt %d: throughput or CPU time", attempt+1)
	}
	t.Error("throughput or CPU time, three times")
}
