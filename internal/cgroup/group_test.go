package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onEveryTree runs a test with a fresh group of each kind.
func onEveryTree(t *testing.T, test func(t *testing.T, g Group)) {
	t.Helper()
	for name, tree := range liveTrees(t) {
		t.Run(name, func(t *testing.T) { test(t, newGroup(t, tree)) })
	}
}

func TestKill(t *testing.T) {
	for name, script := range map[string]string{
		"nobody":       "echo $$ > $OUTSIDE; echo in",
		"one":          "echo in; exec sleep 1000",
		"a tree":       "sleep 1000 & (sleep 1000 & sleep 1000) & echo in; wait",
		"deaf":         "trap '' TERM INT HUP; echo in; while :; do sleep 1000; done",
		"stopped":      "sleep 1000 & kill -STOP $!; echo in; kill -STOP $$",
		"its own pgrp": "setsid sleep 1000 & echo in; wait",
		"fork loops":   "for i in 1 2 3; do (while :; do /bin/true & wait; done) & done; echo in; wait",
	} {
		t.Run(name, func(t *testing.T) {
			onEveryTree(t, func(t *testing.T, g Group) {
				start(t, g, strings.ReplaceAll(script, "$OUTSIDE", filepath.Join(filepath.Dir(g.KillDir()), "cgroup.procs")))
				if err := g.Kill(limit(t)); err != nil {
					t.Fatal(err)
				}
				wantPids(t, g, 0)
				if err := g.Remove(limit(t)); err != nil {
					t.Error(err)
				}
				wantGone(t, g.dirs)
			})
		})
	}
}

// Each process forks once and ends, so that a list of them is out of date at once.
// Without a freezer to hold them, a Kill that was satisfied with that missed one in eight.
func TestKillOutlastsAForkChain(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		for range 30 {
			start(t, g, "f() { f & }; f; echo in")
			if err := g.Kill(limit(t)); err != nil {
				t.Fatal(err)
			}
			wantPids(t, g, 0)
		}
	})
}

// What was killed stays a zombie for as long as its parent likes: the group is empty.
func TestKillDoesNotWaitForTheParent(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", joining(g)+"echo in; exec sleep 1000")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		awaitIn(t, stdout)
		if err := errors.Join(g.Kill(limit(t)), g.Remove(limit(t))); err != nil {
			t.Error(err)
		}
		wantGone(t, g.dirs)
	})
}

func TestKillReachesNestedGroupsAndNoOthers(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		sub := g.Sub("exec").Sub("deeper")
		beside := g.Sub("beside")
		for _, s := range []Group{sub, beside} {
			if err := s.Create(); err != nil {
				t.Fatal(err)
			}
			start(t, s, "echo in; exec sleep 1000")
		}
		start(t, g, "echo in; exec sleep 1000")
		wantPids(t, g, 3)
		if err := g.Sub("exec").Kill(limit(t)); err != nil {
			t.Fatal(err)
		}
		wantPids(t, sub, 0)
		wantPids(t, beside, 1)
		wantPids(t, g, 2)
		if err := g.Kill(limit(t)); err != nil {
			t.Fatal(err)
		}
		wantPids(t, g, 0)
		if err := g.Remove(limit(t)); err != nil {
			t.Error(err)
		}
		wantGone(t, g.dirs)
	})
}

// A daemon can die between freezing and thawing, and engines inside of a container
// freeze groups of their own. What is frozen does not die.
func TestKillThawsNestedGroups(t *testing.T) {
	tree := liveTrees(t)["v1"]
	if tree == nil {
		t.Skip("v2 kills what is frozen")
	}
	g := newGroup(t, tree)
	sub := g.Sub("exec").Sub("deeper")
	if err := sub.Create(); err != nil {
		t.Fatal(err)
	}
	start(t, sub, "echo in; exec sleep 1000")
	for _, dir := range []string{sub.freezer, g.freezer} {
		if err := os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("FROZEN"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Kill(limit(t)); err != nil {
		t.Fatal(err)
	}
	wantPids(t, g, 0)
}

// A container without a limit can have more processes than the daemon descriptors.
func TestKillNeedsFewDescriptors(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		const processes = 3 * signalBatch
		start(t, g, "for i in $(seq "+strconv.Itoa(processes)+"); do sleep 1000 & done; echo in; wait")
		wantPids(t, g, processes+1)
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		few := unix.Rlimit{Cur: uint64(len(open) + 2*signalBatch + 20), Max: old.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
			t.Fatal(err)
		}
		err = g.Kill(limit(t))
		if back := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil || back != nil {
			t.Fatal(err, back)
		}
		wantPids(t, g, 0)
	})
}

func TestKillEndsWithItsContext(t *testing.T) {
	tree := liveTrees(t)["v1"]
	if tree == nil {
		t.Skip("nothing outlives cgroup.kill")
	}
	g := newGroup(t, tree)
	sub := g.Sub("exec")
	if err := sub.Create(); err != nil {
		t.Fatal(err)
	}
	start(t, sub, "echo in; exec sleep 1000")
	// The group around is not the sub-group's to thaw, so that its process cannot die.
	if err := os.WriteFile(filepath.Join(g.freezer, "freezer.state"), []byte("FROZEN"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(filepath.Join(g.freezer, "freezer.state"), []byte("THAWED"), 0) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := sub.Kill(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), sub.KillDir()) {
		t.Errorf("Kill returned %v", err)
	}
}

func TestKillLeaksNoDescriptor(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		count := func() int {
			fds, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(fds)
		}
		before := count()
		for range 5 {
			start(t, g, "sleep 1000 & sleep 1000 & echo in; wait")
			before += 2 // the pipe and the pidfd of the script's own parent
			if err := g.Kill(limit(t)); err != nil {
				t.Fatal(err)
			}
		}
		if after := count(); after > before+5 {
			t.Errorf("%d descriptors became %d", before, after)
		}
	})
}

func TestAGroupThatDoesNotExist(t *testing.T) {
	for name, tree := range liveTrees(t) {
		t.Run(name, func(t *testing.T) {
			g, err := tree.ContainerGroup(parentName(t), "1")
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range []Group{g, g.Sub("exec")} {
				wantPids(t, g, 0)
				if err := errors.Join(g.Kill(limit(t)), g.Remove(limit(t))); err != nil {
					t.Error(err)
				}
				wantGone(t, g.dirs)
			}
		})
	}
}

// v2 refuses to list the processes of a threaded group; a container can make some.
func TestThreadedGroups(t *testing.T) {
	tree := liveTrees(t)["v2"]
	if tree == nil {
		t.Skip("v2 alone has them")
	}
	g := newGroup(t, tree)
	start(t, g, "echo in; exec sleep 1000")
	sub := g.Sub("threads")
	if err := sub.Create(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub.KillDir(), "cgroup.type"), []byte("threaded"), 0); err != nil {
		t.Fatal(err)
	}
	wantPids(t, g, 1)
	if err := errors.Join(g.Kill(limit(t)), g.Remove(limit(t))); err != nil {
		t.Error(err)
	}
	wantGone(t, g.dirs)
}

func TestRemoveTakesNestedGroups(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		for _, dir := range g.dirs {
			for _, name := range []string{"a/b/c", "a/d", "e"} {
				if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := g.Remove(limit(t)); err != nil {
			t.Fatal(err)
		}
		wantGone(t, g.dirs)
		if _, err := os.Stat(filepath.Dir(g.KillDir())); err != nil {
			t.Errorf("the parent went, too: %v", err)
		}
	})
}

func TestRemoveSparesProcesses(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		start(t, g, "echo in; exec sleep 1000")
		if err := g.Remove(limit(t)); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "crio-1") {
			t.Errorf("Remove returned %v", err)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Remove(over); !errors.Is(err, context.Canceled) {
			t.Errorf("Remove with a context that is over returned %v", err)
		}
		wantPids(t, g, 1)
	})
}

func TestParents(t *testing.T) {
	for name, tree := range liveTrees(t) {
		t.Run(name, func(t *testing.T) {
			top := parentName(t)
			t.Cleanup(func() { sweep(t, tree.group(top, top).dirs) })
			want := []string{top, top + "/pod"}
			missing, err := tree.MissingParents(top + "/pod")
			if err != nil || !slices.Equal(missing, want) {
				t.Fatalf("missing %v, %v, want %v", missing, err, want)
			}
			if err := tree.MakeParents(missing); err != nil {
				t.Fatal(err)
			}
			if left, err := tree.MissingParents(top + "/pod"); err != nil || len(left) > 0 {
				t.Errorf("still missing: %v, %v", left, err)
			}
			// A container whose teardown comes later keeps them, in all hierarchies.
			g, err := tree.ContainerGroup(top+"/pod", "1")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.Create(), tree.RemoveParents(missing)); err != nil {
				t.Fatal(err)
			}
			for _, dir := range g.dirs {
				if _, err := os.Stat(dir); err != nil {
					t.Error(err)
				}
			}
			if err := errors.Join(g.Remove(limit(t)), tree.RemoveParents(missing)); err != nil {
				t.Fatal(err)
			}
			wantGone(t, tree.group(top, top).dirs)
			if err := tree.RemoveParents(missing); err != nil {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

// An empty cpuset refuses every process, and a new one of v1 is empty.
func TestCreateFillsTheCpuset(t *testing.T) {
	tree := liveTrees(t)["v1"]
	if tree == nil || tree.roots["cpuset"] == "" {
		t.Skip("no cpuset of v1")
	}
	g := newGroup(t, tree)
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		want, err := os.ReadFile(filepath.Join(tree.roots["cpuset"], name))
		if err != nil {
			t.Fatal(err)
		}
		for dir := filepath.Join(tree.roots["cpuset"], g.OCIPath()); dir != tree.roots["cpuset"]; dir = filepath.Dir(dir) {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != string(want) {
				t.Errorf("%s/%s is %q, %v, want %q", dir, name, got, err, want)
			}
		}
	}
}

func TestOpenDirStartsProcessesInside(t *testing.T) {
	onEveryTree(t, func(t *testing.T, g Group) {
		dir, err := g.OpenDir()
		if err != nil {
			t.Fatal(err)
		}
		if g.version == 1 {
			if dir != nil {
				t.Error("v1 has no CLONE_INTO_CGROUP")
			}
			return
		}
		defer dir.Close()
		cmd := exec.CommandContext(t.Context(), "sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		if pids := wantPids(t, g, 1); !slices.Contains(pids, cmd.Process.Pid) {
			t.Errorf("pid %d is not in %v", cmd.Process.Pid, pids)
		}
	})
}

func TestOpen(t *testing.T) {
	for _, driver := range []string{"", "CGROUPFS", "none"} {
		if _, err := Open(driver); err == nil {
			t.Errorf("the driver %q was taken", driver)
		}
	}
	for _, driver := range []string{Cgroupfs, Systemd} {
		tree, err := Open(driver)
		if err != nil {
			t.Fatal(err)
		}
		_, noV2 := os.Stat(base + "/cgroup.controllers")
		if tree.Driver() != driver || (tree.Version() == 2) != (noV2 == nil) {
			t.Errorf("driver %s, version %d, cgroup.controllers: %v", tree.Driver(), tree.Version(), noV2)
		}
	}
}
