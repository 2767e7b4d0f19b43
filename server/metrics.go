package server

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/crio-minimal/crio/internal/engine"
)

// writeMetrics writes Prometheus' text format 0.0.4.
func writeMetrics(w io.Writer, r engine.Report) error {
	if err := writeOperations(w, r.Operations); err != nil {
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
