package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// leaveWithUsers makes a user namespace with the others in it.
func leaveWithUsers(k Kinds, flags int) (users *os.File, err error) {
	err = withUsers(k.Holder, k.Users, flags, func(of string) (err error) {
		for _, c := range k.list() {
			if err := enter(of+c.name, c.flag); err != nil {
				return fmt.Errorf("enter %s namespace: %w", c.name, err)
			}
		}
		users, err = os.Open(of + "user")
		return err
	})
	return users, err
}

// OpenUsers makes a user namespace that ends with its descriptor. holder is as in Kinds.
func OpenUsers(ctx context.Context, holder string, users pod.Users) (*os.File, error) {
	var ns *os.File
	err := onThread(ctx, func() error {
		return withUsers(holder, users, 0, func(of string) (err error) {
			ns, err = os.Open(of + "user")
			return err
		})
	})
	return ns, err
}

// withUsers makes new namespaces, and shows their directory below /proc, with a slash at
// its end, as long as do takes. Only a new process can make that of users: it is left by
// processes with one thread alone, and the IDs of the node that it maps are to be written
// by somebody outside of it (user_namespaces(7)). The process dies with this thread, so
// that nothing outlives a killed daemon.
func withUsers(holder string, users pod.Users, flags int, do func(of string) error) error {
	process, err := os.StartProcess(holder, []string{"crio-userns"}, &os.ProcAttr{
		Dir: "/", Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  uintptr(flags | unix.CLONE_NEWUSER),
			UidMappings: mapping(users.UIDs), GidMappings: mapping(users.GIDs),
			// Else nobody inside could have supplementary groups.
			GidMappingsEnableSetgroups: true,
			Pdeathsig:                  syscall.SIGKILL, Setpgid: true,
		},
	})
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer func() {
		_ = process.Kill()
		_, _ = process.Wait()
	}()
	sys.Failpoint("namespaces", "of users made")
	return do(fmt.Sprintf("/proc/%d/ns/", process.Pid))
}

func mapping(r pod.IDRange) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(r.Host), Size: int(r.Length)}}
}

func enter(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, flag)
}

// asUser does something with the effective ID of another user. Those of this thread
// alone change, which setresuid(2) of the C library and of Go would not allow. The IPC
// sysctls want it: the kernel lets the namespace's own root write them, and no other.
func asUser(uid uint32, do func() error) func() error {
	return func() error {
		// A change of identity makes the whole process undumpable (prctl(2), PR_SET_DUMPABLE).
		dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		if err != nil {
			return err
		}
		if err := setEffective(uid); err != nil {
			return err
		}
		err = do()
		err = errors.Join(err, setEffective(0))
		if dumpable == 1 { // the only other values, 0 and 2, are what it is now
			err = errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
		}
		return err
	}
}

func setEffective(uid uint32) error {
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return fmt.Errorf("effective user %d: %w", uid, errno)
	}
	return nil
}
