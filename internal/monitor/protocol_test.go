package monitor

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ask sends raw bytes and returns the reply.
func ask(t *testing.T, socket *net.UnixConn, request []byte) (packet, []byte) {
	t.Helper()
	must(t, socket.SetDeadline(time.Now().Add(patience)))
	_, err := socket.Write(request)
	must(t, err)
	buffer := make([]byte, maxPacket)
	n, err := socket.Read(buffer)
	must(t, err)
	p, err := decode(buffer[:n])
	must(t, err)
	return p, buffer[:n]
}

func TestProtocolAnswersWhatItDoesNotKnow(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		c.start(t)
		socket, err := dial(timeout(t), c.spec.RunDir)
		must(t, err)
		defer socket.Close()
		version := encode(typeStatus, 77, nil)
		version[0] = 9
		flags := encode(typeStatus, 77, nil)
		flags[2] = 1
		for name, test := range map[string]struct {
			request []byte
			errno   unix.Errno
		}{
			"status":           {encode(typeStatus, 77, nil), 0},
			"other version":    {version, unix.EPROTONOSUPPORT},
			"flags":            {flags, unix.EINVAL},
			"unknown":          {encode(60, 77, nil), unix.ENOSYS},
			"kill without":     {encode(typeKill, 77, nil), unix.EINVAL},
			"kill 0":           {encode(typeKill, 77, make([]byte, 4)), unix.EINVAL},
			"kill 4 GiB":       {encode(typeKill, 77, []byte{255, 255, 255, 255}), unix.EINVAL},
			"resize pipes":     {encode(typeResize, 77, make([]byte, 4)), unix.ENOTTY},
			"resize too short": {encode(typeResize, 77, make([]byte, 3)), unix.EINVAL},
			"status with more": {encode(typeStatus, 77, []byte{1}), unix.EINVAL},
		} {
			t.Run(name, func(t *testing.T) {
				p, raw := ask(t, socket, test.request)
				if p.seq != 77 || p.errno != test.errno || p.kind != test.request[1]|typeReply || raw[0] != protocolVersion {
					t.Errorf("got %+v of version %d", p, raw[0])
				}
			})
		}
		for _, n := range []int{1, 7, maxPacket + 1, 60000} {
			if p, _ := ask(t, socket, make([]byte, n)); p.errno != unix.EINVAL {
				t.Errorf("%d bytes: %+v", n, p)
			}
		}
	})
}

func TestManyCallersAtOnce(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, started := c.start(t)
		ctx := timeout(t)
		var wait sync.WaitGroup
		for range 8 {
			wait.Go(func() {
				for range 200 {
					status, err := conn.Status(ctx)
					if err != nil || status != started {
						t.Errorf("got %+v, %v", status, err)
						return
					}
				}
			})
		}
		wait.Wait()
	})
}

func TestTooManyConnectionsAreRefusedNotServed(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, _ := c.start(t)
		for range 40 {
			socket, err := dial(timeout(t), c.spec.RunDir)
			if errors.Is(err, unix.EAGAIN) {
				continue
			}
			must(t, err)
			defer socket.Close()
		}
		if _, err := conn.Status(timeout(t)); err != nil {
			t.Errorf("the first connection suffers: %v", err)
		}
	})
}

func TestStoppedClientDelaysNoExit(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		conn, _ := c.start(t)
		deaf, err := dial(timeout(t), c.spec.RunDir)
		must(t, err)
		defer deaf.Close()
		must(t, deaf.SetWriteDeadline(time.Now().Add(500*time.Millisecond)))
		for range 10_000 { // until its queue of replies is full
			if _, err := deaf.Write(encode(typeHello, 1, nil)); err != nil {
				break
			}
		}
		must(t, conn.Kill(timeout(t), unix.SIGKILL))
		began := time.Now()
		c.wait(t)
		if took := time.Since(began); took > time.Second {
			t.Errorf("told after %v", took)
		}
	})
}

func TestSocketIsRootsAlone(t *testing.T) {
	onBuilds(t, func(t *testing.T, conmon string) {
		c := bundle{args: []string{"/bin/sleep", "1000"}}.make(t, conmon)
		c.start(t)
		info, err := os.Stat(filepath.Join(c.spec.RunDir, socketName))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
	})
}

// fixedExit is a record as conmon writes it.
const fixedExit = "crio-exit 1\nid abc\npid 12\nstart_ns 1763707382123456789\nend_ns 1763707383123456789\ncode 137\n" +
	"signal 9\noom 1\nlog_written_bytes 42\nlog_dropped_bytes 7\n"

func TestParseExit(t *testing.T) {
	want := Exit{
		ID: "abc", Pid: 12, StartedAt: 1763707382123456789, FinishedAt: 1763707383123456789,
		Code: 137, Signal: 9, OOM: true, Written: 42, Dropped: 7,
	}
	x, err := ParseExit([]byte(fixedExit + "key of a newer monitor\nlone\n"))
	if err != nil || x != want {
		t.Errorf("got %+v, %v", x, err)
	}
	x, err = ParseExit([]byte(fixedExit + `message a\\b\x0ac` + "\xff\n"))
	if err != nil || x.Message != "a\\b\nc\uFFFD" {
		t.Errorf("got %q, %v", x.Message, err)
	}
	for name, bad := range map[string]string{
		"empty":           "",
		"other version":   strings.Replace(fixedExit, "exit 1", "exit 2", 1),
		"cut":             fixedExit[:len(fixedExit)-1],
		"no code":         strings.Replace(fixedExit, "code 137\n", "", 1),
		"no id":           strings.Replace(fixedExit, "id abc\n", "", 1),
		"code above 255":  strings.Replace(fixedExit, "code 137", "code 256", 1),
		"negative":        strings.Replace(fixedExit, "end_ns ", "end_ns -", 1),
		"twice":           fixedExit + "code 1\n",
		"oom 2":           strings.Replace(fixedExit, "oom 1", "oom 2", 1),
		"unfinished":      fixedExit + `message \x0` + "\n",
		"unknown escape":  fixedExit + `message \n` + "\n",
		"above the limit": fixedExit + "message " + strings.Repeat("x", maxRecord) + "\n",
	} {
		if x, err := ParseExit([]byte(bad)); err == nil {
			t.Errorf("%s: accepted as %+v", name, x)
		}
	}
}

func FuzzParseExit(f *testing.F) {
	f.Add([]byte(fixedExit))
	f.Add([]byte(fixedExit + `message \x00\\` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := ParseExit(data)
		if err != nil && x != (Exit{}) {
			t.Errorf("an error with %+v", x)
		}
		if err == nil && (x.Code < 0 || x.Code > 255 || x.Signal < 0 || x.ID == "" || strings.Contains(x.ID, "\n")) {
			t.Errorf("accepted %+v", x)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(pushStarted, 0, make([]byte, statusSize)))
	f.Add(encode(typeReply|typeStatus, 1, binary.LittleEndian.AppendUint32(nil, 22)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := decode(data); err == nil {
			_, _ = decodeStatus(p.payload)
		}
	})
}
