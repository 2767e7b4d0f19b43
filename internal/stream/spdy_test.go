package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/crio-minimal/crio/internal/stdio"
	"github.com/crio-minimal/crio/test/fixture"
)

// node does what clients want until their sessions end.
type node struct{ port uint16 }

func (n node) Exec(ctx context.Context, _ string, _ []string, s stdio.Streams) (int32, error) {
	fmt.Fprint(s.Out, "running")
	<-ctx.Done()
	return 0, ctx.Err()
}

func (n node) Attach(context.Context, string, stdio.Streams) error { return errors.New("no") }

func (n node) DialPod(ctx context.Context, _ string, _ uint16) (*net.TCPConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", n.port))
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// serving returns a server whose pods echo.
func serving(t *testing.T) *Server {
	t.Helper()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer conn.Close(); _, _ = io.Copy(conn, conn) })
		}
	})
	s, err := Listen(Options{Address: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}, node{uint16(echo.Addr().(*net.TCPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	all.Go(func() { _ = s.Serve() })
	t.Cleanup(func() {
		s.Close(context.Background())
		echo.Close()
		all.Wait()
	})
	return s
}

// dial begins a session.
func dial(t *testing.T, address, protocol string) (net.Conn, httpstream.Connection) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	return plain, fixture.UpgradeSPDY(t, plain, u.Host, u.Path, protocol)
}

// wantNothing waits until no goroutine of a connection is left. A client's own that waits
// for a reply ends with a timeout of the library's.
func wantNothing(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		buffer := make([]byte, 16<<20)
		left := strings.Split(string(buffer[:runtime.Stack(buffer, true)]), "\n\n")
		left = slices.DeleteFunc(left, func(g string) bool {
			return !strings.Contains(g, "/spdystream.(") || strings.Contains(g, "WaitTimeout")
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Streams that nobody asked for, or twice, are refused, and leave nothing.
func TestStreamsTooMany(t *testing.T) {
	s := serving(t)
	for range 10 {
		address, err := s.Exec(Process{Container: "c", Stdout: true}, []string{"true"})
		if err != nil {
			t.Fatal(err)
		}
		plain, conn := dial(t, address, remotecommand.StreamProtocolV4Name)
		make := func(name string) (httpstream.Stream, error) {
			return conn.CreateStream(http.Header{remotecommand.StreamType: {name}})
		}
		for range 5 {
			if _, err := make(remotecommand.StreamTypeResize); err == nil {
				t.Error("a stream that nobody asked for is taken")
			}
		}
		if _, err := make(remotecommand.StreamTypeError); err != nil {
			t.Fatal(err)
		}
		out, err := make(remotecommand.StreamTypeStdout)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, []byte("running")); err != nil {
			t.Fatal(err)
		}
		if _, err := make(remotecommand.StreamTypeStdout); err == nil {
			t.Error("a second stdout is taken")
		}
		plain.Close()
	}
	wantNothing(t)
}

// A connection that breaks while its client makes streams leaves nothing.
func TestConnectionBreaksWhileStreamsArrive(t *testing.T) {
	s := serving(t)
	for i := range 40 {
		address, err := s.PortForward("p", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		plain, conn := dial(t, address, portforward.ProtocolV1Name)
		for worker := range 6 {
			go func() {
				for request := range 50 {
					for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
						if _, err := conn.CreateStream(http.Header{
							portforward.StreamType: {kind}, portforward.PortHeader: {"80"}, portforward.PortForwardRequestIDHeader: {strconv.Itoa(worker*100 + request)},
						}); err != nil {
							return
						}
					}
				}
			}()
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
		plain.Close()
	}
	wantNothing(t)
}

// Clients that make no streams, or not all, end with the server, without a wait.
func TestCloseWithoutStreams(t *testing.T) {
	s := serving(t)
	exec, err := s.Exec(Process{Container: "c", Stdout: true}, []string{"true"})
	if err != nil {
		t.Fatal(err)
	}
	forward, err := s.PortForward("p", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, one := dial(t, exec, remotecommand.StreamProtocolV4Name)
	_, other := dial(t, forward, portforward.ProtocolV1Name)
	told, err := one.CreateStream(http.Header{remotecommand.StreamType: {remotecommand.StreamTypeError}})
	if err != nil {
		t.Fatal(err)
	}
	half, err := other.CreateStream(http.Header{portforward.StreamType: {portforward.StreamTypeError}, portforward.PortHeader: {"80"}})
	if err != nil {
		t.Fatal(err)
	}
	words := make(chan string, 2)
	for _, stream := range []io.Reader{told, half} {
		go func() { text, _ := io.ReadAll(stream); words <- string(text) }()
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s.Close(ctx)
	for range 2 {
		if text := <-words; !strings.Contains(text, errEnding.Error()) {
			t.Errorf("%q", text)
		}
	}
	if took := time.Since(begun); took > lastWords {
		t.Errorf("it took %s", took)
	}
	wantNothing(t)
}

// Clients of old name no request.
func TestForwardWithoutRequest(t *testing.T) {
	s := serving(t)
	address, err := s.PortForward("p", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, conn := dial(t, address, portforward.ProtocolV1Name)
	make := func(kind, port string) (httpstream.Stream, error) {
		return conn.CreateStream(http.Header{portforward.StreamType: {kind}, portforward.PortHeader: {port}})
	}
	for _, port := range []string{"", "0", "65536", "http"} {
		if _, err := make(portforward.StreamTypeError, port); err == nil {
			t.Errorf("port %q is taken", port)
		}
	}
	if _, err := make("stdout", "80"); err == nil {
		t.Error("a stream of stdout is taken")
	}
	for range 2 {
		if _, err := make(portforward.StreamTypeError, "80"); err != nil {
			t.Fatal(err)
		}
		data, err := make(portforward.StreamTypeData, "80")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(data, "word")
		data.Close()
		if text, err := io.ReadAll(data); string(text) != "word" {
			t.Errorf("%q, %v", text, err)
		}
	}
	conn.Close()
	wantNothing(t)
}

// Whatever a client sends as sizes is read to its end; no more than the bound is kept.
func FuzzReadSizes(f *testing.F) {
	for _, text := range []string{"", `{"Width":80,"Height":24}{"Width":1,"Height":2}`, `{"Width":-1}`, "[", `{"x":"` + strings.Repeat("x", 2*sizeMost)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := strings.NewReader(text)
		readSizes(r, func(remotecommand.TerminalSize) {})
		if r.Len() > 0 {
			t.Errorf("%d bytes are not read", r.Len())
		}
	})
}

func TestReadSizes(t *testing.T) {
	var got []remotecommand.TerminalSize
	text := strings.Repeat(`{"Width":80,"Height":24}`+"\n", 1000) + `{"Width":"wide"}{"Width":1,"Height":1}`
	readSizes(strings.NewReader(text), func(s remotecommand.TerminalSize) { got = append(got, s) })
	if len(got) != 1000 || got[999] != (remotecommand.TerminalSize{Width: 80, Height: 24}) {
		t.Errorf("%d sizes", len(got))
	}
}
