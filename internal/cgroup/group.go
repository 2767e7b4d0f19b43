package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// Group is one control group by its names. It is a value; nothing needs to exist.
type Group struct {
	oci string
	// path is the group's name below the roots of the hierarchies.
	path    string
	version int
	// below is path as the directories end with it, from its slash on; files has what is
	// before it.
	below string
	files *files
	// of has the directory for each key of Tree.roots; nil for a group made by Sub.
	of    map[string]string
	pages []string // sizes of huge pages
	// dirs are absolute: one in v2, one for each hierarchy in v1.
	dirs []string
	// older are those in which a daemon before this one made the group, too.
	older []string
	// memory, pids and freezer are those of dirs with these controllers. Every
	// process of the group is in pids, whatever else a sub-group is made in.
	memory, pids, freezer string
	// everywhere: a group inside that is in all hierarchies.
	everywhere bool
}

// OCIPath is linux.cgroupsPath of the OCI runtime specification.
func (g Group) OCIPath() string { return g.oci }

// Path names the group as /proc/<pid>/cgroup does.
func (g Group) Path() string { return g.path }

// KillDir is the directory whose tree holds every process of the group.
func (g Group) KillDir() string { return g.pids }

// OOMFile counts the kills of the kernel's OOM killer in a line "oom_kill N".
func (g Group) OOMFile() string {
	if g.version == 2 {
		return filepath.Join(g.memory, "memory.events")
	}
	return filepath.Join(g.memory, "memory.oom_control")
}

// ParentSets are the CPUs and memory nodes that the group's parent may use, and so the
// most that the group itself may; "" where there is no cpuset controller.
func (g Group) ParentSets() (cpus, mems string, err error) {
	suffix := ""
	if g.version == 2 {
		suffix = ".effective"
	}
	read := func(dir, name string) (string, error) {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name+suffix))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return strings.TrimSpace(string(data)), err
	}
	for _, dir := range g.dirs {
		if cpus, err = read(dir, "cpuset.cpus"); err != nil || cpus != "" {
			if err == nil {
				mems, err = read(dir, "cpuset.mems")
			}
			break
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("cgroup %s: %w", g.oci, err)
	}
	return cpus, mems, nil
}

// Sub names a group inside. In v1 it is made where processes are counted and
// frozen only: memory and time stay charged to the container.
func (g Group) Sub(name string) Group {
	s := Group{oci: filepath.Join(g.oci, name), version: g.version, pids: filepath.Join(g.pids, name)}
	s.dirs = []string{s.pids}
	s.memory = filepath.Join(g.memory, name)
	if g.version == 1 && g.freezer != "" {
		s.freezer = filepath.Join(g.freezer, name)
		s.dirs = append(s.dirs, s.freezer)
	}
	return s
}

// SubEverywhere is Sub in every hierarchy, for runtimes whose exec cannot be told in
// which ones. What it uses is charged to the container all the same.
func (g Group) SubEverywhere(name string) Group {
	s := g.Sub(name)
	s.everywhere, s.dirs, s.of = true, nil, map[string]string{}
	for controller, dir := range g.of {
		s.of[controller] = filepath.Join(dir, name)
	}
	for _, dir := range g.dirs {
		s.dirs = append(s.dirs, filepath.Join(dir, name))
	}
	return s
}

// ExecArgs are the options of the runtimes' exec that put a command into the group,
// which must be a Sub (runc) or SubEverywhere (crun) of the container's.
func (g Group) ExecArgs() []string {
	name := filepath.Base(g.oci)
	if g.version == 2 || g.everywhere {
		return []string{"--cgroup", name}
	}
	args := []string{"--cgroup", "pids:" + name}
	if g.freezer != "" {
		args = append(args, "--cgroup", "freezer:"+name)
	}
	return args
}

// createTries: another daemon that ends may take an empty parent away while we make
// the group in it.
const createTries = 3

// Create makes the directories, with their parents. In v1 a new cpuset group is
// empty, and nothing can join it before it has been given its parent's sets.
func (g Group) Create() error {
	for _, dir := range g.dirs {
		err := os.MkdirAll(dir, 0o755)
		for range createTries {
			if !errors.Is(err, fs.ErrNotExist) {
				break
			}
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	// In v1 a new one is useless until it is filled.
	cpuset := g.of["cpuset"]
	if cpuset == "" {
		return nil
	}
	if err := fillCpuset(cpuset); err != nil {
		return fmt.Errorf("cgroup %s: %w", cpuset, err)
	}
	return nil
}

// fillCpuset copies cpuset.cpus and cpuset.mems from the parent, from the root down.
func fillCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		file := filepath.Join(dir, name)
		data, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(data)) != "" {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return err
		}
		if filepath.Base(filepath.Dir(dir)) != "cgroup" {
			if err := fillCpuset(filepath.Dir(dir)); err != nil {
				return err
			}
		}
		if data, err = os.ReadFile(filepath.Join(filepath.Dir(dir), name)); err != nil {
			return err
		}
		if strings.TrimSpace(string(data)) == "" {
			continue
		}
		if err := os.WriteFile(file, data, 0); err != nil {
			return err
		}
	}
	return nil
}

// JoinFiles are the files into which a process of one thread writes "0" to join. Those
// of v1 move that thread alone: cgroup.procs would hold up the forks of the whole node,
// and take a grace period of RCU (10 ms) before it does.
func (g Group) JoinFiles() []string {
	var files []string
	for _, dir := range g.dirs {
		name := "tasks"
		if g.version == 2 || dir == g.of[hybridTree] {
			name = "cgroup.procs"
		}
		files = append(files, filepath.Join(dir, name))
	}
	return files
}

// OpenDir opens the group for clone3's CLONE_INTO_CGROUP, which v2 alone has; nil in v1.
func (g Group) OpenDir() (*os.File, error) {
	if g.version != 2 {
		return nil, nil
	}
	return os.Open(g.memory)
}

// Pids are the processes of the group and of all groups inside it.
func (g Group) Pids() ([]int, error) {
	var pids []int
	var data []byte
	err := walk(g.pids, func(dir string) (err error) {
		data, err = sys.AppendFile(data[:0], dir+"/cgroup.procs")
		if errors.Is(err, unix.EOPNOTSUPP) {
			// Threaded (v2): the processes are listed further up, in the domain's group.
			return nil
		}
		if err != nil {
			return err
		}
		for field := range bytes.FieldsSeq(data) {
			pid, err := strconv.Atoi(string(field))
			if err != nil {
				return fmt.Errorf("cgroup %s: %w", dir, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// Empty tells whether no process is in the group or in one inside it.
func (g Group) Empty() (bool, error) {
	pids, err := g.Pids()
	return len(pids) == 0, err
}

// leafLinks is the number of links of a group without groups inside (kernfs counts one for
// each, besides the two of every directory).
const leafLinks = 2

// walk visits a group and the groups inside it, innermost first. One that has gone
// meanwhile is passed over.
func walk(dir string, visit func(string) error) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		if gone(err) {
			return nil
		}
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Nlink != leafLinks {
		entries, err := os.ReadDir(dir)
		if err != nil && !gone(err) {
			return err
		}
		for _, entry := range entries {
			if entry.IsDir() {
				if err := walk(filepath.Join(dir, entry.Name()), visit); err != nil {
					return err
				}
			}
		}
	}
	if err := visit(dir); !gone(err) {
		return err
	}
	return nil
}

// gone: a group that is removed while it is read answers ENODEV.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// Kill ends every process of the group and of those inside it and returns when
// none is left, or with ctx. nil when there is no such group.
func (g Group) Kill(ctx context.Context) error {
	if _, err := os.Stat(g.pids); gone(err) {
		return nil
	}
	var err error
	if g.version == 2 {
		err = g.killV2(ctx)
	} else {
		err = g.killV1(ctx)
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", g.pids, err)
	}
	return nil
}

// killV2 uses cgroup.kill, which misses no fork, and waits for cgroup.events to say
// "populated 0" (cgroup-v2.rst).
func (g Group) killV2(ctx context.Context) error {
	events, err := os.Open(filepath.Join(g.pids, "cgroup.events"))
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer events.Close()
	err = os.WriteFile(filepath.Join(g.pids, "cgroup.kill"), []byte("1"), 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		var buf [128]byte
		n, err := unix.Pread(int(events.Fd()), buf[:], 0)
		if gone(err) || err == nil && strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		if err != nil {
			return err
		}
		if err := pollFor(ctx, int(events.Fd()), unix.POLLPRI); err != nil {
			return err
		}
	}
}

// killV1 freezes the group where it can, so that no fork escapes, kills what is in
// it, thaws it, and waits for the processes by their pidfds. Only an empty list ends
// it: where processes fork and end all the time, a round may hit none of them.
func (g Group) killV1(ctx context.Context) error {
	for {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		g.freeze()
		fds, err := g.signalAll()
		g.thaw()
		for _, fd := range fds {
			if err == nil {
				err = pollFor(ctx, fd, unix.POLLIN)
			}
		}
		closeAll(fds)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// freeze is best effort: without it the loop around takes more rounds.
func (g Group) freeze() {
	if g.freezer != "" {
		_ = os.WriteFile(filepath.Join(g.freezer, "freezer.state"), []byte("FROZEN"), 0)
	}
}

// thaw reaches the groups inside, too: a daemon that died in Kill or an engine in the
// container may have frozen one, and what is frozen does not die.
func (g Group) thaw() {
	if g.freezer == "" {
		return
	}
	_ = walk(g.freezer, func(dir string) error {
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		return nil
	})
}

// signalBatch bounds the pidfds that are open at a time: a group may have more
// processes than the daemon may have descriptors.
const signalBatch = 64

// signalAll sends SIGKILL to every process and returns pidfds of some of them; the
// caller closes them.
func (g Group) signalAll() ([]int, error) {
	pids, err := g.Pids()
	var waitFor []int
	for batch := range slices.Chunk(pids, signalBatch) {
		if err != nil {
			break
		}
		var fds []int
		if fds, err = g.signal(batch); len(fds) > 0 {
			closeAll(waitFor)
			waitFor = fds
		}
	}
	return waitFor, err
}

// signal sends SIGKILL and returns the pidfds of those that got it. A pid is signalled
// only when the group still lists it after its pidfd was opened, and so is no other's.
func (g Group) signal(pids []int) ([]int, error) {
	byPid := map[int]int{}
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			byPid[pid] = fd
		}
	}
	after, err := g.Pids()
	var fds []int
	for pid, fd := range byPid {
		if err == nil && slices.Contains(after, pid) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			fds = append(fds, fd)
			continue
		}
		unix.Close(fd)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// pollFor waits for events on fd, or for ctx, whose end closes a pipe that is polled too.
func pollFor(ctx context.Context, fd int, events int16) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	var closeWriter sync.Once
	end := func() { closeWriter.Do(func() { unix.Close(pipe[1]) }) }
	stop := context.AfterFunc(ctx, end)
	defer func() {
		stop()
		end()
		unix.Close(pipe[0])
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(pipe[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		switch {
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return ctx.Err()
		}
	}
}

// rmdirTries and rmdirPause bound the wait for a group whose last process has
// ended but has not been taken out yet: the kernel has no event for it.
const (
	rmdirTries = 50
	rmdirPause = 5 * time.Millisecond
)

// Remove removes the group and those inside it. nil when there is none. A process
// in it is an error: Kill comes first.
func (g Group) Remove(ctx context.Context) error {
	for _, dir := range slices.Concat(g.dirs, g.older) {
		if err := walk(dir, func(d string) error { return rmdir(ctx, d) }); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}

func rmdir(ctx context.Context, dir string) error {
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || try == rmdirTries {
			return err
		}
		pause := time.NewTimer(rmdirPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}
