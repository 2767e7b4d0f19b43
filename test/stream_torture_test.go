package test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// batch is a pod with a server, and sessions of every kind and protocol in it.
type batch struct {
	box, id string
	before  inventory // with the pod, and without the sessions
	open    []func()
}

// Sessions of every kind and protocol, ended in each possible way, leave nothing: no
// process, no descriptor, no goroutine. But for the first way the clients stay until that
// has been seen. CRIO_TORTURE=1 has 1,000 of each.
func TestSessionsLeaveNothing(t *testing.T) {
	sessions := 24
	if os.Getenv("CRIO_TORTURE") != "" {
		sessions = 1000
	}
	n, image := readyNode(t, options{})
	restart := func() {
		t.Helper()
		if code := n.stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		n.start()
	}
	for _, ending := range []struct {
		name  string
		begin func()
		end   func(b *batch)
	}{
		{"client close", func() {}, func(b *batch) { closeAll(b.open); n.compare(b.before) }},
		{"container exit", func() {}, func(b *batch) {
			if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: b.id}); err != nil {
				t.Error(err)
			}
			n.await("the sessions' end with their container", func() error { return n.wantSessions(0) })
			n.removeAll() // what port-forward has is the pod's
			n.compare(n.before)
		}},
		{"pod removal", func() {}, func(b *batch) {
			if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: b.box}); err != nil {
				t.Error(err)
			}
			n.compare(n.before)
		}},
		{"daemon SIGTERM", func() {}, func(b *batch) { restart(); n.compare(b.before) }},
		{"daemon SIGKILL", func() {}, func(b *batch) { n.kill(); n.start(); n.compare(b.before) }},
		{"server close", func() { n.env = append(n.env, "CONTAINER_STREAM_IDLE_TIMEOUT=5s"); restart() }, func(b *batch) { n.compare(b.before) }},
	} {
		ending.begin()
		begun := time.Now()
		// As many at a time as the monitor lets be attached.
		for left := sessions; left > 0; left -= 48 {
			b := n.openBatch(image, min(48, left))
			ending.end(b)
			closeAll(b.open)
			n.removeAll()
			n.compare(n.before)
		}
		t.Logf("%s: %d sessions in %s", ending.name, sessions, time.Since(begun).Round(time.Millisecond))
	}
}

func (n *node) openBatch(image string, count int) *batch {
	n.t.Helper()
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("nc -ll -p 7001 -e cat & while read x; do :; done; wait")...)
	config.Stdin = true
	id := n.runContainer(box, pod, config)
	n.await("the server", func() error {
		if got := n.exec(id, shell("netstat -ltn | grep -c ':700'")...); string(got.GetStdout()) != "1\n" {
			return fmt.Errorf("%s", got.GetStdout())
		}
		return nil
	})
	b := &batch{box: box, id: id, before: n.settled()}
	b.open = n.openSessions(count, box, id)
	return b
}

func closeAll(open []func()) {
	for _, c := range open {
		c()
	}
}

// openSessions opens some of every kind, and has each carry a word there and back.
func (n *node) openSessions(count int, box, id string) (open []func()) {
	n.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan bool, 8)
	w := wants{stdin: true, stdout: true}
	for i := range count {
		wg.Go(func() {
			slots <- true
			defer func() { <-slots }()
			protocol := []string{"spdy", "ws"}[i%2]
			var done func()
			switch i / 2 % 4 {
			case 0:
				c := n.open(protocol+" v4.channel.k8s.io", n.execURL(id, w, "cat"), w)
				fmt.Fprint(c.stdin, "word\n")
				readUntil(n.t, c.stdout, "word\n")
				done = c.close
			case 1:
				terminal := wants{stdin: true, stdout: true, tty: true}
				c := n.open(protocol+" v4.channel.k8s.io", n.execURL(id, terminal, shell("echo ready; sleep 3600 & sleep 3600")...), terminal)
				c.resize(80, 24)
				readUntil(n.t, c.stdout, "ready")
				done = c.close
			case 2:
				c := n.open(protocol+" v4.channel.k8s.io", n.attachURL(id, w), w)
				fmt.Fprint(c.stdin, "word\n")
				done = c.close
			default:
				f := n.openForward(protocol, n.forwardURL(box, 7001), 7001)
				fmt.Fprint(f, "word\n")
				readUntil(n.t, f, "word\n")
				done = f.close
			}
			mu.Lock()
			defer mu.Unlock()
			open = append(open, done)
		})
	}
	wg.Wait()
	return open
}

// What goes in comes out, byte for byte. CRIO_STREAM_BYTES says how much by each protocol.
func TestStreamsCarryEveryByte(t *testing.T) {
	size := int64(64 << 20)
	if text := os.Getenv("CRIO_STREAM_BYTES"); text != "" {
		var err error
		if size, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "3600"))
	w := wants{stdin: true, stdout: true}
	for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
		// WebSocket has no half-close: there the command counts.
		c := n.open(protocol, n.execURL(id, w, "head", "-c", strconv.FormatInt(size, 10)), w)
		begun := time.Now()
		sent, received := sha256.New(), sha256.New()
		go func() {
			source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
			if _, err := io.CopyBuffer(struct{ io.Writer }{c.stdin}, source, make([]byte, 32<<10)); err != nil {
				t.Errorf("%s: %v", protocol, err)
			}
			c.stdin.Close()
		}()
		got, err := io.Copy(received, c.stdout)
		code, message := c.end()
		took := time.Since(begun)
		if err != nil || got != size || code != 0 || message != "" || !slices.Equal(sent.Sum(nil), received.Sum(nil)) {
			t.Errorf("%s: %d of %d bytes, %v, code %d, %q", protocol, got, size, err, code, message)
		}
		t.Logf("%s: %d bytes in %s, %.0f MiB/s", protocol, got, took.Round(time.Millisecond), float64(got)/(1<<20)/took.Seconds())
		c.close()
	}
}

// A client that stops reading is nobody's concern but its own: lists are as fast as they
// were, and the container's output goes on as it did. CRIO_TORTURE=1 measures longer, and
// wants nine tenths of the output, and List within 5 ms.
func TestStoppedAttachClientDisturbsNobody(t *testing.T) {
	torture := os.Getenv("CRIO_TORTURE") != ""
	rounds, window := 3, time.Second
	if torture {
		rounds, window = 9, 2*time.Second
	}
	n, image := readyNode(t, options{plain: true, env: []string{"CONTAINER_LOG_SIZE_MAX=10000000"}})
	pod := n.podConfig()
	// The rate of a disk is not the same twice.
	if err := os.MkdirAll(pod.GetLogDirectory(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", pod.GetLogDirectory(), "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.removeAll()
		if err := unix.Unmount(pod.GetLogDirectory(), 0); err != nil {
			t.Error(err)
		}
	})
	// It counts the mebibytes that it could write.
	config := n.containerConfig(image, shell("i=0; while :; do head -c 1048575 /dev/zero | tr '\\0' x; echo; echo >> /rounds; done")...)
	// Else it is the container that lists wait for, on a machine of few processors.
	config.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 50_000}
	id := n.runContainer(n.runPod(pod), pod, config)
	var rates, p99s [2][]float64 // without and with such clients: mebibytes per second, and milliseconds
	measure := func(with int) {
		written, lists := n.pace(id, window)
		rates[with], p99s[with] = append(rates[with], written), append(p99s[with], lists)
	}
	w := wants{stdout: true, stderr: true}
	for range rounds {
		measure(0)
		var open []func()
		for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
			open = append(open, n.open(protocol, n.attachURL(id, w), w).drop)
		}
		n.pace(id, window/2) // while they still take what their buffers hold
		measure(1)
		closeAll(open)
		n.await("the clients' end", func() error { return n.wantSessions(0) })
	}
	for _, all := range [][]float64{rates[0], rates[1], p99s[0], p99s[1]} {
		slices.Sort(all)
	}
	t.Logf("without and with: MiB/s %.0f, p99 of List in ms %.2f", rates, p99s)
	least, most := 0.5, 5+3*p99s[0][rounds/2]
	if torture {
		least, most = 0.9, 5
	}
	if without, with := rates[0][rounds/2], rates[1][rounds/2]; with < least*without {
		t.Errorf("%.0f MiB/s of output, and %.0f with clients that do not read", without, with)
	}
	if with := p99s[1][rounds/2]; with > most {
		t.Errorf("p99 of List is %.2f ms with clients that do not read, want %.2f", with, most)
	}
}

// pace tells how many lines a second the container has added to /rounds, and the 99th
// percentile of List meanwhile, in milliseconds.
func (n *node) pace(id string, window time.Duration) (rounds, p99 float64) {
	n.t.Helper()
	count := func() int { return len(n.exec(id, shell("cat /rounds || :")...).GetStdout()) }
	before, begun := count(), time.Now()
	var took []time.Duration
	for time.Since(begun) < window {
		asked := time.Now()
		if _, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{}); err != nil {
			n.t.Fatal(err)
		}
		took = append(took, time.Since(asked))
		time.Sleep(2 * time.Millisecond)
	}
	after := count()
	slices.Sort(took)
	return float64(after-before) / time.Since(begun).Seconds(), took[len(took)*99/100].Seconds() * 1000
}

// Fifty probes a second, some of which do their worst, leave nothing.
func TestProbeStorm(t *testing.T) {
	seconds := 2
	if os.Getenv("CRIO_TORTURE") != "" {
		seconds = 60
	}
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "3600"))
	before := n.settled()
	probes := []struct {
		script  string
		timeout int64
		code    codes.Code
	}{
		{"true", 0, codes.OK},
		{"exit 1", 60, codes.OK},
		{"head -c 17000000 /dev/zero", 60, codes.OK},
		{"sleep 3601 & sleep 3600", 1, codes.DeadlineExceeded},
		{"setsid sleep 3600 & sleep 3600", 1, codes.DeadlineExceeded},
		{"(setsid sleep 3600 &) ; sleep 3600", 1, codes.DeadlineExceeded},
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var all sync.WaitGroup
	for i := range 50 * seconds {
		<-ticker.C
		all.Go(func() {
			// A quarter of them is ill.
			p := probes[i%2]
			if i%4 == 3 {
				p = probes[2+i/4%4]
			}
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			_, err := n.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: shell(p.script), Timeout: p.timeout})
			if status.Code(err) != p.code {
				t.Errorf("%s: %v", p.script, err)
			}
		})
	}
	all.Wait()
	n.compare(before)
}
