package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// A client that asks in a way that cannot be served is told so.
func TestRefusalOfASessionReachesItsClient(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	for _, address := range []string{n.execURL(id, wants{stdout: true}, "true"), n.forwardURL(box)} {
		a, err := http.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode < 400 || a.StatusCode > 499 {
			t.Errorf("a GET that does not upgrade: %s", a.Status)
		}
	}
	to, err := url.Parse(n.execURL(id, wants{stdout: true}, "true"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", to.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\nContent-Length: 0\r\n\r\n", to.Path, to.Host)
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 403 ") {
		t.Errorf("an unknown protocol: %q, %v", answer, err)
	}
}

// A session whose output nobody takes ends with its client, its container, or its pod.
func TestSessionEndsThoughItsClientDoesNotRead(t *testing.T) {
	n, image := readyNode(t, options{env: []string{"CONTAINER_LOG_SIZE_MAX=10000000"}})
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	begin := func() *net.TCPConn {
		conn, _ := dialWebSocket(t, "v4.channel.k8s.io", n.execURL(id, wants{stdout: true}, "yes"))
		n.await("the session", func() error { return n.wantSessions(1) })
		return conn.(*net.TCPConn)
	}
	half := begin()
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	n.await("the session's end with its client", func() error { return n.wantSessions(0) })
	if got := string(n.exec(id, "ps").GetStdout()); strings.Contains(got, "yes") {
		t.Errorf("the command goes on:\n%s", got)
	}
	half.Close()

	// The last output of a container is theirs to take for ten seconds.
	second := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	loud := n.runContainer(box, pod, n.containerConfig(image, "yes"))
	out := wants{stdout: true}
	for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
		defer n.open(protocol, n.execURL(second, out, "yes"), out).drop()
		defer n.open(protocol, n.attachURL(loud, out), out).drop()
	}
	last := ""
	n.await("the commands' wait for their clients", func() error {
		before := last
		last = string(n.exec(second, shell("cat /proc/[0-9]*/stat | grep '(yes)'")...).GetStdout())
		if strings.Count(last, "\n") != 2 || last != before {
			return fmt.Errorf("they are %s", last)
		}
		return nil // those of attach may have been left behind by now
	})
	for _, id := range []string{second, loud} {
		if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
	n.await("the sessions' end with their containers", func() error { return n.wantSessions(0) })

	deaf := begin()
	defer deaf.Close()
	if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	n.await("the session's end with its pod", func() error { return n.wantSessions(0) })
}

// A connection that breaks while streams arrive leaves nothing, and a client that makes none
// does not keep the daemon from ending.
func TestSessionEndsWhileStreamsArrive(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	id := n.runContainer(box, pod, n.containerConfig(image, shell("nc -ll -p 7001 -e cat")...))
	before := n.settled()
	for range 10 {
		forward, ports := dialSPDY(t, portforward.ProtocolV1Name, n.forwardURL(box))
		for worker := range 6 {
			go func() {
				for request := range 50 {
					for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
						if _, err := ports.CreateStream(http.Header{
							portforward.StreamType: {kind}, portforward.PortHeader: {"7001"},
							portforward.PortForwardRequestIDHeader: {fmt.Sprint(worker*100 + request)},
						}); err != nil {
							return
						}
					}
				}
			}()
		}
		exec, command := dialSPDY(t, remotecommand.StreamProtocolV4Name, n.execURL(id, wants{stdout: true}, "sleep", "99"))
		for range 6 {
			for _, kind := range []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout} {
				go func() { _, _ = command.CreateStream(http.Header{remotecommand.StreamType: {kind}}) }()
			}
		}
		time.Sleep(30 * time.Millisecond)
		forward.Close()
		exec.Close()
	}
	n.compare(before)

	idle, _ := dialSPDY(t, remotecommand.StreamProtocolV4Name, n.execURL(id, wants{stdout: true}, "true"))
	defer idle.Close()
	begun := time.Now()
	if code := n.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("SIGTERM took %s with a client that makes no streams", took)
	}
	n.start()
}

// wantSessions counts the sessions of exec and attach that are open.
func (n *node) wantSessions(want int) error {
	open := 0
	for _, op := range n.status().Operations {
		if op.Kind == "exec" || op.Kind == "attach" {
			open++
		}
	}
	if open != want {
		return fmt.Errorf("%d sessions are open, want %d", open, want)
	}
	return nil
}
