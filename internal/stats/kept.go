package stats

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// sampleWindow is the least time between the two samples of a CPU's rate.
	sampleWindow = time.Second
	// forgetAfter is how long something is kept of what nobody asks about.
	forgetAfter = 5 * time.Minute
	// layerAge is the least age at which a layer is measured again.
	layerAge = 10 * time.Second
	// walkShare: walks take at most one part in so many of one CPU's time.
	walkShare = 10
)

// kept is what is remembered of each container and pod between two calls: a sample of
// the CPU and the size of the layer. A layer is walked by one goroutine, which is there
// only while somebody has asked for a size that is too old.
type kept struct {
	layers Layers
	log    *slog.Logger

	mu      sync.Mutex // held for the fields alone
	byID    map[string]*memo
	wanted  []string // layers to measure, in the order of the calls
	walking bool

	ctx    context.Context // ends with the daemon
	cancel context.CancelFunc
	walks  sync.WaitGroup
}

type memo struct {
	asked time.Time
	// used at the time sampled, in nanoseconds of CPU; rate between the two samples before.
	used    uint64
	sampled time.Time
	rate    rate
	layer   layer
}

// rate in nanoseconds of CPU per second; known after the second sample.
type rate struct {
	nanoCores uint64
	known     bool
}

// layer as it was at the time measured, which is zero before the first walk.
type layer struct {
	bytes, inodes uint64
	measured      time.Time
	wanted        bool
}

func (k *kept) init(layers Layers, log *slog.Logger) {
	k.layers, k.log = layers, log
	k.byID = map[string]*memo{}
	k.ctx, k.cancel = context.WithCancel(context.Background())
}

func (k *kept) close() {
	k.mu.Lock()
	k.cancel()
	k.mu.Unlock()
	k.walks.Wait()
}

// memo finds what is kept of an object; the caller holds mu. Whoever adds one forgets
// those that nobody has asked about for long.
func (k *kept) memo(id string, now time.Time) *memo {
	m := k.byID[id]
	if m == nil {
		for other, old := range k.byID {
			if now.Sub(old.asked) > forgetAfter {
				delete(k.byID, other)
			}
		}
		m = &memo{}
		k.byID[id] = m
	}
	m.asked = now
	return m
}

// rate takes a sample, and returns the last rate between two samples that are far enough
// apart.
func (k *kept) rate(id string, now time.Time, used uint64) rate {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.memo(id, now)
	passed := now.Sub(m.sampled)
	switch {
	case m.sampled.IsZero() || passed > forgetAfter || used < m.used:
		m.rate = rate{}
	case passed < sampleWindow:
		return m.rate
	default:
		m.rate = rate{nanoCores: uint64(float64(used-m.used) / passed.Seconds()), known: true}
	}
	m.used, m.sampled = used, now
	return m.rate
}

// size returns the last measure of a layer and, where that is old, has it renewed.
func (k *kept) size(id string, now time.Time) layer {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.memo(id, now)
	if !m.layer.wanted && now.Sub(m.layer.measured) >= layerAge && k.ctx.Err() == nil {
		m.layer.wanted = true
		k.wanted = append(k.wanted, id)
		if !k.walking {
			k.walking = true
			k.walks.Go(k.walk)
		}
	}
	return m.layer
}

// walk measures what is wanted, one layer after the other, until nothing is.
func (k *kept) walk() {
	for {
		id, ok := k.next()
		if !ok {
			return
		}
		begun := time.Now()
		bytes, inodes, err := k.layers.Usage(k.ctx, id)
		if err != nil {
			k.log.Debug("size of a layer, which may be gone", "container", id, "err", err)
		}
		k.measured(id, layer{bytes: bytes, inodes: inodes, measured: begun}, err == nil)
		rest := time.NewTimer(walkShare * time.Since(begun))
		select {
		case <-rest.C:
		case <-k.ctx.Done():
			rest.Stop()
		}
	}
}

func (k *kept) next() (id string, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.wanted) == 0 || k.ctx.Err() != nil {
		k.walking, k.wanted = false, nil
		return "", false
	}
	id, k.wanted = k.wanted[0], k.wanted[1:]
	return id, true
}

// measured keeps a measure. Without one the last stays, which tells its age.
func (k *kept) measured(id string, l layer, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.byID[id]
	if m == nil {
		return
	}
	if !ok {
		l = m.layer
		l.wanted = false
	}
	m.layer = l
}
