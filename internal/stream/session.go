package stream

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/crio-minimal/crio/internal/sys"
)

// errGone ends a session whose client's connection has ended.
var errGone = errors.New("the client has gone")

// errOver ends a session whose pod is being stopped.
var errOver = errors.New("the pod is being stopped")

// errDeaf ends a session whose container has ended.
var errDeaf = errors.New("the container has ended, and the client does not take what it had written")

// session is one request. What it starts is in its group.
type session struct {
	server *Server
	offer
	conn   *conn
	ctx    context.Context // its cause says who ended it
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
	// input is closed when what the client has sent was delivered, or nobody wants it.
	input     chan struct{}
	inputOnce sync.Once
	err       error // how it ended, for the log
}

// serve runs the session that a URL stands for.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	of, ok := s.offers.take(r.PathValue("kind"), r.PathValue("token"))
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
		return
	case !ok:
		http.NotFound(w, r)
		return
	case !s.begin():
		http.Error(w, errEnding.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.Done()
	x := &session{server: s, offer: of, conn: r.Context().Value(connKey{}).(*conn), input: make(chan struct{})}
	x.ctx, x.cancel = context.WithCancelCause(s.ctx)
	begun := time.Now()
	hangup, err := sys.WatchHangup(x.conn.TCPConn)
	if err != nil {
		x.cancel(nil)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	x.watch(hangup)
	a := &answer{ResponseWriter: w}
	of.run(x, a, r.WithContext(x.ctx))
	x.cancel(nil)
	if a.hijacked {
		// What still reads from the client ends with the connection.
		x.conn.Close()
	}
	_ = hangup.Close() // which ends its wait
	x.group.Wait()
	if a.hijacked {
		<-x.conn.closed
	}
	s.Log.Debug("session", "kind", of.kind, "object", of.object, "took", time.Since(begun), "err", x.err)
}

// answer knows whether the connection is the session's own. One that is not has a refusal
// on it that net/http has still to send, before it closes it.
type answer struct {
	http.ResponseWriter
	hijacked bool
}

func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	a.hijacked = err == nil
	return conn, rw, err
}

// begin counts a session, unless the server is closing.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.sessions.Add(1)
	return true
}

// watch ends the session with its client, whose last input has a moment to arrive, with
// its pod, and with its container, whose last output has. Where nobody takes its input,
// the socket alone tells that the client has gone.
func (x *session) watch(hangup *sys.Hangup) {
	x.group.Go(func() {
		if hangup.Wait() == nil {
			x.conn.ended()
		}
	})
	x.group.Go(func() {
		cause := x.ending()
		if cause == nil {
			return
		}
		x.cancel(cause)
		// Output that the client does not take must not keep what makes it.
		x.conn.Close()
	})
}

// ending returns why the session has to end, or nil when it has.
func (x *session) ending() error {
	patience := time.NewTimer(lastOutput)
	patience.Stop() // until it is needed
	for exited := x.exited; ; {
		select {
		case <-x.conn.gone:
			patience.Reset(lastInput)
			select {
			case <-x.input:
			case <-patience.C:
			case <-x.ctx.Done():
			}
			return errGone
		case <-x.over:
			return errOver
		case <-exited:
			exited = nil
			patience.Reset(lastOutput)
		case <-patience.C:
			left := lastOutput - x.conn.still()
			if left <= 0 {
				return errDeaf
			}
			patience.Reset(left)
		case <-x.ctx.Done():
			return nil
		}
	}
}

// noInput says that there is no more input to deliver.
func (x *session) noInput() { x.inputOnce.Do(func() { close(x.input) }) }

// why replaces an error that only tells of the session's end by its cause.
func (x *session) why(err error) error {
	if cause := context.Cause(x.ctx); cause != nil && err != nil {
		return cause
	}
	return err
}
