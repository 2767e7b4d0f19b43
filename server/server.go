// Package server speaks CRI over gRPC: one file per RPC decodes, validates, calls
// the engine or the image store, and encodes. It has no policy and does no I/O.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/engine"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/stats"
	"github.com/crio-minimal/crio/internal/stream"
	"github.com/crio-minimal/crio/pkg/config"
)

// Options of the server; they do not change while it lives.
type Options struct {
	// MaxReceive and MaxSend bound one gRPC message in bytes.
	MaxReceive, MaxSend int
	// SystemdCgroup is what RuntimeConfig tells the kubelet.
	SystemdCgroup bool
	// DefaultHandler is the name of the handler that "" stands for.
	DefaultHandler string
	// Config is what GET /config prints.
	Config *config.Config
	Log    *slog.Logger
}

// Parts are what the server answers from. Their owner closes them after it.
type Parts struct {
	Engine   *engine.Engine
	Images   *image.Store
	Networks *network.Network
	Stats    *stats.Collector
	Streams  *stream.Server
}

// Server answers both CRI services. RPCs that it does not have answer Unimplemented.
type Server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	Options
	engine   *engine.Engine
	images   *image.Store
	networks *network.Network
	stats    *stats.Collector
	streams  *stream.Server
	started  time.Time

	grpc *grpc.Server
	http *http.Server

	calls calls
	// ending is over when Stop begins.
	ending    context.Context
	endEvents context.CancelFunc
}

// New makes a server that does not listen yet.
func New(o Options, parts Parts) *Server {
	s := &Server{
		Options: o, engine: parts.Engine, images: parts.Images, networks: parts.Networks, stats: parts.Stats, streams: parts.Streams,
		started: time.Now(),
	}
	s.ending, s.endEvents = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(o.MaxReceive), grpc.MaxSendMsgSize(o.MaxSend),
		grpc.UnaryInterceptor(s.intercept), grpc.StreamInterceptor(s.interceptStream),
		// Clients on the same machine: a dead one is seen by its closed socket.
		grpc.KeepaliveParams(keepalive.ServerParameters{}),
	)
	cri.RegisterRuntimeServiceServer(s.grpc, s)
	cri.RegisterImageServiceServer(s.grpc, s)
	s.http = &http.Server{Handler: s.routes(), ReadHeaderTimeout: 5 * time.Second}
	return s
}

// Serve answers on the listener until Stop; gRPC and HTTP/1 share it.
func (s *Server) Serve(listener net.Listener) error {
	split := newSplitter(listener)
	ended := make(chan error, 3)
	go func() { ended <- s.grpc.Serve(split.grpc) }()
	go func() { ended <- s.http.Serve(split.http) }()
	go func() { ended <- split.run() }()
	err := <-ended
	if errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || err == nil {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// flushTime bounds how long a client may take to read the end of what it was told.
const flushTime = time.Second

// Stop takes no more calls and lets those that run end until ctx does. A stream whose
// client does not read it is not waited for.
func (s *Server) Stop(ctx context.Context) {
	s.endEvents()
	drained := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(drained) }()
	select {
	case <-s.calls.ended():
		flush, cancel := context.WithTimeout(ctx, flushTime)
		defer cancel()
		ctx = flush
	case <-drained:
	case <-ctx.Done():
	}
	select {
	case <-drained:
	case <-ctx.Done():
		s.grpc.Stop()
	}
	if err := s.http.Close(); err != nil {
		s.Log.Debug("http", "err", err)
	}
}
