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

// budget is what one monitor with one container may have, in KiB: of its own, and in
// all with its program, which others share.
const budget = 64

// memory checks a monitor against the budget.
func memory(t *testing.T, pid int, when string) {
	t.Helper()
	rollup := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	pss := kernelNumber(t, rollup, "Pss")
	private := kernelNumber(t, rollup, "Private_Clean") + kernelNumber(t, rollup, "Private_Dirty")
	t.Logf("%s: PSS %d KiB, private %d KiB, anonymous %d KiB, RSS %d KiB", when, pss, private,
		kernelNumber(t, rollup, "Anonymous"), kernelNumber(t, rollup, "Rss"))
	if pss > budget || private > budget {
		t.Errorf("%s: more than %d KiB", when, budget)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	if strings.Contains(string(maps), "[heap]") {
		t.Errorf("%s: it has a heap\n%s", when, maps)
	}
	if n := kernelNumber(t, fmt.Sprintf("/proc/%d/status", pid), "Threads"); n != 1 {
		t.Errorf("%s: %d threads", when, n)
	}
}

// asleep checks that nothing wakes a monitor up, whose container's child holds
// stdout open and does not write.
func asleep(t *testing.T, pid int, when string) {
	t.Helper()
	status := fmt.Sprintf("/proc/%d/status", pid)
	switches := func() int {
		return kernelNumber(t, status, "voluntary_ctxt_switches") + kernelNumber(t, status, "nonvoluntary_ctxt_switches")
	}
	before, cpu := switches(), schedstat(t, pid)
	time.Sleep(torture(2*time.Second, 10*time.Second)) // the quantity that is measured
	if woken := switches() - before; woken != 0 {
		t.Errorf("%s: woke up %d times", when, woken)
	}
	if used := schedstat(t, pid) - cpu; used != 0 {
		t.Errorf("%s: used %v of CPU time", when, used)
	}
}

// ownProgram is the monitor in a file of its own: nobody else shares its pages.
func ownProgram(t *testing.T) string {
	data, err := os.ReadFile(filepath.Join(build, "conmon"))
	must(t, err)
	path := filepath.Join(t.TempDir(), "conmon")
	must(t, os.WriteFile(path, data, 0o755))
	return path
}

func TestIdleMonitorIsSmallAndAsleep(t *testing.T) {
	needRoot(t)
	c := sh("echo hello; sleep 1000 & exec sleep 1000").make(t, ownProgram(t))
	conn, _ := c.start(t)
	must(t, conn.Reopen(timeout(t)))
	time.Sleep(300 * time.Millisecond) // until the start is over; nothing tells that
	pid := c.monitorPid(t)
	memory(t, pid, "idle")
	asleep(t, pid, "idle")
}

func TestMemoryOfABurstIsGivenBack(t *testing.T) {
	needRoot(t)
	c := sh("yes 'a line of a burst, which is longer than the other' | head -n 1000000; yes | head -n 1000000 >&2; sleep 0.3; echo done; exec sleep 1000").
		make(t, ownProgram(t))
	c.spec.Stdin = true
	c.start(t)
	c.attach(t, allOutput) // dropped, if it cannot follow
	s := c.attach(t, Streams{Stdin: true})
	_, err := s.Write(make([]byte, 40_000))
	must(t, err)
	eventually(t, "all is written", func() bool {
		data, _ := os.ReadFile(c.log)
		return strings.HasSuffix(string(data), " done\n")
	})
	s.Close()
	pid := c.monitorPid(t)
	eventually(t, "the buffers are given back", func() bool {
		return kernelNumber(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Anonymous") < 40
	})
	time.Sleep(1200 * time.Millisecond) // the last of it goes after a second of silence
	memory(t, pid, "after a burst")
	asleep(t, pid, "after a burst")
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
	needRoot(t)
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

// Little output makes much log where the lines are empty.
func TestMemoryOfTinyLinesIsGivenBack(t *testing.T) {
	needRoot(t)
	b := sh("cat /data; exec sleep 1000")
	b.files = map[string]string{"data": strings.Repeat("\n", 3000)}
	c := b.make(t, ownProgram(t))
	c.start(t)
	eventually(t, "all is written", func() bool {
		data, _ := os.ReadFile(c.log)
		return strings.Count(string(data), "\n") == 3000
	})
	time.Sleep(1500 * time.Millisecond) // longer than it waits before it gives back
	memory(t, c.monitorPid(t), "after tiny lines")
}
