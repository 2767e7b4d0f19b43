package cgroup

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Hasten begins what the next move of a process between cgroups would wait for, and returns
// at once. A runtime that writes its container's process into cgroup.procs waits for a
// grace period of RCU there, some ten milliseconds, unless another move has ended within
// the last grace period (kernel/rcu/sync.c, for cgroup_threadgroup_rwsem). So the daemon
// moves itself to where it is: the first time to wait instead of the runtime, the second
// time to have the effect last for two grace periods more.
//
// While it waits nobody else makes or removes a cgroup: call it when one that is needed
// meanwhile is there. It does nothing in v2, where processes are born in their cgroups, and
// where the daemon does not see its own.
func (t *Tree) Hasten() {
	if t.version == 2 || !t.wholePids || !t.hastening.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer t.hastening.Store(false)
		for range 2 {
			if t.moveToOwn() != nil {
				return // it takes longer
			}
		}
	}()
}

// moveToOwn looks its cgroup up each time: nobody's move of the daemon must be undone.
func (t *Tree) moveToOwn() error {
	own, err := ownCgroup("pids")
	if err != nil {
		return err
	}
	if strings.Contains(own, "..") { // outside of its cgroup namespace (cgroup_namespaces(7))
		return fs.ErrNotExist
	}
	procs, err := os.OpenFile(filepath.Join(t.roots["pids"], own, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer procs.Close()
	_, err = procs.WriteString("0")
	return err
}
