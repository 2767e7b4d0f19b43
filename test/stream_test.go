package test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execURL asks for a session.
func (n *node) execURL(id string, w wants, command ...string) string {
	n.t.Helper()
	a, err := n.Exec(n.ctx(), &cri.ExecRequest{ContainerId: id, Cmd: command, Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr, Tty: w.tty})
	if err != nil {
		n.t.Fatalf("exec: %v", err)
	}
	return a.GetUrl()
}

func (n *node) attachURL(id string, w wants) string {
	n.t.Helper()
	a, err := n.Attach(n.ctx(), &cri.AttachRequest{ContainerId: id, Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr, Tty: w.tty})
	if err != nil {
		n.t.Fatalf("attach: %v", err)
	}
	return a.GetUrl()
}

// Every protocol that there is tells the streams apart, and how the command ended.
func TestExecByEveryProtocol(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	for _, protocol := range protocols {
		w := wants{stdin: true, stdout: true, stderr: true}
		c := n.open(protocol, n.execURL(id, w, shell("read line; echo out $line; echo err >&2; exit 3")...), w)
		if _, err := c.stdin.Write([]byte("word\n")); err != nil {
			t.Fatal(err)
		}
		stdout, stderr := c.collect()
		code, message := c.end()
		if stdout != "out word\n" || stderr != "err\n" {
			t.Errorf("%s: stdout %q, stderr %q", protocol, stdout, stderr)
		}
		if code != 3 && !strings.Contains(message, "exit status 3") {
			t.Errorf("%s: code %d, %q", protocol, code, message)
		}
		c.close()
	}
}

func TestExecHalfClose(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	w := wants{stdin: true, stdout: true}
	c := n.open("spdy v4.channel.k8s.io", n.execURL(id, w, shell("cat; echo end")...), w)
	fmt.Fprint(c.stdin, "abc")
	c.stdin.Close()
	if stdout, _ := c.collect(); stdout != "abcend\n" {
		t.Errorf("%q", stdout)
	}
	if code, message := c.end(); code != 0 || message != "" {
		t.Errorf("%d, %q", code, message)
	}
	c.close()
}

func TestExecTerminal(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
		w := wants{stdin: true, stdout: true, tty: true}
		c := n.open(protocol, n.execURL(id, w, "sh"), w)
		c.resize(123, 45)
		fmt.Fprint(c.stdin, "until stty size | grep -q 45; do sleep 0.01; done; stty size\n")
		readUntil(t, c.stdout, "45 123")
		c.resize(99, 33)
		fmt.Fprint(c.stdin, "until stty size | grep -q 33; do sleep 0.01; done; stty size; tty; exit 7\n")
		rest, _ := io.ReadAll(c.stdout)
		if !strings.Contains(string(rest), "33 99") || !strings.Contains(string(rest), "/dev/pts/") {
			t.Errorf("%s: %q", protocol, rest)
		}
		if code, message := c.end(); code != 7 {
			t.Errorf("%s: %d, %q", protocol, code, message)
		}
		c.close()
	}
}

// A terminal and its size belong to the container; a client of it comes and goes.
func TestAttachTerminal(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	config := n.containerConfig(image, "sh")
	config.Tty, config.Stdin = true, true
	id := n.runContainer(n.runPod(pod), pod, config)
	for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
		w := wants{stdin: true, stdout: true, tty: true}
		c := n.open(protocol, n.attachURL(id, w), w)
		c.resize(123, 45)
		fmt.Fprint(c.stdin, "until stty size | grep -q 45; do sleep 0.01; done; stty size\n")
		readUntil(t, c.stdout, "45 123")
		c.resize(80, 24)
		fmt.Fprint(c.stdin, "until stty size | grep -q 24; do sleep 0.01; done; stty size\n")
		readUntil(t, c.stdout, "24 80")
		c.close()
	}
	w := wants{stdin: true, stdout: true, tty: true}
	c := n.open("spdy v4.channel.k8s.io", n.attachURL(id, w), w)
	fmt.Fprint(c.stdin, "exit 4\n")
	c.collect()
	if code, message := c.end(); code != 0 || message != "" {
		t.Errorf("%d, %q", code, message)
	}
	if s := n.exited(id); s.GetExitCode() != 4 {
		t.Errorf("%v", s)
	}
	c.close()
}

// Without stdin_once the container's stdin outlives its clients, with it the first one's
// end is its end.
func TestAttachStdin(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	w := wants{stdin: true, stdout: true, stderr: true}
	for _, once := range []bool{false, true} {
		config := n.containerConfig(image, shell("while read word; do echo out $word; echo err $word >&2; done; echo end")...)
		config.Stdin, config.StdinOnce = true, once
		id := n.runContainer(box, pod, config)
		c := n.open("spdy v4.channel.k8s.io", n.attachURL(id, w), w)
		fmt.Fprint(c.stdin, "one\n")
		readUntil(t, c.stdout, "out one\n")
		readUntil(t, c.stderr, "err one\n")
		c.stdin.Close()
		if once {
			stdout, _ := c.collect()
			if code, message := c.end(); stdout != "end\n" || code != 0 || message != "" {
				t.Errorf("%q, %d, %q", stdout, code, message)
			}
			n.exited(id)
			c.close()
			continue
		}
		c.close()
		// What a client says before it goes is delivered.
		last := n.open("ws v4.channel.k8s.io", n.attachURL(id, w), w)
		fmt.Fprint(last.stdin, "two\n")
		last.close()
		n.awaitLog(logOf(pod, config), "out two")
	}
}

// podPorts runs a container with servers: an echo, one of HTTP with the IPv6 loopback
// alone, and one that answers at the end of its input.
func (n *node) podPorts(image string, hostNetwork bool) (box string) {
	n.t.Helper()
	pod := n.podConfig()
	if hostNetwork {
		pod.Hostname = ""
		pod.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	box = n.runPod(pod)
	config := n.containerConfig(image, shell("nc -ll -p 7001 -e cat & httpd -f -p '[::1]:7002' -h /bin & nc -ll -p 7003 -e md5sum & wait")...)
	if hostNetwork {
		config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	id := n.runContainer(box, pod, config)
	n.await("the servers", func() error {
		if got := n.exec(id, shell("netstat -ltn | grep -c ':700'")...); string(got.GetStdout()) != "3\n" {
			return fmt.Errorf("%s", got.GetStdout())
		}
		return nil
	})
	return box
}

func (n *node) forwardURL(box string, ports ...int32) string {
	n.t.Helper()
	a, err := n.PortForward(n.ctx(), &cri.PortForwardRequest{PodSandboxId: box, Port: ports})
	if err != nil {
		n.t.Fatalf("port-forward: %v", err)
	}
	return a.GetUrl()
}

func TestPortForward(t *testing.T) {
	n, image := readyNode(t, options{dual: true})
	for _, host := range []bool{false, true} {
		box := n.podPorts(image, host)
		for _, kind := range []string{"spdy", "ws"} {
			for port, words := range map[int][2]string{7001: {"there and back\n", "there and back\n"}, 7002: {"GET / HTTP/1.0\r\n\r\n", "404"}} {
				f := n.openForward(kind, n.forwardURL(box, int32(port)), port)
				fmt.Fprint(f, words[0])
				readUntil(t, f, words[1])
				f.close()
			}
			f := n.openForward(kind, n.forwardURL(box, 7009), 7009)
			if message := <-f.ending; !strings.Contains(message, "refused") {
				t.Errorf("a port that nobody listens on: %q", message)
			}
			f.close()
		}
		// Several on one connection, of which one is reset, and the half-close of another.
		_, conn := dialSPDY(t, "portforward.k8s.io", n.forwardURL(box))
		echo, sum := n.forwardOn(conn, 7001, 1), n.forwardOn(conn, 7003, 2)
		fmt.Fprint(echo, "1\n")
		readUntil(t, echo, "1\n")
		fmt.Fprint(sum, "abc")
		sum.half()
		if text, err := io.ReadAll(sum); !strings.HasPrefix(string(text), "900150983cd24fb0d6963f7d28e17f72") {
			t.Errorf("%q, %v", text, err)
		}
		if message := <-sum.ending; message != "" {
			t.Errorf("%q", message)
		}
		// The pod's end is the end of all, whether it is stopped or removed at once.
		end := func() error { return second(n.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box})) }
		if host {
			end = func() error {
				return second(n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}))
			}
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-conn.CloseChan():
		case <-time.After(waitTime):
			t.Error("the connection to a pod that has ended stays open")
		}
		conn.Close()
	}
}

// A client that dies with input that nobody takes leaves no command behind.
func TestExecEndsWithAClientWhoseInputIsNotTaken(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	before := n.settled()
	// More kilobytes than the pipe and the library hold, and less than the socket holds
	// besides: behind more than that the kernel itself does not hear of the end. What is read
	// for certain is, before there is more: what arrives together takes its room in the
	// socket until all of it is.
	for protocol, kilobytes := range map[string]struct{ read, all int }{"spdy v4.channel.k8s.io": {112, 130}, "ws v4.channel.k8s.io": {64, 85}} {
		w := wants{stdin: true, stdout: true}
		c := n.open(protocol, n.execURL(id, w, shell("echo ready; sleep 3600")...), w)
		readUntil(t, c.stdout, "ready")
		for i := range kilobytes.all {
			if i%16 == 0 && i <= kilobytes.read {
				n.await("an empty socket", c.taken)
			}
			if _, err := c.stdin.Write(make([]byte, 1<<10)); err != nil {
				t.Fatal(err)
			}
		}
		c.drop()
		n.compare(before)
	}
}
