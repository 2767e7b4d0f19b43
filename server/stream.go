package server

import (
	"context"
	"iter"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/crio-minimal/crio/internal/fault"
)

// chunkBytes is about the size of one message of a streamed list. One item that is
// larger than that has a message of its own.
const chunkBytes = 1 << 20

// errEnding ends the streams of a daemon that ends.
var errEnding = fault.New(fault.Unavailable, "crio is ending; what it tells can be asked for again when it is back")

// sendChunks sends items in messages of at most limit bytes, as far as one item allows,
// and none that is empty (CRI: "lists of at least one item"). Items are made while those
// before them are sent, so that a long list is never in memory as a whole.
func sendChunks[T proto.Message](ctx context.Context, limit int, items iter.Seq[T], send func([]T) error) error {
	var chunk []T
	size := 0
	for item := range items {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// The items are field 1 of all these messages: a byte for the tag, and their length.
		n := 1 + protowire.SizeBytes(proto.Size(item))
		if len(chunk) > 0 && size+n > limit {
			if err := send(chunk); err != nil {
				return err
			}
			chunk, size = nil, 0
		}
		chunk, size = append(chunk, item), size+n
	}
	if len(chunk) == 0 {
		return nil
	}
	return send(chunk)
}

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
