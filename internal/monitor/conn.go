package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// exitFailed is the code of a container that never ran, as in conmon's own record of it.
const exitFailed = 128

// Conn is a connection to one monitor. Its methods may be called at any time from
// any goroutine. It is one goroutine while nothing happens.
type Conn struct {
	socket *net.UnixConn
	runDir string
	onExit func(Exit, error)

	mu      sync.Mutex
	seq     uint32
	waiting map[uint32]chan packet
	// accepted: Start or Connect succeeded, and the end is onExit's. An end that came
	// before waits here.
	accepted bool
	end      *end
	finished bool
	// ended: nothing will be answered any more. closed: by Close, onExit stays silent.
	ended, closed bool

	// Of the reader alone. hello: the connection is one of Connect, and subscribes itself.
	hello, subscribed, settled bool
	// outcome takes the first word about the container, for Start or Connect.
	outcome chan outcome
}

// end is what onExit is called with.
type end struct {
	exit Exit
	err  error
}

type outcome struct {
	status Status
	err    error
}

func newConn(socket *net.UnixConn, runDir string, onExit func(Exit, error)) *Conn {
	return &Conn{
		socket: socket, runDir: runDir, onExit: onExit,
		waiting: map[uint32]chan packet{}, outcome: make(chan outcome, 1),
	}
}

// Close ends the connection; the monitor and the container go on. Requests under way
// fail with ErrClosed, and onExit is not called any more. It may be called again.
func (c *Conn) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.socket.Close()
}

// Kill sends a signal to the container's first process, never to another one. An
// error wraps unix.ESRCH when the process has ended. While the OCI runtime still
// creates the container, SIGKILL ends that and other signals fail with unix.EAGAIN.
func (c *Conn) Kill(ctx context.Context, sig unix.Signal) error {
	_, err := c.request(ctx, typeKill, binary.LittleEndian.AppendUint32(nil, uint32(sig)))
	return wrap("kill", err)
}

// Reopen opens the log path anew, and returns when all further output goes there.
// On an error the file before stays in use, and none is made; it wraps unix.ESRCH when
// the exit has been told.
func (c *Conn) Reopen(ctx context.Context) error {
	_, err := c.request(ctx, typeReopen, nil)
	return wrap("reopen log", err)
}

// Resize sets the size of the terminal, in characters. Before the terminal exists
// the last value is kept for it. Without one the error wraps unix.ENOTTY.
func (c *Conn) Resize(ctx context.Context, rows, cols uint16) error {
	payload := binary.LittleEndian.AppendUint16(nil, rows)
	_, err := c.request(ctx, typeResize, binary.LittleEndian.AppendUint16(payload, cols))
	return wrap("resize terminal", err)
}

// Status asks the monitor what it knows now.
func (c *Conn) Status(ctx context.Context) (Status, error) {
	reply, err := c.request(ctx, typeStatus, nil)
	if err != nil {
		return Status{}, wrap("status", err)
	}
	status, err := decodeStatus(reply.payload)
	return status, wrap("status", err)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("monitor: %s: %w", what, err)
	}
	return nil
}

// request sends and waits for the reply with its number.
func (c *Conn) request(ctx context.Context, kind byte, payload []byte) (packet, error) {
	reply := make(chan packet, 1)
	c.mu.Lock()
	if c.closed || c.ended {
		c.mu.Unlock()
		return packet{}, ErrClosed
	}
	c.seq++
	seq := c.seq
	c.waiting[seq] = reply
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, seq)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, encode(kind, seq, payload)); err != nil {
		return packet{}, err
	}
	select {
	case p, ok := <-reply:
		if !ok {
			return packet{}, ErrClosed
		}
		if p.errno != 0 {
			return packet{}, p.errno
		}
		return p, nil
	case <-ctx.Done():
		return packet{}, ctx.Err()
	}
}

// send writes one packet. A monitor that reads nothing has a full queue some time:
// then the context ends the wait, and with it that of every other sender, which
// waits for the same queue.
func (c *Conn) send(ctx context.Context, b []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.socket.SetWriteDeadline(time.Now())
	})
	_, err := c.socket.Write(b)
	if !stop() {
		<-interrupted // else the deadline could come after its own removal, and stay
		_ = c.socket.SetWriteDeadline(time.Time{})
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return ErrClosed
	}
	return err
}

// subscribe says hello. The request goes out before the reader runs, and an empty
// queue takes it at once.
func (c *Conn) subscribe() {
	c.hello = true
	// A failure here is one that the reader sees as well, and tells.
	_, _ = c.socket.Write(encode(typeHello, 0, nil))
}

// accept hands the connection to its user: from now on its end is onExit's.
func (c *Conn) accept() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accepted = true
	if c.end != nil {
		c.callOnExit(*c.end)
	}
}

// read is the connection's goroutine: it ends with the connection.
func (c *Conn) read() {
	defer c.socket.Close()
	buffer := make([]byte, maxPacket)
	for {
		p, err := receive(c.socket, buffer)
		if err == nil {
			err = c.handle(p)
		}
		if err != nil {
			c.lost(err)
			return
		}
	}
}

// handle takes one packet. Its payload is the reader's buffer.
func (c *Conn) handle(p packet) error {
	switch {
	case p.kind == typeReply|typeHello && p.seq == 0:
		return c.helloReply(p)
	case p.kind&typeReply != 0:
		p.payload = append([]byte(nil), p.payload...)
		c.mu.Lock()
		defer c.mu.Unlock()
		if reply, ok := c.waiting[p.seq]; ok {
			delete(c.waiting, p.seq)
			reply <- p
		}
	case p.kind == pushStarted:
		status, err := decodeStatus(p.payload)
		if err != nil {
			return err
		}
		c.tell(outcome{status: status})
	case p.kind == pushFailed:
		c.failed(string(p.payload))
	case p.kind == pushExit:
		x, err := ParseExit(p.payload)
		if err != nil {
			return fmt.Errorf("exit message: %w", err)
		}
		c.tell(outcome{status: Status{State: Exited, Pid: x.Pid, StartedAt: x.StartedAt}})
		c.finish(end{exit: x})
	}
	// A push of a kind that is not known comes from a newer monitor.
	return nil
}

// helloReply takes the answer to HELLO. A container that is past its creation is
// told at once; for another the first push is awaited.
func (c *Conn) helloReply(p packet) error {
	if p.errno != 0 {
		return p.errno
	}
	status, err := decodeStatus(p.payload)
	if err != nil {
		return err
	}
	c.subscribed = true
	if status.State >= Running {
		c.tell(outcome{status: status})
	}
	return nil
}

// failed is the end of a container that never ran: the error of Start, or an exit
// for who came later.
func (c *Conn) failed(text string) {
	text = strings.ToValidUTF8(text, "\uFFFD") // a runtime's words, perhaps cut; protobuf takes no other
	if !c.hello {
		// Whoever started it needs no record: the monitor may go.
		_, _ = c.socket.Write(encode(typeAckExit, 0, nil))
		c.tell(outcome{err: &StartError{Message: text}})
		return
	}
	c.tell(outcome{status: Status{State: Failed}})
	c.finish(end{exit: Exit{Code: exitFailed, FinishedAt: time.Now().UnixNano(), Message: text}})
}

// tell gives the first word to Start or Connect; later ones have no taker.
func (c *Conn) tell(o outcome) {
	if !c.settled {
		c.settled = true
		c.outcome <- o
	}
}

// lost ends every wait. Without an exit before, the record decides whether the
// monitor was in time to write it.
func (c *Conn) lost(cause error) {
	c.mu.Lock()
	c.ended = true
	for seq, reply := range c.waiting {
		delete(c.waiting, seq)
		close(reply)
	}
	c.mu.Unlock()
	if errors.Is(cause, io.EOF) || errors.Is(cause, unix.ECONNRESET) {
		cause = nil // the ordinary end says nothing more
	}
	if !c.settled {
		sentinel := ErrLost
		if c.hello && !c.subscribed {
			sentinel = ErrNoAnswer // it has no room for us, or has just ended
		}
		c.tell(outcome{err: errors.Join(sentinel, cause)})
		return
	}
	x, err := ReadExit(c.runDir)
	if err != nil {
		x, err = Exit{}, fmt.Errorf("%w: %w", ErrLost, errors.Join(cause, err))
	}
	c.finish(end{exit: x, err: err})
}

// finish keeps the first end, and calls onExit when it is due.
func (c *Conn) finish(e end) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return
	}
	c.finished = true
	c.end = &e
	if c.accepted {
		c.callOnExit(e)
	}
}

// callOnExit runs onExit and then acknowledges. c.mu is held.
func (c *Conn) callOnExit(e end) {
	if c.closed {
		return
	}
	go func() {
		c.onExit(e.exit, e.err)
		// The monitor waits for this a bounded time only; it may have gone.
		_, _ = c.socket.Write(encode(typeAckExit, 0, nil))
	}()
}
