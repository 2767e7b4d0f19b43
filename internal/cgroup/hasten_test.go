package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// A runtime's move of its container did wait for the kernel. It must not, once Hasten has
// waited, and what hastens stays in its own cgroup.
func TestHastenedMoveDoesNotWait(t *testing.T) {
	tree := liveTrees(t)["v1"]
	if tree == nil || tree.moveToOwn() != nil {
		t.Skip("v2, or no view of its own cgroup: there is nothing to hasten")
	}
	g := newGroup(t, tree)
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	inside := filepath.Join(g.of["pids"], "cgroup.procs")
	outside := filepath.Join(filepath.Dir(g.of["pids"]), "cgroup.procs")
	own := cgroupsOf(t)
	move := func(hasten bool) time.Duration {
		time.Sleep(100 * time.Millisecond) // until earlier moves have no effect
		if hasten {
			tree.Hasten()
			for tree.hastening.Load() {
				time.Sleep(time.Millisecond)
			}
		}
		begun := time.Now()
		if err := os.WriteFile(inside, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		if err := os.WriteFile(outside, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		return took
	}
	var plain, hastened []time.Duration
	for range 9 {
		plain, hastened = append(plain, move(false)), append(hastened, move(true))
	}
	if now := cgroupsOf(t); now != own {
		t.Errorf("the daemon was in %s and is in %s", own, now)
	}
	slices.Sort(plain)
	slices.Sort(hastened)
	t.Logf("median move: %s, hastened %s", plain[4], hastened[4])
	if plain[4] < 4*time.Millisecond {
		t.Skip("moves do not wait: somebody else's are under way, or the kernel has no such wait")
	}
	if plain[4]-hastened[4] < 2*time.Millisecond {
		t.Errorf("a hastened move took %s, one that is not %s", hastened[4], plain[4])
	}
}

func cgroupsOf(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
