package test

import (
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformStreamCases() []conformCase {
	return []conformCase{
		{
			name: "exec session", run: conformExecSession,
			proves: []string{
				"Exec", "ExecRequest.container_id", "ExecRequest.cmd", "ExecRequest.tty", "ExecRequest.stdin", "ExecRequest.stdout",
				"ExecRequest.stderr", "ExecResponse.url",
			},
			refuses: []string{"ExecRequest.cmd", "ExecRequest.stderr", "ExecRequest.stdin"},
		},
		{
			name: "attach session", run: conformAttachSession,
			proves: []string{
				"Attach", "AttachRequest.container_id", "AttachRequest.stdin", "AttachRequest.tty", "AttachRequest.stdout", "AttachRequest.stderr",
				"AttachResponse.url",
			},
			refuses: []string{"AttachRequest.tty", "AttachRequest.stdin", "AttachRequest.stderr"},
		},
		{
			name: "port-forward session", run: conformForwardSession,
			proves:  []string{"PortForward", "PortForwardRequest.pod_sandbox_id", "PortForwardRequest.port", "PortForwardResponse.url"},
			refuses: []string{"PortForwardRequest.port"},
		},
	}
}

func conformExecSession(c *conform) {
	id := c.sleeper(nil)
	for _, w := range []wants{{stdout: true}, {stderr: true}, {stdout: true, stderr: true}, {stdin: true, stdout: true}, {stdin: true, stdout: true, tty: true}} {
		address := c.execURL(id, w, shell("[ -t 1 ] && echo tty; echo out; echo err >&2; exit 5")...)
		s := c.open("spdy v4.channel.k8s.io", address, w)
		stdout, stderr := s.collect()
		wantOut, wantErr := "out\n", ""
		switch {
		case w.tty:
			wantOut = "tty\r\nout\r\nerr\r\n"
		case w.stderr:
			wantErr = "err\n"
		}
		if !w.stdout {
			wantOut = ""
		}
		if code, message := s.end(); stdout != wantOut || stderr != wantErr || code != 5 {
			c.t.Errorf("%+v: stdout %q, stderr %q, code %d, %q", w, stdout, stderr, code, message)
		}
		s.close()
		if again, err := http.Get(address); err != nil || again.StatusCode != http.StatusNotFound {
			c.t.Errorf("a URL works twice: %v, %v", again, err)
		}
	}
	absent := c.open("ws v4.channel.k8s.io", c.execURL(id, wants{stdout: true}, "/absent"), wants{stdout: true})
	if _, message := absent.end(); !strings.Contains(message, "/absent") {
		c.t.Errorf("a command that is not there: %q", message)
	}
	absent.close()
	for words, r := range map[string]*cri.ExecRequest{
		"cmd": {ContainerId: id, Stdout: true}, "stdin": {ContainerId: id, Cmd: []string{"true"}},
		"stderr": {ContainerId: id, Cmd: []string{"true"}, Tty: true, Stderr: true},
	} {
		_, err := c.Exec(c.ctx(), r)
		c.refused(err, codes.InvalidArgument, words)
	}
	_, err := c.Exec(c.ctx(), &cri.ExecRequest{ContainerId: strings.Repeat("0", 64), Cmd: []string{"true"}, Stdout: true})
	c.refused(err, codes.NotFound, "does not exist")
}

func conformAttachSession(c *conform) {
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, shell("while read word; do echo out $word; echo err $word >&2; done")...)
	config.Stdin = true
	id := c.runContainer(box, pod, config)
	w := wants{stdin: true, stdout: true, stderr: true}
	s := c.open("spdy v4.channel.k8s.io", c.attachURL(id, w), w)
	fmt.Fprint(s.stdin, "word\n")
	readUntil(c.t, s.stdout, "out word\n")
	readUntil(c.t, s.stderr, "err word\n")
	s.close()

	_, err := c.Attach(c.ctx(), &cri.AttachRequest{ContainerId: id, Tty: true, Stdout: true})
	c.refused(err, codes.InvalidArgument, "tty")
	_, err = c.Attach(c.ctx(), &cri.AttachRequest{ContainerId: id, Tty: true, Stderr: true})
	c.refused(err, codes.InvalidArgument, "stderr")
	_, err = c.Attach(c.ctx(), &cri.AttachRequest{ContainerId: id})
	c.refused(err, codes.InvalidArgument, "stdin")
	without := c.sleeperIn(box, pod, nil)
	_, err = c.Attach(c.ctx(), &cri.AttachRequest{ContainerId: without, Stdin: true})
	c.refused(err, codes.FailedPrecondition, "stdin")
	created := c.create(box, pod, c.containerConfig(c.image, "true"))
	_, err = c.Attach(c.ctx(), &cri.AttachRequest{ContainerId: created, Stdout: true})
	c.refused(err, codes.FailedPrecondition, "not running")
	tty := c.containerConfig(c.image, "sh")
	tty.Stdin, tty.Tty = true, true
	terminal := c.runContainer(box, pod, tty)
	w = wants{stdin: true, stdout: true, tty: true}
	s = c.open("ws v4.channel.k8s.io", c.attachURL(terminal, w), w)
	fmt.Fprint(s.stdin, "tty\n")
	readUntil(c.t, s.stdout, "/dev/")
	s.close()
}

func conformForwardSession(c *conform) {
	box := c.podPorts(c.image, false)
	for _, kind := range []string{"spdy", "ws"} {
		f := c.openForward(kind, c.forwardURL(box, 7001), 7001)
		fmt.Fprint(f, "word\n")
		readUntil(c.t, f, "word\n")
		f.close()
	}
	_, err := c.PortForward(c.ctx(), &cri.PortForwardRequest{PodSandboxId: box, Port: []int32{65536}})
	c.refused(err, codes.InvalidArgument, "port")
	_, err = c.PortForward(c.ctx(), &cri.PortForwardRequest{PodSandboxId: strings.Repeat("0", 64)})
	c.refused(err, codes.NotFound, "does not exist")
	if _, err := c.StopPodSandbox(c.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		c.t.Fatal(err)
	}
	_, err = c.PortForward(c.ctx(), &cri.PortForwardRequest{PodSandboxId: box})
	c.refused(err, codes.FailedPrecondition, "not ready")
}
