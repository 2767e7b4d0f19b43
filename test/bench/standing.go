package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// settleTime is what a daemon is given before its memory is read.
	settleTime = 2 * time.Second
)

// sizes of the binaries, the time to the first answer, and memory before there are pods.
func (b *bench) sizes(ctx context.Context) error {
	for _, d := range b.daemons {
		if d.process != nil {
			for range 5 {
				if err := d.process.kill(); err != nil {
					return err
				}
				took, err := d.restart(ctx)
				if err != nil {
					return err
				}
				b.took("start-up to the first List", d.name, took)
			}
		}
		if err := b.fileSizes(d); err != nil {
			return err
		}
		// One pod has come and gone: what is loaded on demand is there.
		if _, err := d.life(ctx, "", "idle"); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		if err := pause(ctx, settleTime); err != nil {
			return err
		}
		pid, err := d.pid()
		if err != nil {
			return err
		}
		m, err := memoryOf(pid)
		if err != nil {
			return err
		}
		b.report.add("daemon idle, PSS", "MiB", d.name, float64(m.pss)/1024)
		b.report.add("daemon idle, anonymous", "MiB", d.name, float64(m.anonymous)/1024)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// restart runs a daemon that has ended, and returns the time from its exec to its first
// answer to a List.
func (d *daemon) restart(ctx context.Context) (time.Duration, error) {
	if err := d.conn.Close(); err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := d.process.start(); err != nil {
		return 0, err
	}
	if err := d.connect(); err != nil {
		return 0, err
	}
	_, err := d.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	for status.Code(err) == codes.Unavailable && ctx.Err() == nil {
		// It listens before it can answer.
		_, err = d.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	}
	took := time.Since(begun)
	return took, errors.Join(err, d.awaitReady(ctx))
}

// standing lets pods stand, one daemon after the other, and looks at each number of them.
func (b *bench) standing(ctx context.Context) error {
	handler := b.handlerNames()[0]
	if _, err := b.floorOf(ctx, handler); err != nil { // its template is a pod
		return err
	}
	for _, d := range b.daemons {
		if err := b.stand(ctx, d, handler); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

// counts of standing pods at which is looked, up to the most that is wanted.
func (b *bench) counts() []int {
	all := slices.DeleteFunc([]int{10, 110, 250}, func(n int) bool { return n > b.pods })
	if !slices.Contains(all, b.pods) {
		all = append(all, b.pods)
	}
	return all
}

func (b *bench) stand(ctx context.Context, d *daemon, handler string) error {
	// What other measurements have left in the daemon is none of these pods'.
	if d.process != nil {
		if err := d.process.kill(); err != nil {
			return err
		}
		if _, err := d.restart(ctx); err != nil {
			return fmt.Errorf("restart: %w", err)
		}
		if _, err := d.life(ctx, handler, "first"); err != nil {
			return err
		}
	}
	before, err := b.helpers()
	if err != nil {
		return err
	}
	idle, err := d.memory(ctx)
	if err != nil {
		return err
	}
	var pods []*pod
	var took, bare []time.Duration // of each; of the floor's beside the first and the last
	for _, count := range b.counts() {
		for len(pods) < count {
			begun := time.Now()
			p, err := d.runningPod(ctx, handler, fmt.Sprint("standing-", len(pods)))
			if err != nil {
				return err
			}
			took = append(took, time.Since(begun))
			pods = append(pods, p)
			if len(pods) <= count-ends {
				continue
			}
			b.took(fmt.Sprintf("pod + container, to running, beside %d", count), d.name, took[len(took)-1])
			if d == b.daemons[0] {
				least, err := b.bareBeside(ctx, handler, count, len(pods))
				if err != nil {
					return err
				}
				bare = append(bare, least)
			}
		}
		now, err := d.memory(ctx)
		if err != nil {
			return err
		}
		b.report.add(fmt.Sprintf("daemon with %d pods, PSS", count), "MiB", d.name, float64(now.pss)/1024)
		if count == b.pods {
			b.report.add("daemon, more per container", "KiB", d.name, float64(now.pss-idle.pss)/float64(count))
		}
		if err := b.lists(ctx, d, pods, len(pods), len(pods)); err != nil {
			return err
		}
	}
	if err := b.monitors(d, before, len(pods)); err != nil {
		return err
	}
	const row = "the last ten pods against the first ten"
	b.report.add(row, "ratio", d.name, growth(took))
	if len(bare) > 0 {
		b.report.add(row, "ratio", floorName, growth(bare))
	}
	if err := b.crash(ctx, d, len(pods)); err != nil {
		return err
	}
	if err := b.objectsOf(ctx, d, pods); err != nil {
		return err
	}
	return d.removePods(ctx, pods)
}

// ends is how many pods the first and the last ones are.
const ends = 10

// growth is the time of the last pods as a multiple of that of the first.
func growth(took []time.Duration) float64 {
	n := min(ends, len(took))
	first, last := millis(took[:n]), millis(took[len(took)-n:])
	return last.median() / first.median()
}

// bareBeside is the time of a pod of the floor until it runs, beside n that stand, about
// count: the rules of the CNI plugins are more with each.
func (b *bench) bareBeside(ctx context.Context, handler string, count, n int) (time.Duration, error) {
	f, err := b.floorOf(ctx, handler)
	if err != nil {
		return 0, err
	}
	took, err := f.life(ctx, handler, fmt.Sprint("beside-", n))
	if err != nil {
		return 0, err
	}
	b.took(fmt.Sprintf("pod + container, to running, beside %d", count), floorName, took[rowRunPod]+took[rowStart])
	b.took(fmt.Sprintf("of it CNI ADD, beside %d", count), floorName, took[rowRunPod])
	b.took(fmt.Sprintf("of it create and start, beside %d", count), floorName, took[rowStart])
	return took[rowRunPod] + took[rowStart], nil
}

func millis(took []time.Duration) (s samples) {
	for _, d := range took {
		s = append(s, ms(d))
	}
	return s
}

func (d *daemon) memory(ctx context.Context) (memory, error) {
	if err := pause(ctx, settleTime); err != nil {
		return memory{}, err
	}
	pid, err := d.pid()
	if err != nil {
		return memory{}, err
	}
	return memoryOf(pid)
}

// monitors measures what is beside the containers' own processes.
func (b *bench) monitors(d *daemon, before []int, containers int) error {
	after, err := b.helpers()
	if err != nil {
		return err
	}
	total := 0
	for _, pid := range after {
		if slices.Contains(before, pid) {
			continue
		}
		m, err := memoryOf(pid)
		if err != nil {
			return err
		}
		total += m.pss
		b.report.add("monitor, private", "KiB", d.name, float64(m.private))
	}
	b.report.add("beside each container, PSS", "KiB", d.name, float64(total)/float64(containers))
	return nil
}

// crash kills the daemon beside its pods, and starts it again.
func (b *bench) crash(ctx context.Context, d *daemon, pods int) error {
	if d.process == nil {
		return nil
	}
	for range 3 {
		if err := d.process.kill(); err != nil {
			return err
		}
		took, err := d.restart(ctx)
		if err != nil {
			return fmt.Errorf("restart: %w", err)
		}
		b.took(fmt.Sprintf("restart with %d pods to the first List", pods), d.name, took)
	}
	list, err := d.ListContainers(ctx, &cri.ListContainersRequest{})
	if running := len(list.GetContainers()); err == nil && running < pods {
		err = fmt.Errorf("after a restart there are %d containers of %d", running, pods)
	}
	return err
}

// objectsOf adds containers to the pods until there are as many as are to be listed.
func (b *bench) objectsOf(ctx context.Context, d *daemon, pods []*pod) error {
	list, err := d.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	n := len(list.GetContainers())
	if n >= b.objects {
		return nil
	}
	all := slices.Clone(pods)
	for i := 0; n < b.objects; i++ {
		p := *pods[i%len(pods)]
		if p.container, err = d.create(ctx, &p, fmt.Sprint("more-", i), standingCommand()); err != nil {
			return fmt.Errorf("create: %w", err)
		}
		if _, err := d.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		all = append(all, &p)
		n++
	}
	return b.lists(ctx, d, all, len(pods), n)
}

// fileSizes are those of the programs that the daemon is made of.
func (b *bench) fileSizes(d *daemon) error {
	if d.process == nil {
		return nil
	}
	for _, beside := range map[string][]string{ours: {"crio", "conmon", "pause"}, "containerd": {"containerd", "containerd-shim-runc-v2"}}[d.name] {
		info, err := os.Stat(filepath.Join(filepath.Dir(d.process.path), beside))
		if err != nil {
			return err
		}
		b.report.add("size of "+beside, "KiB", d.name, float64(info.Size())/1024)
	}
	return nil
}
