package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func initContainers(t *testing.T, n *node) {
	n.awaitContainer(t, "order", "main", ready)
	sidecar := n.awaitContainer(t, "order", "sidecar", ready)
	same(t, "the sidecar's number of restarts", sidecar.RestartCount, 0)
	n.awaitTrail("order", "first\nsidecar\nsecond\nmain")
	first := n.awaitContainer(t, "order", "first", func(c container) bool { return c.State.Terminated != nil })
	same(t, "the reason of the first end", first.State.Terminated.Reason, "Completed")
}

// awaitTrail waits until containers have written what they should, one line after another.
func (n *node) awaitTrail(name, want string) {
	n.t.Helper()
	n.await("trail "+name, func() error {
		if got := n.read("trail/" + name); got != want {
			return fmt.Errorf("%q is not %q", got, want)
		}
		return nil
	})
}

func restartPolicies(t *testing.T, n *node) {
	always := n.awaitContainer(t, "always", "main", func(c container) bool { return c.Ready && c.RestartCount == 1 })
	last := always.LastState.Terminated
	same(t, "always: the exit code", last.ExitCode, 3)
	same(t, "always: the reason", last.Reason, "Error")
	if last.FinishedAt.Before(last.StartedAt) || always.State.Running.StartedAt.Before(last.FinishedAt) {
		t.Errorf("always: times are out of order: %s", always)
	}
	never := n.awaitPod(t, "never", phase("Failed"))
	c, err := never.container("main")
	check(t, err)
	same(t, "never: the number of restarts", c.RestartCount, 0)
	same(t, "never: the exit code", c.State.Terminated.ExitCode, 5)
	same(t, "never: the message", c.State.Terminated.Message, "why it ended\n")
	same(t, "never: the log", n.logs(t, "never", "main", ""), "last words\n")
	onFailure := n.awaitPod(t, "onfailure", phase("Succeeded"))
	c, err = onFailure.container("main")
	check(t, err)
	same(t, "onfailure: the number of restarts", c.RestartCount, 1)
	c, err = onFailure.container("good")
	check(t, err)
	same(t, "onfailure: the number of restarts of what ended well", c.RestartCount, 0)
}

// phase accepts a pod in a phase.
func phase(want string) func(pod) error {
	return func(p pod) error {
		if p.Status.Phase != want {
			return fmt.Errorf("its phase is %q, not %s", p.Status.Phase, want)
		}
		return nil
	}
}

func failures(t *testing.T, n *node) {
	oom := n.awaitPod(t, "oom", phase("Failed"))
	c, err := oom.container("main")
	check(t, err)
	same(t, "out of memory: the reason", c.State.Terminated.Reason, "OOMKilled")
	same(t, "out of memory: the exit code", c.State.Terminated.ExitCode, 137)
	noCommand := n.awaitPod(t, "nocommand", phase("Failed"))
	c, err = noCommand.container("main")
	check(t, err)
	if end := c.State.Terminated; !strings.Contains(end.Message, "/no/such/program") || end.ExitCode == 0 || end.Reason == "Completed" {
		t.Errorf("no command: %s", c)
	}
	c = n.awaitContainer(t, "noimage", "main", func(c container) bool {
		return c.State.Waiting != nil && strings.Contains(c.State.Waiting.Reason, "Pull")
	})
	if !strings.Contains(c.State.Waiting.Message, "missing:v1") {
		t.Errorf("no image: %s", c)
	}
}

func probes(t *testing.T, n *node) {
	for _, name := range []string{"web", "rpc", "exec"} {
		c := n.awaitContainer(t, "probes", name, ready)
		same(t, name+": the number of restarts", c.RestartCount, 0)
	}
	n.awaitContainer(t, "probes", "ill", func(c container) bool { return c.Ready && c.RestartCount == 1 })
	for _, name := range []string{"unready", "hanging"} {
		c := n.awaitContainer(t, "probes", name, running)
		same(t, name+": readiness", c.Ready, false)
		same(t, name+": the number of restarts", c.RestartCount, 0)
	}
	web := n.logs(t, "probes", "web", "")
	for _, path := range []string{"/live", "/ready"} {
		if !strings.Contains(web, "GET "+path+"\n") {
			t.Errorf("%s was not asked for: %q", path, web)
		}
	}
}

func hooks(t *testing.T, n *node) {
	n.awaitContainer(t, "hooks", "main", ready)
	n.awaitContainer(t, "hooks", "web", ready)
	n.awaitTrail("hooks", "started")
	same(t, "what postStart has asked for", n.nextAsked(), "/started")
	n.awaitContainer(t, "hooks", "postless", func(c container) bool {
		return c.RestartCount > 0 || c.State.Waiting != nil && c.State.Waiting.Reason == "PostStartHookError"
	})
}

// nextAsked is the next path that a hook has asked the test for.
func (n *node) nextAsked() string {
	select {
	case path := <-n.asked:
		return path
	case <-time.After(waitTime):
		return "nothing"
	}
}

func volumes(t *testing.T, n *node) {
	n.awaitContainer(t, "volumes", "reader", ready)
	p := n.awaitPod(t, "volumes", phase("Running"))
	kubelets := n.path("kubelet/pods/" + p.Metadata.UID + "/volumes/kubernetes.io~empty-dir/")
	same(t, "the shared file", n.exec(t, "volumes", "reader", "cat /disk/file"), "shared")
	same(t, "the shared file on the node", n.read(kubelets+"/disk/file"), "shared")
	same(t, "the pod's address in its environment", n.exec(t, "volumes", "reader", "cat /disk/ip"), p.Status.PodIP)
	if out := n.exec(t, "volumes", "reader", "stat -f -c %T /memory"); out != "tmpfs" {
		t.Errorf("/memory is on %s", out)
	}
	same(t, "a file of the host", n.exec(t, "volumes", "reader", "cat /host/below/file"), "from the node")
	same(t, "the same file by a path below", n.exec(t, "volumes", "reader", "cat /sub/file"), "from the node")
	n.exec(t, "volumes", "reader", "touch /host/touched")
	if _, err := os.Stat(n.path("host/touched")); err != nil {
		t.Error(err)
	}
	for _, file := range []string{"/disk/no", "/host-ro/no", "/image/no"} {
		if _, err := n.ask(http.MethodPost, "/run/default/volumes-"+nodeName+"/reader?cmd=touch+"+file); err == nil || !strings.Contains(err.Error(), "Read-only") {
			t.Errorf("touch %s: %v", file, err)
		}
	}
	same(t, "a file of the image volume", n.exec(t, "volumes", "reader", "/image/bin/busybox echo works"), "works")
	same(t, "the labels", n.exec(t, "volumes", "reader", "cat /about/labels"), `app="volumes"`)
	same(t, "the name servers", n.exec(t, "volumes", "reader", "cat /etc/resolv.conf"), "search example.org\nnameserver 192.0.2.1")
	same(t, "the host name", n.exec(t, "volumes", "reader", "hostname"), "volumes-"+nodeName)
	if hosts := n.exec(t, "volumes", "reader", "cat /etc/hosts"); !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(p.Status.PodIP) + `\s+volumes-` + nodeName + `$`).MatchString(hosts) {
		t.Errorf("/etc/hosts: %s", hosts)
	}
}

func hostPort(t *testing.T, n *node) {
	p := n.awaitPod(t, "hostport", phase("Running"))
	n.awaitContainer(t, "hostport", "web", ready)
	for _, address := range []string{nodeIP + ":18080", p.Status.PodIP + ":8080"} {
		same(t, "the answer of "+address, fetch(t, "http://"+address), "hostport-"+nodeName+"\n")
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: waitTime}
	answer, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(t, err)
	return string(body)
}

func nodeNamespaces(t *testing.T, n *node) {
	n.awaitContainer(t, "host", "main", ready)
	for _, name := range []string{"net", "pid", "ipc"} {
		own, err := os.Readlink("/proc/self/ns/" + name)
		check(t, err)
		same(t, "namespace "+name, n.exec(t, "host", "main", "readlink /proc/self/ns/"+name), own)
		if other := n.exec(t, "volumes", "reader", "readlink /proc/self/ns/"+name); other == own {
			t.Errorf("pod volumes has the node's namespace %s", name)
		}
	}
}

func sharedProcesses(t *testing.T, n *node) {
	n.awaitContainer(t, "sharedpid", "one", ready)
	n.awaitContainer(t, "sharedpid", "two", ready)
	for _, name := range []string{"one", "two"} {
		all := n.exec(t, "sharedpid", name, "ps")
		for _, command := range []string{"pause", "sleep 3601", "sleep 3602"} {
			if !strings.Contains(all, command) {
				t.Errorf("%s does not see %s:\n%s", name, command, all)
			}
		}
	}
}

func securityContext(t *testing.T, n *node) {
	n.awaitContainer(t, "security", "main", ready)
	n.awaitContainer(t, "security", "privileged", ready)
	ask := func(command string) string { return n.exec(t, "security", "main", command) }
	same(t, "the user", ask("id -u")+":"+ask("id -g")+" "+ask("id -G"), "1000:1001 1001 2000 3000")
	same(t, "the volume's group and mode", ask("stat -c %g:%a /scratch"), "2000:2777")
	same(t, "the first port", ask("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "80")
	status := ask("cat /proc/self/status")
	for _, line := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000400"} {
		if !strings.Contains(status, line+"\n") {
			t.Errorf("no %q in %s", line, status)
		}
	}
	if _, err := n.ask(http.MethodPost, "/run/default/security-"+nodeName+"/main?cmd=touch+/tmp/no"); err == nil || !strings.Contains(err.Error(), "Read-only") {
		t.Errorf("the root can be written to: %v", err)
	}
	privileged := n.exec(t, "security", "privileged", "cat /proc/self/status")
	if !strings.Contains(privileged, "Seccomp:\t0\n") {
		t.Errorf("privileged: %s", privileged)
	}
	if devices := n.exec(t, "security", "privileged", "ls /dev"); !strings.Contains(devices, "kmsg") {
		t.Errorf("privileged: /dev has %q", devices)
	}
}

func userNamespaces(t *testing.T, n *node) {
	n.awaitContainer(t, "users", "main", ready)
	uids := strings.Fields(n.exec(t, "users", "main", "cat /proc/self/uid_map"))
	if len(uids) != 3 || uids[0] != "0" || uids[1] == "0" || uids[2] != "65536" {
		t.Errorf("users: %v", uids)
	}
	same(t, "the file's owner in the pod", n.exec(t, "users", "main", "stat -c %u:%g /scratch/file"), "0:0")
}
