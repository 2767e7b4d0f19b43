// Package stdio carries bytes between a client and the stdin, stdout and stderr of a
// process, without waiting for anybody who is left behind with them.
package stdio

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Streams are a client's ends for as long as its session lasts. Whoever makes them runs
// what they start, and knows when it has ended.
type Streams struct {
	// Input begins to copy the client's input to w, and closes w at its end. It is called
	// once at most; w stays its caller's to close, too. nil: there is no input.
	Input func(w io.WriteCloser)
	// Out and Err take the output; nil drops it. A terminal has Out alone.
	Out, Err io.Writer
	TTY      bool
	// Resized has set called with the size of the client's terminal, as far as it is known,
	// and then whenever it changes. It is called once at most. nil: there is no size.
	Resized func(set func(rows, cols uint16))
}

const (
	// drainTime is how long the output of a process that has ended is waited for, when
	// somebody whom it left behind holds it open.
	drainTime = 200 * time.Millisecond
	// terminalBytes is more than what a terminal holds (tty_buffer.c: 64 KiB).
	terminalBytes = 128 << 10
	copyBytes     = 32 << 10
)

// Output is the reading end of a process's pipe or terminal.
type Output struct {
	file *os.File
	done chan struct{} // closed when nothing is copied any more
	err  error         // the writer's, final when done is closed
}

// CopyOutput copies from file, which becomes its own, to w until the end of file, or until
// somebody else closes it, or an error of w: then it closes file, and the process gets
// SIGPIPE.
func CopyOutput(w io.Writer, file *os.File) *Output {
	o := &Output{file: file, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		defer file.Close()
		o.err = o.copy(w)
	}()
	return o
}

// Finish is called when the process has ended. It returns when all that it wrote was
// taken by the writer, however long that takes, or with the writer's error.
func (o *Output) Finish() error {
	_ = o.file.SetReadDeadline(time.Now()) // closed already: the copy is over
	<-o.done
	return o.err
}

func (o *Output) copy(w io.Writer) error {
	buffer := make([]byte, copyBytes)
	for ended, left := false, 1; left > 0; {
		n, err := o.file.Read(buffer)
		if _, err := w.Write(buffer[:n]); n > 0 && err != nil {
			return err
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !ended:
			ended, left = true, o.holds()
		case errors.Is(err, io.EOF), errors.Is(err, unix.EIO), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return nil // EIO is the end of a terminal's output
		case err != nil:
			return err
		}
		if ended {
			left -= n
			if err := o.file.SetReadDeadline(time.Now().Add(drainTime)); err != nil {
				return err
			}
		}
	}
	return nil
}

// holds is the most that what the process itself wrote can be, in bytes: a pipe is as
// large as anybody who has it wants it (F_SETPIPE_SZ of fcntl(2)).
func (o *Output) holds() int {
	size := terminalBytes
	raw, err := o.file.SyscallConn()
	if err != nil {
		return size
	}
	_ = raw.Control(func(fd uintptr) {
		if pipe, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			size = max(size, pipe)
		}
	})
	return size
}
