package pod

import "testing"

// Each way through a life has one event for each thing that a client sees of it.
func TestChangesOfAContainer(t *testing.T) {
	for name, life := range map[string]struct {
		phases  []ContainerPhase
		changes []Change
	}{
		"whole":               {[]ContainerPhase{ContainerCreating, ContainerCreated, ContainerRunning, ContainerExited, ContainerRemoving, ContainerGone}, []Change{SeenCreated, SeenStarted, SeenStopped, Unseen, SeenDeleted}},
		"start is asked for":  {[]ContainerPhase{ContainerCreated, ContainerCreated, ContainerRunning, ContainerRunning}, []Change{Unseen, SeenStarted, Unseen}},
		"could not be made":   {[]ContainerPhase{ContainerCreating, ContainerRemoving, ContainerGone}, []Change{SeenCreated, SeenDeleted}},
		"start failed":        {[]ContainerPhase{ContainerCreated, ContainerExited, ContainerRemoving, ContainerGone}, []Change{SeenStopped, Unseen, SeenDeleted}},
		"removed as it runs":  {[]ContainerPhase{ContainerRunning, ContainerRemoving, ContainerGone}, []Change{SeenStopped, SeenDeleted}},
		"removed before that": {[]ContainerPhase{ContainerCreated, ContainerRemoving, ContainerGone}, []Change{SeenStopped, SeenDeleted}},
	} {
		for i, want := range life.changes {
			if got := life.phases[i].Change(life.phases[i+1]); got != want {
				t.Errorf("%s: from %s to %s: change %d, want %d", name, life.phases[i], life.phases[i+1], got, want)
			}
		}
	}
}

func TestChangesOfASandbox(t *testing.T) {
	for name, life := range map[string]struct {
		phases  []SandboxPhase
		changes []Change
	}{
		"whole":              {[]SandboxPhase{SandboxCreating, SandboxReady, SandboxNotReady, SandboxRemoving, SandboxGone}, []Change{SeenStarted, SeenStopped, Unseen, SeenDeleted}},
		"network requested":  {[]SandboxPhase{SandboxCreating, SandboxCreating, SandboxReady, SandboxReady}, []Change{Unseen, SeenStarted, Unseen}},
		"could not be made":  {[]SandboxPhase{SandboxCreating, SandboxRemoving, SandboxGone}, []Change{SeenCreated, SeenDeleted}},
		"lost, then stopped": {[]SandboxPhase{SandboxReady, SandboxNotReady, SandboxNotReady}, []Change{SeenStopped, Unseen}},
		"removed as it is":   {[]SandboxPhase{SandboxReady, SandboxRemoving, SandboxGone}, []Change{SeenStopped, SeenDeleted}},
	} {
		for i, want := range life.changes {
			if got := life.phases[i].Change(life.phases[i+1]); got != want {
				t.Errorf("%s: from %s to %s: change %d, want %d", name, life.phases[i], life.phases[i+1], got, want)
			}
		}
	}
}
