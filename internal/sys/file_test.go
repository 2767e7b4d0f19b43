package sys

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// lockVariable makes the test binary a process that holds the lock of a directory.
const lockVariable = "CRIO_TEST_LOCK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(lockVariable); dir != "" {
		if _, err := LockDir(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type writer func(string, []byte, fs.FileMode) error

func writers() map[string]writer {
	return map[string]writer{"WriteFile": WriteFile, "WriteFileSync": WriteFileSync}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// names are the files of a directory, those that are not finished too.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestWriteFileReplacesWithTheExactMode(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	for name, write := range writers() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			for _, step := range []struct {
				text string
				perm fs.FileMode
			}{{"a long first content", 0o644}, {"short", 0o600}, {"", 0o666}} {
				if err := write(path, []byte(step.text), step.perm); err != nil {
					t.Fatal(err)
				}
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if got := read(t, path); got != step.text || info.Mode().Perm() != step.perm {
					t.Errorf("got %q with mode %v, want %q with %v", got, info.Mode().Perm(), step.text, step.perm)
				}
			}
			if left := names(t, dir); len(left) != 1 {
				t.Errorf("the directory holds %v", left)
			}
		})
	}
}

// A link at the path must be replaced, not followed: what it points to is not ours.
func TestWriteFileDoesNotFollowALink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "file")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, path); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if read(t, victim) != "precious" || read(t, path) != "new" {
		t.Errorf("the link was followed: %q, %q", read(t, victim), read(t, path))
	}
}

func TestWriteFileThatFailsKeepsTheOldContent(t *testing.T) {
	for name, write := range writers() {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "full")
			mountTmpfs(t, dir, "size=64k")
			path := filepath.Join(dir, "file")
			if err := write(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := write(path, bytes.Repeat([]byte("x"), 256<<10), 0o600)
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) {
				t.Errorf("a full file system gave %v", err)
			}
			if got := read(t, path); got != "old" {
				t.Errorf("the old content became %d bytes", len(got))
			}
			if left := names(t, dir); len(left) != 1 {
				t.Errorf("the directory holds %v", left)
			}
		})
	}
}

func TestWriteFileWhereTheRenameFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "directory")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	if left := names(t, dir); len(left) != 1 {
		t.Errorf("the unfinished file is left: %v", left)
	}
}

// Readers and writers at once: nobody ever sees a mixture or a part.
func TestWriteFileIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	texts := []string{strings.Repeat("a", 20_000), strings.Repeat("b", 10_000)}
	if err := WriteFile(path, []byte(texts[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	var writing sync.WaitGroup
	for _, text := range texts {
		writing.Go(func() {
			for range 100 {
				if err := WriteFile(path, []byte(text), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		if got := read(t, path); got != texts[0] && got != texts[1] {
			t.Errorf("a reader saw %d bytes, beginning with %.1s", len(got), got)
		}
	}
	writing.Wait()
}

func TestBootID(t *testing.T) {
	first, err := BootID()
	if err != nil || !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(first) {
		t.Errorf("got %q, %v", first, err)
	}
	if second, err := BootID(); err != nil || second != first {
		t.Errorf("two reads gave %q and %q, %v", first, second, err)
	}
}

func TestLockDirHasOneHolder(t *testing.T) {
	dir := t.TempDir()
	// The remains of an earlier holder with a longer pid must not show through.
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte("12345678901\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("a second holder was told %v", err)
	}
	release()
	release, err = LockDir(dir)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	release()
}

func TestLockDirEndsWithItsProcess(t *testing.T) {
	dir := t.TempDir()
	holder := exec.CommandContext(t.Context(), "/proc/self/exe")
	holder.Env = append(os.Environ(), lockVariable+"="+dir)
	if _, err := holder.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "locked\n" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	if _, err := LockDir(dir); err == nil || !strings.Contains(err.Error(), "(pid "+strconv.Itoa(holder.Process.Pid)+")") {
		t.Errorf("a second holder was told %v, the first is pid %d", err, holder.Process.Pid)
	}
	// As a daemon ends that the OOM killer picked: nothing of its own runs any more.
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	release, err := LockDir(dir)
	if err != nil {
		t.Fatalf("after the holder was killed: %v", err)
	}
	release()
}

// The lock must not live on in what the daemon started: monitors outlive it.
func TestLockDirIsNotInherited(t *testing.T) {
	dir := t.TempDir()
	release, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	startCat(t)
	release()
	if release, err = LockDir(dir); err != nil {
		t.Fatalf("a child kept the lock: %v", err)
	}
	release()
}

func TestLockDirErrors(t *testing.T) {
	if _, err := LockDir(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory gave %v", err)
	}
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(victim, filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(dir); err == nil {
		t.Error("a link was taken as the lock file")
	}
	if _, err := os.Lstat(victim); err == nil {
		t.Error("the link was followed")
	}
}
