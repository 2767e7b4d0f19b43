package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	logLines = 500_000
	logText  = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
	logEnd   = "the end\n"
)

// logCommand writes the lines as fast as it can, says so, and stays: its monitor, too, for
// a look at its time.
func logCommand() []string {
	return []string{"sh", "-c", fmt.Sprintf("yes %s | head -n %d; echo %sexec sleep 100000", logText, logLines, strings.Replace(logEnd, "\n", "; ", 1))}
}

// logs measures what a line takes from the container to the log, against a container
// whose output is copied into a file as it is.
func (b *bench) logs(ctx context.Context) error {
	handler := b.handlerNames()[0]
	f, err := b.floorOf(ctx, handler)
	if err != nil {
		return err
	}
	for round := range 3 {
		took, err := f.log(ctx, fmt.Sprint("log-", round))
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		b.report.add("a log line of 100 bytes", "ns", floorName, float64(took)/logLines)
		for _, d := range b.daemons {
			if err := b.log(ctx, d, handler, fmt.Sprint("log-", round)); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	return nil
}

func (f *floor) log(ctx context.Context, name string) (took time.Duration, err error) {
	p, err := f.prepare(ctx, name, logCommand())
	if err != nil {
		return 0, err
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, p.run(ctx, "delete", "--force", p.id), p.discard(ctx))
	}()
	if err := p.start(ctx); err != nil {
		return 0, err
	}
	begun := time.Now()
	out, err := os.Create(filepath.Join(p.bundle, "output"))
	if err != nil {
		return 0, err
	}
	defer out.Close()
	_, err = io.CopyN(out, p.output, logLines*int64(len(logText)+1)+int64(len(logEnd)))
	return time.Since(begun), err
}

func (b *bench) log(ctx context.Context, d *daemon, handler, name string) error {
	before, err := b.helpers()
	if err != nil {
		return err
	}
	p, err := d.runPod(ctx, handler, name)
	if err != nil {
		return err
	}
	if p.container, err = d.create(ctx, p, "c", logCommand()); err != nil {
		return err
	}
	busy := func() (total int64, err error) {
		after, err := b.helpers()
		if err != nil {
			return 0, err
		}
		daemon, err := d.pid()
		if err != nil {
			return 0, err
		}
		for _, pid := range append(without(after, before), daemon) {
			ns, err := cpu(pid)
			if err != nil {
				return 0, err
			}
			total += ns
		}
		return total, nil
	}
	if _, err := d.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	begun := time.Now()
	early, err := busy()
	if err != nil {
		return err
	}
	path := filepath.Join(p.config.GetLogDirectory(), "c.log")
	if err := awaitLog(ctx, path, logEnd); err != nil {
		return err
	}
	took := time.Since(begun)
	late, err := busy()
	if err != nil {
		return err
	}
	b.report.add("a log line of 100 bytes", "ns", d.name, float64(took)/logLines)
	b.report.add("a log line of 100 bytes, CPU of daemon and monitor", "ns", d.name, float64(late-early)/logLines)
	return d.remove(ctx, p.box)
}

// without returns what of all is not in some.
func without(all, some []int) (rest []int) {
	has := map[int]bool{}
	for _, v := range some {
		has[v] = true
	}
	for _, v := range all {
		if !has[v] {
			rest = append(rest, v)
		}
	}
	return rest
}
