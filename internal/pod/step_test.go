package pod

import (
	"errors"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The tables are the whole specification: every pair of phase and event that they
// do not list has to be refused and to leave the value as it was.

func TestSandboxStepExhaustively(t *testing.T) {
	type state struct {
		phase    SandboxPhase
		stopping bool
	}
	states := []state{
		{SandboxCreating, false}, {SandboxReady, false}, {SandboxNotReady, false}, {SandboxNotReady, true}, {SandboxRemoving, true}, {SandboxGone, true},
	}
	events := map[string]SandboxEvent{
		"made": SandboxMade{}, "stop": StopRequest{}, "stopped": SandboxStopped{},
		"lost": SandboxLost{}, "resources": SandboxResources{},
		"removal": SandboxRemoval{}, "removed": SandboxRemoved{},
	}
	ready, notReady, removing, gone := string(SandboxReady), string(SandboxNotReady), string(SandboxRemoving), string(SandboxGone)
	legal := map[state]map[string]string{
		{SandboxCreating, false}: {"made": ready, "removal": removing},
		{SandboxReady, false}:    {"stop": notReady, "lost": notReady, "resources": ready, "removal": removing},
		{SandboxNotReady, false}: {"stop": notReady, "lost": notReady, "resources": notReady, "removal": removing},
		{SandboxNotReady, true}:  {"stop": notReady, "stopped": notReady, "lost": notReady, "resources": notReady, "removal": removing},
		{SandboxRemoving, true}:  {"removal": removing, "removed": gone},
	}
	for _, s := range states {
		for name, event := range events {
			next, err := Sandbox{ID: "x", Phase: s.phase, StopRequested: s.stopping}.Step(event)
			check(t, string(s.phase), name, legal[s][name], string(next.Phase), err)
		}
	}
}

func TestContainerStepExhaustively(t *testing.T) {
	type state struct {
		phase     ContainerPhase
		requested bool
	}
	states := []state{
		{ContainerCreating, false}, {ContainerCreated, false}, {ContainerCreated, true}, {ContainerRunning, true},
		{ContainerExited, true}, {ContainerRemoving, true}, {ContainerGone, true},
	}
	events := map[string]ContainerEvent{
		"made": ContainerMade{}, "request": StartRequest{}, "undone": StartUndone{}, "started": Started{},
		"update": UpdateRequest{&cri.LinuxContainerResources{}}, "updated": Updated{},
		"failed": StartFailed{}, "ended": Ended{}, "removal": ContainerRemoval{}, "removed": ContainerRemoved{},
	}
	created, running, exited, removing, gone := string(ContainerCreated), string(ContainerRunning), string(ContainerExited), string(ContainerRemoving), string(ContainerGone)
	legal := map[state]map[string]string{
		{ContainerCreating, false}: {"made": created, "removal": removing},
		{ContainerCreated, false}:  {"request": created, "update": created, "failed": exited, "ended": exited, "removal": removing},
		{ContainerCreated, true}:   {"undone": created, "update": created, "started": running, "failed": exited, "ended": exited, "removal": removing},
		{ContainerRunning, true}:   {"update": running, "ended": exited, "removal": removing},
		{ContainerExited, true}:    {"removal": removing},
		{ContainerRemoving, true}:  {"removal": removing, "removed": gone},
	}
	for _, s := range states {
		for name, event := range events {
			next, err := Container{ID: "x", Phase: s.phase, StartRequested: s.requested}.Step(event)
			check(t, string(s.phase), name, legal[s][name], string(next.Phase), err)
		}
	}
}

func check(t *testing.T, phase, event, want, got string, err error) {
	t.Helper()
	if want == "" {
		var refused *TransitionError
		if !errors.As(err, &refused) || got != phase {
			t.Errorf("%s in %s: got phase %s and %v, want a refusal that changes nothing", event, phase, got, err)
		}
		return
	}
	if err != nil || got != want {
		t.Errorf("%s in %s: got phase %s and %v, want %s", event, phase, got, err, want)
	}
}

func TestReasonOfAnEnd(t *testing.T) {
	for _, c := range []struct {
		event Ended
		want  string
	}{
		{Ended{Code: 0}, ReasonCompleted},
		{Ended{Code: 1}, ReasonError},
		{Ended{Code: 137, Signal: 9}, ReasonError},
		{Ended{Code: 137, Signal: 9, OOMKilled: true}, ReasonOOMKilled},
		// A child was killed and the first process ended well: the counter moved all the same.
		{Ended{Code: 0, OOMKilled: true}, ReasonOOMKilled},
		{Ended{Code: 255, Reason: ReasonMonitorLost}, ReasonMonitorLost},
	} {
		next, err := Container{Phase: ContainerRunning}.Step(c.event)
		if err != nil || next.Reason != c.want {
			t.Errorf("%+v: got %q, %v, want %q", c.event, next.Reason, err, c.want)
		}
	}
}

// An update is in force when it is told to be, and not before.
func TestUpdateOfResources(t *testing.T) {
	old, wanted := &cri.LinuxContainerResources{CpuShares: 2}, &cri.LinuxContainerResources{CpuShares: 3}
	c := Container{Phase: ContainerRunning, Resources: old}
	asked, err := c.Step(UpdateRequest{wanted})
	if err != nil || asked.Resources != old || asked.Update != wanted {
		t.Fatalf("%+v, %v", asked, err)
	}
	done, err := asked.Step(Updated{wanted})
	if err != nil || done.Resources != wanted || done.Update != nil || done.Phase != ContainerRunning {
		t.Errorf("%+v, %v", done, err)
	}
	if ended, err := asked.Step(Ended{}); err != nil || ended.Resources != old || ended.Update != nil {
		t.Errorf("%+v, %v", ended, err)
	}
}

// A reader's copy must not change under it.
func TestStepLeavesTheOldValue(t *testing.T) {
	old := Container{ID: "x", Phase: ContainerRunning}
	if _, err := old.Step(Ended{Code: 3, At: 9}); err != nil {
		t.Fatal(err)
	}
	if old.Phase != ContainerRunning || old.ExitCode != 0 || old.FinishedAt != 0 {
		t.Errorf("the value before the step is now %+v", old)
	}
}

func TestStoppedSandboxGivesUpItsAddresses(t *testing.T) {
	s := Sandbox{Phase: SandboxReady, Network: &Network{IPs: []string{"10.0.0.2"}}}
	lost, err := s.Step(SandboxLost{})
	if err != nil || lost.Network == nil {
		t.Fatalf("a lost sandbox still owes a DEL: %+v, %v", lost.Network, err)
	}
	asked, err := lost.Step(StopRequest{})
	if err != nil || asked.Network == nil || len(asked.IPs()) != 0 {
		t.Fatalf("a sandbox that is being stopped still owes a DEL, and has no address for anybody: %+v, %v", asked.Network, err)
	}
	stopped, err := asked.Step(SandboxStopped{})
	if err != nil || stopped.StopRequested || stopped.Network != nil {
		t.Fatalf("a stopped sandbox holds %+v, %v", stopped.Network, err)
	}
}

func TestIDs(t *testing.T) {
	if id := NewID(); !ValidID(id) {
		t.Errorf("%q is not valid", id)
	}
	for _, bad := range []string{"", "..", "../../etc", NewID()[1:], NewID() + "0", "G" + NewID()[1:], "A" + NewID()[1:]} {
		if ValidID(bad) {
			t.Errorf("%q is taken as an ID", bad)
		}
	}
}
