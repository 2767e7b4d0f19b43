package stream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// forwards are the connections to ports that a SPDY client makes in one session.
type forwards struct {
	forwarder
	running sync.WaitGroup

	mu      sync.Mutex       // also held while a reply is written, so until the socket ends at most
	waiting map[string]*pair // by request; those of which a stream is missing
	ended   bool             // nothing arrives any more
}

// pair is one connection: what goes through it, and what goes wrong with it.
type pair struct {
	// have is written under the mutex, until complete is closed or the pair waits no more.
	have     map[string]spdyStream // by type
	complete chan struct{}
}

// serveSPDY forwards until the client or the session ends.
func (f *forwards) serveSPDY(w http.ResponseWriter, r *http.Request) {
	if _, f.err = httpstream.Handshake(r, w, portforward.SupportedProtocols); f.err != nil {
		return
	}
	conn, err := upgrade(w, r, f.accept)
	if err != nil {
		f.err = err
		return
	}
	defer conn.Close()
	select {
	case <-conn.CloseChan():
		f.cancel(errGone)
		f.conn.Close() // what waits for the client to read waits no longer
	case <-f.ctx.Done():
	}
	f.err = context.Cause(f.ctx)
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.running.Wait() // each may still tell its client why
}

// accept pairs the streams, and has each pair served from its first one on.
func (f *forwards) accept(s spdyStream) error {
	kind := s.Headers().Get(portforward.StreamType)
	if kind != portforward.StreamTypeError && kind != portforward.StreamTypeData {
		return fmt.Errorf("%s %q: want %s or %s", portforward.StreamType, kind, portforward.StreamTypeData, portforward.StreamTypeError)
	}
	if _, err := portOf(s); err != nil {
		return err
	}
	id := requestOf(s, kind)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return errGone
	}
	p := f.waiting[id]
	if p == nil {
		p = &pair{have: map[string]spdyStream{}, complete: make(chan struct{})}
	}
	if _, twice := p.have[kind]; twice {
		return fmt.Errorf("request %s has its stream of type %s", id, kind)
	}
	if err := s.reply(); err != nil {
		return err
	}
	if len(p.have) == 0 {
		f.waiting[id] = p
		f.running.Go(func() { f.serve(id, p) })
	}
	p.have[kind] = s
	if len(p.have) == 2 {
		delete(f.waiting, id)
		close(p.complete)
	}
	return nil
}

// portOf reads a header that comes from the client.
func portOf(s httpstream.Stream) (uint16, error) {
	text := s.Headers().Get(portforward.PortHeader)
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%s %q: want 1 to 65535", portforward.PortHeader, text)
	}
	return uint16(port), nil
}

// requestOf is what the streams of one connection have in common. Clients before
// Kubernetes 1.1 do not say; they make the stream of errors first, and the other next.
func requestOf(s httpstream.Stream, kind string) string {
	if id := s.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	first := int64(s.Identifier())
	if kind == portforward.StreamTypeData {
		first -= 2
	}
	return strconv.FormatInt(first, 10)
}

// serve forwards one connection once both streams are there, and releases them.
func (f *forwards) serve(id string, p *pair) {
	err := f.await(id, p)
	data, errs := p.have[portforward.StreamTypeData], p.have[portforward.StreamTypeError]
	if err == nil {
		port, _ := portOf(data) // checked at its arrival
		if err = f.forward(port, data, true); err != nil {
			err = fmt.Errorf("error forwarding port %d to pod %s: %w", port, f.object, err)
		}
	}
	if err != nil && errs.conn != nil {
		_, _ = io.WriteString(errs, err.Error()) // a client that has gone is not told
	}
	for _, s := range p.have {
		if err == nil {
			_ = s.Close()
		}
		s.release()
	}
}

// await returns when no more streams of the pair arrive, and why it has not both.
func (f *forwards) await(id string, p *pair) (err error) {
	late := time.NewTimer(createTimeout)
	defer late.Stop()
	select {
	case <-p.complete:
		return nil
	case <-late.C:
		err = fmt.Errorf("the client has not made both streams of request %s within %s", id, createTimeout)
	case <-f.ctx.Done():
		err = context.Cause(f.ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting[id] == p {
		delete(f.waiting, id)
	}
	return err
}
