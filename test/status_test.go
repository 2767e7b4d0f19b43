package test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusCommand is what `crio status` prints.
func (n *node) statusCommand() string {
	n.t.Helper()
	out, err := exec.Command(binary(n.t, "race/crio"), "--config", n.path("crio.conf"), "--config-dir", n.path("crio.conf.d"), "status").CombinedOutput()
	if err != nil {
		n.t.Errorf("crio status: %v\n%s", err, out)
	}
	return string(out)
}

// dump is what SIGUSR1 has the daemon write.
func (n *node) dump() (text string) {
	n.t.Helper()
	path := n.path("run/status.txt")
	signal(n.t, n.daemon.Process.Pid, syscall.SIGUSR1)
	n.await("the answer to SIGUSR1", func() error {
		data, err := os.ReadFile(path)
		text = string(data)
		return err
	})
	if err := os.Remove(path); err != nil {
		n.t.Error(err)
	}
	return text
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("no %q in\n%s", word, text)
		}
	}
}

// What the daemon holds, does, cannot do, and has set aside: by crio status, and by SIGUSR1
// with what its goroutines do.
func TestStatusTellsWhatIsWrong(t *testing.T) {
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "99")
	id := n.runContainer(box, pod, config)
	hurt := n.runContainer(box, pod, n.containerConfig(image, "sleep", "99"))
	blocked := n.runPod(n.podConfig())
	n.kill()
	record := n.path("state/containers/" + hurt)
	good, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, slices.Concat(good[:len(good)-9], []byte("garbled\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	n.reconfigure(`plugin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]`, fmt.Sprintf("plugin_dirs = [%q]", n.path("plugins")))
	n.start()
	if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: blocked}); err == nil {
		t.Error("a pod was removed without plugins")
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_, _ = n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 3})
	}()
	words := []string{
		"sandbox ", box, "test/" + pod.GetMetadata().GetName() + ", ready", "container ", id, config.GetMetadata().GetName() + ", running",
		"blocked ", blocked, "cni del", "set aside ", n.path("state/quarantine/containers-" + hurt), "put a good record back, or delete the file",
	}
	wantWords(t, n.statusCommand(), words...)
	text := n.dump()
	wantWords(t, text, words...)
	wantWords(t, text, "goroutine ", "runtime/pprof", "engine.(*Engine).StopContainer")
	<-stopped

	if err := os.Symlink("/usr/lib/cni", n.path("plugins")); err != nil {
		t.Fatal(err)
	}
	n.kill()
	if err := os.WriteFile(record, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(n.path("state/quarantine/containers-" + hurt)); err != nil {
		t.Fatal(err)
	}
	n.start()
	if report := n.status(); len(report.Quarantined) > 0 {
		t.Errorf("set aside: %v", report.Quarantined)
	}
}
