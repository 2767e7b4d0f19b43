package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
)

func readRecord(t *testing.T, d *Dir, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(d.path, id))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func writeRecord(t *testing.T, d *Dir, id, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, id), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func save(t *testing.T, root string, value pod.Sandbox) {
	t.Helper()
	if err := (Sandboxes{open(t, root, "pods")}).Save(value); err != nil {
		t.Fatal(err)
	}
}

// wantLoaded checks that these sandboxes load, and that these IDs are told as broken.
func wantLoaded(t *testing.T, root string, want []pod.Sandbox, wantBroken ...string) []Broken {
	t.Helper()
	all, broken := loadSandboxes(t, root)
	loaded := map[string]pod.Sandbox{}
	for _, v := range all {
		loaded[v.ID] = v
	}
	for _, v := range want {
		if !sameSandbox(loaded[v.ID], v) {
			t.Errorf("want %+v, got %+v", v, loaded[v.ID])
		}
	}
	ids := map[string]bool{}
	for _, b := range broken {
		ids[b.ID] = true
	}
	for _, id := range wantBroken {
		if !ids[id] {
			t.Errorf("%s is not told as broken", id)
		}
	}
	if len(all) != len(want) || len(broken) != len(wantBroken) {
		t.Errorf("loaded %d, broken %d, want %d and %d: %v", len(all), len(broken), len(want), len(wantBroken), broken)
	}
	return broken
}

// renamed is a record with a right checksum whose body has another ID.
func renamed(t *testing.T, record, from, to string) string {
	t.Helper()
	body, err := Decode([]byte(record))
	if err != nil {
		t.Fatal(err)
	}
	data, err := encode(bytes.ReplaceAll(body, []byte(from), []byte(to)))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestOneBrokenRecordCostsOneObject(t *testing.T) {
	id := pod.NewID()
	foreign := strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		damage func(good string) string
		file   string
		says   string
	}{
		"empty":             {damage: func(string) string { return "" }, says: "empty"},
		"zeroes":            {damage: func(g string) string { return strings.Repeat("\x00", len(g)) }, says: "not a record"},
		"one byte":          {damage: func(g string) string { return g[:1] }, says: "not a record"},
		"truncated":         {damage: func(g string) string { return g[:len(g)/2] }, says: "not a record"},
		"without its end":   {damage: func(g string) string { return g[:len(g)-2] }, says: "not a record"},
		"two in one line":   {damage: func(g string) string { return strings.TrimSpace(g) + g }, says: "not a record"},
		"no line":           {damage: func(string) string { return "\n\n" }, says: "no line"},
		"the last of two":   {damage: func(g string) string { return g + strings.Replace(g, "ready", "reedy", 1) }, says: "checksum"},
		"ending in zeroes":  {damage: func(g string) string { return g + strings.Repeat("\x00", len(g)) + "\n" }, says: "not a record"},
		"garbled":           {damage: func(g string) string { return strings.Replace(g, "ready", "reedy", 1) }, says: "checksum"},
		"wrong checksum":    {damage: func(g string) string { return strings.Replace(g, `"sha256":"`, `"sha256":"0`, 1) }, says: "checksum"},
		"no checksum":       {damage: func(g string) string { return strings.Replace(g, `"sha256"`, `"md5"`, 1) }, says: "checksum"},
		"no version":        {damage: func(g string) string { return strings.Replace(g, `"version"`, `"release"`, 1) }, says: "version 0"},
		"version below one": {damage: func(g string) string { return strings.Replace(g, `"version":1`, `"version":-1`, 1) }, says: "version -1"},
		"another's record":  {file: foreign, damage: func(g string) string { return g }, says: id},
		"no ID":             {file: "README", damage: func(g string) string { return g }, says: "README"},
		"no ID in it":       {file: "README", damage: func(g string) string { return renamed(t, g, id, "README") }, says: "README"},
		"text":              {file: "notes.txt", damage: func(string) string { return "hello\n" }, says: "not a record"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			d := open(t, root, "pods")
			hurt, before, after := fullSandbox(), fullSandbox(), fullSandbox()
			hurt.ID, before.ID, after.ID = id, strings.Repeat("0", 63)+"1", strings.Repeat("f", 64)
			for _, v := range []pod.Sandbox{hurt, before, after} {
				save(t, root, v)
			}
			good := readRecord(t, d, id)
			bad := c.damage(good)
			want, file := []pod.Sandbox{before, after}, id
			if c.file != "" {
				want, file = append(want, hurt), c.file
			}
			writeRecord(t, d, file, bad)

			b := wantLoaded(t, root, want, file)[0]
			if !strings.Contains(b.Error(), c.says) || !strings.Contains(b.Error(), b.Path) || b.Path == d.path+"/"+file {
				t.Errorf("the report is %q", b.Error())
			}
			if kept, err := os.ReadFile(b.Path); err != nil || string(kept) != bad {
				t.Errorf("the quarantine holds %q, %v", kept, err)
			}
			// Where it was it would be found again.
			wantLoaded(t, root, want, file)
		})
	}
}

// Wherever one byte is garbled, the record is refused or says the same as before.
func TestEveryGarbledByteIsNoticed(t *testing.T) {
	root := t.TempDir()
	v := fullSandbox()
	save(t, root, v)
	good := []byte(readRecord(t, open(t, root, "pods"), v.ID))
	want, err := Decode(good)
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for i := range good {
		for _, flip := range []byte{0x01, 0x20, 0x80, good[i] ^ ' '} {
			bad := bytes.Clone(good)
			bad[i] ^= flip
			got, err := Decode(bad)
			if err != nil {
				continue
			}
			if accepted++; !bytes.Equal(got, want) {
				t.Errorf("byte %d as %q was accepted as another body", i, bad[i])
			}
		}
	}
	// JSON takes the envelope's keys in both cases, and white space at the end.
	if limit := len("version" + "sha256" + "body" + "1\n"); accepted > 2*limit {
		t.Errorf("%d garbled records were accepted", accepted)
	}
}

func TestWhatIsNoFileIsSetAside(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, "pods")
	v := fullSandbox()
	save(t, root, v)
	for _, name := range []string{"directory", ".directory"} {
		if err := os.MkdirAll(filepath.Join(d.path, name, "full"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// A reader of a pipe without a writer would hang.
	if err := unix.Mkfifo(filepath.Join(d.path, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(d.path, "link")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, b := range wantLoaded(t, root, []pod.Sandbox{v}, "directory", ".directory", "pipe", "link") {
			if filepath.Dir(b.Path) != d.quarantine {
				t.Errorf("it is still there: %q", b.Error())
			}
		}
	}
}

// A container whose record was set aside may run for as long as nobody has deleted
// the file, over any number of restarts: it must not be taken for an orphan.
func TestQuarantineIsToldAtEveryStart(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, "pods")
	id := pod.NewID()
	writeRecord(t, d, id, "broken")
	path := wantLoaded(t, root, nil, id)[0].Path
	for range 2 {
		if again := wantLoaded(t, root, nil, id)[0]; again.Path != path || again.Err == nil {
			t.Errorf("it was told as %q", again.Error())
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wantLoaded(t, root, nil)
}

// A crash between the write and the rename leaves the new file with any content.
func TestUnfinishedWritesAreRemoved(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, "pods")
	v := fullSandbox()
	save(t, root, v)
	good := readRecord(t, d, v.ID)
	for name, text := range map[string]string{
		"." + v.ID + ".ABCDEFGHIJ": good[:40], "." + pod.NewID() + ".AB": "", "." + v.ID + ".ZZ": strings.Replace(good, "ready", "gone", 1),
	} {
		writeRecord(t, d, name, text)
	}
	wantLoaded(t, root, []pod.Sandbox{v})
	if entries, err := os.ReadDir(d.path); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

func mountTmpfs(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a file system of its own needs root")
	}
	if err := errors.Join(os.MkdirAll(path, 0o700), unix.Mount("crio-test", path, "tmpfs", 0, "size=64k")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func TestASaveThatFailsLosesNothing(t *testing.T) {
	v := fullSandbox()
	larger := v
	larger.Config = &cri.PodSandboxConfig{Hostname: strings.Repeat("h", 256<<10)}
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  error
	}{
		"full":      {func(string) error { return nil }, unix.ENOSPC},
		"read-only": {func(path string) error { return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") }, unix.EROFS},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			mountTmpfs(t, filepath.Join(root, "pods"))
			save(t, root, v)
			if err := c.spoil(filepath.Join(root, "pods")); err != nil {
				t.Fatal(err)
			}
			s := Sandboxes{open(t, root, "pods")}
			if err := s.Save(larger); !errors.Is(err, c.want) || !strings.Contains(err.Error(), v.ID) {
				t.Errorf("the save gave %v", err)
			}
			other := larger
			other.ID = pod.NewID()
			if err := s.Save(other); !errors.Is(err, c.want) {
				t.Errorf("the save of a new one gave %v", err)
			}
			if entries, err := os.ReadDir(s.path); err != nil || len(entries) != 1 {
				t.Errorf("the directory holds %v, %v", entries, err)
			}
			wantLoaded(t, root, []pod.Sandbox{v})
		})
	}
}

// A disk that went read-only must not keep the daemon from what it can still read.
func TestLoadFromAReadOnlyDirectory(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "pods")
	mountTmpfs(t, path)
	v := fullSandbox()
	save(t, root, v)
	d := open(t, root, "pods")
	writeRecord(t, d, "broken", "")
	writeRecord(t, d, ".unfinished", "")
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, b := range wantLoaded(t, root, []pod.Sandbox{v}, "broken", ".unfinished") {
		if b.Path != filepath.Join(path, b.ID) || !errors.Is(b.Err, unix.EROFS) && !errors.Is(b.Err, unix.EXDEV) {
			t.Errorf("the report is %q", b.Error())
		}
	}
}

// What LoadAll would refuse to read must not be written in the first place.
func TestSaveRefusesWhatIsTooLarge(t *testing.T) {
	root := t.TempDir()
	v := fullSandbox()
	save(t, root, v)
	larger := v
	larger.Config = &cri.PodSandboxConfig{Hostname: strings.Repeat("h", maxSize)}
	if err := (Sandboxes{open(t, root, "pods")}).Save(larger); err == nil {
		t.Error("a record was written that cannot be loaded")
	}
	wantLoaded(t, root, []pod.Sandbox{v})
}

func TestDirectoriesAreRootsAlone(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, "deep/pods")
	save(t, root, fullSandbox())
	for _, path := range []string{d.path, d.quarantine} {
		if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	writeRecord(t, d, "file", "")
	if _, err := Open(filepath.Join(d.path, "file"), d.quarantine); err == nil {
		t.Error("a file was opened as a directory")
	}
	if err := os.RemoveAll(d.path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (Sandboxes{d}).LoadAll(nobodyIsDead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that vanished gave %v", err)
	}
}

// Different IDs may be saved, loaded and deleted at the same time.
func TestConcurrentUse(t *testing.T) {
	root := t.TempDir()
	s := Sandboxes{open(t, root, "pods")}
	var kept []pod.Sandbox
	var work sync.WaitGroup
	for i := range 8 {
		v := fullSandbox()
		if i%2 == 0 {
			kept = append(kept, v)
		}
		work.Go(func() {
			for range 10 {
				if err := s.Save(v); err != nil {
					t.Error(err)
				}
			}
			if i%2 != 0 {
				if err := s.Delete(v.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	wantLoaded(t, root, kept)
}

func TestDecodeKeepsTheBodyAsItIs(t *testing.T) {
	const body = `{"b":1e999,"a":"<>","b":12345678901234567890}`
	data, err := encode([]byte(" " + strings.ReplaceAll(body, ",", " ,\n")))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(data); err != nil || string(got) != body {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := Decode([]byte(`{"version":1,"sha256":"` + strings.ToUpper(hex.EncodeToString(make([]byte, 32))) + `"}`)); err == nil {
		t.Errorf("a record without a body is %q", got)
	}
}
