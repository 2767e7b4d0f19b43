package untrusted

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/test/fixture"
)

func id(v int64) *int64 { return &v }

const passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\n1000:x:7:7::/seven:/bin/sh\nbroken\nevil:x:0x0:0::/:/\n"
const group = "root:x:0:\nwebs:x:34:\nextra:x:50:web,other\nmore:x:51:web\n"

func TestLookupUser(t *testing.T) {
	root := fixture.Tree(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	for name, c := range map[string]struct {
		spec UserSpec
		want User
	}{
		"nothing asked is root":        {UserSpec{}, User{0, 0, []uint32{0}, "/root"}},
		"uid with an entry":            {UserSpec{UID: id(33)}, User{33, 34, []uint32{34, 50, 51}, "/srv/web"}},
		"uid without an entry":         {UserSpec{UID: id(99)}, User{99, 0, []uint32{0}, "/"}},
		"uid and gid":                  {UserSpec{UID: id(33), GID: id(70)}, User{33, 70, []uint32{50, 51, 70}, "/srv/web"}},
		"username":                     {UserSpec{Username: "web"}, User{33, 34, []uint32{34, 50, 51}, "/srv/web"}},
		"username of digits is a name": {UserSpec{Username: "1000"}, User{7, 7, []uint32{7}, "/seven"}},
		"image number is a number":     {UserSpec{ImageUser: "1000"}, User{1000, 0, []uint32{0}, "/"}},
		"image user and group":         {UserSpec{ImageUser: "web:extra"}, User{33, 50, []uint32{50, 51}, "/srv/web"}},
		"image numbers":                {UserSpec{ImageUser: "5:6"}, User{5, 6, []uint32{6}, "/"}},
		"pod over image":               {UserSpec{ImageUser: "web", UID: id(0)}, User{0, 0, []uint32{0}, "/root"}},
		"supplemental groups merge":    {UserSpec{UID: id(33), SupplementalGroups: []int64{60, 50}}, User{33, 34, []uint32{34, 50, 51, 60}, "/srv/web"}},
		"supplemental groups strict":   {UserSpec{UID: id(33), SupplementalGroups: []int64{60}, Strict: true}, User{33, 34, []uint32{34, 60}, "/srv/web"}},
		"largest number":               {UserSpec{UID: id(maxID)}, User{maxID, 0, []uint32{0}, "/"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := LookupUser(root, c.spec)
			if err != nil || got.UID != c.want.UID || got.GID != c.want.GID || got.Home != c.want.Home || !slices.Equal(got.Groups, c.want.Groups) {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

// CVE-2024-40635, CVE-2026-46680: an odd number must not become root or a name.
func TestCVE_2026_46680_OddUsersAreRefused(t *testing.T) {
	root := fixture.Tree(t, map[string]string{"etc/passwd": passwd + "-1:x:0:0::/:/\n4294967296:x:0:0::/:/\n", "etc/group": group})
	for _, user := range []string{"4294967296", "4294967295", "-1", "00", "0x0", "+0", " 0", "root\n", "0:-1", "0:4294967295", "nobody", "web:nogroup", "99999999999999999999"} {
		if got, err := LookupUser(root, UserSpec{ImageUser: user}); err == nil {
			t.Errorf("%q became %+v", user, got)
		}
	}
	for name, spec := range map[string]UserSpec{
		"group alone": {GID: id(1)}, "negative": {UID: id(-1)}, "beyond": {UID: id(1 << 32)}, "both": {UID: id(1), Username: "web"},
		"unknown name": {Username: "nobody"}, "bad supplemental": {SupplementalGroups: []int64{-5}}, "bad gid": {UID: id(1), GID: id(-1)},
	} {
		if got, err := LookupUser(root, spec); err == nil {
			t.Errorf("%s became %+v", name, got)
		}
	}
}

// CVE-2025-4437, CVE-2026-47262: the file is sized and typed before it is read.
func TestCVE_2025_4437_HostilePasswd(t *testing.T) {
	make := map[string]func(t *testing.T, path string){
		"huge sparse file": func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 4<<30); err != nil {
				t.Fatal(err)
			}
		},
		"fifo": func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"directory": func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"too many lines": func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("a\n"), maxUserLines+1), 0o644); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, place := range make {
		t.Run(name, func(t *testing.T) {
			root := fixture.Tree(t, map[string]string{"etc/group": group})
			place(t, filepath.Join(root, "etc/passwd"))
			if got, err := LookupUser(root, UserSpec{UID: id(1)}); err == nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// A link in the image leads inside the image, never to the node's file.
func TestPasswdLinkStaysInside(t *testing.T) {
	root := fixture.Tree(t, map[string]string{"real": "inside:x:77:77::/:/\n"})
	if err := os.MkdirAll(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../real", root+"/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	got, err := LookupUser(root, UserSpec{Username: "inside"})
	if err != nil || got.UID != 77 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := LookupUser(root, UserSpec{Username: "root"}); err == nil {
		t.Error("the node's root was found")
	}
}

func TestMkdirAllInRootStaysInside(t *testing.T) {
	outside := t.TempDir()
	root := t.TempDir()
	if err := os.Symlink(outside, root+"/abs"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../.."+outside, root+"/rel"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/abs/x", "/rel/x"} {
		// The link's target does not exist inside; it must not be made outside.
		_ = MkdirAllInRoot(root, dir, 0o755, Owner{})
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("outside the root: %v, %v", entries, err)
	}
	for range 2 {
		if err := MkdirAllInRoot(root, "/a/b/../c", 0o750, Owner{}); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(root + "/a/c"); err != nil || !info.IsDir() {
		t.Errorf("/a/c: %v", err)
	}
	if err := os.WriteFile(root+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAllInRoot(root, "/file", 0o755, Owner{}); err == nil {
		t.Error("a file passes for a directory")
	}
}

// CVE-2022-0811, CVE-2022-0532.
func TestCVE_2022_0811_Sysctls(t *testing.T) {
	own := Private{Net: true, IPC: true, UTS: true}
	for _, c := range []struct {
		name, value string
		own         Private
		ok          bool
	}{
		{"net.ipv4.ip_forward", "1", own, true},
		{"net.ipv4.conf.eth0/1.rp_filter", "1", own, true},
		{"net.ipv4.ping_group_range", "0\t100", own, true},
		{"kernel.shmmax", "1", own, true},
		{"fs.mqueue.msg_max", "10", own, true},
		{"net.ipv4.ip_forward", "1", Private{IPC: true, UTS: true}, false},
		{"kernel.shmmax", "1", Private{Net: true}, false},
		{"kernel.hostname", "x", Private{}, false},
		{"kernel.core_pattern", "|/x", own, false},
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x\n", own, false},
		{"kernel.shm_rmid_forced+kernel.core_pattern", "1", own, false},
		{"net/ipv4/ip_forward", "1", own, false},
		{"net.../../kernel/core_pattern", "1", own, false},
		{"vm.swappiness", "1", own, false},
		{"", "1", own, false},
		{"net.ipv4.x", "a\x00b", own, false},
	} {
		if err := CheckSysctl(c.name, c.value, c.own); (err == nil) != c.ok {
			t.Errorf("%q=%q with %+v: %v", c.name, c.value, c.own, err)
		}
	}
}

// CVE-2025-0750.
func TestCVE_2025_0750_LogPaths(t *testing.T) {
	if got, err := CheckLogPath("/var/log/pods/x", "c/0.log"); err != nil || got != "/var/log/pods/x/c/0.log" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, c := range [][2]string{
		{"/var/log", "../x"}, {"/var/log", "a/../../x"}, {"/var/log/../../etc", "x"}, {"rel", "x"}, {"/var/log", "/x"},
		{"/var/log", "."}, {"/var/log", "x/"}, {"/var/log", "x\ny"},
	} {
		if got, err := CheckLogPath(c[0], c[1]); err == nil {
			t.Errorf("%q became %q", c, got)
		}
	}
}

func TestFindInRoot(t *testing.T) {
	outside := t.TempDir()
	root := fixture.Tree(t, map[string]string{"dir/file": "x"})
	for name, target := range map[string]string{
		"in": "/dir", "out": outside, "up": strings.Repeat("../", 30) + outside[1:], "magic": "/proc/self/root", "self": "self",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"/": true, "dir": true, "dir/file": true, "in/file": true, "../../dir": true,
		"out": false, "up": false, "magic": false, "self": false, "fifo": false, "absent": false, "dir/file/x": false, "a\x00b": false,
	} {
		f, err := FindInRoot(root, name)
		if (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
		if err == nil {
			f.Close()
		}
	}
	for name, ok := range map[string]bool{"": true, "a": true, "a/b": true, "a/..b": true, "..": false, "a/../b": false, "/a": false, "a\x00": false} {
		if err := CheckSubPath(name); (err == nil) != ok {
			t.Errorf("CheckSubPath(%q): %v", name, err)
		}
	}
}

func TestHostnames(t *testing.T) {
	for name, ok := range map[string]bool{
		"web-0": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false, "": false, "a b": false, "a\nb": false, "ä": false,
	} {
		if err := CheckHostname(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzUserFiles(f *testing.F) {
	f.Add(passwd, group, "web:extra")
	f.Add("::::::\n", ":::\n", "0")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		root := fixture.Tree(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
		u, err := LookupUser(root, UserSpec{ImageUser: user})
		if err == nil && !slices.Contains(u.Groups, u.GID) {
			t.Errorf("%+v lacks its primary group", u)
		}
	})
}
