package network

import (
	"context"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
)

const (
	// statusTime bounds the plugins' STATUS.
	statusTime = 2 * time.Second
	// statusSlack is what killing them may take.
	statusSlack = time.Second
	// statusAge is how long its answer holds.
	statusAge = 5 * time.Second
	// statusGrace is how long plugins that were ready may say that they are not before the
	// kubelet is told, who would have the whole node not ready: one that restarts is back by then.
	statusGrace = time.Minute
)

// status is the plugins' last answer.
type status struct {
	list *libcni.NetworkConfigList
	at   time.Time
	err  error
	// ready is when they last said that they are; zero: never.
	ready time.Time
}

func (s *status) fresh(l *loaded) bool {
	return s != nil && s.list == l.list && time.Since(s.at) < statusAge
}

// Ready returns nil while the node can be given pods, else a reason that names the file or
// the plugin and what to do. The directory is looked at anew each time; plugins that know
// STATUS (CNI 1.1) are asked beside, not more often than their answer is fresh, and nobody
// but the first waits for it. What they say counts after statusGrace.
func (n *Network) Ready() error { return n.told(statusGrace) }

// Answer is Ready without the grace: what the plugins said last.
func (n *Network) Answer() error { return n.told(0) }

func (n *Network) told(grace time.Duration) error {
	l, err := n.current()
	if err != nil {
		return err
	}
	s := n.status.Load()
	var silent error
	if !s.fresh(l) {
		answered, since := n.ask(l)
		if s == nil {
			wait := time.NewTimer(statusTime + statusSlack)
			defer wait.Stop()
			select {
			case <-answered:
			case <-wait.C:
			}
			s = n.status.Load()
		}
		if asked := time.Since(since); s == nil || asked > statusTime+statusSlack {
			silent = fmt.Errorf("network %s (%s): its STATUS has not ended for %s", l.list.Name, l.file, asked.Round(time.Second))
		}
	}
	switch {
	case s == nil:
		return silent
	case time.Since(s.ready) < grace:
		return nil
	case silent != nil:
		return silent
	}
	return s.err
}

// Choose returns the network that a pod can be attached to now, so that it can be recorded
// before Add. It waits for the plugins' answer. The error says what is wrong and where.
func (n *Network) Choose(ctx context.Context) (Attachment, error) {
	l, err := n.current()
	if err != nil {
		return Attachment{}, err
	}
	for {
		if s := n.status.Load(); s.fresh(l) {
			if s.err != nil {
				return Attachment{}, s.err
			}
			return l.attachment(), nil
		}
		answered, _ := n.ask(l)
		select {
		case <-answered: // or another configuration's answer
		case <-ctx.Done():
			return Attachment{}, fmt.Errorf("network %s (%s): its STATUS: %w", l.list.Name, l.file, ctx.Err())
		}
	}
}

// ask asks the plugins, unless they are being asked, and returns what is closed after it and
// when it began. It takes statusTime at most, but for a plugin that cannot be killed, since
// its disk does not answer.
func (n *Network) ask(l *loaded) (answered <-chan struct{}, since time.Time) {
	n.asking.Lock()
	defer n.asking.Unlock()
	if n.asked != nil {
		return n.asked, n.askedAt
	}
	done := make(chan struct{})
	n.asked, n.askedAt = done, time.Now()
	go func() {
		n.status.Store(n.answer(l, n.status.Load()))
		n.asking.Lock()
		n.asked = nil
		n.asking.Unlock()
		close(done)
	}()
	return done, n.askedAt
}

// answer asks. It has no caller's context: the answer is everybody's.
func (n *Network) answer(l *loaded, last *status) *status {
	ctx, cancel := context.WithTimeout(context.Background(), statusTime)
	defer cancel()
	next := &status{list: l.list}
	if last != nil && last.list.Name == l.list.Name {
		next.ready = last.ready
	}
	// libcni asks only where the configuration's version has the verb.
	err := n.cni.GetStatusNetworkList(ctx, l.list)
	next.at = time.Now()
	if err == nil {
		next.ready = next.at
		return next
	}
	if ctx.Err() != nil {
		// Not the context's error: no caller's deadline has passed.
		err = fmt.Errorf("no answer within %s: %w", statusTime, err)
	}
	next.err = fmt.Errorf("network %s (%s) says it is not ready: %w", l.list.Name, l.file, err)
	if last == nil || last.err == nil {
		n.Log.Warn("the network's STATUS", "err", next.err)
	}
	return next
}
