package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/sys"
)

// subscribe returns when the subscription has begun. It ends with the test, or with cancel.
func (n *node) subscribe(client cri.RuntimeServiceClient) (events cri.RuntimeService_GetContainerEventsClient, cancel func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(cancel)
	events, err := client.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err == nil {
		_, err = events.Header()
	}
	if err != nil {
		n.t.Fatalf("subscribe: %v", err)
	}
	return events, cancel
}

// replica is the list as a client knows it that lists once and then follows the events.
type replica struct {
	mu   sync.Mutex
	pods map[string]map[string]string // by pod, the states by ID
	// seen counts the events by ID and type: each comes once.
	seen map[string]int
	// rank of the last state of each ID that an event has shown: none goes back.
	rank map[string]int
	bad  []string
}

func newReplica() *replica {
	return &replica{pods: map[string]map[string]string{}, seen: map[string]int{}, rank: map[string]int{}}
}

// apply takes the pod as the event has it, as evented PLEG does.
func (r *replica) apply(e *cri.ContainerEventResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	box := e.GetPodSandboxStatus()
	if box.GetMetadata().GetUid() == "" || e.GetCreatedAt() == 0 {
		r.bad = append(r.bad, fmt.Sprintf("an event without its pod: %v", e))
	}
	once := e.GetContainerEventType().String() + " of " + e.GetContainerId()
	if r.seen[once]++; r.seen[once] > 1 {
		r.bad = append(r.bad, once+" comes again")
	}
	states := map[string]string{box.GetId(): box.GetState().String()}
	r.order(box.GetId(), int(box.GetState()))
	for _, c := range e.GetContainersStatuses() {
		states[c.GetId()] = c.GetState().String()
		r.order(c.GetId(), int(c.GetState()))
	}
	r.pods[box.GetId()] = states
	if e.GetContainerEventType() == cri.ContainerEventType_CONTAINER_DELETED_EVENT {
		if e.GetContainerId() == box.GetId() {
			delete(r.pods, box.GetId())
		} else if states[e.GetContainerId()] != "" {
			r.bad = append(r.bad, "a deleted container is still told: "+e.GetContainerId())
		}
	}
}

// order relies on the numbers of CRI's states growing during a life.
func (r *replica) order(id string, rank int) {
	if rank < r.rank[id] {
		r.bad = append(r.bad, fmt.Sprintf("%s goes back from %d to %d", id, r.rank[id], rank))
	}
	r.rank[id] = rank
}

// states is what it knows, without the pods.
func (r *replica) states() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]string{}
	for _, states := range r.pods {
		maps.Copy(all, states)
	}
	return all
}

// listed is what the lists tell, by pod.
func (n *node) listed() (map[string]map[string]string, error) {
	boxes, err := n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, box := range boxes.GetItems() {
		all[box.GetId()] = map[string]string{box.GetId(): box.GetState().String()}
	}
	for _, c := range containers.GetContainers() {
		if all[c.GetPodSandboxId()] == nil {
			all[c.GetPodSandboxId()] = map[string]string{} // its pod has come since
		}
		all[c.GetPodSandboxId()][c.GetId()] = c.GetState().String()
	}
	return all, nil
}

// follow subscribes, lists, and replays until the stream ends, with what the channel gives.
func (n *node) follow() (*replica, <-chan error) {
	n.t.Helper()
	r := newReplica()
	events, _ := n.subscribe(n.RuntimeServiceClient)
	pods, err := n.listed()
	if err != nil {
		n.t.Fatal(err)
	}
	r.pods = pods
	ended := make(chan error, 1)
	go func() {
		for {
			e, err := events.Recv()
			if err != nil {
				ended <- err
				return
			}
			r.apply(e)
		}
	}()
	return r, ended
}

// agrees waits until the replica is what is listed.
func (n *node) agrees(r *replica) {
	n.t.Helper()
	n.await("agreement of events and lists", func() error {
		pods, err := n.listed()
		if err != nil {
			return err
		}
		want := map[string]string{}
		for _, states := range pods {
			maps.Copy(want, states)
		}
		got := r.states()
		if maps.Equal(got, want) {
			return nil
		}
		for id, state := range want {
			if got[id] == state {
				delete(got, id)
				delete(want, id)
			}
		}
		return fmt.Errorf("events alone: %v, lists alone: %v", got, want)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, bad := range r.bad {
		n.t.Error(bad)
	}
}

// hostPod is quickly made.
func (n *node) hostPod() *cri.PodSandboxConfig {
	config := n.podConfig()
	config.Hostname = ""
	config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	return config
}

// live takes a pod through one of several lives, with containers that are made, end and
// go at once. What fails when the daemon is killed meanwhile is left to others.
func (n *node) live(image string, kind int) {
	config := n.hostPod()
	if kind%4 == 1 {
		config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	}
	made, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return
	}
	box := made.GetPodSandboxId()
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			c := n.containerConfig(image, shell([]string{"true", "exec sleep 3600", "exit 7"}[(kind+i)%3])...)
			if (kind+i)%5 == 2 {
				c.Command = []string{"/no such program"}
			}
			if (kind+i)%7 == 3 {
				c.Linux.SecurityContext.RunAsUsername = "nobody-knows"
			}
			n.liveIn(box, config, c, kind%2 == 0)
		})
	}
	wait.Wait()
	if kind%6 == 4 {
		_, _ = n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box})
	}
	if kind%6 != 5 {
		_, _ = n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box})
	}
}

func (n *node) liveIn(box string, pod *cri.PodSandboxConfig, config *cri.ContainerConfig, remove bool) {
	made, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if err != nil {
		return
	}
	_, _ = n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
	if remove {
		_, _ = n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: made.GetContainerId()})
		_, _ = n.RemoveContainer(n.ctx(), &cri.RemoveContainerRequest{ContainerId: made.GetContainerId()})
	}
}

// liveOn lives pods side by side until stop is called, which waits for them.
func (n *node) liveOn(image string, workers int) (stop func()) {
	var kinds atomic.Int32
	var over atomic.Bool
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for !over.Load() {
				n.live(image, int(kinds.Add(1)))
			}
		})
	}
	stop = sync.OnceFunc(func() { over.Store(true); wait.Wait() })
	n.t.Cleanup(stop) // before the node looks for what is left
	return stop
}

// Whoever lists once and then follows the events knows what the lists tell, whatever
// happens at once and in between; after the end of a daemon it does so again.
func TestEventsReplayedAreTheList(t *testing.T) {
	n, image := readyNode(t, options{})
	stop := n.liveOn(image, 2)
	early, earlyEnded := n.follow()
	<-time.After(2 * time.Second)
	late, _ := n.follow()
	<-time.After(2 * time.Second)
	stop()
	n.agrees(early)
	n.agrees(late)
	stop = n.liveOn(image, 2)
	<-time.After(time.Second)
	n.kill()
	select {
	case err := <-earlyEnded:
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the stream of a daemon that was killed ended with %v", err)
		}
	case <-time.After(waitTime):
		t.Fatal("the stream goes on without a daemon")
	}
	n.start()
	again, _ := n.follow()
	<-time.After(time.Second)
	stop()
	n.agrees(again)
	if events := len(early.seen); events < 100 {
		t.Errorf("only %d events", events)
	}
	if n.status().SubscribersDropped != 0 {
		t.Error("one who reads was dropped")
	}
}

// A daemon that is asked to end tells its subscribers.
func TestEventsEndWithTheDaemon(t *testing.T) {
	n := newNode(t, options{})
	events, _ := n.subscribe(n.RuntimeServiceClient)
	begun := time.Now()
	n.stop()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the daemon took %s to end", took)
	}
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable || errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

// stalled is a client of its own that takes no more than 64 KiB which it does not read.
func (n *node) stalled() cri.RuntimeService_GetContainerEventsClient {
	n.t.Helper()
	conn, err := grpc.NewClient("passthrough:///crio", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return sys.Dial(ctx, n.socket) }))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	events, _ := n.subscribe(cri.NewRuntimeServiceClient(conn))
	return events
}

// A subscriber that never reads changes nothing for anyone else: not for lists, not for
// another subscriber, not for what containers write, and not for the daemon's end. It is
// dropped, and learns so when it reads. CRIO_TORTURE=1 wants nine tenths of the output, and
// List within 5 ms.
func TestSubscriberThatNeverReads(t *testing.T) {
	n, image := readyNode(t, options{plain: true})
	pod := n.podConfig()
	box := n.runPod(pod)
	for range 50 {
		n.create(box, pod, n.containerConfig(image, "true"))
	}
	writer := n.containerConfig(image, shell("while true; do seq 20; sleep 0.01; done")...)
	id := n.runContainer(box, pod, writer)
	follower, _ := n.follow()

	measure := func() (lists time.Duration, lines float64) {
		stop := n.manyEvents(1, 20*time.Millisecond)
		defer stop()
		var all []time.Duration
		first, begun := len(n.log(logOf(pod, writer))), time.Now()
		for time.Since(begun) < 2*time.Second {
			at := time.Now()
			if _, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{}); err != nil {
				t.Fatal(err)
			}
			all = append(all, time.Since(at))
			<-time.After(5 * time.Millisecond)
		}
		return p99(all), float64(len(n.log(logOf(pod, writer)))-first) / time.Since(begun).Seconds()
	}
	listsBefore, linesBefore := measure()
	most, least := max(5*time.Millisecond, 3*listsBefore), linesBefore/2
	if os.Getenv("CRIO_TORTURE") != "" {
		most, least = 5*time.Millisecond, 0.9*linesBefore
	}
	events := n.stalled()
	undisturbed := false
	for range 3 { // a busy machine has bad seconds of its own
		lists, lines := measure()
		t.Logf("p99 of lists %s, before %s; %.0f lines a second, before %.0f", lists, listsBefore, lines, linesBefore)
		if undisturbed = lists <= most && lines >= least; undisturbed {
			break
		}
	}
	if !undisturbed {
		t.Error("lists take longer, or a container writes less, with the subscriber than without")
	}
	stop := n.manyEvents(4, 0)
	// As long as a busy machine takes for a thousand events.
	for end := time.Now().Add(5 * waitTime); n.status().SubscribersDropped == 0 && time.Now().Before(end); {
		<-time.After(50 * time.Millisecond)
	}
	stop()
	if got := n.status(); got.SubscribersDropped != 1 || got.Subscribers != 1 {
		t.Fatalf("%d subscribers, %d dropped", got.Subscribers, got.SubscribersDropped)
	}
	n.agrees(follower)

	read := 0
	for err := error(nil); err == nil; read++ {
		if _, err = events.Recv(); err != nil && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("the stalled stream ended with %v", err)
		}
	}
	t.Logf("%d events were left for the one that did not read", read-1)
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	// One that has as much as it takes, and is not dropped yet.
	_ = n.stalled()
	stop = n.manyEvents(2, 0)
	<-time.After(500 * time.Millisecond)
	stop()
	begun := time.Now()
	n.stop()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the daemon took %s to end", took)
	}
	n.start()
}

// manyEvents runs and removes pods that are quickly made and have much to tell, with a
// pause after each.
func (n *node) manyEvents(workers int, pause time.Duration) (stop func()) {
	var over atomic.Bool
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for !over.Load() {
				config := n.hostPod()
				config.Annotations = map[string]string{"much": strings.Repeat("x", 16<<10)}
				made, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config})
				if err == nil {
					_, err = n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: made.GetPodSandboxId()})
				}
				if err != nil {
					n.t.Error(err)
					return
				}
				<-time.After(pause)
			}
		})
	}
	stop = sync.OnceFunc(func() { over.Store(true); wait.Wait() })
	n.t.Cleanup(stop) // before the node looks for what is left
	return stop
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}
