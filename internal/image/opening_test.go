package image

import (
	"os"
	"testing"
	"time"

	"github.com/crio-minimal/crio/internal/fault"
)

// A store that cannot be opened costs nothing but what needs it, and is open as soon as it
// can be.
func TestStoreThatCannotBeOpenedYet(t *testing.T) {
	o := options(t, nil)
	if err := os.WriteFile(o.Root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	u := s.Unopened()
	if u == nil || u.Tries == 0 || fault.Of(u.Err) != fault.Unavailable {
		t.Fatalf("unopened: %+v", u)
	}
	for call, err := range map[string]error{
		"List":    second(s.List(t.Context(), "")),
		"Remove":  s.Remove(t.Context(), "localhost/x:v1", nothingHeld),
		"Pull":    second(s.Pull(t.Context(), "localhost/x:v1", Credential{}, Platform{})),
		"FsInfo":  second(s.FsInfo(t.Context())),
		"Storage": second(s.Storage()),
	} {
		if fault.Of(err) != fault.Unavailable {
			t.Errorf("%s: %v", call, err)
		}
	}
	if driver, root, _ := s.Place(); driver != o.Driver || root != o.Root {
		t.Errorf("place: %s, %s", driver, root)
	}
	remove(t, o.Root)
	opened(t, s)
	if _, err := s.List(t.Context(), ""); err != nil {
		t.Error(err)
	}
}

// Another tool that holds a lock for long, or a disk that hangs, does not hold up the start.
func TestStoreThatIsLockedIsOpenedBeside(t *testing.T) {
	o := options(t, nil)
	first, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	release := lock(t, first)
	s := open(t, o)
	if err := second(s.List(t.Context(), "")); fault.Of(err) != fault.Unavailable {
		t.Errorf("list: %v", err)
	}
	release()
	opened(t, s)
}

func opened(t *testing.T, s *Store) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); s.Unopened() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the store is not opened: %v", s.Unopened().Err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
