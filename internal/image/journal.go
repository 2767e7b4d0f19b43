package image

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// containers/storage calls a layer complete when it was unpacked, not when it is
// on the disk. A power cut in between leaves a layer that looks whole and isn't,
// and that every later pull would reuse. So each pull notes the layers it makes
// before it makes them, and drops its notes after a syncfs. Notes that are there
// at start name the layers to distrust.

// journal is one pull's list of layers that may not be on the disk. Its lock
// (flock(2)) tells another daemon that starts on the same store to leave it alone.
type journal struct {
	file *os.File
	// temp is the pull's own directory for layers in flight. It goes with the journal's
	// last user, also when that is the daemon after a crash.
	temp string
}

// tempOf is the directory of the pull with the journal.
func (s *Store) tempOf(journal string) string {
	return filepath.Join(cmp.Or(s.options.TmpDir, defaultTmpDir), "crio-pull-"+filepath.Base(journal))
}

func (s *Store) journalDir() string { return filepath.Join(s.store.GraphRoot(), "crio-pulls") }

func (s *Store) openJournal() (*journal, error) {
	boot, err := sys.BootID()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.journalDir(), 0o700); err != nil {
		return nil, fmt.Errorf("note layers of the pull: %w", err)
	}
	f, err := os.CreateTemp(s.journalDir(), boot+".")
	if err != nil {
		return nil, fmt.Errorf("note layers of the pull: %w", err)
	}
	j := &journal{file: f, temp: s.tempOf(f.Name())}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		j.discard()
		return nil, fmt.Errorf("note layers of the pull: lock %s: %w", f.Name(), err)
	}
	if err := os.Mkdir(j.temp, 0o700); err != nil {
		j.discard()
		return nil, fmt.Errorf("directory for layers in flight: %w", err)
	}
	return j, nil
}

// add may be called by several goroutines.
func (j *journal) add(layerID string) error {
	_, err := j.file.WriteString(layerID + "\n")
	if err == nil {
		err = j.file.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(j.file.Name()))
	}
	if err != nil {
		return fmt.Errorf("note layer %s: %w", layerID, err)
	}
	sys.Failpoint("pull image", "layer noted")
	return nil
}

// discard deletes the notes: their layers are on the disk.
func (j *journal) discard() {
	_ = os.RemoveAll(j.temp)
	_ = os.Remove(j.file.Name())
	_ = j.file.Close()
}

// close keeps the notes for the next start.
func (j *journal) close() {
	_ = os.RemoveAll(j.temp)
	_ = j.file.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncDisk writes the store's filesystem to the disk (syncfs(2)).
func (s *Store) syncDisk() error {
	d, err := os.Open(s.store.GraphRoot())
	if err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync image store %s: %w", s.store.GraphRoot(), err)
	}
	return nil
}

// recoverPulls deals with the notes of pulls that a crash ended: after a reboot
// their layers are deleted unless something uses them, within the same boot they
// are whole in the page cache and a syncfs makes them good.
func (s *Store) recoverPulls() error {
	entries, err := os.ReadDir(s.journalDir())
	if errors.Is(err, os.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read notes of pulls: %w", err)
	}
	boot, err := sys.BootID()
	if err != nil {
		return err
	}
	var distrusted []string
	var abandoned []*journal
	defer func() {
		for _, j := range abandoned {
			j.close()
		}
	}()
	for _, e := range entries {
		f, err := os.Open(filepath.Join(s.journalDir(), e.Name()))
		if err != nil {
			return fmt.Errorf("read notes of pulls: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			_ = f.Close() // a pull of another daemon that runs
			continue
		}
		abandoned = append(abandoned, &journal{file: f, temp: s.tempOf(f.Name())})
		if strings.HasPrefix(e.Name(), boot+".") {
			continue
		}
		data, err := io.ReadAll(f)
		if err != nil {
			return fmt.Errorf("read notes of pulls: %w", err)
		}
		distrusted = append(distrusted, strings.Fields(string(data))...)
	}
	s.dropLayers(distrusted)
	if err := s.syncDisk(); err != nil {
		return err
	}
	for _, j := range abandoned {
		j.discard()
	}
	return nil
}

// dropLayers deletes children before parents: a layer with children refuses.
func (s *Store) dropLayers(ids []string) {
	for progress := true; progress; {
		progress = false
		for _, id := range ids {
			if !s.store.Exists(id) {
				continue
			}
			if err := s.store.DeleteLayer(id); err == nil {
				s.log.Warn("deleted a layer whose pull a power cut ended", "layer", id)
				progress = true
			} else if errors.Is(err, storage.ErrLayerUsedByImage) || errors.Is(err, storage.ErrLayerUsedByContainer) {
				s.log.Warn("a layer whose pull a power cut ended is in use and stays", "layer", id)
			}
		}
	}
}
