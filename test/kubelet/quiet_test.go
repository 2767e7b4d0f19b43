package kubelet

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// complaint is a line of the kubelet's log that names the runtime and is no defect of it.
type complaint struct {
	pattern string
	why     string
}

func expectedComplaints() []complaint {
	return []complaint{
		{`missing:v1|ErrImagePull|ImagePullBackOff`, "pod noimage has no image"},
		{`/no/such/program`, "pod nocommand has no program"},
		{`hook has failed|PostStartHookError`, "a hook of pod hooks fails"},
		{`ExecSync .*DeadlineExceeded.* killed after 1s.*"sleep","3600"`, "a probe of pod probes hangs"},
		{`code = Canceled desc = context canceled`, "the kubelet gives up what it has asked for when it ends, and a probe when its container does"},
		{`code = NotFound desc = container [0-9a-f]+ does not exist`, "the kubelet asks once more for what it has removed itself"},
		{`/exec-[0-9a-f]+(.": RecentStats: unable to find data|: no such file)`, "a probe's own cgroup was gone before cAdvisor had looked"},
		{`non-existent label ."crio-containers`, "containers are on the disk of the images; the kubelet says itself that it ignores this"},
		{`container runtime status check may not have completed yet`, "the kubelet's first second"},
	}
}

// quiet reads the log of all kubelets of the run for errors that name the runtime, and
// that of the daemons for anything that should not happen.
func quiet(t *testing.T, n *node) {
	names := regexp.MustCompile(`(?i)rpc error|\bruntime\b|remote_(runtime|image)\.go|\bcri-?o\b|/crio-|\bcri_`)
	group := regexp.MustCompile(`(?:Name:|existing container: |inotify_add_watch /sys/fs/cgroup/[a-z]+)(/\S+)`)
	unexplained, explained := map[string]int{}, map[string]int{}
	for line := range strings.Lines(readFile(t, n.kubelet.log)) {
		if line[0] != 'E' && line[0] != 'W' || !names.MatchString(line) {
			continue
		}
		// cAdvisor sees the cgroups of the whole machine, of other daemons and tests, too.
		if found := group.FindStringSubmatch(line); found != nil && !strings.HasPrefix(found[1], cgroupRoot()) {
			continue
		}
		if why := n.explanation(t, line); why != "" {
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
func (n *node) explanation(t *testing.T, line string) string {
	t.Helper()
	for _, c := range expectedComplaints() {
		if regexp.MustCompile(c.pattern).MatchString(line) {
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
