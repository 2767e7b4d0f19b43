package server

import (
	"encoding/json"
	"net/http"
	"runtime"
	"time"

	"github.com/crio-minimal/crio/internal/engine"
)

// StatusReport is the answer to GET /debug/status: what the daemon holds and does.
type StatusReport struct {
	engine.Report
	// Uptime in nanoseconds.
	Uptime     time.Duration
	Goroutines int
	Network    string // "ready", or why not
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/status", func(w http.ResponseWriter, r *http.Request) {
		report := StatusReport{
			Report: s.engine.Report(), Uptime: time.Since(s.started), Goroutines: runtime.NumGoroutine(), Network: "ready",
		}
		if err := s.networks.Ready(r.Context()); err != nil {
			report.Network = err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(report); err != nil {
			s.Log.Debug("status", "err", err)
		}
	})
	return mux
}
