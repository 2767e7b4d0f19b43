package kubelet

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// complaint is a line of the kubelet's log that names the runtime and is no defect of it.
type complaint struct {
	pattern string
	why     string
	// when tells whether the line comes at its time; nil is at any.
	when func(kubelets, string) bool
}

func expectedComplaints() []complaint {
	return []complaint{
		{`/missing:v1`, "pod noimage has no image", nil},
		{`/no/such/program`, "pod nocommand has no program", nil},
		{`PostStartHook.*\bpostless\b|\bpostless\b.*PostStartHook`, "a hook of pod hooks fails", nil},
		{`ExecSync .*DeadlineExceeded.* killed after 1s.*"sleep","3600"`, "a probe of pod probes hangs", nil},
		{`"ExecSync cmd .*code = Canceled desc = context canceled`, "the kubelet gives up a probe when its container ends", nil},
		{`code = Canceled desc = context canceled`, "the kubelet gives up what it has asked for when it ends", kubelets.stopping},
		{`"ContainerStatus from runtime service failed".*code = Canceled desc = context canceled`, "the kubelet gives up what a client has asked for that is gone", kubelets.leaving},
		{`code = Canceled desc = context canceled`, "the kubelet gives up its work on a pod that is taken away", kubelets.takingAway},
		{`code = NotFound desc = container [0-9a-f]+ does not exist`, "the kubelet asks once more for what it has removed itself", kubelets.removed},
		{`/exec-[0-9a-f]+(.": RecentStats: unable to find data|: no such file|/.*: no such (file|device))`, "each exec has a cgroup of its own, which may be gone before cAdvisor has looked", nil},
		{`Error while processing event \("[^"]+/crio-[0-9a-f]{64}".*: no such (file|device)`, "a container that ends at once may be gone before cAdvisor has looked", nil},
		{`non-existent label ."crio-containers`, "containers are on the disk of the images; the kubelet says itself that it ignores this", nil},
		{`container runtime status check may not have completed yet`, "the kubelet's first second", nil},
		{`"Missing actuated pod level resource record" pod="noimage-`, "the kubelet looks for the resources of a pod that never ran", nil},
	}
}

// kubelets are the logs of all kubelets of the run, when each was stopped, and when tests
// have left sessions with them.
type kubelets struct {
	log         string
	stops, left []time.Time
}

// stopping: a kubelet has just been asked to end.
func (k kubelets) stopping(line string) bool { return soonAfter(k.stops, line) }

// leaving: a test has just left a session.
func (k kubelets) leaving(line string) bool { return soonAfter(k.left, line) }

func soonAfter(times []time.Time, line string) bool {
	at, err := logTime(line)
	return err == nil && slices.ContainsFunc(times, func(begun time.Time) bool { return at.After(begun) && at.Before(begun.Add(2*time.Second)) })
}

// takingAway: the manifest of a pod has been removed seconds ago.
func (k kubelets) takingAway(line string) bool {
	at, err := logTime(line)
	if err != nil {
		return false
	}
	for other := range strings.Lines(k.log) {
		if !strings.Contains(other, `"SyncLoop REMOVE"`) {
			continue
		}
		if removed, err := logTime(other); err == nil && at.After(removed) && at.Before(removed.Add(10*time.Second)) {
			return true
		}
	}
	return false
}

// removed: the kubelet itself has said that it removes the container.
func (k kubelets) removed(line string) bool {
	id := regexp.MustCompile(`container ([0-9a-f]{64}) does not exist`).FindStringSubmatch(line)
	before, _, _ := strings.Cut(k.log, line)
	return id != nil && strings.Contains(before, `"RemoveContainer" containerID="`+id[1]+`"`)
}

// quiet reads the log of all kubelets of the run for errors that name the runtime, and
// that of the daemons for anything that should not happen.
func quiet(t *testing.T, n *node) {
	names := regexp.MustCompile(`(?i)rpc error|\bruntime\b|remote_(runtime|image)\.go|(kuberuntime|pleg|evented|container_log)\w*\.go|generic\.go|\bcri-?o\b|/crio-|\bcri_`)
	group := regexp.MustCompile(`(Name:|existing container: |"/sys/fs/cgroup)/\S+`)
	all := kubelets{readFile(t, n.kubelet.log), n.kubelet.stops, n.kubelet.left}
	unexplained, explained := map[string]int{}, map[string]int{}
	for line := range strings.Lines(all.log) {
		if line[0] != 'E' && line[0] != 'W' || !names.MatchString(line) {
			continue
		}
		// cAdvisor sees the cgroups of the whole machine, of other daemons and tests, too.
		if found := group.FindString(line); found != "" && !strings.Contains(found, cgroupRoot()) {
			continue
		}
		if why := n.explanation(t, all, line); why != "" {
			explained[why]++
		} else {
			unexplained[ids.ReplaceAllString(withoutTime(line), "ID")]++
		}
	}
	for why, times := range explained {
		t.Logf("%d times: %s", times, why)
	}
	for line, times := range unexplained {
		t.Errorf("the kubelet complains %d times: %.1000s", times, line)
	}
	for line := range strings.Lines(readFile(t, n.crio.log)) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "DATA RACE") || strings.HasPrefix(line, "panic:") {
			t.Errorf("the daemon's log: %s", line)
		}
	}
}

var ids = regexp.MustCompile(`[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f-]{36}`)

// explanation tells why a complaint is one of those that the pods or restarts cause; "" if it is not.
func (n *node) explanation(t *testing.T, all kubelets, line string) string {
	t.Helper()
	for _, c := range expectedComplaints() {
		if regexp.MustCompile(c.pattern).MatchString(line) && (c.when == nil || c.when(all, line)) {
			return c.why
		}
	}
	if !regexp.MustCompile(`Unavailable|connection|ImageInspectError`).MatchString(line) {
		return ""
	}
	at, err := logTime(line)
	check(t, err)
	for _, down := range n.crio.down {
		// gRPC tries again seconds after the daemon is back.
		if at.After(down[0]) && at.Before(down[1].Add(15*time.Second)) {
			return "there is no daemon for a moment"
		}
	}
	return ""
}

// logTime is the time of a line of klog: "E1121 15:39:07.768390 29663 file.go:272] ...".
func logTime(line string) (time.Time, error) {
	month, clock, _ := strings.Cut(line, " ")
	clock, _, _ = strings.Cut(clock, " ")
	return time.ParseInLocation("2006 0102 15:04:05.000000", fmt.Sprintf("%d %s %s", time.Now().Year(), month[1:], clock), time.Local)
}

// withoutTime is a line of klog from the file's name on.
func withoutTime(line string) string {
	if _, after, ok := strings.Cut(line, ".go:"); ok {
		return after
	}
	return line
}
