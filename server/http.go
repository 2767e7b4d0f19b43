package server

import (
	"encoding/json"
	"fmt"
	"io"
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
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		if err := writeMetrics(w, s.engine.Report()); err != nil {
			s.Log.Debug("metrics", "err", err)
		}
	})
	return mux
}

// writeMetrics writes Prometheus' text format 0.0.4.
func writeMetrics(w io.Writer, r engine.Report) error {
	_, err := fmt.Fprintf(w, `# HELP crio_container_log_dropped_bytes_total Output of ended containers that their log did not take.
# TYPE crio_container_log_dropped_bytes_total counter
crio_container_log_dropped_bytes_total %d
# HELP crio_teardowns_blocked Objects whose removal fails and is tried again.
# TYPE crio_teardowns_blocked gauge
crio_teardowns_blocked %d
`, r.LogDropped, len(r.Blocked))
	return err
}
