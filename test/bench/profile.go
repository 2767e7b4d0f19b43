package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// traced are the calls that are counted. Threads are no forks.
const traced = "execve,clone,clone3,fork,vfork,fsync,fdatasync,sync,syncfs,write,pwrite64,writev,pwritev,sendfile,copy_file_range," +
	"openat,open,openat2,creat,rename,renameat,renameat2,mount,umount2,flock,fcntl,connect"

// counted is what one program did in one step.
type counted struct {
	execs, forks, syncs, opens, renames, mounts, locks, buses int
	// bytes that were written into files.
	bytes int64
}

// trace counts what a process and its descendants do, from strace's output.
type trace struct {
	programs map[int]string // by thread
	steps    []span
	// counts by step, then by program.
	counts map[string]map[string]*counted
	// By program and file, with IDs left out.
	written map[string]int64
	synced  map[string]int
}

func newTrace() *trace {
	return &trace{programs: map[int]string{}, counts: map[string]map[string]*counted{}, written: map[string]int64{}, synced: map[string]int{}}
}

// span is a step's time.
type span struct {
	row          string
	begun, ended time.Time
}

// profile takes one pod through its life while crio is traced: alone, and beside others,
// which tells what grows with their number.
func (b *bench) profile(ctx context.Context) error {
	d, handler := b.daemons[0], b.handlerNames()[0]
	alone, err := b.traceLife(ctx, d, handler, "profile-alone")
	if err != nil {
		return err
	}
	var pods []*pod
	for i := range b.pods {
		p, err := d.runningPod(ctx, handler, fmt.Sprint("profile-", i))
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	beside, err := b.traceLife(ctx, d, handler, "profile-beside")
	if err != nil {
		return err
	}
	b.Profile = alone.text() + alone.growth(beside, len(pods))
	return d.removePods(ctx, pods)
}

func (b *bench) traceLife(ctx context.Context, d *daemon, handler, name string) (*trace, error) {
	// What is done once is done.
	if _, err := d.life(ctx, handler, name+"-first"); err != nil {
		return nil, err
	}
	// What follows a removal is over.
	if err := pause(ctx, settleTime); err != nil {
		return nil, err
	}
	pid, err := d.pid()
	if err != nil {
		return nil, err
	}
	t := newTrace()
	output := b.path("strace")
	tracer, err := attachTracer(pid, output)
	if err != nil {
		return nil, err
	}
	_, err = walk(d.steps(ctx, handler, name), func(row string, begun, ended time.Time) {
		t.steps = append(t.steps, span{row, begun, ended})
	})
	err = errors.Join(err, pause(ctx, settleTime), tracer.Process.Signal(unix.SIGINT))
	_ = tracer.Wait() // its exit code is the signal's
	if err != nil {
		return nil, err
	}
	in, err := os.Open(output)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return t, t.read(in)
}

// attachTracer returns once the tracer has every thread of the process.
func attachTracer(pid int, output string) (*exec.Cmd, error) {
	// -y names files, which tells them from pipes and sockets.
	tracer := exec.Command("strace", "-f", "-y", "-ttt", "-s", "256", "-e", "signal=none", "-e", "trace="+traced, "-o", output, "-p", strconv.Itoa(pid))
	words, err := tracer.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := tracer.Start(); err != nil {
		return nil, fmt.Errorf("%w: install strace", err)
	}
	first, err := bufio.NewReader(words).ReadString('\n')
	if !strings.Contains(first, "attached") {
		return nil, errors.Join(err, fmt.Errorf("strace: %s", first), tracer.Wait())
	}
	go func() { _, _ = io.Copy(io.Discard, words) }()
	return tracer, nil
}

// Lines of strace: "PID TIME call(arguments) = result", where a call that another
// thread's interrupts is in two: "call(arguments <unfinished ...>" and
// "<... call resumed>arguments) = result".
var (
	lineForm   = regexp.MustCompile(`^(\d+) +(\d+\.\d+) (?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)$`)
	fileForm   = regexp.MustCompile(`^\d+<(/[^>]*)>`)
	randomForm = regexp.MustCompile(`\.[0-9A-Z]{10,26}$`)
	idForm     = regexp.MustCompile(`[0-9a-f]{32,64}|\d{4,}`)
)

func (t *trace) read(in io.Reader) error {
	unfinished := map[int]string{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := lineForm.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			return err
		}
		seconds, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		call, rest := m[3], m[4]
		if begun, ok := strings.CutSuffix(rest, " <unfinished ...>"); ok {
			unfinished[pid] = begun
			continue
		}
		if strings.Contains(lines.Text(), "<... ") {
			rest = unfinished[pid] + rest
			delete(unfinished, pid)
		}
		at := strings.LastIndex(rest, " = ")
		if at < 0 {
			continue
		}
		result, _, _ := strings.Cut(rest[at+3:], " ")
		result, _, _ = strings.Cut(result, "<") // the name of a file that was opened
		value, err := strconv.ParseInt(result, 10, 64)
		if err != nil || value < 0 {
			continue // it failed
		}
		t.count(pid, t.stepAt(seconds), call, rest[:at], value)
	}
	return lines.Err()
}

// after is the step of what goes on once the call has been answered.
const after = "afterwards"

func (t *trace) stepAt(seconds float64) string {
	at := time.UnixMicro(int64(seconds * 1e6))
	for _, s := range t.steps {
		if !at.Before(s.begun) && at.Before(s.ended) {
			return s.row
		}
	}
	return after
}

func (t *trace) count(pid int, step, call, arguments string, result int64) {
	program, ok := t.programs[pid]
	if !ok {
		program = "crio"
		t.programs[pid] = program
	}
	if call == "execve" {
		program = programOf(arguments)
		t.programs[pid] = program
	}
	if t.counts[step] == nil {
		t.counts[step] = map[string]*counted{}
	}
	if t.counts[step][program] == nil {
		t.counts[step][program] = &counted{}
	}
	c := t.counts[step][program]
	switch call {
	case "execve":
		c.execs++
	case "clone", "clone3", "fork", "vfork":
		t.programs[int(result)] = program
		if !strings.Contains(arguments, "CLONE_THREAD") {
			c.forks++
		}
	case "fsync", "fdatasync", "sync", "syncfs":
		c.syncs++
		t.synced[nameOf(step, arguments)]++
	case "write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range":
		if m := fileForm.FindStringSubmatch(arguments); m != nil && !strings.HasPrefix(m[1], "/dev/") {
			c.bytes += result
			t.written[nameOf(program, arguments)] += result
		}
	case "openat", "open", "openat2", "creat":
		c.opens++
	case "rename", "renameat", "renameat2":
		c.renames++
	case "mount", "umount2":
		c.mounts++
	case "flock":
		c.locks++
	case "fcntl":
		if strings.Contains(arguments, "SETLK") {
			c.locks++
		}
	case "connect":
		if strings.Contains(arguments, "dbus") || strings.Contains(arguments, "systemd/private") {
			c.buses++
		}
	}
}

// programOf is the name of what is executed. A runtime is, for its second half, a file of
// its own making, and then the words after its path tell.
func programOf(arguments string) string {
	words := strings.Split(arguments, `"`)
	path := words[1]
	if strings.HasPrefix(path, "/proc/self/fd/") && len(words) > 5 {
		return filepath.Base(words[3]) + " " + words[5]
	}
	return filepath.Base(path)
}

// nameOf is what a call with a file as its first argument is about.
func nameOf(who, arguments string) string {
	name := arguments
	if m := fileForm.FindStringSubmatch(arguments); m != nil {
		name = idForm.ReplaceAllString(m[1], "ID")
	}
	// The name of a file that is new until it is renamed.
	return who + " | " + randomForm.ReplaceAllString(name, "*")
}

// text is tables in Markdown: what each program did in each step, and what was synced.
func (t *trace) text() string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 1, ' ', 0)
	fmt.Fprint(w, "\n| step\t| program\t| execs\t| forks\t| syncs\t| bytes written\t| opens\t| renames\t| mounts\t| locks\t| D-Bus |\n")
	fmt.Fprint(w, "| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| --- |\n")
	var total counted
	rows := []string{}
	for _, s := range t.steps {
		rows = append(rows, s.row)
	}
	for _, row := range append(rows, after) {
		for _, program := range slices.Sorted(maps.Keys(t.counts[row])) {
			c := t.counts[row][program]
			fmt.Fprintf(w, "| %s\t| %s\t| %s |\n", row, program, c)
			total.add(*c)
		}
	}
	fmt.Fprintf(w, "| all\t| \t| %s |\n", &total)
	w.Flush()
	fmt.Fprint(&out, "\n| syncs | step | file |\n| --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(t.synced)) {
		fmt.Fprintf(&out, "| %d | %s |\n", t.synced[name], name)
	}
	return out.String()
}

// growth is a table in Markdown: the files that most was written into, alone and beside
// so many pods.
func (t *trace) growth(beside *trace, pods int) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\n| bytes\t| beside %d pods\t| program\t| file |\n| ---\t| ---\t| ---\t| --- |\n", pods)
	most := slices.SortedFunc(maps.Keys(beside.written), func(a, b string) int { return int(beside.written[b] - beside.written[a]) })
	for _, name := range most[:min(12, len(most))] {
		fmt.Fprintf(w, "| %d\t| %d\t| %s |\n", t.written[name], beside.written[name], strings.Replace(name, " | ", "\t| ", 1))
	}
	w.Flush()
	return out.String()
}

func (c *counted) add(other counted) {
	c.execs += other.execs
	c.forks += other.forks
	c.syncs += other.syncs
	c.bytes += other.bytes
	c.opens += other.opens
	c.renames += other.renames
	c.mounts += other.mounts
	c.locks += other.locks
	c.buses += other.buses
}

// String is the cells of the table.
func (c *counted) String() string {
	var cells []string
	for _, n := range []int64{int64(c.execs), int64(c.forks), int64(c.syncs), c.bytes, int64(c.opens), int64(c.renames), int64(c.mounts), int64(c.locks), int64(c.buses)} {
		cells = append(cells, strconv.FormatInt(n, 10))
	}
	return strings.Join(cells, "\t| ")
}
