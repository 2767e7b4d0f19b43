package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// arrivals are the streams of a SPDY client for a process. Those that its version does
// not have, and those that nobody asked for, are refused.
type arrivals struct {
	wanted   map[string]bool // by type; not changed
	complete chan struct{}   // closed when all are there

	mu    sync.Mutex // also held while a reply is written, so until the socket ends at most
	have  map[string]spdyStream
	ended bool // nothing arrives any more
}

func (p Process) arrivals(version string) *arrivals {
	a := &arrivals{wanted: map[string]bool{remotecommand.StreamTypeError: true}, have: map[string]spdyStream{}, complete: make(chan struct{})}
	sizes := version != remotecommand.StreamProtocolV1Name && version != remotecommand.StreamProtocolV2Name
	for name, wanted := range map[string]bool{
		remotecommand.StreamTypeStdin: p.Stdin, remotecommand.StreamTypeStdout: p.Stdout, remotecommand.StreamTypeStderr: p.Stderr,
		remotecommand.StreamTypeResize: p.TTY && sizes,
	} {
		if wanted {
			a.wanted[name] = true
		}
	}
	return a
}

func (a *arrivals) accept(s spdyStream) error {
	name := s.Headers().Get(remotecommand.StreamType)
	if !a.wanted[name] {
		return fmt.Errorf("a stream of type %q was not asked for", name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, twice := a.have[name]; twice || a.ended {
		return fmt.Errorf("a stream of type %q comes too late", name)
	}
	if err := s.reply(); err != nil {
		return err
	}
	a.have[name] = s
	if len(a.have) == len(a.wanted) {
		close(a.complete)
	}
	return nil
}

// get returns a stream, if it is there yet.
func (a *arrivals) get(name string) (s spdyStream, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok = a.have[name]
	return s, ok
}

// release ends all streams.
func (a *arrivals) release() {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	for _, s := range a.have {
		s.release()
	}
}

// serveSPDY runs the process once the client has made its streams, and tells it how that
// ended.
func (p process) serveSPDY(w http.ResponseWriter, r *http.Request) {
	version, err := httpstream.Handshake(r, w, remotecommand.SupportedStreamingProtocols)
	if err != nil {
		p.err = err
		return
	}
	a := p.wanted.arrivals(version)
	conn, err := upgrade(w, r, a.accept)
	if err != nil {
		p.err = err
		return
	}
	defer conn.Close()
	defer a.release()
	code, err := p.runSPDY(a)
	p.err = p.why(err)
	told, ok := a.get(remotecommand.StreamTypeError)
	if !ok {
		return
	}
	text := p.ending(code, p.err)
	if version == remotecommand.StreamProtocolV4Name {
		document, err := json.Marshal(text)
		if err != nil {
			p.err = errors.Join(p.err, err)
			return
		}
		text.Message = string(document)
	}
	if text.Message != "" {
		_, _ = io.WriteString(told, text.Message) // a client that has gone is not told
	}
}

// runSPDY returns what the process does, or why there is none.
func (p process) runSPDY(a *arrivals) (code int32, err error) {
	late := time.NewTimer(createTimeout)
	defer late.Stop()
	select {
	case <-a.complete:
	case <-late.C:
		return 0, fmt.Errorf("the client has not made its streams within %s", createTimeout)
	case <-p.ctx.Done():
		return 0, context.Cause(p.ctx)
	}
	in, _ := a.get(remotecommand.StreamTypeStdin)
	out, _ := a.get(remotecommand.StreamTypeStdout)
	errs, _ := a.get(remotecommand.StreamTypeStderr)
	var sizes func(tell func(remotecommand.TerminalSize))
	if resize, ok := a.get(remotecommand.StreamTypeResize); ok {
		sizes = func(tell func(remotecommand.TerminalSize)) { readSizes(resize, tell) }
	}
	return p.run(p.streams(in, out, errs, sizes))
}

// sizeMost bounds the JSON of one size, in bytes.
const sizeMost = 4 << 10

// readSizes tells the sizes that a client sends, until its end. What comes behind
// something else is taken and thrown away, as it would be in the way of other streams.
func readSizes(client io.Reader, tell func(remotecommand.TerminalSize)) {
	limited := &io.LimitedReader{R: client}
	decoder := json.NewDecoder(limited)
	for {
		var size remotecommand.TerminalSize
		limited.N = sizeMost
		if err := decoder.Decode(&size); err != nil {
			_, _ = io.Copy(io.Discard, client)
			return
		}
		tell(size)
	}
}

// status is as much of metav1.Status as clients read.
type status struct {
	Status  string         `json:"status"`
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *statusDetails `json:"details,omitempty"`
	Code    int32          `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// ending is the words that the library has for the same with WebSocket.
func (p process) ending(code int32, err error) status {
	switch {
	case err != nil:
		return status{
			Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: fmt.Sprintf("Internal error occurred: error %s container: %v", p.doing, err),
		}
	case code != 0:
		return status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with non-zero exit code: " + exitStatus(code).Error(),
			Details: &statusDetails{[]statusCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(int(code))}}},
		}
	}
	return status{Status: "Success"}
}
