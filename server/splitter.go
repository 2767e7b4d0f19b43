package server

import (
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// prefaceByte begins every HTTP/2 connection ("PRI * HTTP/2.0", RFC 9113 3.4). The
// HTTP/1 methods that we serve begin with another.
const prefaceByte = 'P'

// firstByteTime bounds how long a client may be silent before we know what it speaks.
const firstByteTime = 10 * time.Second

// acceptAgain is the pause after an accept for which the process had no descriptor;
// no event tells that there is one again.
const acceptAgain = 50 * time.Millisecond

// splitter hands the connections of one listener to a gRPC and an HTTP/1 server, by
// their first byte: the kubelet's cAdvisor and crio status speak HTTP/1 on the CRI socket.
type splitter struct {
	listener   net.Listener
	grpc, http *branch
}

func newSplitter(l net.Listener) *splitter {
	return &splitter{listener: l, grpc: newBranch(l), http: newBranch(l)}
}

// run accepts until the listener is closed. Without a descriptor to spare it goes on
// accepting later: the calls that run give theirs back.
func (s *splitter) run() error {
	for {
		conn, err := s.listener.Accept()
		switch {
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			<-time.After(acceptAgain)
		case err != nil:
			return err
		default:
			go s.sort(conn)
		}
	}
}

func (s *splitter) sort(conn net.Conn) {
	var first [1]byte
	err := conn.SetReadDeadline(time.Now().Add(firstByteTime))
	if err == nil {
		_, err = conn.Read(first[:])
	}
	if err = errors.Join(err, conn.SetReadDeadline(time.Time{})); err != nil {
		conn.Close()
		return
	}
	to := s.http
	if first[0] == prefaceByte {
		to = s.grpc
	}
	to.give(&peeked{Conn: conn, first: first[:]})
}

// branch is the listener that one of the servers sees.
type branch struct {
	address net.Addr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
	parent  net.Listener
}

func newBranch(l net.Listener) *branch {
	return &branch{address: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{}), parent: l}
}

func (b *branch) give(conn net.Conn) {
	select {
	case b.conns <- conn:
	case <-b.closed:
		conn.Close()
	}
}

func (b *branch) Accept() (net.Conn, error) {
	select {
	case conn := <-b.conns:
		return conn, nil
	case <-b.closed:
		return nil, net.ErrClosed
	}
}

// Close ends both branches: the socket is one.
func (b *branch) Close() error {
	b.once.Do(func() { close(b.closed) })
	if err := b.parent.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (b *branch) Addr() net.Addr { return b.address }

// peeked gives back the byte that was read.
type peeked struct {
	net.Conn
	first []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.first) > 0 && len(b) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
