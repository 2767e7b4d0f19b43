package server

import "sync"

// calls are the unary calls that run. What they do for a client is worth waiting for when
// the daemon ends; a stream only tells, and its client may never read it.
type calls struct {
	mu      sync.Mutex // held for the fields alone
	running int
	// idle is made by ended and closed when none runs any more.
	idle chan struct{}
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.tell()
}

// ended is asked for once, by the end of the daemon.
func (c *calls) ended() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := make(chan struct{})
	c.idle = idle
	c.tell()
	return idle
}

// tell needs c.mu.
func (c *calls) tell() {
	if c.running == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}
