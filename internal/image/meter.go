package image

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"go.podman.io/storage"
)

// meter knows when a pull last moved a byte, and ends a pull that doesn't.
type meter struct {
	last atomic.Int64 // time of the last byte, Unix nanoseconds
}

func newMeter() *meter {
	m := &meter{}
	m.touch()
	return m
}

func (m *meter) touch() { m.last.Store(time.Now().UnixNano()) }

// watch cancels when no byte moved for the given time. It returns when ctx ends.
func (m *meter) watch(ctx context.Context, limit time.Duration, cancel context.CancelCauseFunc) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		left := limit - time.Since(time.Unix(0, m.last.Load()))
		if left <= 0 {
			cancel(fmt.Errorf("%w for %s", errStalled, limit))
			return
		}
		timer.Reset(left)
	}
}

// meteredStore is the store as one pull sees it: what is unpacked feeds the
// meter and stops with the pull's context, each layer is noted before it is
// made, and layers are on the disk before an image that needs them is recorded.
type meteredStore struct {
	storage.Store
	ctx   context.Context // of the pull; the library's store methods take none
	meter *meter
	work  *work
	note  func(layerID string) error
	sync  func() error
}

func (s *meteredStore) PutLayer(id, parent string, names []string, mountLabel string, writeable bool, options *storage.LayerOptions, diff io.Reader) (*storage.Layer, int64, error) {
	if err := s.note(id); err != nil {
		return nil, -1, err
	}
	defer s.meter.touch()
	return s.Store.PutLayer(id, parent, names, mountLabel, writeable, options, &meteredReader{s.ctx, diff, s.meter})
}

func (s *meteredStore) ApplyStagedLayer(args storage.ApplyStagedLayerOptions) (*storage.Layer, error) {
	if err := s.note(args.ID); err != nil {
		return nil, err
	}
	defer s.meter.touch()
	return s.Store.ApplyStagedLayer(args)
}

func (s *meteredStore) CreateImage(id string, names []string, layer, metadata string, options *storage.ImageOptions) (*storage.Image, error) {
	s.work.stage("sync layers")
	if err := s.sync(); err != nil {
		return nil, err
	}
	s.meter.touch()
	s.work.stage("record")
	return s.Store.CreateImage(id, names, layer, metadata, options)
}

type meteredReader struct {
	ctx   context.Context
	r     io.Reader
	meter *meter
}

func (r *meteredReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.r.Read(p)
	if n > 0 {
		r.meter.touch()
	}
	return n, err
}
