package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

func nobodyIsDead(string) bool { return false }

func everybodyIsDead(string) bool { return true }

// wantState loads one sandbox, or wants it set aside where want is nil.
func wantState(t *testing.T, root string, dead func(string) bool, want *pod.Sandbox) {
	t.Helper()
	all, broken, err := Sandboxes{open(t, root, "pods")}.LoadAll(dead)
	switch {
	case err != nil:
		t.Error(err)
	case want == nil && (len(all) > 0 || len(broken) != 1):
		t.Errorf("loaded %v, set aside %v", all, broken)
	case want != nil && (len(all) != 1 || len(broken) > 0 || !sameSandbox(all[0], *want)):
		t.Errorf("loaded %+v, set aside %v, want %+v", all, broken, *want)
	}
}

// states of one sandbox, in order, none of which replaces another in the file.
func states() (made, ready, stopped pod.Sandbox) {
	made = fullSandbox()
	ready, stopped = made, made
	made.Phase, ready.Phase, stopped.Phase = pod.SandboxCreating, pod.SandboxReady, pod.SandboxNotReady
	return made, ready, stopped
}

// What may run is not taken as it was: a file that was cut off is set aside, unless nothing
// runs.
func TestAFileThatWasCutOffLeavesTheStateBeforeItToTheDeadAlone(t *testing.T) {
	root := t.TempDir()
	s := Sandboxes{open(t, root, "pods")}
	made, ready, stopped := states()
	if err := s.Save(made); err != nil {
		t.Fatal(err)
	}
	first := readRecord(t, s.Dir, made.ID)
	if err := s.Save(ready); err != nil {
		t.Fatal(err)
	}
	both := readRecord(t, s.Dir, made.ID)
	begin := strings.LastIndex(both[:len(both)-1], "\n") + 1
	for size := begin + 1; size < len(both)-1; size++ {
		writeRecord(t, s.Dir, made.ID, both[:size])
		wantState(t, root, everybodyIsDead, &made)
		if err := s.Save(stopped); err != nil {
			t.Fatal(err)
		}
		wantState(t, root, nobodyIsDead, &stopped)
		writeRecord(t, s.Dir, made.ID, both[:size])
		wantState(t, root, nobodyIsDead, nil)
		if err := os.RemoveAll(filepath.Join(root, "quarantine")); err != nil {
			t.Fatal(err)
		}
	}
	for size := len(first); size <= begin; size++ {
		writeRecord(t, s.Dir, made.ID, both[:size])
		wantState(t, root, nobodyIsDead, &made)
	}
}

// A write is cut short by a kill at the border of a page alone (generic_perform_write of the
// kernel looks for one before each), where no line is.
func TestNoLineCrossesAPage(t *testing.T) {
	root := t.TempDir()
	s := Sandboxes{open(t, root, "pods")}
	for extra := range 400 {
		v := fullSandbox()
		for range 12 {
			v.ProcessLabel += strings.Repeat("l", extra)
			if err := s.Save(v); err != nil {
				t.Fatal(err)
			}
		}
		at := 0
		data := readRecord(t, s.Dir, v.ID)
		for line := range strings.Lines(data) {
			if len(line) > 1 && len(data) > len(line) && at/page != (at+len(line)-1)/page {
				t.Fatalf("a line of %d bytes at %d of %d", len(line), at, len(data))
			}
			at += len(line)
		}
		if err := s.Delete(v.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// A power cut keeps what was synced, and may lose any part of what was written after it.
// What may run is not taken as it was, since the file of a daemon that was killed is whole.
func TestAPowerCutLeavesAStateFromBeforeIt(t *testing.T) {
	for _, dead := range []func(string) bool{everybodyIsDead, nobodyIsDead} {
		root := t.TempDir()
		s := Sandboxes{open(t, root, "pods")}
		made, ready, stopped := states()
		if err := s.Save(made); err != nil {
			t.Fatal(err)
		}
		synced := len(readRecord(t, s.Dir, made.ID))
		if err := errors.Join(s.Sync(made.ID), s.Save(ready), s.Save(stopped)); err != nil {
			t.Fatal(err)
		}
		all := readRecord(t, s.Dir, made.ID)
		lost := all[:synced] + strings.Repeat("\x00", len(all)-synced-1) + "\n"
		middle := strings.Replace(all, `"Phase":"notready"`, `"Phase":"\x00\x00\x00ready"`, 1)
		if middle == all {
			t.Fatalf("no phase in %s", all)
		}
		for text, want := range map[string]*pod.Sandbox{lost: &made, middle: &ready} {
			writeRecord(t, s.Dir, made.ID, text)
			if !dead(made.ID) {
				want = nil
			}
			wantState(t, root, dead, want)
			if err := os.RemoveAll(filepath.Join(root, "quarantine")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The file does not grow with the number of states, and is never without the last one.
func TestManyStatesOfOneObjectStaySmall(t *testing.T) {
	root := t.TempDir()
	s := Sandboxes{open(t, root, "pods")}
	v := fullSandbox()
	most := 0
	for i := range 300 {
		v.CreatedAt = int64(i)
		if err := s.Save(v); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(readRecord(t, s.Dir, v.ID)))
		if i%50 == 0 {
			wantState(t, root, nobodyIsDead, &v)
		}
	}
	if most > keepSize || most < keepSize/2 {
		t.Errorf("the file had up to %d bytes", most)
	}
	wantState(t, root, nobodyIsDead, &v)
}

// A line that the disk has no room for is taken back, and a shorter one fits.
func TestALineThatDoesNotFitIsTakenBack(t *testing.T) {
	root := t.TempDir()
	mountTmpfs(t, filepath.Join(root, "pods")) // of 64 KiB
	s := Sandboxes{open(t, root, "pods")}
	made, ready, larger := states()
	if err := s.Save(made); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.path, ".filler"), make([]byte, 60<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	before := readRecord(t, s.Dir, made.ID)
	larger.ProcessLabel = strings.Repeat("l", 2700)
	if err := s.Save(larger); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a second page on a full disk: %v", err)
	}
	if after := readRecord(t, s.Dir, made.ID); after != before {
		t.Errorf("the file has %d bytes after %d", len(after), len(before))
	}
	if err := s.Save(ready); err != nil {
		t.Fatal(err)
	}
	wantState(t, root, nobodyIsDead, &ready)
}

// A state of more than a page cannot be added as a line: the writer of the kind makes the
// file anew, which is on the disk for a sandbox.
func TestALargeStateIsANewFile(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, "pods")
	anew := 0
	count := func(path string, data []byte, perm fs.FileMode) error {
		anew++
		return sys.WriteFile(path, data, perm)
	}
	v := fullSandbox()
	for _, state := range []struct {
		label string
		anew  int // by now
	}{{"small", 0}, {"small again", 0}, {strings.Repeat("l", page), 1}, {"small once more", 1}} {
		v.ProcessLabel = state.label
		if err := d.Save(v.ID, sandboxBody{Sandbox: v, Config: []byte(`{}`), Overhead: []byte("null"), Resources: []byte("null")}, count); err != nil {
			t.Fatal(err)
		}
		if anew != state.anew {
			t.Errorf("%d new files after %.20q, want %d", anew, state.label, state.anew)
		}
	}
}
