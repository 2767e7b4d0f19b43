package sys

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Hangup tells when the peer of a stream socket has closed it, or its sending half, also
// while nobody reads what it sent before, as long as that fits the socket: the end comes
// behind it. Of a peer that died with more than that, TCP's keepalive tells in minutes.
type Hangup struct{ epoll *os.File }

// WatchHangup begins to watch. The caller closes the Hangup; the socket stays its own.
func WatchHangup(socket syscall.Conn) (*Hangup, error) {
	// An instance of its own for one event: the runtime's, which watches it in turn, would
	// wake us for whatever arrives.
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch hangup: %w", err)
	}
	raw, err := socket.SyscallConn()
	if err == nil {
		err = unix.SetNonblock(epoll, true) // else os.NewFile does not let it be waited for
	}
	if err == nil {
		var added error
		err = raw.Control(func(fd uintptr) {
			added = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLRDHUP})
		})
		err = errors.Join(err, added)
	}
	if err != nil {
		return nil, fmt.Errorf("watch hangup: %w", errors.Join(err, unix.Close(epoll)))
	}
	return &Hangup{os.NewFile(uintptr(epoll), "hangup")}, nil
}

// Wait returns nil when the peer has closed, and an error when the Hangup is.
func (h *Hangup) Wait() error {
	raw, err := h.epoll.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		var events [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// Close ends a Wait.
func (h *Hangup) Close() error { return h.epoll.Close() }
