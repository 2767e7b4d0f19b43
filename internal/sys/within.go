package sys

import (
	"context"
	"fmt"
)

// Within runs what nothing can interrupt in a goroutine of its own, and gives it up, but
// does not end it, when ctx ends: the error is what and ctx's then.
func Within[T any](ctx context.Context, what string, ask func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := ask()
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%s: %w", what, ctx.Err())
	}
}
