package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrBehind: the monitor ended an attachment whose output was not read fast enough,
// or was killed itself. A Conn to it tells which.
var ErrBehind = errors.New("the monitor ended the attachment: its output was not read in time")

// Streams says what an attachment takes part in. A terminal's output is all stdout.
type Streams struct {
	Stdin, Stdout, Stderr bool
}

// Attachment is a connection to a container's stdio. The container never waits for it:
// one that does not read is ended by the monitor when it is about 1 MiB behind.
// Copy, one writer and Close may run at the same time.
type Attachment struct {
	socket *net.UnixConn
	// refused is the first error of input, an unix.Errno; 0 while there is none.
	refused atomic.Int32
	// seq is the writer's.
	seq uint32
}

// Attach connects to the stdio of a container whose monitor runs, which may be before
// it is started. An error wraps ErrGone when nobody listens, unix.ESRCH after the
// container's end, unix.EBADF for stdin where it was given none.
func Attach(ctx context.Context, runDir string, s Streams) (*Attachment, error) {
	socket, err := dial(ctx, runDir)
	if err != nil {
		return nil, fmt.Errorf("attach in %s: %w", runDir, err)
	}
	a := &Attachment{socket: socket}
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	err = a.hello(s)
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("attach in %s: %w", runDir, err)
	}
	return a, nil
}

// hello sends the request. Its reply is the first packet of the connection.
func (a *Attachment) hello(s Streams) error {
	var bits uint32
	for bit, wanted := range []bool{s.Stdin, s.Stdout, s.Stderr} {
		if wanted {
			bits |= 1 << bit
		}
	}
	if _, err := a.socket.Write(encode(typeAttach, a.seq, binary.LittleEndian.AppendUint32(nil, bits))); err != nil {
		return err
	}
	p, err := receive(a.socket, make([]byte, maxPacket))
	if err != nil {
		return err
	}
	if p.errno != 0 {
		return p.errno
	}
	return nil
}

// Copy writes the container's output to stdout and stderr until its end, which is
// nil, or until Close. It must run as long as there is an attachment, be it for input
// alone: it also takes the monitor's replies. A nil writer drops its stream.
func (a *Attachment) Copy(stdout, stderr io.Writer) error {
	writers := map[byte]io.Writer{1: stdout, 2: stderr}
	buffer := make([]byte, maxPacket)
	for {
		p, err := receive(a.socket, buffer)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return ErrBehind
		}
		if errors.Is(err, net.ErrClosed) {
			return ErrClosed
		}
		if err != nil {
			return fmt.Errorf("attachment: %w", err)
		}
		switch {
		case p.kind == pushOutputEnd:
			return nil
		case p.kind == typeReply|typeInput && p.errno != 0:
			a.refused.CompareAndSwap(0, int32(p.errno))
		case p.kind == pushOutput && len(p.payload) > 0:
			if w := writers[p.payload[0]]; w != nil {
				if _, err := w.Write(p.payload[1:]); err != nil {
					return err
				}
			}
		}
	}
}

// Write gives input to the container. It returns when the monitor will deliver it,
// which may be long before the container reads it, and waits while there is too much
// of that. The error wraps unix.EPIPE once the container does not read any more.
func (a *Attachment) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		if errno := a.refused.Load(); errno != 0 {
			return done, fmt.Errorf("input: %w", unix.Errno(errno))
		}
		part := b[done:min(done+maxPayload, len(b))]
		a.seq++
		if _, err := a.socket.Write(encode(typeInput, a.seq, part)); err != nil {
			return done, inputError(err)
		}
		done += len(part)
	}
	return done, nil
}

// CloseWrite is the end of this attachment's input; its output goes on.
func (a *Attachment) CloseWrite() error {
	a.seq++
	if _, err := a.socket.Write(encode(typeInputEnd, a.seq, nil)); err != nil {
		return inputError(err)
	}
	return nil
}

// inputError: a monitor that has gone has no container that reads.
func inputError(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("input: %w", err)
}

// Close ends the attachment, and with it a Copy and a Write that wait. What was
// written is delivered.
func (a *Attachment) Close() error { return a.socket.Close() }
