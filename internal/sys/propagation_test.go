package sys

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountsOfIsTheKernelsAnswer(t *testing.T) {
	dir := t.TempDir()
	first, longer := filepath.Join(dir, "a b"), filepath.Join(dir, "a bc")
	for path, propagation := range map[string]uintptr{first: unix.MS_SHARED, longer: unix.MS_PRIVATE} {
		mountTmpfs(t, path, "")
		if err := unix.Mount("", path, "", propagation, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Join(first, "in/side"), filepath.Join(longer, "in")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(longer, "link")
	if err := os.Symlink(filepath.Join(first, "in"), link); err != nil {
		t.Fatal(err)
	}
	shared, private := Mount{Point: first, Shared: true}, Mount{Point: longer}
	got, err := MountsOf([]string{first, filepath.Join(first, "in/side"), longer, filepath.Join(longer, "in"), link})
	if want := []Mount{shared, shared, private, private, shared}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	// The last one mounted on a path is the one that is seen.
	mountTmpfs(t, first, "")
	if err := unix.Mount("", first, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := MountsOf([]string{first}); err != nil || got[0] != (Mount{Point: first}) {
		t.Errorf("covered: %+v, %v", got, err)
	}
	if _, err := MountsOf([]string{filepath.Join(dir, "absent")}); err == nil {
		t.Error("a path that does not exist has a mount")
	}
}

func TestParseMount(t *testing.T) {
	for line, want := range map[string]Mount{
		"36 35 98:0 /m /mnt rw,noatime - ext3 /dev/root rw":                           {Point: "/mnt"},
		"36 35 98:0 /m /mnt rw shared:7 - ext3 /dev/root rw":                          {Point: "/mnt", Shared: true},
		"36 35 98:0 /m /mnt rw shared:7 master:3 - ext3 /dev/root rw":                 {Point: "/mnt", Shared: true, Slave: true},
		"36 35 98:0 /m /mnt rw master:3 propagate_from:2 - ext3 s rw":                 {Point: "/mnt", Slave: true},
		`36 35 0:5 / /with\040space\134slash rw unbindable - tmpfs shared:1 master:1`: {Point: `/with space\slash`},
		`36 35 0:5 / /end\04 rw - tmpfs none rw`:                                      {Point: `/end\04`},
		"36 35 0:5 / /mnt rw - fuse.shared shared:1 rw,shared:1":                      {Point: "/mnt"},
	} {
		if id, got, err := parseMount(line); err != nil || got != want || id != 36 {
			t.Errorf("%s: %d %+v, %v; want %+v", line, id, got, err, want)
		}
	}
	for _, line := range []string{"", "36 35 98:0 /m /mnt rw", "x 35 98:0 /m /mnt rw - ext3 s rw", "36 35 98:0 /m /mnt rw shared:7"} {
		if id, got, err := parseMount(line); err == nil {
			t.Errorf("%q: %d %+v", line, id, got)
		}
	}
}
