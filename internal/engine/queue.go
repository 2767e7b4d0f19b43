package engine

import "sync"

// queue runs the mutating work of one object in order. It has a goroutine only
// while there is work. The zero value is ready.
type queue struct {
	mu      sync.Mutex // held for slice operations alone
	pending []func()
	running bool
}

// do appends work; it runs after all that was appended before.
func (q *queue) do(work func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pending = append(q.pending, work)
	if !q.running {
		q.running = true
		go q.run()
	}
}

func (q *queue) run() {
	for {
		q.mu.Lock()
		if len(q.pending) == 0 {
			q.pending, q.running = nil, false
			q.mu.Unlock()
			return
		}
		work := q.pending[0]
		q.pending = q.pending[1:]
		q.mu.Unlock()
		work()
	}
}

// wait appends work and returns its error when it has run.
func (q *queue) wait(work func() error) error {
	result := make(chan error, 1)
	q.do(func() { result <- work() })
	return <-result
}
