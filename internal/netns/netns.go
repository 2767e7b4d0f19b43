// Package netns makes, pins, enters and removes namespaces. It works on a thread of
// its own that is never used again: a thread that has left its namespaces must not
// go back to the scheduler.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// Kinds says which namespaces to make and how to set them up.
type Kinds struct {
	Net, IPC, UTS bool
	// Users, where it is private, is a user namespace that the others belong to. Its first
	// process is Holder for a moment, a program that does nothing until it is killed.
	Users  pod.Users
	Holder string
	// Hostname is set in the UTS namespace.
	Hostname string
	// Sysctls are written inside; the caller has checked that each belongs to one
	// of the kinds.
	Sysctls map[string]string
}

// ErrSysctl: the kernel has no such sysctl, or does not take the value.
var ErrSysctl = errors.New("sysctl")

// nsfs is the magic number of the file system of namespaces (statfs(2)).
const nsfs = 0x6e736673

type kind struct {
	name string // of the file, and of /proc/thread-self/ns/<name>
	flag int
}

func (k Kinds) list() []kind {
	var all []kind
	for _, c := range []struct {
		wanted bool
		kind
	}{{k.Net, kind{"net", unix.CLONE_NEWNET}}, {k.IPC, kind{"ipc", unix.CLONE_NEWIPC}}, {k.UTS, kind{"uts", unix.CLONE_NEWUTS}}} {
		if c.wanted {
			all = append(all, c.kind)
		}
	}
	return all
}

// Unpinned are namespaces that are being made, or are made. Nothing but a thread of this
// process keeps them, so that nothing is left of them when it is killed. Whoever has them
// calls Pin or Discard, which end the thread.
type Unpinned struct {
	dir  chan string // where to pin them; closed: nowhere
	once sync.Once   // closes it
	done chan struct{}
	err  error // before done is closed the thread's
}

// Make begins to make namespaces and does not wait; Pin says how it went.
func Make(ctx context.Context, k Kinds) *Unpinned {
	u := &Unpinned{dir: make(chan string), done: make(chan struct{})}
	go func() {
		defer close(u.done)
		u.err = onThread(ctx, func() error { return u.make(k) })
	}()
	return u
}

// Pin keeps each namespace, once it is made, by a bind mount on <dir>/<kind>. What was
// pinned there before is replaced. On an error Remove undoes what there is.
func (u *Unpinned) Pin(ctx context.Context, dir string) error {
	defer u.Discard()
	if err := Remove(ctx, dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	select {
	case u.dir <- dir:
	case <-u.done:
	}
	<-u.done
	return u.err
}

// Discard returns when the thread is about to end. It is idempotent.
func (u *Unpinned) Discard() {
	u.once.Do(func() { close(u.dir) })
	<-u.done
}

// make runs on a thread of its own.
func (u *Unpinned) make(k Kinds) error {
	users, err := leave(k)
	if err != nil {
		return err
	}
	if users != nil {
		defer users.Close()
	}
	if err := setUp(k); err != nil {
		return err
	}
	sys.Failpoint("namespaces", "set up")
	dir, ok := <-u.dir
	if !ok {
		return nil
	}
	if users != nil {
		if err := pinFrom(fmt.Sprintf("/proc/self/fd/%d", users.Fd()), filepath.Join(dir, "user")); err != nil {
			return err
		}
	}
	for _, c := range k.list() {
		if err := pin(filepath.Join(dir, c.name), c.name); err != nil {
			return err
		}
		sys.Failpoint("namespaces", "one pinned")
	}
	return nil
}

// leave takes this thread into new namespaces. The user namespace, if there is a new one,
// it does not enter, which a process with more threads than one cannot: it opens it.
func leave(k Kinds) (users *os.File, err error) {
	flags := 0
	for _, c := range k.list() {
		flags |= c.flag
	}
	if !k.Users.Private() {
		if err := unix.Unshare(flags); err != nil {
			return nil, fmt.Errorf("unshare: %w", err)
		}
		return nil, nil
	}
	return leaveWithUsers(k, flags)
}

// pin keeps a namespace of this thread alive without a process.
func pin(path, name string) error { return pinFrom("/proc/thread-self/ns/"+name, path) }

func pinFrom(source, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// PinPID keeps the PID namespace of a process at path, whose directory exists. The
// process is named by an identity that another one with its pid does not share; it
// must be alive. Unpin undoes it.
func PinPID(path string, pid int, startTicks uint64) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return fmt.Errorf("pin pid namespace: %w", err)
	}
	defer ns.Close()
	// After the file is open: what it stands for does not change any more.
	if !sys.Alive(pid, startTicks) {
		return fmt.Errorf("pin pid namespace of %d: %w", pid, unix.ESRCH)
	}
	return pinFrom(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path)
}

// Unpin lets go of one namespace. nil when there is none at path.
func Unpin(path string) error {
	if err := sys.Unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setUp runs inside the new namespaces.
func setUp(k Kinds) error {
	if k.Net {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("loopback: %w", err)
		}
	}
	if k.UTS {
		if err := unix.Sethostname([]byte(k.Hostname)); err != nil {
			return fmt.Errorf("hostname %q: %w", k.Hostname, err)
		}
	}
	for name, value := range k.Sysctls {
		// Dots part the name; a slash stands for a dot inside a part (sysctl(8)).
		path := "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(name)
		write := func() error { return os.WriteFile(path, []byte(value), 0) }
		if k.Users.Private() && !strings.HasPrefix(path, "/proc/sys/net/") {
			write = asUser(k.Users.UIDs.Host, write)
		}
		if err := write(); err != nil {
			return fmt.Errorf("%w %s=%s: %w", ErrSysctl, name, value, err)
		}
	}
	return nil
}

// loopbackUp sets IFF_UP on lo (netdevice(7)); the kernel then gives it its addresses.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// Pinned tells whether path is a namespace, and not the empty file that a reboot or
// an interrupted Pin left.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == nsfs
}

// Remove unpins everything in dir and removes it. A namespace lives on as long as
// somebody is in it. nil when there is no such directory.
func Remove(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := Unpin(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
		sys.Failpoint("namespaces", "one unpinned")
	}
	return os.Remove(dir)
}

// onThread runs fn on a locked thread that ends with it.
func onThread(ctx context.Context, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end: it would keep the namespaces, and /proc/self
			// would show them. It is held here, so that fn runs on another one.
			result <- onThread(ctx, fn)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the runtime ends the thread with the goroutine.
		result <- fn()
	}()
	return <-result
}
