package sys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// StartTime is field 22 of /proc/<pid>/stat: clock ticks between boot and the start
// of the process. With the pid it identifies a process for as long as the node is up.
// The error is fs.ErrNotExist when there is no such process.
func StartTime(pid int) (ticks uint64, err error) {
	s, err := readStat(pid)
	return s.start, err
}

// Alive tells whether the process that began at startTicks still runs. A zombie does not.
func Alive(pid int, startTicks uint64) bool {
	s, err := readStat(pid)
	return err == nil && s.start == startTicks && s.state != 'Z' && s.state != 'X'
}

// Signal sends sig to the process that began at startTicks, and to no other that has
// its pid meanwhile. nil when the process is gone.
func Signal(pid int, startTicks uint64, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
		// The pid is a thread's by now (which of the two depends on the kernel), or it
		// is not positive, and never means a group as it does for kill(2).
		return nil
	case err != nil:
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// After the open: if the pid names the right process now, then it did at the open,
	// because a process that was there before cannot have begun as late as this one.
	if s, err := readStat(pid); errors.Is(err, fs.ErrNotExist) || err == nil && s.start != startTicks {
		return nil
	} else if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %d to %d: %w", sig, pid, err)
	}
	return nil
}

type stat struct {
	state byte
	start uint64
}

func readStat(pid int) (stat, error) {
	name := "/proc/" + strconv.Itoa(pid) + "/stat"
	data, err := os.ReadFile(name)
	if errors.Is(err, unix.ESRCH) {
		// It ended between the open and the read.
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return stat{}, fmt.Errorf("process %d: %w", pid, err)
	}
	s, ok := parseStat(data)
	if !ok {
		return stat{}, fmt.Errorf("process %d: %s: unexpected form", pid, name)
	}
	return s, nil
}

// parseStat reads proc_pid_stat(5). The second field may hold spaces and
// parentheses, so that fields count from the last parenthesis.
func parseStat(data []byte) (stat, bool) {
	const stateField, startField = 0, 22 - 3
	_, rest, ok := bytes.Cut(data[bytes.LastIndexByte(data, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) <= startField || len(fields[stateField]) != 1 {
		return stat{}, false
	}
	start, err := strconv.ParseUint(string(fields[startField]), 10, 64)
	return stat{state: fields[stateField][0], start: start}, err == nil
}
