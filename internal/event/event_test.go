package event

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
)

func take(t *testing.T, s *Subscription[int], n int) []int {
	t.Helper()
	var got []int
	for range n {
		v, err := s.Next(t.Context())
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		got = append(got, v)
	}
	return got
}

func publish(h *Hub[int], values ...int) {
	for _, v := range values {
		h.Publish(func() int { return v })
	}
}

func TestEachSubscriberGetsAllInOrder(t *testing.T) {
	var h Hub[int]
	publish(&h, 1)
	a := h.Subscribe(4)
	publish(&h, 2)
	b := h.Subscribe(4)
	publish(&h, 3, 4)
	if got := take(t, a, 3); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("a got %v", got)
	}
	if got := take(t, b, 2); !slices.Equal(got, []int{3, 4}) {
		t.Errorf("b got %v", got)
	}
	a.Close()
	a.Close()
	publish(&h, 5)
	if len(a.events) != 0 {
		t.Error("a closed subscription gets events")
	}
	if open, dropped := h.Counts(); open != 1 || dropped != 0 {
		t.Errorf("%d open, %d dropped", open, dropped)
	}
}

// Who does not take its events loses them all, and nobody else one.
func TestSlowSubscriberIsDropped(t *testing.T) {
	var h Hub[int]
	slow, quick := h.Subscribe(2), h.Subscribe(2)
	for i := range 10 {
		publish(&h, i)
		if got := take(t, quick, 1); got[0] != i {
			t.Fatalf("got %v instead of %d", got, i)
		}
	}
	if v, err := slow.Next(t.Context()); !errors.Is(err, ErrSlow) {
		t.Errorf("got %d, %v", v, err)
	}
	if len(slow.events) != 0 {
		t.Errorf("%d events are kept for nobody", len(slow.events))
	}
	if open, dropped := h.Counts(); open != 1 || dropped != 1 {
		t.Errorf("%d open, %d dropped", open, dropped)
	}
	slow.Close()
}

func TestNextEndsWithItsContext(t *testing.T) {
	var h Hub[int]
	s := h.Subscribe(1)
	ending := errors.New("ending")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ending)
	if _, err := s.Next(ctx); !errors.Is(err, ending) {
		t.Error(err)
	}
}

func TestEventsAreNotMadeForNobody(t *testing.T) {
	var h Hub[int]
	h.Publish(func() int { t.Error("made"); return 0 })
}

// With many publishers the events are still one sequence: a value taken when an event is
// made never goes back.
func TestLaterEventsSeeNoLess(t *testing.T) {
	const publishers, each = 8, 500
	var h Hub[int]
	a, b := h.Subscribe(publishers*each), h.Subscribe(publishers*each)
	n := 0
	var all sync.WaitGroup
	for range publishers {
		all.Go(func() {
			for range each {
				h.Publish(func() int { n++; return n })
			}
		})
	}
	all.Wait()
	first, second := take(t, a, publishers*each), take(t, b, publishers*each)
	if !slices.IsSorted(first) || !slices.Equal(first, second) {
		t.Error("the subscribers see different orders")
	}
}
