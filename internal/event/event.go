// Package event hands each published value to every subscriber, and waits for none: a
// subscriber that falls too far behind loses its subscription, and learns it.
package event

import (
	"context"
	"errors"
	"sync"
)

// ErrSlow ends a subscription whose owner did not take its events in time. What it knows
// from them is not all that happened: it has to look for itself, and to subscribe again.
var ErrSlow = errors.New("the subscriber did not take its events in time")

// Hub fans out values of one kind. The zero value is ready; all methods may be called at once.
type Hub[T any] struct {
	// mu orders the events. It is held while one is made, never while one is taken.
	mu      sync.Mutex
	open    map[*Subscription[T]]struct{}
	dropped uint64
}

// Subscription is the queue of one subscriber, which alone calls its methods.
type Subscription[T any] struct {
	hub    *Hub[T]
	events chan T
	slow   chan struct{} // closed when events was full
}

// Subscribe begins with what is published after it has returned. capacity is how many
// events may wait for their subscriber, who has to Close in the end.
func (h *Hub[T]) Subscribe(capacity int) *Subscription[T] {
	s := &Subscription[T]{hub: h, events: make(chan T, capacity), slow: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = map[*Subscription[T]]struct{}{}
	}
	h.open[s] = struct{}{}
	return s
}

// Publish hands one event to all. Events are made one after the other, in the order in
// which all subscribers get them, and not at all when there is none; so take, which must
// not wait for anything, sees no less in a later event than in an earlier one.
func (h *Hub[T]) Publish(take func() T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) == 0 {
		return
	}
	value := take()
	for s := range h.open {
		select {
		case s.events <- value:
		default:
			h.drop(s)
		}
	}
}

// drop ends a subscription and frees what waits in it, however long its owner takes to
// notice. It needs h.mu.
func (h *Hub[T]) drop(s *Subscription[T]) {
	delete(h.open, s)
	h.dropped++
	close(s.slow)
	for {
		select {
		case <-s.events:
		default:
			return
		}
	}
}

// Counts are the subscribers there are, and those that were too slow so far.
func (h *Hub[T]) Counts() (open int, dropped uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.open), h.dropped
}

// Next waits for an event. The error is ErrSlow, or the cause of the context's end.
func (s *Subscription[T]) Next(ctx context.Context) (value T, err error) {
	select {
	case value = <-s.events:
		return value, nil
	case <-s.slow:
		return value, ErrSlow
	case <-ctx.Done():
		return value, context.Cause(ctx)
	}
}

// Close gives the subscription up; it may be called again.
func (s *Subscription[T]) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.open, s)
}
