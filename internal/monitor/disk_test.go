package monitor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// shutdownFS is EXT4_IOC_SHUTDOWN without a flush: every write is EIO from then on.
func shutdownFS(t *testing.T, dir string) {
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	const ext4Shutdown, noLogFlush = 0x8004587d, 2
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush))
}

func TestBrokenDiskIsCountedAndSurvived(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits("echo one; while ! [ -e /on ]; do sleep 0.02; done; seq 1 1000; exit 4").make(t, conmon)
		image := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 16<<20))
		for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, filepath.Dir(c.log)}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Skipf("no loop device here: %v\n%s", err, out)
			}
		}
		t.Cleanup(func() { _ = unix.Unmount(filepath.Dir(c.log), unix.MNT_DETACH) })
		c.start(t)
		c.release(t)
		eventually(t, "the first line is written", func() bool {
			info, err := os.Stat(c.log)
			return err == nil && info.Size() > 0
		})
		shutdownFS(t, filepath.Dir(c.log))
		must(t, os.WriteFile(c.rootfs+"/on", nil, 0o600))
		x := c.wait(t)
		if x.Code != 4 || x.Written != 3 || x.Dropped != 2893 {
			t.Errorf("got %+v", x)
		}
	})
}

func TestReadOnlyDirectoryKeepsTheFile(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits("echo two; exit 4").make(t, conmon)
		conn, _ := c.start(t)
		dir := filepath.Dir(c.log)
		must(t, os.Rename(c.log, c.log+".1"))
		must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		must(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		if err := conn.Reopen(timeout(t)); !errors.Is(err, unix.EROFS) {
			t.Errorf("got %v", err)
		}
		c.release(t)
		if x := c.wait(t); x.Code != 4 || x.Dropped != 0 || x.Written != 3 {
			t.Errorf("got %+v", x)
		}
		if got := output(records(t, c.log+".1"), "stdout"); got != "two\n" {
			t.Errorf("got %q", got)
		}
	})
}

// What goes to a file without a name is lost, and says so; a new directory is used
// from the next reopen on.
func TestVanishedDirectoryIsCounted(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits("echo lost; while ! [ -e /on ]; do sleep 0.02; done; echo kept").make(t, conmon)
		conn, _ := c.start(t)
		must(t, os.RemoveAll(filepath.Dir(c.log)))
		c.release(t)
		eventually(t, "the loss is counted", func() bool {
			status, err := conn.Status(timeout(t))
			return err == nil && status.Dropped == 4
		})
		must(t, os.Mkdir(filepath.Dir(c.log), 0o755))
		must(t, conn.Reopen(timeout(t)))
		must(t, os.WriteFile(c.rootfs+"/on", nil, 0o600))
		if x := c.wait(t); x.Code != 0 || x.Dropped != 4 || x.Written != 4 {
			t.Errorf("got %+v", x)
		}
		if got := output(records(t, c.log), "stdout"); got != "kept\n" {
			t.Errorf("got %q", got)
		}
	})
}

// The disk is full in the middle, and has room again: nothing is torn, all is counted.
func TestDiskThatIsFullForAWhile(t *testing.T) {
	const lines = 20_000
	onBuilds(t, func(t *testing.T, conmon string) {
		c := waits("seq 1 "+strconv.Itoa(lines)+"; while ! [ -e /on ]; do sleep 0.02; done; echo 777777; printf x").make(t, conmon)
		must(t, unix.Mount("tmpfs", filepath.Dir(c.log), "tmpfs", 0, "size=256k"))
		t.Cleanup(func() { _ = unix.Unmount(filepath.Dir(c.log), unix.MNT_DETACH) })
		conn, _ := c.start(t)
		c.release(t)
		eventually(t, "the disk is full", func() bool {
			status, err := conn.Status(timeout(t))
			return err == nil && status.Dropped > 0
		})
		must(t, os.Rename(c.log, c.log+".1"))
		must(t, unix.Mount("", filepath.Dir(c.log), "", unix.MS_REMOUNT, "size=4m"))
		must(t, conn.Reopen(timeout(t)))
		must(t, os.WriteFile(c.rootfs+"/on", nil, 0o600))
		x := c.wait(t)
		var kept uint64
		all := records(t, c.log+".1", c.log)
		for _, r := range all {
			kept += uint64(len(r.content))
		}
		const produced = 9*1 + 90*2 + 900*3 + 9000*4 + (lines-9999)*5 + 6 + 1
		if x.Dropped == 0 || x.Written != kept || x.Written+x.Dropped != produced {
			t.Errorf("wrote %d, dropped %d, the log has %d of %d", x.Written, x.Dropped, kept, produced)
		}
		if last := all[len(all)-1]; last.content != "x" || last.tag != "F" {
			t.Errorf("the last record is %+v", last)
		}
	})
}
