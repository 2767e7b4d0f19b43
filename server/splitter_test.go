package server

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

// scripted is a listener that returns what the test gives it.
type scripted struct {
	accepts chan any // a net.Conn or an error
	closed  chan struct{}
}

func newScripted() *scripted { return &scripted{make(chan any, 8), make(chan struct{})} }

func (s *scripted) Accept() (net.Conn, error) {
	select {
	case next := <-s.accepts:
		if err, ok := next.(error); ok {
			return nil, err
		}
		return next.(net.Conn), nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}
func (s *scripted) Close() error   { close(s.closed); return nil }
func (s *scripted) Addr() net.Addr { return &net.UnixAddr{Name: "test", Net: "unix"} }

// send lets the listener accept a client that says text.
func (s *scripted) send(t *testing.T, text string) (client net.Conn) {
	t.Helper()
	client, accepted := net.Pipe()
	t.Cleanup(func() { client.Close() })
	s.accepts <- accepted
	go func() { _, _ = io.WriteString(client, text) }()
	return client
}

// accept returns what the next connection of the branch says, in n bytes.
func accept(t *testing.T, b *branch, n int) string {
	t.Helper()
	said := make(chan string, 1)
	go func() {
		conn, err := b.Accept()
		if err != nil {
			said <- err.Error()
			return
		}
		buf := make([]byte, n)
		_, _ = io.ReadFull(conn, buf)
		said <- string(buf)
	}()
	select {
	case text := <-said:
		return text
	case <-time.After(patience):
		t.Fatal("nothing is accepted")
		return ""
	}
}

func TestFirstByteDecidesTheServer(t *testing.T) {
	l := newScripted()
	split := newSplitter(l)
	ended := make(chan error, 1)
	go func() { ended <- split.run() }()
	for _, tt := range []struct {
		text string
		to   *branch
	}{
		{"PRI * HTTP/2.0\r\n", split.grpc}, {"GET /debug/status HTTP/1.1\r\n", split.http}, {"HEAD / HTTP/1.1\r\n", split.http},
	} {
		l.send(t, tt.text)
		if got := accept(t, tt.to, len(tt.text)); got != tt.text {
			t.Errorf("the server hears %q, want %q", got, tt.text)
		}
	}
	// A client that goes without a word takes nothing with it.
	l.send(t, "").Close()
	l.send(t, "GET")
	if got := accept(t, split.http, 3); got != "GET" {
		t.Errorf("after a silent client: %q", got)
	}
	if err := split.grpc.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("run: %v", err)
	}
	if _, err := split.grpc.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept of a closed branch: %v", err)
	}
}

// The daemon ended when it had no descriptor left for one more client.
func TestAcceptWithoutDescriptorsGoesOn(t *testing.T) {
	l := newScripted()
	split := newSplitter(l)
	ended := make(chan error, 1)
	go func() { ended <- split.run() }()
	for _, err := range []error{unix.EMFILE, unix.ENFILE, unix.ECONNABORTED} {
		l.accepts <- &net.OpError{Op: "accept", Err: err}
	}
	l.send(t, "GET")
	if got := accept(t, split.http, 3); got != "GET" {
		t.Errorf("heard %q", got)
	}
	l.accepts <- errors.New("broken")
	if err := <-ended; err == nil || err.Error() != "broken" {
		t.Errorf("run: %v", err)
	}
}
