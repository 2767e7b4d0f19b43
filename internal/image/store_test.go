package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crio-minimal/crio/test/fixture"
)

func TestRemoveTakesAllNames(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	first, second := r.Push(t, "a", "v1", img), r.Push(t, "b", "v2", img)
	for _, by := range []string{first, img.ID, img.ID[:12], "sha256:" + img.ID, r.Host + "/a@" + img.Digest} {
		t.Run(by, func(t *testing.T) {
			s := open(t, options(t, r))
			pullOK(t, s, first, img)
			pullOK(t, s, second, img)
			if got := wantImage(t, s, by, true).RepoTags; len(got) != 2 {
				t.Fatalf("tags %v, want two", got)
			}
			if err := s.Remove(t.Context(), by, nothingHeld); err != nil {
				t.Fatal(err)
			}
			wantImage(t, s, first, false)
			wantImage(t, s, second, false)
			if err := s.Remove(t.Context(), by, nothingHeld); err != nil {
				t.Errorf("removing again: %v", err)
			}
			if layers, err := s.store.Layers(); err != nil || len(layers) != 0 {
				t.Errorf("%d layers are left, err %v", len(layers), err)
			}
		})
	}
}

func TestRemoveOfImageInUse(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	s := open(t, options(t, r))
	pullOK(t, s, r.Push(t, "a", "v1", img), img)
	c, err := s.store.CreateContainer("", nil, img.ID, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), img.ID, nothingHeld); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want %v", err, ErrInUse)
	}
	wantImage(t, s, img.ID, true)
	if err := s.store.DeleteContainer(c.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), img.ID, nothingHeld); err != nil {
		t.Error(err)
	}
}

func TestStatusTellsWhatTheImageSays(t *testing.T) {
	spec := fixture.ImageSpec{Layers: [][]fixture.File{fixture.Busybox(t), {{Path: "x", Data: []byte("y")}}}, Annotations: map[string]string{"k": "v"}}
	spec.Config.User, spec.Config.Entrypoint, spec.Config.WorkingDir, spec.Config.StopSignal = "1000:5", []string{"/bin/sh"}, "/tmp", "SIGINT"
	spec.Config.Volumes = map[string]struct{}{"/data": {}}
	img := fixture.BuildImage(t, spec)
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	o := options(t, r)
	o.Pinned = []string{"*" + "/pinned/" + "*"}
	s := open(t, o)
	ref := r.Push(t, "pinned/a", "v1", img)
	pullOK(t, s, ref, img)
	got := wantImage(t, s, ref, true)
	if got.UID == nil || *got.UID != 1000 || got.Username != "" || !got.Pinned || got.Annotations["k"] != "v" || got.Config.WorkingDir != "/tmp" ||
		got.Config.StopSignal != "SIGINT" || len(got.Config.Volumes) != 1 || got.Config.Entrypoint[0] != "/bin/sh" {
		t.Errorf("%+v", got)
	}
	if got.Size < 1<<20 {
		t.Errorf("size %d is less than busybox", got.Size)
	}
	if len(got.RepoDigests) != 1 || got.RepoDigests[0] != r.Host+"/pinned/a@"+img.Digest {
		t.Errorf("digests %v", got.RepoDigests)
	}
	if all, err := s.List(t.Context(), ""); err != nil || len(all) != 1 || all[0].ID != img.ID {
		t.Errorf("list %v, %v", all, err)
	}
	if some, err := s.List(t.Context(), r.Host+"/other"); err != nil || len(some) != 0 {
		t.Errorf("filtered list %v, %v", some, err)
	}
}

func TestATagThatMovedLeavesTheOldImageByDigest(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	s := open(t, options(t, r))
	before, after := small(t, "1"), small(t, "2")
	ref := r.Push(t, "a", "v1", before)
	pullOK(t, s, ref, before)
	r.Push(t, "a", "v1", after)
	pullOK(t, s, ref, after)
	if got := wantImage(t, s, ref, true); got.ID != after.ID {
		t.Errorf("the tag names %s", got.ID)
	}
	if got := wantImage(t, s, r.Host+"/a@"+before.Digest, true); got.ID != before.ID || len(got.RepoTags) != 0 {
		t.Errorf("the old image: %+v", got)
	}
}

func TestSkopeoAndWeShareTheStore(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	ours, theirs := small(t, "ours"), small(t, "theirs")
	o := options(t, r)
	s := open(t, o)
	pullOK(t, s, r.Push(t, "ours", "v1", ours), ours)
	store := fmt.Sprintf("containers-storage:[overlay@%s+%s]", o.Root, o.RunRoot)
	skopeo := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "skopeo", append([]string{"--policy", r.PolicyJSON, "--registries-conf", r.RegistriesConf}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("skopeo %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := skopeo("inspect", store+r.Host+"/ours:v1"); !strings.Contains(out, ours.Digest) {
		t.Errorf("skopeo sees %s", out)
	}
	ref := r.Push(t, "theirs", "v1", theirs)
	wantImage(t, s, ref, false)
	skopeo("copy", "docker://"+ref, store+ref)
	s.renewed(t.Context(), time.Minute)
	if got := wantImage(t, s, ref, true); got.ID != theirs.ID {
		t.Errorf("we see %s, want %s", got.ID, theirs.ID)
	}
	skopeo("delete", store+ref)
	s.renewed(t.Context(), time.Minute)
	wantImage(t, s, ref, false)
}

func TestReadersNeedNoStorageLock(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	s := open(t, options(t, r))
	ref := r.Push(t, "a", "v1", img)
	pullOK(t, s, ref, img)
	defer lock(t, s)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		wantImage(t, s, ref, true)
		if all, err := s.List(context.Background(), ""); err != nil || len(all) != 1 {
			t.Errorf("%v, %v", all, err)
		}
	}()
	within(t, 5*time.Second, "List and Status while a writer holds the locks", done)
}

func TestBrokenImageCostsOnlyItself(t *testing.T) {
	for _, c := range []struct {
		name  string
		wreck func(t *testing.T, root string, img Image)
	}{
		{"layer directory is gone", func(t *testing.T, root string, img Image) {
			remove(t, filepath.Join(root, "overlay", img.TopLayer))
		}},
		{"layer record is gone", func(t *testing.T, root string, img Image) {
			fixture.ForgetRecord(t, filepath.Join(root, "overlay-layers/layers.json"), img.TopLayer)
		}},
		{"layer has no short name", func(t *testing.T, root string, img Image) {
			empty(t, filepath.Join(root, "overlay", img.TopLayer, "link"))
		}},
		{"layer does not know those below it", func(t *testing.T, root string, img Image) {
			empty(t, filepath.Join(root, "overlay", img.TopLayer, "lower"))
		}},
		{"manifest is cut", func(t *testing.T, root string, img Image) {
			truncate(t, filepath.Join(root, "overlay-images", img.ID, "manifest"))
		}},
		{"config is cut", func(t *testing.T, root string, img Image) {
			found, _ := filepath.Glob(filepath.Join(root, "overlay-images", img.ID, "=*"))
			for _, f := range found {
				truncate(t, f)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := fixture.StartRegistry(t, fixture.RegistryOptions{})
			whole := small(t, "whole")
			bad := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{{{Path: "below"}}, {{Path: "file", Data: []byte("bad")}}}})
			wholeRef, badRef := r.Push(t, "whole", "v1", whole), r.Push(t, "bad", "v1", bad)
			o := options(t, r)
			first, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			pullOK(t, first, wholeRef, whole)
			pullOK(t, first, badRef, bad)
			got := wantImage(t, first, badRef, true)
			if err := first.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.wreck(t, o.Root, got)

			log := &logBuffer{}
			o.Log = slog.New(slog.NewTextHandler(log, nil))
			s := open(t, o)
			wantImage(t, s, wholeRef, true)
			wantImage(t, s, badRef, false)
			if err := s.reload(); err != nil {
				t.Fatal(err)
			}
			if n := log.count("left out"); n != 1 {
				t.Errorf("%d log lines about the broken image, want 1", n)
			}
			pullOK(t, s, badRef, bad) // which makes it whole again
			wantImage(t, s, badRef, true)
			path, err := s.store.MountImage(bad.ID, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(data) != "bad" {
				t.Errorf("content %q, %v", data, err)
			}
			if _, err := s.store.UnmountImage(bad.ID, true); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBrokenImageCanBeRemoved(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := small(t, "x")
	s := open(t, options(t, r))
	ref := r.Push(t, "a", "v1", img)
	pullOK(t, s, ref, img)
	truncate(t, filepath.Join(s.options.Root, "overlay-images", img.ID, "manifest"))
	s.index.Store(&index{})
	wantImage(t, s, ref, false)
	if err := s.Remove(t.Context(), ref, nothingHeld); err != nil {
		t.Fatal(err)
	}
	if images, err := s.store.Images(); err != nil || len(images) != 0 {
		t.Errorf("%d images are left, err %v", len(images), err)
	}
}

func TestLayersOfAPullThatAPowerCutEnded(t *testing.T) {
	o := options(t, nil)
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{"before": "", "parent": "", "now": ""}
	for name, parent := range map[string]string{"before": "", "parent": "", "now": ""} {
		l, err := s.store.CreateLayer("", parent, nil, "", false, nil)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = l.ID
	}
	child, err := s.store.CreateLayer("", ids["parent"], nil, "", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	j, err := s.openJournal()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.add(ids["now"]); err != nil {
		t.Fatal(err)
	}
	j.close()
	running, err := s.openJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer running.close()
	another := filepath.Join(s.journalDir(), "00000000-0000-0000-0000-000000000000.1")
	if err := os.WriteFile(another, []byte(ids["before"]+"\n"+ids["parent"]+"\n"+child.ID+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	for id, want := range map[string]bool{ids["before"]: false, ids["parent"]: false, child.ID: false, ids["now"]: true} {
		if s.store.Exists(id) != want {
			t.Errorf("layer %s exists: %t, want %t", id, !want, want)
		}
	}
	if left, err := os.ReadDir(s.journalDir()); err != nil || len(left) != 1 || left[0].Name() != filepath.Base(running.file.Name()) {
		t.Errorf("notes are left: %v, %v; want only those of the pull that runs", left, err)
	}
}

func TestFsInfoCountsSharedLayersOnce(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	s := open(t, options(t, r))
	shared := []fixture.File{{Path: "big", Data: noise(1<<20, 4)}}
	for i, content := range []string{"a", "b"} {
		img := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{shared, {{Path: "x", Data: []byte(content)}}}})
		pullOK(t, s, r.Push(t, "i", fmt.Sprint(i), img), img)
	}
	info, err := s.FsInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Bytes < 1<<20 || info.Bytes > 1<<20+64<<10 || info.Inodes == 0 || info.Mountpoint != s.options.Root {
		t.Errorf("images %+v", info)
	}
}

func TestErrorsHoldNoSecrets(t *testing.T) {
	cred := Credential{Password: "pa55word", IdentityToken: "identity", RegistryToken: "registry-token"}
	err := publish("pull", errors.New(`Get "https://user:other@s3.example/blob?X-Signature=abc&x=1": pa55word identity registry-token`), cred)
	for _, secret := range []string{"pa55word", "identity", "registry-token", "X-Signature", "abc", "other"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q is in %q", secret, err)
		}
	}
	if !strings.Contains(err.Error(), "s3.example/blob") {
		t.Errorf("%q does not tell the URL", err)
	}
}

func TestPinnedPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a/b:v1", "a/b:v1", true}, {"a/b:v1", "a/b:v12", false}, {"a/b", "a/b:v1", false},
		{"a/*", "a/b:v1", true}, {"a/*", "x/a/b", false}, {"*b*", "a/b:v1", true}, {"*c*", "a/b:v1", false},
		{"*", "a", false}, {"**", "a", false}, {"", "a", false},
	} {
		if got := matchPin(c.pattern, c.name); got != c.want {
			t.Errorf("%q pins %q: %t", c.pattern, c.name, got)
		}
	}
}

func TestUserOfConfig(t *testing.T) {
	for _, c := range []struct {
		user string
		uid  int64
		name string
	}{
		{"", -1, ""}, {"0", 0, ""}, {"1000:1", 1000, ""}, {"web", -1, "web"}, {"web:1", -1, "web"}, {"-1", -1, "-1"}, {"4294967296", -1, "4294967296"},
	} {
		uid, name := configUser(c.user)
		if (uid == nil) != (c.uid < 0) || (uid != nil && *uid != c.uid) || name != c.name {
			t.Errorf("%q: %v %q", c.user, uid, name)
		}
	}
}

func TestStalenessIsSeenWithinTheWait(t *testing.T) {
	s := open(t, options(t, nil))
	before := s.current(t.Context())
	if s.current(t.Context()) != before {
		t.Error("the index was renewed though nothing changed")
	}
	if _, err := s.store.CreateImage("", []string{"localhost/x:v1"}, "", "", nil); err != nil {
		t.Fatal(err)
	}
	if s.renewed(t.Context(), time.Minute) == before {
		t.Error("the index is stale")
	}
}

// What another tool has brought is seen by readers alone, without a removal's longer wait.
func TestReadersSeeWhatOthersBring(t *testing.T) {
	s := open(t, options(t, nil))
	before := s.index.Load()
	if _, err := s.store.CreateImage("", []string{"localhost/x:v1"}, "", "", nil); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for s.current(t.Context()) == before {
		if time.Now().After(deadline) {
			t.Fatal("the index is stale")
		}
		time.Sleep(time.Millisecond)
	}
}

// While another tool has changed the store and holds its lock, no reader waits; while the
// store is slow to load, the first one alone. After it all is seen.
func TestReadersDoNotWaitForAStuckStore(t *testing.T) {
	s := open(t, options(t, nil))
	least := time.Minute // that a first reader takes of a locked store, on a busy machine
	for _, locked := range []bool{true, false, true, true} {
		before := s.index.Load()
		end := hold(t, s)
		if !locked {
			s.loading.Lock()
			end()
			end = s.loading.Unlock
		}
		const reads = 50
		var all time.Duration
		for i := range reads {
			begun := time.Now()
			if s.current(t.Context()) != before {
				t.Fatal("the index was renewed meanwhile")
			}
			if all += time.Since(begun); i == 0 && locked {
				least = min(least, all)
			}
		}
		if all > reads*readWait/2 {
			t.Errorf("locked %t: %d readers wait for %s", locked, reads, all)
		}
		end()
		if s.renewed(t.Context(), time.Minute) == before {
			t.Errorf("locked %t: the index is stale", locked)
		}
	}
	if least >= readWait {
		t.Errorf("a locked store: the first reader waits for %s", least)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
}

func empty(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
}
