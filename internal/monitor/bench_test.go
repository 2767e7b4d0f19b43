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
	parts     int     // needless P records
	private   int     // KiB when idle
	anonymous int     // KiB of that which is in no file
	burst     int     // KiB in no file, right after the lines
	pss, rss  int
	exit      time.Duration
	lines     int
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
	f := figures{lines: lines}
	rollup := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	private := func() int {
		return kernelNumber(t, rollup, "Private_Clean") + kernelNumber(t, rollup, "Private_Dirty")
	}
	anonymous := func() int { return kernelNumber(t, rollup, "Anonymous") }
	f.private, f.anonymous = private(), anonymous()
	f.pss, f.rss = kernelNumber(t, rollup, "Pss"), kernelNumber(t, rollup, "Rss")
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
	f.burst = anonymous()
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
	f.exit = time.Since(killed)
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
func partials(t *testing.T, name string) int {
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	n := 0
	for in := bufio.NewScanner(f); in.Scan(); {
		if bytes.Contains(in.Bytes()[:min(60, len(in.Bytes()))], []byte(" stdout P ")) {
			n++
		}
	}
	return n
}

func median[T any](all []figures, of func(figures) T, less func(a, b T) int) T {
	values := make([]T, 0, len(all))
	for _, f := range all {
		values = append(values, of(f))
	}
	slices.SortFunc(values, less)
	return values[len(values)/2]
}

// TestAgainstDebiansConmon takes ratios in one run, on the same pipe. The machine is
// shared: the median of alternating rounds counts.
func TestAgainstDebiansConmon(t *testing.T) {
	needRoot(t)
	version, err := exec.Command(debian, "--version").Output()
	if err != nil {
		t.Skipf("needs Debian's conmon: %v", err)
	}
	lines, rounds := torture(655, 6550)*655*2, torture(3, 7)
	var own, other []figures
	for range rounds {
		own = append(own, measure(t, lines, ours))
		other = append(other, measure(t, lines, theirs))
	}
	number := func(of func(figures) float64) (a, b float64) {
		less := func(a, b float64) int { return int(1e6 * (a - b)) }
		return median(own, of, less), median(other, of, less)
	}
	rate, rate2 := number(func(f figures) float64 { return f.rate })
	cpu, cpu2 := number(func(f figures) float64 { return f.cpu })
	parts, parts2 := number(func(f figures) float64 { return float64(f.parts) })
	private, private2 := number(func(f figures) float64 { return float64(f.private) })
	anonymous, anonymous2 := number(func(f figures) float64 { return float64(f.anonymous) })
	burst, burst2 := number(func(f figures) float64 { return float64(f.burst) })
	pss, pss2 := number(func(f figures) float64 { return float64(f.pss) })
	rss, rss2 := number(func(f figures) float64 { return float64(f.rss) })
	exit, exit2 := number(func(f figures) float64 { return f.exit.Seconds() * 1e3 })
	t.Logf("%d lines of %d bytes, median of %d rounds, against %s", lines, lineWidth, rounds, strings.Fields(string(version))[2])
	t.Logf("throughput      %8.0f MB/s    %8.0f MB/s    ratio %.2f (at least 1.3)", rate, rate2, rate/rate2)
	t.Logf("CPU             %8.1f ns/line %8.1f ns/line ratio %.2f (at most 0.67); %.2f and %.2f ms/MB", cpu, cpu2, cpu/cpu2, cpu/lineWidth, cpu2/lineWidth)
	t.Logf("needless P      %8.0f         %8.0f         (%.2f %% of lines; ours none)", parts, parts2, 100*parts2/float64(lines))
	t.Logf("private memory  %8.0f KiB     %8.0f KiB     ratio %.2f (at most 0.20)", private, private2, private/private2)
	t.Logf("  in no file    %8.0f KiB     %8.0f KiB     ratio %.2f (at most 0.20)", anonymous, anonymous2, anonymous/anonymous2)
	t.Logf("  after lines   %8.0f KiB     %8.0f KiB     ratio %.2f", burst, burst2, burst/burst2)
	t.Logf("PSS, RSS        %4.0f, %4.0f KiB %5.0f, %5.0f KiB ratio %.2f, %.2f", pss, rss, pss2, rss2, pss/pss2, rss/rss2)
	t.Logf("exit is told in %8.2f ms      %8.2f ms      ratio %.2f", exit, exit2, exit/exit2)
	if rate < 1.3*rate2 {
		t.Error("throughput")
	}
	if cpu > cpu2*2/3 {
		t.Error("CPU time")
	}
	if parts != 0 {
		t.Error("needless P records")
	}
	if private > private2/5 || anonymous > anonymous2/5 {
		t.Error("private memory")
	}
}
