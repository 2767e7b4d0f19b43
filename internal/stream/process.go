package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"

	"github.com/crio-minimal/crio/internal/stdio"
)

// Process says in which of its stdio a client takes part.
type Process struct {
	// Container is the whole ID.
	Container                  string
	Stdin, Stdout, Stderr, TTY bool
	// Over, when it is closed, ends the session: the pod has been stopped. Exited, the
	// container's end, leaves the client the time to take the last output.
	Over, Exited <-chan struct{}
}

// Exec returns the URL at which a client finds the command.
func (s *Server) Exec(p Process, cmd []string) (string, error) {
	return s.url(offer{kind: "exec", object: p.Container, over: p.Over, exited: p.Exited, run: func(x *session, w http.ResponseWriter, r *http.Request) {
		run := process{x, p, "executing command in", func(streams stdio.Streams) (int32, error) {
			return s.runtime.Exec(x.ctx, p.Container, cmd, streams)
		}}
		if !wsstream.IsWebSocketRequest(r) {
			run.serveSPDY(w, r)
			return
		}
		remotecommand.ServeExec(w, r, run, "", "", p.Container, cmd, p.options(), 0, createTimeout, remotecommand.SupportedStreamingProtocols)
	}})
}

// Attach returns the URL at which a client finds the container's stdio.
func (s *Server) Attach(p Process) (string, error) {
	return s.url(offer{kind: "attach", object: p.Container, over: p.Over, exited: p.Exited, run: func(x *session, w http.ResponseWriter, r *http.Request) {
		run := process{x, p, "attaching to", func(streams stdio.Streams) (int32, error) {
			return 0, s.runtime.Attach(x.ctx, p.Container, streams)
		}}
		if !wsstream.IsWebSocketRequest(r) {
			run.serveSPDY(w, r)
			return
		}
		remotecommand.ServeAttach(w, r, run, "", "", p.Container, p.options(), 0, createTimeout, remotecommand.SupportedStreamingProtocols)
	}})
}

func (p Process) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, TTY: p.TTY}
}

// process is what begins once the client's streams are there. With WebSocket the library
// sees to them, calls it, and closes the connection when the call returns.
type process struct {
	*session
	wanted Process
	doing  string // for messages; the container follows
	run    func(stdio.Streams) (code int32, err error)
}

// ExecInContainer is remotecommand.Executor's.
func (p process) ExecInContainer(_ context.Context, _, _, _ string, _ []string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	code, err := p.run(p.streams(in, out, errs, received(resize)))
	if p.err = p.why(err); p.err != nil {
		return p.err
	}
	if code != 0 {
		// The library puts what follows behind words of its own.
		return exec.CodeExitError{Code: int(code), Err: exitStatus(code)}
	}
	return nil
}

func exitStatus(code int32) error { return fmt.Errorf("exit status %d", code) }

// AttachContainer is remotecommand.Attacher's.
func (p process) AttachContainer(_ context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	_, err := p.run(p.streams(in, out, errs, received(resize)))
	p.err = p.why(err)
	return p.err
}

// received tells the sizes that the library has read; nil is for none.
func received(resize <-chan remotecommand.TerminalSize) func(tell func(remotecommand.TerminalSize)) {
	if resize == nil {
		return nil
	}
	return func(tell func(remotecommand.TerminalSize)) {
		for size := range resize {
			tell(size)
		}
	}
}

// streams are the client's ends. What the client did not ask for is there all the same
// with some protocols, and is not to be used. resizes, where it is not nil, tells the sizes
// of the client's terminal until there are no more.
func (p process) streams(in io.Reader, out, errs io.Writer, resizes func(tell func(remotecommand.TerminalSize))) stdio.Streams {
	s := stdio.Streams{TTY: p.wanted.TTY}
	if p.wanted.Stdin {
		s.Input = func(w io.WriteCloser) { p.group.Go(func() { p.copyInput(w, in) }) }
	} else {
		p.noInput()
	}
	if p.wanted.Stdout {
		s.Out = out
	}
	if p.wanted.Stderr {
		s.Err = errs
	}
	if resizes == nil {
		return s
	}
	sizes := &sizes{}
	p.group.Go(func() { resizes(sizes.tell) })
	if p.wanted.TTY {
		s.Resized = sizes.follow
	}
	return s
}

// copyInput takes all that the client sends, also when nobody wants it any more: what
// is left lying would keep the other streams of the connection from moving.
func (p process) copyInput(w io.WriteCloser, in io.Reader) {
	_, err := io.Copy(w, in)
	err = errors.Join(err, w.Close())
	p.noInput()
	if err != nil {
		_, _ = io.Copy(io.Discard, in)
	}
}

// sizes keeps the last size for a terminal that does not exist yet.
type sizes struct {
	mu   sync.Mutex // also orders the calls of set
	last remotecommand.TerminalSize
	set  func(rows, cols uint16)
}

func (z *sizes) tell(size remotecommand.TerminalSize) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.last = size
	z.apply()
}

func (z *sizes) follow(set func(rows, cols uint16)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.set = set
	z.apply()
}

// apply needs z.mu. A size without an extent is none.
func (z *sizes) apply() {
	if z.set != nil && z.last.Width > 0 && z.last.Height > 0 {
		z.set(z.last.Height, z.last.Width)
	}
}
