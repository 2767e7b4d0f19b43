package test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// loadPod is a pod with one container, on its way up and down.
type loadPod struct {
	config    *cri.PodSandboxConfig
	container *cri.ContainerConfig
	box, id   string
}

// stoppedCode is the exit code of a container of a loadPod that was asked to end.
const stoppedCode = 7

func (n *node) loadPod(image string) *loadPod {
	return &loadPod{
		config:    n.podConfig(),
		container: n.containerConfig(image, shell(fmt.Sprintf("trap 'exit %d' TERM; touch /up; sleep 3600 & wait", stoppedCode))...),
	}
}

// attempt makes one call and tells whether it succeeded; where not, the test has failed.
type attempt func(what string, call func(context.Context) error) bool

// up takes a pod from nothing to a container that has been probed.
func (n *node) up(p *loadPod, try attempt) bool {
	return try("run pod", func(ctx context.Context) error {
		a, err := n.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
		p.box = a.GetPodSandboxId()
		return err
	}) && try("create container", func(ctx context.Context) error {
		a, err := n.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.box, Config: p.container, SandboxConfig: p.config})
		p.id = a.GetContainerId()
		return err
	}) && try("start container", func(ctx context.Context) error {
		return second(n.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.id}))
	}) && try("exec", func(ctx context.Context) error {
		return n.probe(ctx, p.id, "until [ -e /up ]; do sleep 0.01; done")
	})
}

// down asks the container to end, and takes everything away.
func (n *node) down(p *loadPod, try attempt) bool {
	return try("stop container", func(ctx context.Context) error {
		return second(n.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.id, Timeout: 60}))
	}) && try("container status", func(ctx context.Context) error {
		a, err := n.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.id})
		if s := a.GetStatus(); err == nil && (s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != stoppedCode) {
			return fmt.Errorf("it is %s with code %d (%s)", s.GetState(), s.GetExitCode(), s.GetReason())
		}
		return err
	}) && try("stop pod", func(ctx context.Context) error {
		return second(n.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.box}))
	}) && try("remove container", func(ctx context.Context) error {
		return second(n.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.id}))
	}) && try("remove pod", func(ctx context.Context) error {
		return second(n.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.box}))
	})
}

// probe runs a command and wants its words back.
func (n *node) probe(ctx context.Context, id, script string) error {
	a, err := n.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: shell(script + "; echo alive"), Timeout: 60})
	if err == nil && (a.GetExitCode() != 0 || string(a.GetStdout()) != "alive\n") {
		err = fmt.Errorf("the probe answers %v", a)
	}
	return err
}

// TestLoad has twenty clients, each on a connection of its own, make many pods at once and
// take them away again, round after round. No call fails, the node has what it had before,
// and the daemon has what it had after the first round. CRIO_TORTURE=1 makes as many pods as
// the subnet of a node has addresses for, and has the daemon without the race detector, so
// that its memory is measured, too.
func TestLoad(t *testing.T) {
	const clients = 20
	torture := os.Getenv("CRIO_TORTURE") != ""
	pods, rounds := 40, 2
	if torture {
		pods, rounds = 250, 3
	}
	n, image := readyNode(t, options{plain: torture})
	var first footprint
	for round := range rounds {
		begun := time.Now()
		all := make([]*loadPod, pods)
		for i := range all {
			all[i] = n.loadPod(image)
		}
		n.each(clients, all, (*node).up)
		if t.Failed() {
			t.FailNow()
		}
		upAfter := time.Since(begun)
		list, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{})
		if err != nil || len(list.GetContainers()) != pods {
			t.Errorf("round %d: a list has %d containers, want %d: %v", round, len(list.GetContainers()), pods, err)
		}
		loaded := n.footprint()
		n.each(clients, all, (*node).down)
		t.Logf("round %d: up after %s, down after %s; with all pods %+v", round,
			upAfter.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond), loaded)
		if n.compare(n.before); t.Failed() {
			t.FailNow()
		}
		if round == 0 {
			first = n.footprint()
			t.Logf("round 0: %+v", first)
			continue
		}
		n.noMore(fmt.Sprintf("round %d", round), round*pods, heapOfClients, first)
	}
}

// each has that many clients do something with all of the pods, and disconnect.
func (n *node) each(clients int, all []*loadPod, do func(*node, *loadPod, attempt) bool) {
	n.t.Helper()
	todo := make(chan *loadPod, len(all))
	for _, p := range all {
		todo <- p
	}
	close(todo)
	var wait sync.WaitGroup
	for range clients {
		c := n.in(n.t)
		c.connect()
		wait.Go(func() {
			defer c.conn.Close()
			for p := range todo {
				do(c, p, c.once(p))
			}
		})
	}
	wait.Wait()
}

// once makes each call a single time.
func (n *node) once(p *loadPod) attempt {
	return func(what string, call func(context.Context) error) bool {
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		err := call(ctx)
		if err != nil {
			n.t.Errorf("%s: %s %s: %v", p.config.GetMetadata().GetName(), what, p.container.GetMetadata().GetName(), err)
		}
		return err == nil
	}
}

// churnNode is a node whose daemon is killed over and over while clients work.
type churnNode struct {
	*node
	image string
	// lives is even while the daemon answers, and odd from a kill until the next daemon does.
	lives atomic.Int64
	// pods and probes have come and gone, repeats are calls that a kill has cut off.
	pods, probes, repeats atomic.Int64
	standing              []*standing
}

// standing is a container that counts in its log, as it is to be told at all times.
type standing struct {
	loadPod
	status *cri.ContainerStatus
}

const (
	churnClients = 4
	churnKinds   = 3
	standingPods = 4
	probePeriod  = 100 * time.Millisecond
)

// TestChurn has clients make pods, probe them and take them away, and others probe pods that
// stand, ten times a second, while the daemon is killed every few seconds. A client repeats a
// call that a kill has cut off, as the kubelet does, and no other may fail. Pods that stand run
// on, with every line in their logs; and the last daemon, and the one after it, have what one
// had at the beginning, and the node, too.
//
// CRIO_TORTURE=1 takes half an hour, or CRIO_CHURN, such as 10m, with the daemon as it is
// installed.
func TestChurn(t *testing.T) {
	length, period := 16*time.Second, 4*time.Second
	torture := os.Getenv("CRIO_TORTURE") != ""
	if torture {
		length, period = 30*time.Minute, 20*time.Second
	}
	if text := os.Getenv("CRIO_CHURN"); text != "" {
		given, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("CRIO_CHURN: %v", err)
		}
		length = given
	}
	n, image := readyNode(t, options{plain: torture})
	c := &churnNode{node: n, image: image}
	for range standingPods {
		c.standing = append(c.standing, c.stand())
	}
	atRest, first := c.renewed()
	stop := make(chan struct{})
	var work sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); work.Wait() })
	defer end()
	for client := range churnClients {
		work.Go(func() { c.work(client, stop) })
	}
	work.Go(func() { c.probeAll(stop) })
	begun := time.Now()
	var slowest time.Duration
	for time.Since(begun) < length && !t.Failed() {
		time.Sleep(period)
		killed := time.Now()
		c.lives.Add(1)
		c.kill()
		c.start()
		c.lives.Add(1)
		slowest = max(slowest, time.Since(killed))
		c.allStand()
	}
	before := c.pods.Load()
	time.Sleep(period) // so that the last daemon has worked, too
	end()
	t.Logf("%d kills, the slowest answered again after %s; %d pods, %d probes, %d calls repeated",
		c.lives.Load()/2, slowest.Round(time.Millisecond), c.pods.Load(), c.probes.Load(), c.repeats.Load())
	if c.repeats.Load() == 0 {
		t.Error("no call was cut off by a kill")
	}
	if t.Failed() {
		t.FailNow()
	}
	c.compare(atRest)
	c.noMore("the last daemon", int(c.pods.Load()-before), heapOfCrowds, first)
	c.renewed()
	c.noMore("the next daemon", 0, heapOfCrowds, first)
	c.compare(atRest)
	c.allStand()
	c.endStanding(length)
}

// renewed kills the daemon, and tells what the node and the next one have when each client has
// made pods of each kind.
func (c *churnNode) renewed() (inventory, footprint) {
	c.t.Helper()
	c.kill()
	c.start()
	var work sync.WaitGroup
	for client := range churnClients {
		work.Go(func() {
			for kind := range churnKinds {
				p := c.churnPod(kind, client)
				_ = c.up(p, c.once(p)) && c.down(p, c.once(p))
			}
		})
	}
	if work.Wait(); c.t.Failed() {
		c.t.FailNow()
	}
	return c.settled(), c.footprint()
}

// work makes pods and takes them away until stop is closed.
func (c *churnNode) work(client int, stop chan struct{}) {
	for kind := 0; ; kind = (kind + 1) % churnKinds {
		select {
		case <-stop:
			return
		default:
		}
		p := c.churnPod(kind, client)
		try := c.repeated(p)
		if !c.up(p, try) || !c.down(p, try) {
			return
		}
		c.pods.Add(1)
	}
}

// churnPod is one of several kinds: with a port of the node, with a PID namespace of all its
// containers and so a pause, or plain.
func (c *churnNode) churnPod(kind, client int) *loadPod {
	p := c.loadPod(c.image)
	switch kind {
	case 0:
		p.config.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 19000 + int32(client)}}
	case 1:
		p.config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		p.container.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	}
	return p
}

// probeAll probes the standing containers in turn, however long one probe takes.
func (c *churnNode) probeAll(stop chan struct{}) {
	ticker := time.NewTicker(probePeriod)
	defer ticker.Stop()
	var probes sync.WaitGroup
	defer probes.Wait()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		s := c.standing[i%len(c.standing)]
		probes.Go(func() {
			if c.repeated(&s.loadPod)("probe", func(ctx context.Context) error { return c.probe(ctx, s.id, ":") }) {
				c.probes.Add(1)
			}
		})
	}
}

// repeated makes a call until it is answered, where a kill of the daemon has cut it off or it
// found none. Unavailable from a daemon that lives is a failure as any other.
func (c *churnNode) repeated(p *loadPod) attempt {
	return func(what string, call func(context.Context) error) (ok bool) {
		return c.once(p)(what, func(ctx context.Context) error {
			for {
				life := c.lives.Load()
				err := call(ctx)
				if status.Code(err) != codes.Unavailable || life%2 == 0 && c.lives.Load() == life {
					return err
				}
				c.repeats.Add(1)
				select {
				case <-time.After(10 * time.Millisecond):
				case <-ctx.Done():
					return err
				}
			}
		})
	}
}

func (c *churnNode) stand() *standing {
	c.t.Helper()
	s := &standing{loadPod: loadPod{config: c.podConfig(), container: c.containerConfig(c.image,
		shell("trap 'echo last $i; exit 0' TERM; mkfifo /wait; exec 3<>/wait; i=0; while :; do i=$((i+1)); echo line $i; read -t 0.1 x <&3; done")...)}}
	s.box = c.runPod(s.config)
	s.id = c.runContainer(s.box, s.config, s.container)
	s.status = c.container(s.id)
	return s
}

func (c *churnNode) allStand() {
	c.t.Helper()
	for _, s := range c.standing {
		if now := c.container(s.id); !proto.Equal(now, s.status) {
			c.t.Fatalf("a container that stands was %v, and is %v", s.status, now)
		}
	}
}

// endStanding stops them, and wants each line of each log once and in its order.
func (c *churnNode) endStanding(length time.Duration) {
	c.t.Helper()
	for _, s := range c.standing {
		if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: s.id, Timeout: 60}); err != nil {
			c.t.Errorf("stop container: %v", err)
		}
		lines := c.log(logOf(s.config, s.container))
		count := len(lines) - 1
		for i, line := range lines[:max(0, count)] {
			if line.text != fmt.Sprintf("line %d", i+1) {
				c.t.Fatalf("a log has %q instead of line %d", line.text, i+1)
			}
		}
		if count < 0 || lines[count].text != fmt.Sprintf("last %d", count) || count < int(length.Seconds()) {
			c.t.Errorf("a log of %s has %d lines, and ends with %v", length, count, lines[max(0, count-3):])
		}
	}
}
