package monitor

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestChaosOfClients: whatever clients send, stop reading or drop, the log is whole and
// the end is told.
func TestChaosOfClients(t *testing.T) {
	duration := torture(2*time.Second, 30*time.Second)
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/guest", "lines", fmt.Sprint(duration.Milliseconds()), fmt.Sprint(lineWidth)}}.make(t, conmon)
		c.spec.Stdin = true
		conn, _ := c.start(t)
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		var clients sync.WaitGroup
		for i := range 6 {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			clients.Go(func() {
				for end := time.Now().Add(duration); time.Now().Before(end); {
					c.disturb(random)
				}
			})
		}
		clients.Wait()
		if x := c.wait(t); x.Code != 0 || x.Dropped != 0 {
			t.Errorf("got %+v", x)
		}
		conn.Close()
		var v numbered
		must(t, v.take(c.log, "\n"))
		t.Logf("%d lines", v.lines)
	})
}

// disturb is one client's short life.
func (c *container) disturb(random *rand.Rand) {
	dir, err := unix.Open(c.spec.RunDir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, socketName)}) != nil {
		time.Sleep(time.Millisecond) // too many wait already
		return
	}
	buffer := make([]byte, maxPacket)
	for range random.IntN(40) {
		switch random.IntN(8) {
		case 0:
			_, _ = unix.Read(fd, buffer)
		case 1:
			_ = unix.Shutdown(fd, random.IntN(3))
		case 2:
			garbage := make([]byte, random.IntN(64))
			for i := range garbage {
				garbage[i] = byte(random.Uint32())
			}
			// Not a KILL: the writer is to live.
			if len(garbage) > 1 && garbage[1] == typeKill {
				garbage[1] = typeStatus
			}
			_, _ = unix.Write(fd, garbage)
		case 3:
			_, _ = unix.Write(fd, encode(typeAttach, 1, []byte{byte(1 + random.IntN(7)), 0, 0, 0}))
		case 4:
			_, _ = unix.Write(fd, encode(typeInput, 2, make([]byte, random.IntN(maxPayload))))
		case 5:
			_, _ = unix.Write(fd, encode([]byte{typeHello, typeReopen, typeStatus, typeResize, typeInputEnd, typeAckExit}[random.IntN(6)], 3, nil))
		case 6:
			time.Sleep(time.Duration(random.IntN(2000)) * time.Microsecond) // a client that is slow
		default:
			for range 20 {
				if n, err := unix.Read(fd, buffer); n <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// TestManySessionsLeaveNothing: descriptors of the monitor and of the daemon are as
// before, however sessions end.
func TestManySessionsLeaveNothing(t *testing.T) {
	sessions := torture(100, 1000)
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/cat"}}.make(t, conmon)
		c.spec.Stdin = true
		c.start(t)
		pid := c.monitorPid(t)
		count := func(pid int) int {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			must(t, err)
			return len(entries)
		}
		theirs, own := count(pid), count(os.Getpid())
		for i := range sessions {
			a, err := Attach(timeout(t), c.spec.RunDir, Streams{Stdin: true, Stdout: true})
			must(t, err)
			if i%2 == 0 {
				_, _ = a.Write([]byte("x\n"))
			}
			if i%3 == 0 {
				_ = a.CloseWrite()
			}
			end := make(chan error, 1)
			go func() { end <- a.Copy(io.Discard, nil) }()
			a.Close()
			<-end
		}
		eventually(t, "the descriptors are as before", func() bool {
			return count(pid) == theirs && count(os.Getpid()) <= own
		})
	})
}
