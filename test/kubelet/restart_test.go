package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// lives are the containers that run and that nothing but a restart of ours could end:
// the ID and the number of restarts by "pod/container".
func (n *node) lives() (map[string]string, error) {
	pods, err := n.pods()
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for name, p := range pods {
		if name == "hooks" { // one of its containers is started again and again
			continue
		}
		for _, c := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
			if c.State.Running != nil {
				found[name+"/"+c.Name] = fmt.Sprintf("%s after %d restarts", c.id(), c.RestartCount)
			}
		}
	}
	if len(found) == 0 {
		err = fmt.Errorf("no container runs")
	}
	return found, err
}

// survive looks whether all containers live on, as the kubelet sees it once it has looked.
func (n *node) survive(before map[string]string) {
	n.t.Helper()
	n.await("the same containers", func() error {
		after, err := n.lives()
		if err != nil {
			return err
		}
		for name, life := range before {
			if after[name] != life {
				err = fmt.Errorf("%s was %s, and is %s", name, life, after[name])
			}
		}
		if err == nil && len(after) != len(before) {
			err = fmt.Errorf("there are %d, not %d: %v", len(after), len(before), slices.Collect(maps.Keys(after)))
		}
		return err
	})
}

// kubeletRestart gives the node another kubelet, which learns from the runtime's events
// and has its statistics from it, in messages of several.
func kubeletRestart(t *testing.T, n *node) {
	before, err := n.lives()
	check(t, err)
	n.kubelet.stop(t)
	n.startKubelet("featureGates: {EventedPLEG: true, PodAndContainerStatsFromCRI: true, CRIListStreaming: true}\n")
	n.survive(before)
	n.awaitContainer(t, "probes", "web", ready)
	same(t, "a command", n.exec(t, "volumes", "reader", "echo works"), "works")
}

// told is a pod that comes and goes while the kubelet follows events.
const told = `apiVersion: v1
kind: Pod
metadata: {name: told}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: %s, command: [sleep, "3600"]}
`

// events: the kubelet is told of a start and an end, and need not ask for them, which it
// does every five minutes only.
func events(t *testing.T, n *node) {
	n.follows(t)
	n.write("manifests/told.yaml", fmt.Sprintf(told, n.busybox))
	c := n.awaitContainer(t, "told", "main", ready)
	n.awaitEvent("Started", c.id())
	check(t, os.Remove(n.path("manifests/told.yaml")))
	n.awaitEvent("Stopped", c.id())
	n.await("the pod's end", func() error {
		pods, err := n.pods()
		if _, there := pods["told"]; err == nil && there {
			err = errors.New("the kubelet has it")
		}
		return err
	})
	before := n.awaitContainer(t, "besteffort", "main", ready)
	killed := time.Now()
	check(t, syscall.Kill(n.pid(before.id()), syscall.SIGKILL))
	after := n.awaitContainer(t, "besteffort", "main", func(c container) bool { return c.Ready && c.RestartCount == before.RestartCount+1 })
	if took := time.Since(killed); took > 10*time.Second {
		t.Errorf("the restart took %s", took)
	}
	same(t, "the exit code", after.LastState.Terminated.ExitCode, 137)
	same(t, "the reason", after.LastState.Terminated.Reason, "Error")
	n.follows(t)
}

// follows looks whether the kubelet has the stream of events, the first it has asked for:
// the daemon logs a call when it ends.
func (n *node) follows(t *testing.T) {
	t.Helper()
	n.await("the stream of events", func() error {
		body, err := n.get("/metrics")
		if err != nil {
			return err
		}
		return atLeast(string(body), "kubelet_evented_pleg_connection_success_count", 1)
	})
	if slices.Contains(n.called(t), "GetContainerEvents") {
		t.Error("the stream of events has ended")
	}
	if strings.Contains(n.kubelet.sinceMark(t), "Fall back to Generic PLEG") {
		t.Error("the kubelet has given up events")
	}
}

// awaitEvent waits until the kubelet has taken an event of a container.
func (n *node) awaitEvent(kind, id string) {
	n.t.Helper()
	n.await("an event of container "+id, func() error {
		if !strings.Contains(n.kubelet.sinceMark(n.t), `"Received Container `+kind+` Event" event="container_id:\"`+id) {
			return fmt.Errorf("the kubelet was not told: %s", kind)
		}
		return nil
	})
}

// called are the names of the calls that have ended since the kubelet was started.
func (n *node) called(t *testing.T) []string {
	t.Helper()
	names := map[string]bool{}
	for _, match := range regexp.MustCompile(`method=/runtime\.v1\.\w+/(\w+)`).FindAllStringSubmatch(n.crio.sinceMark(t), -1) {
		names[match[1]] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// pid is the first process of a container.
func (n *node) pid(id string) int {
	n.t.Helper()
	answer, err := n.runtime.ContainerStatus(n.t.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	check(n.t, err)
	var info struct{ Pid int }
	check(n.t, json.Unmarshal([]byte(answer.GetInfo()["info"]), &info))
	if info.Pid == 0 {
		n.t.Fatalf("container %s has no process: %v", id, answer)
	}
	return info.Pid
}

// outage is an end of the daemon under a kubelet. The pod's container ends meanwhile; one
// is started again at once only the first time.
type outage struct {
	name, pod string
	end       func()
}

func crioRestart(t *testing.T, n *node) {
	for _, how := range []outage{
		{"stopped", "guaranteed", func() { n.crio.stop(t) }},
		{"killed", "burstable", n.crio.kill},
	} {
		t.Run(how.name, func(t *testing.T) { within(n, t).survivesOutage(t, how) })
	}
}

// crioRestartUnderEvents: a kubelet whose stream has ended asks for another one five times
// without a pause, and from then on for lists every second.
func crioRestartUnderEvents(t *testing.T, n *node) {
	n.follows(t)
	n.survivesOutage(t, outage{"killed", "security", n.crio.kill})
}

// survivesOutage: containers live on without a daemon; what ends meanwhile is told after.
func (n *node) survivesOutage(t *testing.T, how outage) {
	before, err := n.lives()
	check(t, err)
	victim := n.awaitContainer(t, how.pod, "main", ready)
	pid := n.pid(victim.id())
	down := time.Now()
	how.end()
	check(t, syscall.Kill(pid, syscall.SIGKILL))
	n.startCrio()
	n.crio.down = append(n.crio.down, [2]time.Time{down, time.Now()})
	after := n.awaitContainer(t, how.pod, "main", func(c container) bool { return c.Ready && c.RestartCount == victim.RestartCount+1 })
	same(t, "the exit code", after.LastState.Terminated.ExitCode, 137)
	before[how.pod+"/main"] = fmt.Sprintf("%s after %d restarts", after.id(), after.RestartCount)
	n.survive(before)
	n.awaitContainer(t, "probes", "exec", ready)
	same(t, "a command", n.exec(t, "volumes", "reader", "echo works"), "works")
	same(t, "the answer of a port", fetch(t, "http://"+nodeIP+":18080"), "hostport-"+nodeName+"\n")
}
