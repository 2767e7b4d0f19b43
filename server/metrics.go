package server

import (
	"errors"
	"fmt"
	"io"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/crio-minimal/crio/internal/engine"
)

// writeMetrics writes Prometheus' text format 0.0.4.
func writeMetrics(w io.Writer, r engine.Report) error {
	if err := errors.Join(writeOperations(w, r.Operations), writeGo(w)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, `# HELP crio_container_log_dropped_bytes_total Output of ended containers that their log did not take.
# TYPE crio_container_log_dropped_bytes_total counter
crio_container_log_dropped_bytes_total %d
# HELP crio_teardowns_blocked Objects whose stop or removal fails and is tried again, and an image store that cannot be opened.
# TYPE crio_teardowns_blocked gauge
crio_teardowns_blocked %d
# HELP crio_event_subscribers Clients that get the events of containers.
# TYPE crio_event_subscribers gauge
crio_event_subscribers %d
# HELP crio_event_subscribers_dropped_total Clients that did not read their events in time.
# TYPE crio_event_subscribers_dropped_total counter
crio_event_subscribers_dropped_total %d
`, r.LogDropped, len(r.Blocked), r.Subscribers, r.SubscribersDropped)
	return err
}

// writeOperations has a sample for each kind and stage that something is in.
func writeOperations(w io.Writer, operations []engine.OperationReport) error {
	var names []string
	count, longest := map[string]int{}, map[string]time.Duration{}
	label := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	for _, op := range operations {
		kind, _, _ := strings.Cut(op.Kind, " to {") // what an update changes is no label
		name := fmt.Sprintf(`{kind="%s",stage="%s"}`, label.Replace(kind), label.Replace(op.Stage))
		if count[name]++; count[name] == 1 {
			names = append(names, name)
		}
		longest[name] = max(longest[name], op.InStage)
	}
	var b strings.Builder
	b.WriteString("# HELP crio_operations Operations that run, by what they are and their stage.\n# TYPE crio_operations gauge\n")
	for _, name := range names {
		fmt.Fprintf(&b, "crio_operations%s %d\n", name, count[name])
	}
	b.WriteString("# HELP crio_operation_stage_seconds The longest that one of them has been in its stage.\n# TYPE crio_operation_stage_seconds gauge\n")
	for _, name := range names {
		fmt.Fprintf(&b, "crio_operation_stage_seconds%s %g\n", name, longest[name].Seconds())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// goMetric is one of runtime/metrics, with the name that Prometheus' client for Go gives it.
type goMetric struct{ sample, name, kind, help string }

func goMetrics() []goMetric {
	return []goMetric{
		{"/sched/goroutines:goroutines", "go_sched_goroutines_goroutines", "gauge", "Goroutines that live."},
		{"/gc/heap/live:bytes", "go_gc_heap_live_bytes", "gauge", "Objects that the last collection of garbage found in use."},
		{"/gc/heap/allocs:bytes", "go_gc_heap_allocs_bytes_total", "counter", "Memory that was allocated."},
		{"/gc/heap/allocs:objects", "go_gc_heap_allocs_objects_total", "counter", "Objects that were allocated."},
		{"/sync/mutex/wait/total:seconds", "go_sync_mutex_wait_total_seconds_total", "counter", "Time that goroutines have waited for locks."},
	}
}

func writeGo(w io.Writer) error {
	told := goMetrics()
	samples := make([]metrics.Sample, len(told))
	for i, m := range told {
		samples[i].Name = m.sample
	}
	metrics.Read(samples)
	var b strings.Builder
	for i, m := range told {
		var value float64
		switch v := samples[i].Value; v.Kind() {
		case metrics.KindUint64:
			value = float64(v.Uint64())
		case metrics.KindFloat64:
			value = v.Float64()
		default: // this version of Go does not count it
			continue
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %s\n", m.name, m.help, m.name, m.kind, m.name, strconv.FormatFloat(value, 'f', -1, 64))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
