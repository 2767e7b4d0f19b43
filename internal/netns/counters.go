package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/sys"
)

// Interface is what the kernel counts of a network interface, since it is there
// (proc_pid_net(5), net/dev).
type Interface struct {
	Name           string
	Received, Sent Traffic
}

// Traffic in one direction.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Counters reads the interfaces of each pinned network namespace, all of them on one
// thread; no process has to be in them. Those of a namespace that is gone are nil, and
// so are those that could not be read, for which the error has the reasons.
func Counters(ctx context.Context, paths []string) ([][]Interface, error) {
	all := make([][]Interface, len(paths))
	if len(paths) == 0 {
		return all, nil
	}
	var failed []error
	err := onThread(ctx, func() error {
		var text []byte
		for i, path := range paths {
			err := ctx.Err()
			if err != nil {
				return err
			}
			if text, err = devOf(path, text[:0]); err != nil {
				failed = append(failed, fmt.Errorf("network namespace %s: %w", path, err))
				continue
			}
			all[i] = parseDev(text)
		}
		return nil
	})
	return all, errors.Join(append(failed, err)...)
}

// devOf takes this thread into a namespace and appends its net/dev to text; nothing when
// there is no namespace at the path any more.
func devOf(path string, text []byte) ([]byte, error) {
	err := enter(path, unix.CLONE_NEWNET)
	// EINVAL: the file without its mount, as Unpin leaves it for a moment.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return text, nil
	}
	if err != nil {
		return text, err
	}
	return sys.AppendFile(text, "/proc/thread-self/net/dev")
}

// devFields of net/dev: eight received, then eight sent. Each begins with bytes,
// packets, errors, dropped.
const devFields = 16

// parseDev takes the lines of interfaces; two of headings come first.
func parseDev(text []byte) []Interface {
	var all []Interface
	for line := range bytes.Lines(text) {
		name, numbers, ok := strings.Cut(string(line), ":")
		fields := strings.Fields(numbers)
		if !ok || len(fields) < devFields {
			continue
		}
		var n [devFields]uint64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
				ok = false
			}
		}
		if ok {
			all = append(all, Interface{Name: strings.TrimSpace(name), Received: Traffic{n[0], n[1], n[2], n[3]}, Sent: Traffic{n[8], n[9], n[10], n[11]}})
		}
	}
	return all
}
