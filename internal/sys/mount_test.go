package sys

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips where the kernel would refuse: mounts and cgroups are root's.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func mountTmpfs(t *testing.T, path, options string) {
	t.Helper()
	needRoot(t)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("crio-test", path, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	// One by one, and not by the code under test.
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
}

func wantMountpoint(t *testing.T, path string, want bool) {
	t.Helper()
	if got, err := IsMountpoint(path); err != nil || got != want {
		t.Errorf("IsMountpoint(%s) = %v, %v, want %v", path, got, err, want)
	}
}

func TestUnmountTakesEveryLayer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mount")
	for range 3 {
		mountTmpfs(t, path, "")
	}
	wantMountpoint(t, path, true)
	// A user of the file system must not keep it mounted.
	open, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for range 2 {
		if err := Unmount(path); err != nil {
			t.Fatal(err)
		}
		wantMountpoint(t, path, false)
	}
}

func TestUnmountOfAFile(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantMountpoint(t, path, false)
	// As the namespaces of a pod are pinned.
	if err := unix.Mount("/proc/self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	wantMountpoint(t, path, true)
	if err := Unmount(path); err != nil {
		t.Fatal(err)
	}
	wantMountpoint(t, path, false)
}

func TestNothingIsMountedThere(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, file, filepath.Join(dir, "missing"), filepath.Join(file, "below")} {
		wantMountpoint(t, path, false)
		if err := Unmount(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A container can put a link where the daemon expects a mount of its own.
func TestMountHelpersDoNotFollowALink(t *testing.T) {
	dir := t.TempDir()
	mounted, link := filepath.Join(dir, "mounted"), filepath.Join(dir, "link")
	mountTmpfs(t, mounted, "")
	if err := os.Symlink(mounted, link); err != nil {
		t.Fatal(err)
	}
	wantMountpoint(t, link, false)
	if err := Unmount(link); err != nil {
		t.Error(err)
	}
	wantMountpoint(t, mounted, true)
}

// The mount has its attributes, is nobody's peer, and its place may exist already.
func TestBind(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, filepath.Join(dir, "from"), "")
	if err := os.WriteFile(filepath.Join(dir, "from/file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]string{"dir": "from", "file": "from/file"} {
		target := filepath.Join(dir, name)
		f, err := os.OpenFile(filepath.Join(dir, source), unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 2 { // the second time on what is left of the first
			if err := Bind(f, target, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
			wantMountpoint(t, target, true)
			var st unix.Statfs_t
			if err := unix.Statfs(target, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 || st.Flags&unix.ST_NODEV == 0 || st.Flags&unix.ST_NOEXEC != 0 {
				t.Errorf("flags of %s: %x, %v", name, st.Flags, err)
			}
			if err := Unmount(target); err != nil {
				t.Fatal(err)
			}
			wantMountpoint(t, target, false)
		}
	}
	if _, err := os.ReadFile(filepath.Join(dir, "from/file")); err != nil {
		t.Errorf("the source: %v", err)
	}
}
