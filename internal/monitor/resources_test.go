package monitor

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelNumber reads the first number behind a key of a file in /proc.
func kernelNumber(t *testing.T, path, key string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	parts := regexp.MustCompile(`(?m)^` + key + `:\s+(\d+)`).FindSubmatch(data)
	if parts == nil {
		t.Fatalf("%s has no %s", path, key)
	}
	n, err := strconv.Atoi(string(parts[1]))
	must(t, err)
	return n
}

func TestIdleMonitorIsSmallAndAsleep(t *testing.T) {
	c := sh("echo hello; sleep 1000 & exec sleep 1000").make(t, filepath.Join(build, "conmon"))
	c.start(t)
	time.Sleep(300 * time.Millisecond) // until the start is over; nothing tells that
	pid := c.monitorPid(t)
	rollup, status := fmt.Sprintf("/proc/%d/smaps_rollup", pid), fmt.Sprintf("/proc/%d/status", pid)
	// Its program's pages are shared with every other monitor; these are not.
	own := kernelNumber(t, rollup, "Anonymous")
	t.Logf("PSS %d KiB, anonymous %d KiB, RSS %d KiB", kernelNumber(t, rollup, "Pss"), own, kernelNumber(t, rollup, "Rss"))
	if own > 64 {
		t.Errorf("%d KiB of private memory", own)
	}
	sleeps := kernelNumber(t, status, "voluntary_ctxt_switches")
	cpu := ticks(t, pid)
	time.Sleep(2 * time.Second) // the quantity that is measured
	if woken := kernelNumber(t, status, "voluntary_ctxt_switches") - sleeps; woken != 0 {
		t.Errorf("woke up %d times in 2 s", woken)
	}
	if used := ticks(t, pid) - cpu; used != 0 {
		t.Errorf("used %d ticks of CPU time", used)
	}
}

// ticks is the CPU time of a process (fields 14 and 15 of its stat).
func ticks(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, err := strconv.Atoi(fields[14-3])
	must(t, err)
	system, err := strconv.Atoi(fields[15-3])
	must(t, err)
	return user + system
}

func TestMemoryAfterABurstIsBounded(t *testing.T) {
	c := sh("seq 1 300000; exec sleep 1000").make(t, filepath.Join(build, "conmon"))
	c.start(t)
	rollup := fmt.Sprintf("/proc/%d/smaps_rollup", c.monitorPid(t))
	eventually(t, "all is written", func() bool {
		data, _ := os.ReadFile(c.log)
		return strings.HasSuffix(string(data), " 300000\n")
	})
	own := kernelNumber(t, rollup, "Anonymous")
	t.Logf("anonymous %d KiB after a burst", own)
	if own > 128 { // the buffers of one stream, and what it has when idle
		t.Errorf("%d KiB of private memory", own)
	}
}

func TestOnlyStdioReachesTheContainer(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		leak, err := os.Open("/dev/null")
		must(t, err)
		defer leak.Close()
		_, err = unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0) // inheritable, by mistake
		must(t, err)
		c := sh("ls /proc/self/fd").make(t, conmon)
		c.run(t)
		// ls has one more for the directory it reads.
		if got := output(records(t, c.log), "stdout"); got != "0\n1\n2\n3\n" {
			t.Errorf("descriptors %q", got)
		}
	})
}

func TestContainerKeepsItsOOMScore(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		_, status := c.start(t)
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", status.Pid))
		must(t, err)
		if got := strings.TrimSpace(string(data)); got != "500" {
			t.Errorf("oom_score_adj %s", got)
		}
	})
}

func TestClientLeavesNothingBehind(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the OCI runtime needs root")
	}
	count := func() (int, int) {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries), runtime.NumGoroutine()
	}
	once := func() {
		c := sh("exit 0").make(t, filepath.Join(build, "conmon"))
		conn, _ := c.start(t)
		c.wait(t)
		conn.Close()
	}
	once() // what is made once and stays is made now
	fds, goroutines := count()
	for range 5 {
		once()
	}
	eventually(t, "descriptors and goroutines are as before", func() bool {
		f, g := count()
		return f <= fds && g <= goroutines
	})
}
