package oci

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What differs for a runtime with a sandbox of its own, such as runsc: the processes
// inside are none of the node's, so that they are named, signalled and waited for by
// the runtime alone. Their numbers are those of the sandbox.

// Kill signals the first process of a container in a sandbox.
func (r Runtime) Kill(ctx context.Context, id string, sig unix.Signal) error {
	if _, err := run(ctx, nil, r.Path, append(r.GlobalArgs(), "kill", id, strconv.Itoa(int(sig)))...); err != nil {
		return fmt.Errorf("runtime kill %s: %w", id, err)
	}
	return nil
}

// KillCommand ends a command that ExecSync gave up in a sandbox, with all that it has
// forked, as far as they still descend from it: there is no cgroup to tell. Without the
// command's PidFile it has not begun.
func (r Runtime) KillCommand(ctx context.Context, e Exec) error {
	data, err := os.ReadFile(e.PidFile)
	if os.IsNotExist(err) || err == nil && len(data) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("exec %s: %w", e.ID, err)
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("exec %s: pid file: %w", e.ID, err)
	}
	killed := map[int]bool{}
	for {
		table, err := run(ctx, nil, r.Path, append(r.GlobalArgs(), "ps", e.ID)...)
		if err != nil {
			return fmt.Errorf("runtime ps %s: %w", e.ID, err)
		}
		found := descendants(string(table), first, killed)
		if len(found) == 0 {
			return nil
		}
		for _, pid := range found {
			killed[pid] = true
			// One that has ended by itself is as good; the next look tells of what it left.
			_, err := run(ctx, nil, r.Path, append(r.GlobalArgs(), "kill", "--pid", strconv.Itoa(pid), e.ID, "9")...)
			if err != nil && ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
}

// descendants are the processes in the runtime's table (UID, PID, PPID, ...) that are
// first or come from it, or from one that was killed before, and were not killed themselves.
func descendants(table string, first int, killed map[int]bool) []int {
	parent := map[int]int{}
	var order []int
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		pid, err1 := strconv.Atoi(fields[1])
		ppid, err2 := strconv.Atoi(fields[2])
		if err1 == nil && err2 == nil && parent[pid] == 0 {
			parent[pid], order = ppid, append(order, pid)
		}
	}
	var found []int
	for _, pid := range order {
		at := pid
		for range order {
			if at == first || killed[at] || parent[at] == 0 {
				break
			}
			at = parent[at]
		}
		if (at == first || killed[at]) && !killed[pid] {
			found = append(found, pid)
		}
	}
	return found
}
