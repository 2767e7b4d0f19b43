package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// connKey is the key of a request's *conn in its context.
type connKey struct{}

// conn is a client's connection. It knows its end, however its user came to it, and ends
// when no byte has moved for the idle timeout.
type conn struct {
	*net.TCPConn
	// gone is closed when nothing can come from the client any more.
	gone chan struct{}
	once sync.Once
	// closing: Close was called. closed is closed when the socket is.
	closing atomic.Bool
	closed  chan struct{}
	server  *Server
	moved   atomic.Int64 // when a byte moved last, in nanoseconds since the epoch
	timer   *time.Timer
}

// tracked is the listener of connections that know their end.
type tracked struct {
	net.Listener
	server *Server
}

func (t tracked) Accept() (net.Conn, error) {
	plain, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	s := t.server
	c := &conn{TCPConn: plain.(*net.TCPConn), gone: make(chan struct{}), closed: make(chan struct{}), server: s}
	c.moved.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
	if s.IdleTimeout > 0 {
		c.timer = time.AfterFunc(s.IdleTimeout, c.idle)
	}
	return c, nil
}

// still is how long no byte has moved.
func (c *conn) still() time.Duration { return time.Since(time.Unix(0, c.moved.Load())) }

// idle closes the connection, or waits for the rest of the time.
func (c *conn) idle() {
	left := c.server.IdleTimeout - c.still()
	if left <= 0 {
		c.Close()
		return
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.server.conns[c] {
		c.timer.Reset(left)
	}
}

func (c *conn) Read(b []byte) (int, error) {
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.TCPConn.Read(b)
	c.saw(n, err)
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.saw(n, err)
	return n, err
}

func (c *conn) saw(n int, err error) {
	if n > 0 {
		c.moved.Store(time.Now().UnixNano())
	}
	// net/http interrupts a read of its own by a deadline.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.ended()
	}
}

func (c *conn) ended() { c.once.Do(func() { close(c.gone) }) }

// Close sends what was written, and the end, and returns; closed tells when all is over.
// It may be called by anybody at any time, and again. A socket that is closed with
// something unread throws away what it had still to send (tcp(7) does not say, RFC 2525
// 2.17 does): what the client still says is read until it closes, too, for a bounded time.
func (c *conn) Close() error {
	if c.closing.Swap(true) {
		return nil
	}
	c.ended()
	err := c.TCPConn.CloseWrite()
	_ = c.SetReadDeadline(time.Now()) // for whoever reads now
	go func() {
		defer close(c.closed)
		_ = c.SetReadDeadline(time.Now().Add(lastWords))
		_, _ = io.Copy(io.Discard, c.TCPConn)
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		delete(c.server.conns, c)
		if c.timer != nil {
			c.timer.Stop()
		}
		_ = c.TCPConn.Close()
	}()
	return err
}
