package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
)

// Rows of a pod's life. Those of several steps are the sums of their times.
const (
	rowRunPod          = "RunPodSandbox"
	rowCreate          = "CreateContainer"
	rowStart           = "StartContainer"
	rowCreateStart     = "CreateContainer + StartContainer"
	rowRunning         = "pod + container, to running"
	rowFirstLine       = "first log line"
	rowRunningLine     = "pod + container, to first log line"
	rowExec            = "ExecSync"
	rowStop            = "StopContainer(0)"
	rowRemoveContainer = "RemoveContainer"
	rowEndContainer    = "StopContainer(0) + RemoveContainer"
	rowStopPod         = "StopPodSandbox"
	rowRemovePod       = "RemovePodSandbox"
	rowEndPod          = "StopPodSandbox + RemovePodSandbox"
)

// line of the table of a pod's life: its row, and the steps that are summed in it.
type line struct {
	row   string
	steps []string
}

func lifeLines() []line {
	return []line{
		{rowRunPod, []string{rowRunPod}}, {rowCreate, []string{rowCreate}}, {rowStart, []string{rowStart}},
		{rowCreateStart, []string{rowCreate, rowStart}}, {rowRunning, []string{rowRunPod, rowCreate, rowStart}},
		{rowRunningLine, []string{rowRunPod, rowCreate, rowStart, rowFirstLine}},
		{rowExec, []string{rowExec}}, {rowStop, []string{rowStop}}, {rowRemoveContainer, []string{rowRemoveContainer}},
		{rowEndContainer, []string{rowStop, rowRemoveContainer}}, {rowStopPod, []string{rowStopPod}}, {rowRemovePod, []string{rowRemovePod}},
		{rowEndPod, []string{rowStopPod, rowRemovePod}},
	}
}

// step of a life, in order.
type step struct {
	row string
	do  func() error
}

// times of the steps of one life.
type times map[string]time.Duration

// walk does the steps and takes their times. after, which may be nil, is told of each.
func walk(steps []step, after func(row string, begun, ended time.Time)) (times, error) {
	took := times{}
	for _, s := range steps {
		begun := time.Now()
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.row, err)
		}
		ended := time.Now()
		took[s.row] = ended.Sub(begun)
		if after != nil {
			after(s.row, begun, ended)
		}
	}
	return took, nil
}

// subject is a daemon or the floor.
type subject interface {
	// life takes one pod with one container from nothing to nothing.
	life(ctx context.Context, handler, name string) (times, error)
}

// life begins with what the kubelet makes before it asks for a pod: the directory of its logs
// and its cgroup.
func (d *daemon) life(ctx context.Context, handler, name string) (took times, err error) {
	config := d.podConfig(name)
	if err := os.MkdirAll(config.GetLogDirectory(), 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(config.GetLogDirectory())
	remove, err := podCgroup(d.tree, config.GetLinux().GetCgroupParent())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	return walk(d.steps(ctx, handler, name), nil)
}

// podCgroup makes a pod's cgroup and returns what takes it away.
func podCgroup(tree *cgroup.Tree, parent string) (remove func() error, err error) {
	made, err := tree.MissingParents(parent)
	if err != nil {
		return nil, err
	}
	if err := tree.MakeParents(made); err != nil {
		return nil, errors.Join(err, tree.RemoveParents(made))
	}
	return func() error { return tree.RemoveParents(made) }, nil
}

func (d *daemon) steps(ctx context.Context, handler, name string) []step {
	var p *pod
	return []step{
		{rowRunPod, func() (err error) { p, err = d.runPod(ctx, handler, name); return }},
		{rowCreate, func() (err error) { p.container, err = d.create(ctx, p, "c", standingCommand()); return }},
		{rowStart, func() error {
			_, err := d.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
			return err
		}},
		{rowFirstLine, func() error { return awaitLog(ctx, filepath.Join(p.config.GetLogDirectory(), "c.log"), ready) }},
		{rowExec, func() error {
			a, err := d.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 10})
			if err == nil && a.GetExitCode() != 0 {
				err = fmt.Errorf("exit code %d: %s", a.GetExitCode(), a.GetStderr())
			}
			return err
		}},
		{rowStop, func() error {
			_, err := d.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container})
			return err
		}},
		{rowRemoveContainer, func() error {
			_, err := d.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
			return err
		}},
		{rowStopPod, func() error {
			_, err := d.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.box})
			return err
		}},
		{rowRemovePod, func() error {
			_, err := d.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.box})
			return err
		}},
	}
}

func (f *floor) life(ctx context.Context, _, name string) (took times, err error) {
	p, err := f.prepare(ctx, name, standingCommand())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.discard(context.WithoutCancel(ctx))) }()
	return walk([]step{
		{rowRunPod, func() error { return p.attach(ctx) }},
		{rowStart, func() error { return p.start(ctx) }},
		{rowFirstLine, p.firstLine},
		{rowExec, func() error { return p.run(ctx, "exec", p.id, "true") }},
		{rowStop, func() error { return p.kill(ctx) }},
		{rowRemoveContainer, func() error { return p.run(ctx, "delete", p.id) }},
		{rowStopPod, func() error { return p.detach(ctx) }},
	}, nil)
}

// named is a subject with its name in the report.
type named struct {
	name string
	subject
}

// subjects are the floor and the daemons.
func (b *bench) subjects(ctx context.Context, handler string) ([]named, error) {
	f, err := b.floorOf(ctx, handler)
	if err != nil {
		return nil, fmt.Errorf("floor of %s: %w", handler, err)
	}
	all := []named{{floorName, f}}
	for _, d := range b.daemons {
		all = append(all, named{d.name, d})
	}
	return all, nil
}

const (
	// livesEach is how many lives a round has: the parts differ by more than what is looked for.
	livesEach = 2
	// restTime is for what the kernel does after a life: it takes its namespaces down beside the
	// next one, which would be that of the same other subject most of the time.
	restTime = 50 * time.Millisecond
)

// lives take turns, each time in another order. The first of each does what is done once.
func (b *bench) lives(ctx context.Context) error {
	for _, handler := range b.handlerNames() {
		subjects, err := b.subjects(ctx, handler)
		if err != nil {
			return err
		}
		for round := range livesEach*b.rounds + 1 {
			for i := range subjects {
				s := subjects[(round+i)%len(subjects)]
				if err := pause(ctx, restTime); err != nil {
					return err
				}
				took, err := s.life(ctx, handler, fmt.Sprintf("life-%s-%d", handler, round))
				if err != nil {
					return fmt.Errorf("%s: %s: %w", handler, s.name, err)
				}
				if round > 0 {
					b.addLife(handler, s.name, took)
				}
			}
		}
	}
	return nil
}

func (b *bench) addLife(handler, who string, took times) {
	for _, l := range lifeLines() {
		var sum time.Duration
		for _, step := range l.steps {
			sum += took[step]
		}
		if sum > 0 {
			b.took(handler+": "+l.row, who, sum)
		}
	}
}

// clients measures how long a pod takes when many are at once: the time of all divided by
// their number.
func (b *bench) clients(ctx context.Context) error {
	const batches = 3
	handler := b.handlerNames()[0]
	subjects, err := b.subjects(ctx, handler)
	if err != nil {
		return err
	}
	for batch := range batches {
		for _, s := range subjects {
			few, err := b.fewClients(ctx, s, handler, fmt.Sprint("few-", batch))
			if err != nil {
				return fmt.Errorf("8 clients: %s: %w", s.name, err)
			}
			many, err := b.crowd(ctx, s, handler, 32, fmt.Sprint("many-", batch))
			if err != nil {
				return fmt.Errorf("32 clients: %s: %w", s.name, err)
			}
			b.took("32 clients", s.name, many)
			row := b.row("32 clients, each pod against that of 8", "ratio")
			row.By[s.name] = append(row.By[s.name], float64(many)/float64(few))
		}
	}
	return nil
}

// fewClients also tells how long goroutines of ours have waited for locks, as far as Go
// samples that.
func (b *bench) fewClients(ctx context.Context, s named, handler, name string) (time.Duration, error) {
	d, ok := s.subject.(*daemon)
	ok = ok && d.tellsRuntime()
	var before, after runtimeCounters
	var err error
	if ok {
		if before, err = d.runtimeCounters(ctx); err != nil {
			return 0, err
		}
	}
	took, err := b.crowd(ctx, s, handler, 8, name)
	if err != nil {
		return 0, err
	}
	b.took("8 clients", s.name, took)
	if ok {
		if after, err = d.runtimeCounters(ctx); err != nil {
			return 0, err
		}
		b.report.add("8 clients, waits for locks in the daemon", "us/pod", d.name, (after.lockWait-before.lockWait)*1e6/(8*podsEach))
	}
	return took, nil
}

// podsEach is how many pods a client of a crowd takes, on average.
const podsEach = 4

// crowd lets n clients take pods through their lives.
func (b *bench) crowd(ctx context.Context, s named, handler string, n int, name string) (time.Duration, error) {
	pods := podsEach * n
	next := make(chan int, pods)
	for i := range pods {
		next <- i
	}
	close(next)
	group, ctx := errgroup.WithContext(ctx)
	lives := make([]times, pods)
	begun := time.Now()
	for range n {
		group.Go(func() (err error) {
			for i := range next {
				if lives[i], err = s.life(ctx, handler, fmt.Sprintf("%s-%d", name, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	all := time.Since(begun)
	for _, t := range lives {
		b.took(fmt.Sprintf("%d clients: %s", n, rowRunningLine), s.name, t[rowRunPod]+t[rowCreate]+t[rowStart]+t[rowFirstLine])
	}
	return all / time.Duration(pods), nil
}
