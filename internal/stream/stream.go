// Package stream serves the sessions of Exec, Attach and PortForward: over SPDY and
// WebSocket, on a listener of their own, each behind a URL that works once.
//
// A session is one request on one connection. Its context ends with the client, with the
// pod, with the daemon, or with what it was for; whatever it has opened ends with its
// context, and whatever it has started has ended before it is over itself.
//
// cri-streaming serves WebSocket. SPDY is served here (spdy*.go): with cri-streaming a
// session that ends while streams arrive leaves goroutines for good, and one whose client
// makes no streams does not end.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/stdio"
)

// Runtime does what the clients want. Contexts end with the session.
type Runtime interface {
	// Exec runs a command in a container to its end.
	Exec(ctx context.Context, container string, cmd []string, s stdio.Streams) (code int32, err error)
	// Attach joins a client to a container until its output ends.
	Attach(ctx context.Context, container string, s stdio.Streams) error
	// DialPod connects to a port of the pod's loopback.
	DialPod(ctx context.Context, pod string, port uint16) (*net.TCPConn, error)
}

// Options of the server; they do not change while it lives.
type Options struct {
	// Address to listen on, host:port; port 0 takes a free one.
	Address string
	// IdleTimeout ends a connection on which no byte has moved for so long; 0 is never.
	IdleTimeout time.Duration
	// TLS, where it is wanted.
	TLS *Credentials
	Log *slog.Logger
}

const (
	// headerTimeout bounds the wait for a request on a connection.
	headerTimeout = 5 * time.Second
	// createTimeout bounds the wait for the streams that a SPDY client has to make.
	createTimeout = 30 * time.Second
	// lastInput is how long what a client that has gone had sent may take to be delivered.
	lastInput = time.Second
	// lastOutput is how long a client may take nothing of what a container that has ended had
	// written.
	lastOutput = 10 * time.Second
	// lastWords is how long clients are given to take why their session ends when the
	// daemon does.
	lastWords = 2 * time.Second
)

// errEnding ends the sessions, and refuses new ones.
var errEnding = fault.New(fault.Unavailable, "crio is ending")

// Server holds the listener and the sessions.
type Server struct {
	Options
	runtime  Runtime
	listener net.Listener
	base     url.URL
	http     *http.Server
	offers   offers
	ctx      context.Context // the parent of every session's
	cancel   context.CancelCauseFunc

	mu       sync.Mutex // held for the fields below alone
	closed   bool
	conns    map[*conn]bool
	sessions sync.WaitGroup
}

// Listen opens the listener. The caller calls Serve and then Close.
func Listen(o Options, runtime Runtime) (*Server, error) {
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	s := &Server{Options: o, runtime: runtime, conns: map[*conn]bool{}}
	s.base = url.URL{Scheme: "http", Host: reachable(listener.Addr().(*net.TCPAddr))}
	s.listener = tracked{listener, s}
	if o.TLS != nil {
		if _, err := o.TLS.load(); err != nil {
			return nil, errors.Join(fmt.Errorf("streams: %w", err), listener.Close())
		}
		s.base.Scheme = "https"
		s.listener = tls.NewListener(s.listener, o.TLS.config(o.Log))
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("/{kind}/{token}", s.serve)
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c.(*conn))
		},
	}
	s.http.SetKeepAlivesEnabled(false)
	// The libraries of the protocols log by this alone. How a session ended is told here.
	klog.SetSlogLogger(slog.New(demoted{o.Log.Handler()}))
	return s, nil
}

// reachable is where the kubelet, on the same node, finds a listener.
func reachable(a *net.TCPAddr) string {
	if !a.IP.IsUnspecified() {
		return a.String()
	}
	loopback := net.IPv6loopback
	if a.IP.To4() != nil {
		loopback = net.IPv4(127, 0, 0, 1)
	}
	return (&net.TCPAddr{IP: loopback, Port: a.Port}).String()
}

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("streams: %w", err)
	}
	return nil
}

// Close ends every session and returns when none is left, or with ctx.
func (s *Server) Close(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(errEnding)
	if err := s.http.Close(); err != nil {
		s.Log.Debug("streams", "err", err)
	}
	ended := make(chan struct{})
	go func() { s.sessions.Wait(); close(ended) }()
	patience := time.NewTimer(lastWords)
	defer patience.Stop()
	select {
	case <-ended:
		return
	case <-patience.C:
	case <-ctx.Done():
	}
	s.closeConns()
	select {
	case <-ended:
	case <-ctx.Done():
		s.Log.Warn("sessions do not end", "err", ctx.Err())
	}
}

func (s *Server) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.TCPConn.Close()
	}
}

// demoted tells as debug what others call errors.
type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}
