package image

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/fault"
)

const (
	// openPatience is how long Open waits for the first try. One that takes longer, since
	// another tool has a lock or the disk hangs, goes on beside what does without images.
	openPatience = 5 * time.Second
	// Backoff of a store that cannot be opened.
	reopenFirst = time.Second
	reopenMost  = time.Minute
)

// Unopened tells why the store is not open yet.
type Unopened struct {
	// Err names the store, the reason and what to do.
	Err error
	// Since is when it was tried first, Tries how often it was tried.
	Since time.Time
	Tries int
}

// Unopened returns nil once the store is open, which it stays until Close. Until then each
// call that needs the store fails, and what is in it may be anything.
func (s *Store) Unopened() *Unopened { return s.unopened.Load() }

func (s *Store) ready() error {
	if u := s.unopened.Load(); u != nil {
		return u.Err
	}
	return nil
}

// Storage returns the store below, which this Store owns, once it is open: only for rootfs.New.
func (s *Store) Storage() (storage.Store, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	return s.store, nil
}

// keepOpening opens the store, however many tries it takes: its disk may be read-only, full or
// broken while containers run. It returns when it is open, or when Close is called.
func (s *Store) keepOpening(tried func()) {
	begun, delay := time.Now(), reopenFirst
	for tries := 1; ; tries++ {
		err := s.open()
		if err == nil {
			s.unopened.Store(nil)
			tried()
			if tries > 1 {
				s.log.Info("image store is open", "tries", tries)
			}
			return
		}
		s.unopened.Store(&Unopened{Since: begun, Tries: tries, Err: fault.New(fault.Unavailable,
			"image store %s cannot be opened: %w: see to its disk; it is opened as soon as it can be", s.place.GraphRoot, err)})
		s.log.Error("image store cannot be opened; images and containers wait for it", "tries", tries, "again in", delay, "err", err)
		tried()
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-s.base.Done():
			timer.Stop()
			return
		}
		delay = min(2*delay, reopenMost)
	}
}

// open may be tried again after an error. The fields it sets are read once the store is open.
func (s *Store) open() error {
	root, driver := s.place.GraphRoot, s.place.GraphDriverName
	// The library panics where it cannot open a lock.
	if err := writable(listOf(root, cmp.Or(driver, overlayDriver))); err != nil {
		return err
	}
	damaged, err := mendLists(root, s.place.RunRoot, driver, s.log)
	if err != nil {
		return err
	}
	if err := mendLinks(root, driver); err != nil {
		return err
	}
	if s.store == nil {
		if err := room(root); err != nil {
			return err
		}
		st, err := storage.GetStore(s.place)
		if err != nil {
			return nameDamage(root, driver, err)
		}
		s.store = guard(st)
	}
	s.damaged = damaged
	if err := s.recoverPulls(); err != nil {
		return nameDamage(root, s.store.GraphDriverName(), err)
	}
	return s.reload()
}

// room is why the disk takes no file, nil where it does. The library makes some to try what
// the kernel can. Where one of them is missing it blames the kernel, and notes that in the
// run root for as long as the node is up.
func room(root string) error {
	fd, err := unix.Open(root, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make a file: %w", err)
	}
	const size = 64 << 10
	n, err := unix.Write(fd, make([]byte, size))
	if err == nil && n < size {
		err = unix.ENOSPC
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("write a file: %w", err)
	}
	return nil
}

// storeOptions are storage.conf's, as far as ours do not say otherwise.
func storeOptions(o Options) (storage.StoreOptions, error) {
	so, err := storage.DefaultStoreOptions()
	if err != nil {
		return so, fmt.Errorf("read storage.conf: %w", err)
	}
	so.GraphRoot, so.RunRoot = cmp.Or(o.Root, so.GraphRoot), cmp.Or(o.RunRoot, so.RunRoot)
	if o.Driver != "" && o.Driver != so.GraphDriverName {
		so.GraphDriverName, so.GraphDriverOptions = o.Driver, nil
	}
	if len(o.DriverOptions) > 0 {
		so.GraphDriverOptions = o.DriverOptions
	}
	// As the library has it.
	so.GraphRoot, err = filepath.Abs(so.GraphRoot)
	return so, err
}

// Place tells the graph driver and the directory of the store, and the directory of the
// images where they are apart from it, else "". It needs no open store.
func (s *Store) Place() (driver, root, images string) {
	driver = cmp.Or(s.place.GraphDriverName, overlayDriver)
	if s.ready() == nil {
		driver = s.store.GraphDriverName()
	}
	return driver, s.place.GraphRoot, s.place.ImageStore
}

// beginOpening has the store opened, and waits for the first try.
func (s *Store) beginOpening() {
	s.unopened.Store(&Unopened{Since: time.Now(), Err: fault.New(fault.Unavailable,
		"image store %s is still being opened: its disk hangs, or another tool has it locked", s.place.GraphRoot)})
	tried := make(chan struct{})
	s.wg.Go(func() { s.keepOpening(sync.OnceFunc(func() { close(tried) })) })
	patience := time.NewTimer(openPatience)
	defer patience.Stop()
	select {
	case <-tried:
	case <-patience.C:
		s.log.Warn("image store is still being opened; images and containers wait for it", "store", s.place.GraphRoot)
	}
}
