package image

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	storagetransport "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

const (
	pullTries    = 3
	firstBackoff = 500 * time.Millisecond // doubled after each try
)

var errClosed = errors.New("the store is closed")

// pullKey is what makes two requests the same pull. Different credentials don't
// join: one caller's right to an image says nothing about another's.
type pullKey struct {
	ref      string
	cred     Credential
	platform Platform
}

// pull is one download that any number of callers wait for.
type pull struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{} // closed after id and err are set
	id      string
	err     error
}

// Pull brings ref to the store and returns the image's ID, equal to Image.ID.
// ctx bounds this caller's wait only: the download goes on while anyone waits
// for the same reference with the same credential and platform, and ends when nobody
// does. Of several images with one tag the last one pulled has it.
// Transient failures are retried. On success the layers are on the disk, the
// record is written and Status finds ref. Errors wrap one of the sentinels
// where one fits.
func (s *Store) Pull(ctx context.Context, ref string, cred Credential, platform Platform) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("pull image %s: %w", ref, err)
	}
	if err := s.ready(); err != nil {
		return "", fmt.Errorf("pull image %s: %w", ref, err)
	}
	p, key, err := s.join(pullKey{ref: trimTransport(ref), cred: cred, platform: platform})
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
		return p.id, p.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.waiters--; p.waiters == 0 {
		p.cancel()
		// Whoever comes now must not join a pull that is being cancelled.
		s.forget(key, p)
	}
	return "", fmt.Errorf("pull image %s: %w", ref, ctx.Err())
}

// join returns the running pull of key, or starts one. The key it returns is how the
// pull is known.
func (s *Store) join(key pullKey) (*pull, pullKey, error) {
	if named, err := reference.ParseDockerRef(key.ref); err == nil {
		// Only names that say their registry: what a short name means is registries.conf's.
		if full := named.String(); reference.FamiliarString(named) == full {
			key.ref = full
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, key, fmt.Errorf("pull image %s: %w", key.ref, errClosed)
	}
	p := s.pulls[key]
	if p == nil {
		ctx, cancel := context.WithCancel(s.base)
		p = &pull{cancel: cancel, done: make(chan struct{})}
		s.pulls[key] = p
		w := s.begin("pull image", key.ref, "name")
		s.wg.Go(func() {
			defer cancel()
			p.id, p.err = s.pullAny(ctx, key, w)
			s.mu.Lock()
			s.forget(key, p)
			s.end(w)
			last := len(s.pulls) == 0
			s.mu.Unlock()
			close(p.done)
			if last {
				// A pull takes much memory for a moment, and the storage library leaves
				// a pipe per layer to the collector.
				debug.FreeOSMemory()
			}
		})
	}
	p.waiters++
	return p, key, nil
}

// forget needs s.mu.
func (s *Store) forget(key pullKey, p *pull) {
	if s.pulls[key] == p {
		delete(s.pulls, key)
	}
}

// pullAny tries the full names that a reference may stand for. Of several
// failures the first one that is more than "not there" tells the kind.
func (s *Store) pullAny(ctx context.Context, key pullKey, w *work) (string, error) {
	// The library keeps what it once read; a node's owner who has changed
	// registries.conf expects the next pull to know.
	sysregistriesv2.InvalidateCache()
	names, err := resolve(s.system(), key.ref)
	if err != nil {
		return "", err
	}
	var failed error
	for _, name := range names {
		begun := time.Now()
		id, err := s.pullOne(ctx, name, key, w)
		if err == nil {
			s.log.Info("image pulled", "image", name.String(), "id", id, "took", time.Since(begun))
			return id, nil
		}
		err = publish("pull image "+name.String(), err, key.cred)
		switch {
		case failed == nil:
			failed = err
		case errors.Is(failed, ErrNotFound) && !errors.Is(err, ErrNotFound):
			failed = &publicError{text: err.Error() + "; " + failed.Error(), is: errors.Unwrap(err)}
		default:
			failed = &publicError{text: failed.Error() + "; " + err.Error(), is: errors.Unwrap(failed)}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return "", failed
}

// pullOne retries what may pass by itself.
func (s *Store) pullOne(ctx context.Context, name reference.Named, key pullKey, w *work) (string, error) {
	backoff := firstBackoff
	for try := 1; ; try++ {
		id, err := s.fetch(ctx, name, key, w)
		if err == nil {
			w.stage("sync")
			err = s.settle(ctx, id, w)
		}
		if err == nil {
			return id, nil
		}
		if try == pullTries || ctx.Err() != nil || !judge(err).transient {
			return "", err
		}
		s.log.Warn("pull failed, trying again", "image", name.String(), "in", backoff, "err", publish("pull", err, key.cred))
		w.stage("pause before the next try")
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return "", err
		}
		backoff *= 2
	}
}

// settle ends a pull: everything on the disk, and the image found again. When
// the store held a damaged image with the same content, what is damaged is
// removed, and the pull has to be done anew.
func (s *Store) settle(ctx context.Context, id string, w *work) error {
	if err := s.syncDisk(); err != nil {
		return err
	}
	w.stage("index")
	if err := s.reload(); err != nil {
		return err
	}
	ix := s.index.Load()
	if _, ok := ix.byID[id]; ok {
		return nil
	}
	b, ok := ix.broken[id]
	if !ok {
		return fmt.Errorf("image %s was removed while it was pulled: %w", id, errAgain)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.log.Warn("removing a damaged image to pull it anew", "image", id, "err", b.reason)
	for _, other := range ix.sharingDamage(id) {
		if _, err := s.store.DeleteImage(other, true); err != nil {
			return fmt.Errorf("image %s is damaged (%w) and can't be removed: %w", other, b.reason, err)
		}
	}
	return fmt.Errorf("image %s was damaged (%w): %w", id, b.reason, errAgain)
}

// fetch copies name to the store once and returns the image's ID.
func (s *Store) fetch(ctx context.Context, name reference.Named, key pullKey, w *work) (id string, err error) {
	w.stage("notes")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() {
		// The library says "context canceled" where the reason is a stall.
		if cause := context.Cause(ctx); err != nil && errors.Is(cause, errStalled) {
			err = cause
		}
	}()
	trust, err := s.trust()
	if err != nil {
		return "", err
	}
	defer func() { _ = trust.Destroy() }() // frees memory only
	source, err := docker.NewReference(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	notes, err := s.openJournal()
	if err != nil {
		return "", err
	}
	defer func() {
		// Also after a failure: finished layers stay for the next try to reuse.
		if s.syncDisk() != nil {
			notes.close()
			return
		}
		notes.discard()
	}()
	w.stage("copy")
	m := newMeter()
	store := &meteredStore{Store: s.store, ctx: ctx, meter: m, work: w, note: notes.add, sync: s.syncDisk}
	target, err := storagetransport.Transport.NewStoreReference(store, name, "")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	go m.watch(ctx, s.options.StallTimeout, cancel)
	progress := make(chan types.ProgressProperties)
	copied := make(chan struct{})
	defer close(copied)
	go drain(copied, progress, m)

	sys, own := s.system(), s.system()
	sys.BigFilesTemporaryDir, own.BigFilesTemporaryDir = notes.temp, notes.temp
	key.cred.apply(sys, name)
	key.platform.apply(sys)
	key.platform.apply(own)
	if err := trustLoopback(sys, name); err != nil {
		return "", err
	}
	if err := key.platform.check(ctx, source, sys); err != nil {
		return "", err
	}
	var resolved types.ImageReference
	_, err = copy.Image(ctx, trust, target, source, &copy.Options{
		SourceCtx: sys, DestinationCtx: own,
		Progress: progress, ProgressInterval: min(time.Second, s.options.StallTimeout/4),
		ReportResolvedReference: &resolved,
	})
	if err != nil {
		return "", err
	}
	_, img, err := storagetransport.ResolveReference(resolved)
	if err != nil {
		return "", fmt.Errorf("look up the pulled image: %w", err)
	}
	return img.ID, nil
}

// drain feeds the meter with what comes from the network until the copy has
// returned. Not until its context ends: a cancelled copy still reports, and
// blocks for ever on a channel that nobody reads.
func drain(copied <-chan struct{}, progress <-chan types.ProgressProperties, m *meter) {
	for {
		select {
		case <-progress:
			m.touch()
		case <-copied:
			return
		}
	}
}
