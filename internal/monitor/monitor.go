// Package monitor is the daemon's client of conmon: it starts one beside each
// container, speaks its protocol (conmon/PROTOCOL.md) and reads its exit records.
package monitor

import (
	"errors"
	"fmt"
)

// Names inside Spec.RunDir. conmon makes and removes them; config.json is the caller's.
const (
	socketName = "ctl"
	exitName   = "exit"
)

var (
	// ErrGone: no monitor listens in the run directory. It has ended, or never was;
	// ReadExit tells which.
	ErrGone = errors.New("no monitor listens")
	// ErrNoAnswer: the monitor closed the connection before it said anything. It may
	// have no room for one more, or have just ended: another attempt tells.
	ErrNoAnswer = errors.New("the monitor does not answer")
	// ErrLost: the connection ended without an exit, and there is no exit record. Only
	// a monitor that was killed does this.
	ErrLost = errors.New("the monitor ended without an exit record")
	// ErrClosed: the connection was closed, by Close or because the monitor ended.
	ErrClosed = errors.New("the connection to the monitor is closed")
)

// StartError says why the container does not run. None of its processes is left; its
// cgroups' directories may be.
type StartError struct {
	// Message is the OCI runtime's own error text, or what failed in the monitor.
	Message string
}

func (e *StartError) Error() string { return e.Message }

// State of what a monitor watches. The numbers are those of the protocol.
type State uint32

const (
	// Creating: the OCI runtime's create runs.
	Creating State = iota
	// Created: the first process exists, the OCI runtime's start runs.
	Created
	// Running: the first process runs the container's program.
	Running
	// Exited: the exit record is written, or about to be.
	Exited
	// Failed: the OCI runtime refused the container.
	Failed
)

func (s State) String() string {
	switch s {
	case Creating:
		return "creating"
	case Created:
		return "created"
	case Running:
		return "running"
	case Exited:
		return "exited"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// Status is what the monitor knows of the container's first process.
type Status struct {
	State State
	// Pid is 0 until the process exists; as the daemon's PID namespace sees it.
	Pid int
	// StartTicks is field 22 of /proc/<pid>/stat: with Pid it names the process for good.
	StartTicks uint64
	// StartedAt is when the OCI runtime was told to start it, in nanoseconds since the epoch; 0 before.
	StartedAt int64
	// Dropped is how many bytes of output the log did not take, without line ends.
	Dropped uint64
}

// Spec says what a monitor runs and where. All paths are absolute.
type Spec struct {
	// ID is the container's name to the OCI runtime.
	ID string
	// Path is the conmon binary.
	Path string
	// RunDir is the container's own directory, the OCI bundle: config.json is in it
	// already. The monitor adds ctl, pid, exit.
	RunDir string
	// Runtime is the OCI runtime's binary, RuntimeArgs come before its sub-command.
	Runtime     string
	RuntimeArgs []string
	// LogPath is the CRI log file, made if need be in a directory that exists; "" drops
	// the output. LogSizeMax in bytes empties the file before it would be exceeded; 0 is
	// no limit.
	LogPath    string
	LogSizeMax int64
	// TTY gives the container a pseudo-terminal. Stdin keeps its input open for attached
	// clients, StdinOnce closes it when the first of them is done.
	TTY, Stdin, StdinOnce bool
	// Sandboxed: the first process is inside of a sandbox that other containers share. The
	// runtime's wait tells its end, its Pid is 0, and Kill fails with ESRCH.
	Sandboxed bool
	// StdioUID and StdioGID are whose the pipes are on which the container's output comes,
	// by the IDs of the node.
	StdioUID, StdioGID uint32
	// JoinCgroup are the files by which the monitor, which has one thread, joins its own cgroup. Where CgroupFD,
	// the descriptor of a v2 cgroup directory, is above 0, the monitor is born in that
	// one instead. The descriptor stays the caller's.
	JoinCgroup []string
	CgroupFD   int
	// KillCgroup are the directories of the container's cgroup, one for each hierarchy:
	// what is in them or below dies with the first process.
	KillCgroup []string
	// OOMFile is the container's memory.events (v2) or memory.oom_control (v1). PodOOMFile
	// is the pod's, asked when the container's has gone before it could be read.
	OOMFile, PodOOMFile string
	// Env is the environment of the monitor and of the OCI runtime, after a default PATH.
	Env []string
}

// Exit is a container's end.
type Exit struct {
	ID  string
	Pid int
	// Code is 0 to 255; 128+Signal for a process that a signal ended; 128 with a
	// Message for a container that never ran.
	Code   int32
	Signal int
	// OOM: the kernel's OOM killer ended at least one process of the container.
	OOM bool
	// StartedAt and FinishedAt are nanoseconds since the epoch; StartedAt is 0 when it never ran.
	StartedAt, FinishedAt int64
	// Dropped and Written count bytes of output that the log did not take and took,
	// without line ends and framing.
	Dropped, Written uint64
	// Message explains an end that is not the process's own; "" mostly.
	Message string
}
