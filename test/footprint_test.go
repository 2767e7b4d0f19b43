package test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// footprint is what the daemon itself takes, after it has collected its garbage and has
// given back what was free.
type footprint struct {
	// heap is the bytes of objects in use, anonymous the KiB of memory that is no file's. pss
	// counts pages of its program, too, which come and go as the system likes: it is told,
	// and not compared.
	heap, anonymous, pss int
	goroutines           int
	descriptors, maps    int
}

// Load may add this much to a footprint. A pod that has come and gone leaves nothing in the
// heap: measured, 500 of them took none. Two IDs of each that were kept for ever would be
// 160 bytes a pod, which is more than may be in the long form of TestLoad. The short forms,
// and TestChurn, see only what is greater than the constants, which are for what the Go
// runtime keeps by itself: most of all its goroutines, which it never frees, and so depends
// on how many calls there were at once.
const (
	heapOfClients                        = 48 << 10  // bytes, for a number of clients that is the same again
	heapOfCrowds                         = 256 << 10 // bytes, for calls that come when the daemon does
	heapSlackPerPod                      = 16        // bytes
	anonymousSlack, anonymousSlackPerPod = 2048, 2   // KiB
	mapsSlack                            = 4
)

func (n *node) footprint() footprint {
	n.t.Helper()
	least := n.footprintNow()
	// What has a finalizer, or is in a pool, is free after the second collection. And the
	// daemon has a connection for a moment longer than its client.
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		now := n.footprintNow()
		least = footprint{
			heap: min(least.heap, now.heap), anonymous: min(least.anonymous, now.anonymous), pss: min(least.pss, now.pss),
			goroutines: min(least.goroutines, now.goroutines), descriptors: min(least.descriptors, now.descriptors), maps: min(least.maps, now.maps),
		}
	}
	return least
}

func (n *node) footprintNow() (f footprint) {
	n.t.Helper()
	dir := fmt.Sprintf("/proc/%d/", n.daemon.Process.Pid)
	report := n.report("/debug/status?gc=1")
	f.heap, f.goroutines = int(report.Heap), report.Goroutines
	descriptors, err := os.ReadDir(dir + "fd")
	if err != nil {
		n.t.Fatal(err)
	}
	f.descriptors = len(descriptors)
	for line := range strings.Lines(n.text(dir + "maps")) {
		// Those that are no file's are the race detector's, too, of each thread several.
		if inode := strings.Fields(line)[4]; n.plain() || inode != "0" {
			f.maps++
		}
	}
	for line := range strings.Lines(n.text(dir + "smaps_rollup")) {
		name, rest, _ := strings.Cut(line, ":")
		into := map[string]*int{"Pss": &f.pss, "Pss_Anon": &f.anonymous}[name]
		if into == nil {
			continue
		}
		if *into, err = strconv.Atoi(strings.Fields(rest)[0]); err != nil {
			n.t.Fatalf("%ssmaps_rollup: %v", dir, err)
		}
	}
	return f
}

// plain tells whether the daemon is as it is installed.
func (n *node) plain() bool { return n.program == "crio" }

func (n *node) text(path string) string {
	n.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// noMore fails the test where the daemon takes more than it did before this many pods had
// come and gone, and goes on to. heapSlack is in bytes. The race detector's own memory is no
// measure of the daemon's.
func (n *node) noMore(when string, pods, heapSlack int, before footprint) {
	n.t.Helper()
	var after footprint
	var more []string
	for end := time.Now().Add(waitTime); time.Now().Before(end); {
		after, more = n.footprint(), nil
		for _, b := range []struct {
			what               string
			before, after, may int
			measured           bool
		}{
			{"bytes of heap", before.heap, after.heap, heapSlack + pods*heapSlackPerPod, true},
			{"goroutines", before.goroutines, after.goroutines, 0, true},
			{"descriptors", before.descriptors, after.descriptors, 0, true},
			{"maps", before.maps, after.maps, mapsSlack, true},
			{"KiB of memory", before.anonymous, after.anonymous, anonymousSlack + pods*anonymousSlackPerPod, n.plain()},
		} {
			if b.measured && b.after > b.before+b.may {
				more = append(more, fmt.Sprintf("%d %s, and had %d, and may have %d more", b.after, b.what, b.before, b.may))
			}
		}
		if len(more) == 0 {
			break
		}
	}
	n.t.Logf("%s, after %d pods: %+v", when, pods, after)
	for _, m := range more {
		n.t.Errorf("%s: the daemon has %s after %d pods", when, m, pods)
	}
}
