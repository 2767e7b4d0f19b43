package main

import (
	"bytes"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/server"
)

// dumper answers SIGUSR1 with a file: what crio status shows, and the stacks of all
// goroutines. It does so from the daemon's beginning to its end, whatever hangs.
type dumper struct {
	path    string
	log     *slog.Logger
	server  atomic.Pointer[server.Server] // nil until there is one
	signals chan os.Signal
	answers sync.WaitGroup
}

// newDumper listens until close.
func newDumper(path string, log *slog.Logger) *dumper {
	d := &dumper{path: path, log: log, signals: make(chan os.Signal, 1)}
	signal.Notify(d.signals, unix.SIGUSR1)
	d.answers.Go(func() {
		for range d.signals {
			d.dump()
		}
	})
	return d
}

func (d *dumper) close() {
	signal.Stop(d.signals)
	close(d.signals)
	d.answers.Wait()
}

func (d *dumper) dump() {
	var text bytes.Buffer
	if s := d.server.Load(); s != nil {
		if err := printStatus(&text, s.Report()); err != nil {
			d.log.Warn("SIGUSR1", "err", err)
		}
	}
	text.WriteByte('\n')
	const stacks = 2 // pprof's number for text with every goroutine's own
	if err := pprof.Lookup("goroutine").WriteTo(&text, stacks); err != nil {
		d.log.Warn("SIGUSR1", "err", err)
	}
	if err := sys.WriteFile(d.path, text.Bytes(), 0o600); err != nil {
		d.log.Warn("SIGUSR1", "err", err)
		return
	}
	d.log.Info("status and goroutines were written, as SIGUSR1 asks", "path", d.path)
}
