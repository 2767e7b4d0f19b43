package test

import (
	"fmt"
	"io"
	"strings"
	"testing"

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
		// The first version of SPDY's has no word for it.
		if code != 3 && protocol != "spdy channel.k8s.io" && !strings.Contains(message, "exit status 3") {
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
