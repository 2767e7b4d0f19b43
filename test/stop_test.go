package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const day = 24 * 60 * 60

// stubborn is a container that takes no signal.
func (n *node) stubborn(image string) (id, log string) {
	n.t.Helper()
	pod := n.podConfig()
	config := n.containerConfig(image, shell("trap '' TERM; echo up; while true; do sleep 1; done")...)
	id = n.runContainer(n.runPod(pod), pod, config)
	n.awaitLog(logOf(pod, config), "up")
	return id, logOf(pod, config)
}

// stopping begins stops that are not expected to end soon, and returns when they are
// under way. Each gives its result to the channel.
func (n *node) stopping(id string, clients int) chan error {
	n.t.Helper()
	results := make(chan error, clients)
	for range clients {
		go func() {
			_, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: day})
			results <- err
		}()
	}
	n.await("the stop", func() error {
		for _, op := range n.status().Operations {
			if op.Kind == "stop container" && op.Object == id && op.Stage == "grace period" {
				return nil
			}
		}
		return errors.New("crio status does not know it")
	})
	return results
}

// A pod that is given a day to end holds up nobody: not another stop of it, not commands
// in it, not its status, not its log, not other pods.
func TestStopOfADayHoldsUpNobody(t *testing.T) {
	n, image := readyNode(t, options{})
	id, log := n.stubborn(image)
	results := n.stopping(id, 1)
	timed := func(what string, call func() error) {
		t.Helper()
		begun := time.Now()
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		// A start of the runtime takes long on a busy machine; a wait for the stop would take a day.
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s took %s", what, took)
		}
	}
	timed("exec", func() error {
		if out := n.exec(id, "echo", "here").GetStdout(); string(out) != "here\n" {
			return fmt.Errorf("output %q", out)
		}
		return nil
	})
	n.answersInTime()
	n.inTime("status of it", statusTime, func() error {
		a, err := n.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id})
		if s := a.GetStatus(); err == nil && s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("%v", s)
		}
		return err
	})
	n.inTime("statistics of it", statusTime, func() error {
		return second(n.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id}))
	})
	n.inTime("list of statistics", statusTime, func() error {
		return second(n.ListContainerStats(n.ctx(), &cri.ListContainerStatsRequest{}))
	})
	timed("log", func() error {
		if err := os.Rename(log, log+".1"); err != nil {
			return err
		}
		_, err := n.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id})
		if err == nil {
			_, err = os.Stat(log)
		}
		return err
	})
	timed("update", func() error {
		_, err := n.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 512},
		})
		return err
	})
	timed("another pod", func() error {
		pod := n.podConfig()
		other := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "true"))
		n.exited(other)
		return nil
	})
	select {
	case err := <-results:
		t.Errorf("the stop of a day has returned: %v", err)
	default:
	}
	timed("stop with 0", func() error {
		_, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id})
		return err
	})
	if err := <-results; err != nil {
		t.Errorf("the stop of a day: %v", err)
	}
	if s := n.container(id); s.GetExitCode() != 137 {
		t.Errorf("at the end: %v", s)
	}
}

// Fifty clients stop one container, which is in no hurry, and five who are join them.
func TestFiftyStopsAtOnce(t *testing.T) {
	n, image := readyNode(t, options{})
	id, _ := n.stubborn(image)
	results := n.stopping(id, 50)
	n.await("all fifty of them", func() error {
		if waiting := strings.Count(string(n.get("/debug/goroutines")), "engine.(*Engine).stopContainer("); waiting != 50 {
			return fmt.Errorf("%d wait", waiting)
		}
		return nil
	})
	var hurry sync.WaitGroup
	for range 5 {
		hurry.Go(func() {
			if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
	hurry.Wait()
	for range 50 {
		if err := <-results; err != nil {
			t.Errorf("stop of a day: %v", err)
		}
	}
	if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 137 {
		t.Errorf("at the end: %v", s)
	}
	for _, op := range n.status().Operations {
		if op.Kind == "stop container" {
			t.Errorf("after the end: %+v", op)
		}
	}
}

// A stop that a restart cut off: the container runs on, and can be stopped as before.
func TestStopAcrossARestart(t *testing.T) {
	n, image := readyNode(t, options{})
	id, _ := n.stubborn(image)
	results := n.stopping(id, 1)
	n.kill()
	if err := <-results; status.Code(err) != codes.Unavailable {
		t.Errorf("the stop of a daemon that is gone: %v", err)
	}
	n.start()
	if s := n.container(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the restart: %v", s)
	}
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if s := n.container(id); s.GetExitCode() != 137 {
		t.Errorf("at the end: %v", s)
	}
}

// A process that cannot be killed, for its disk does not answer: the stop names it and
// gives up, nobody else waits, and it can be stopped and removed when the disk is back.
func TestStopOfAProcessThatCannotDie(t *testing.T) {
	n, image := readyNode(t, options{env: []string{"CONTAINER_CTR_STOP_TIMEOUT=1"}})
	dir := n.ext4("frozen", 16)
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, shell("echo up; while true; do echo x > /data/file; sleep 0.01; done")...)
	config.Mounts = []*cri.Mount{{ContainerPath: "/data", HostPath: dir}}
	id := n.runContainer(box, pod, config)
	n.awaitLog(logOf(pod, config), "up")
	n.freeze(dir, fifreeze)
	thawed := false
	t.Cleanup(func() {
		if !thawed {
			n.freeze(dir, fithaw)
		}
	})
	n.await("state D", func() error {
		for pid := range n.pids() {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if strings.Contains(string(stat), ") D ") {
				return nil
			}
		}
		return fmt.Errorf("no process is in it")
	})
	_, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "state D") {
		t.Errorf("stop: %v", err)
	}
	// The removal of the pod is asked for, too, by a client who does not wait for long.
	short, cancel := context.WithTimeout(n.ctx(), time.Second)
	defer cancel()
	if _, err := n.RemovePodSandbox(short, &cri.RemovePodSandboxRequest{PodSandboxId: box}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("remove pod: %v", err)
	}
	n.await("the reason in crio status", func() error {
		for _, b := range n.status().Blocked {
			if b.ID == box && strings.Contains(b.Reason, "state D") {
				return nil
			}
		}
		return errors.New("the removal is not blocked")
	})
	begun := time.Now()
	for range 20 {
		if _, err := n.ListContainers(n.ctx(), &cri.ListContainersRequest{}); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("20 lists took %s", took)
	}
	n.wantWorking(n.podConfig(), image)
	n.freeze(dir, fithaw)
	thawed = true
	if _, err := n.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("stop when the disk is back: %v", err)
	}
	if _, err := n.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Errorf("removal when the disk is back: %v", err)
	}
}
