package server

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"time"

	"github.com/crio-minimal/crio/internal/engine"
	"github.com/crio-minimal/crio/pkg/config"
)

// StatusReport is the answer to GET /debug/status: what the daemon holds and does.
type StatusReport struct {
	engine.Report
	// Uptime in nanoseconds.
	Uptime     time.Duration
	Goroutines int
	// Heap is the bytes of objects that the last collection of garbage found in use.
	Heap    uint64
	Network string // "ready", or why not
}

// routes are what is served over HTTP/1 on the CRI socket, to whoever may open it: to
// crio status and people, and to the kubelet's cAdvisor (inspect.go).
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", s.nodeInfo)
	mux.HandleFunc("GET /containers/{id}", s.containerInfo)
	mux.HandleFunc("GET /debug/status", s.debugStatus)
	mux.HandleFunc("GET /debug/goroutines", s.profile("goroutine", 2))
	mux.HandleFunc("GET /debug/heap", s.profile("heap", 0))
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/toml")
		if err := config.Print(w, s.Config); err != nil {
			s.Log.Debug("config", "err", err)
		}
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		if err := writeMetrics(w, s.engine.Report()); err != nil {
			s.Log.Debug("metrics", "err", err)
		}
	})
	return mux
}

// debugStatus answers after a collection of garbage with ?gc=1: then Heap is what is in use
// now, and what was free is the system's again.
func (s *Server) debugStatus(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("gc") == "1" {
		debug.FreeOSMemory()
	}
	s.writeJSON(w, s.Report())
}

// Report waits for nothing but the plugins' first STATUS, and not long for that.
func (s *Server) Report() StatusReport {
	report := StatusReport{
		Report: s.engine.Report(), Uptime: time.Since(s.started), Goroutines: runtime.NumGoroutine(), Heap: liveHeap(), Network: "ready",
	}
	if err := s.networks.Answer(); err != nil {
		report.Network = err.Error()
	}
	return report
}

// profile serves one of runtime/pprof's, in its format for programs (0) or for people (2).
func (s *Server) profile(name string, debug int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := pprof.Lookup(name).WriteTo(w, debug); err != nil {
			s.Log.Debug("profile", "name", name, "err", err)
		}
	}
}

func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
