package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRate(t *testing.T) {
	begun := time.Unix(1e9, 0)
	var k kept
	k.init(nil, nil)
	for _, step := range []struct {
		at   time.Duration
		used uint64
		want rate
	}{
		{0, 100, rate{}},
		{300 * time.Millisecond, 200, rate{}},
		{time.Second, 1100, rate{1000, true}},
		{1500 * time.Millisecond, 9000, rate{1000, true}}, // too soon
		{3 * time.Second, 1100 + 4000, rate{2000, true}},
		{4 * time.Second, 50, rate{}}, // another one of the same name
		{6 * time.Second, 250, rate{100, true}},
		{forgetAfter + 7*time.Second, 1e6, rate{}}, // the last look is too long ago
		{forgetAfter + 8*time.Second, 1e6, rate{0, true}},
	} {
		if got := k.rate("a", begun.Add(step.at), step.used); got != step.want {
			t.Errorf("at %v: %+v, want %+v", step.at, got, step.want)
		}
	}
	k.rate("b", begun.Add(3*forgetAfter), 1)
	if len(k.byID) != 1 {
		t.Errorf("%d are kept of which nobody asks any more", len(k.byID))
	}
}

// layers of a fixed size, whose walks take a second.
type layers struct {
	walks, running, most atomic.Int32
	fail                 atomic.Bool
}

func (l *layers) Usage(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	l.most.Store(max(l.most.Load(), l.running.Add(1)))
	defer l.running.Add(-1)
	n := l.walks.Add(1)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	if l.fail.Load() {
		return 0, 0, errors.New(id)
	}
	return uint64(n), 7, nil
}

// TestSizeIsMeasuredBehindTheCall: no call waits for a walk, one walk runs at a time,
// walks rest, and none runs that nobody has asked for.
func TestSizeIsMeasuredBehindTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k kept
		var l layers
		k.init(&l, slog.New(slog.DiscardHandler))
		begun := time.Now()
		for range 3 {
			for i := range 5 {
				if got := k.size(fmt.Sprint(i), time.Now()); !got.measured.IsZero() {
					t.Errorf("a size before the walk: %+v", got)
				}
			}
		}
		if time.Since(begun) != 0 {
			t.Errorf("the calls took %v", time.Since(begun))
		}
		k.walks.Wait()
		if l.walks.Load() != 5 || l.most.Load() != 1 || time.Since(begun) < 5*walkShare*time.Second {
			t.Errorf("%d walks, %d at a time, in %v", l.walks.Load(), l.most.Load(), time.Since(begun))
		}
		first := k.size("0", time.Now())
		if first.bytes != 1 || first.inodes != 7 || !first.measured.Equal(begun) {
			t.Errorf("%+v, begun %v", first, begun)
		}
		k.walks.Wait()
		if again := k.size("0", time.Now()); again.bytes != 6 {
			t.Errorf("the size was not renewed: %+v", again)
		}
		k.walks.Wait()
		walks := l.walks.Load()
		time.Sleep(time.Hour)
		if l.walks.Load() != walks {
			t.Error("a walk that nobody asked for")
		}
		l.fail.Store(true)
		k.size("0", time.Now())
		k.walks.Wait()
		if after := k.size("0", time.Now()); after.bytes != uint64(walks) {
			t.Errorf("after a walk that failed: %+v", after)
		}
		k.close() // in the middle of a walk
		if l.running.Load() != 0 {
			t.Error("a walk outlives the collector")
		}
		walks = l.walks.Load()
		k.size("9", time.Now())
		synctest.Wait()
		if l.walks.Load() != walks {
			t.Error("a walk after the end")
		}
	})
}
