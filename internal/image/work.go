package image

import (
	"sync/atomic"
	"time"

	"github.com/crio-minimal/crio/internal/sys"
)

// Operation is a pull or a removal that runs, as crio status tells it.
type Operation struct {
	Kind, Object, Stage string
	// Age and InStage are in nanoseconds.
	Age, InStage time.Duration
}

// work is what an Operation is told of.
type work struct {
	kind, object string
	begun        time.Time
	at           atomic.Pointer[stage]
}

type stage struct {
	name  string
	since time.Time
}

// begin needs s.mu. Whoever begins a work calls end after it.
func (s *Store) begin(kind, object, stage string) *work {
	w := &work{kind: kind, object: object, begun: time.Now()}
	w.begins(stage)
	s.works[w] = struct{}{}
	return w
}

// end needs s.mu.
func (s *Store) end(w *work) { delete(s.works, w) }

// stage names what is done from now on.
func (w *work) stage(name string) {
	w.begins(name)
	sys.Failpoint(w.kind, name)
}

func (w *work) begins(name string) { w.at.Store(&stage{name: name, since: time.Now()}) }

// Operations are the pulls and removals that run, also those that nobody waits for any more.
func (s *Store) Operations() []Operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Operation, 0, len(s.works))
	for w := range s.works {
		at := w.at.Load()
		all = append(all, Operation{
			Kind: w.kind, Object: w.object, Stage: at.name, Age: time.Since(w.begun), InStage: time.Since(at.since),
		})
	}
	return all
}

// working tells whether the store's changes may be our own.
func (s *Store) working() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.works) > 0
}
