package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/server"
)

// statusTime bounds the daemon's answer, which waits for nothing but the plugins' first STATUS.
const statusTime = 10 * time.Second

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show what the running daemon holds and is doing",
		Description: "Asks the daemon on the configured socket for its pods and containers, its operations with\n" +
			"stage and age, what it cannot tear down and why, and what it has set aside and what to do about it.\n" +
			"SIGUSR1 has the daemon write the same, and what each of its goroutines does, to status.txt in its run directory.",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context, statusTime)
			defer cancel()
			report, err := fetchStatus(ctx, cfg.API.Listen)
			if err != nil {
				return fmt.Errorf("status: %w: is the daemon running?", err)
			}
			if c.String("output") == outputJSON {
				return json.NewEncoder(c.App.Writer).Encode(report)
			}
			return printStatus(c.App.Writer, report)
		},
	}
}

const outputJSON = "json"

func outputFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`FORMAT` of the output: table or json",
		Action: func(_ *cli.Context, v string) error {
			if v != "table" && v != outputJSON {
				return fmt.Errorf("--output %q is neither table nor json", v)
			}
			return nil
		},
	}
}

func fetchStatus(ctx context.Context, socket string) (server.StatusReport, error) {
	var report server.StatusReport
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return sys.Dial(ctx, socket) },
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://crio/debug/status", nil)
	if err != nil {
		return report, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return report, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return report, fmt.Errorf("the daemon answers %s", answer.Status)
	}
	return report, json.NewDecoder(answer.Body).Decode(&report)
}

func printStatus(out io.Writer, r server.StatusReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "uptime\t%s\n", r.Uptime.Round(time.Second))
	fmt.Fprintf(w, "network\t%s\n", r.Network)
	fmt.Fprintf(w, "goroutines\t%d\n", r.Goroutines)
	fmt.Fprintf(w, "heap\t%d KiB\n", r.Heap>>10)
	for _, phase := range slices.Sorted(maps.Keys(r.Sandboxes)) {
		fmt.Fprintf(w, "sandboxes %s\t%d\n", phase, r.Sandboxes[phase])
	}
	for _, phase := range slices.Sorted(maps.Keys(r.Containers)) {
		fmt.Fprintf(w, "containers %s\t%d\n", phase, r.Containers[phase])
	}
	for _, o := range r.Operations {
		fmt.Fprintf(w, "operation\t%s of %s: stage %s for %s, in all %s\n",
			o.Kind, o.Object, o.Stage, o.InStage.Round(time.Millisecond), o.Age.Round(time.Millisecond))
	}
	for _, b := range r.Blocked {
		fmt.Fprintf(w, "blocked\t%s %s: tried %d times in %s, tries again: %s\n", b.Kind, b.ID, b.Tries, b.Since.Round(time.Second), b.Reason)
	}
	for _, q := range r.Quarantined {
		fmt.Fprintf(w, "set aside\t%s: %s: %s\n", q.Path, q.Reason, q.Remedy)
	}
	if r.SubscribersDropped > 0 {
		fmt.Fprintf(w, "dropped\t%d subscribers that did not read their events in time\n", r.SubscribersDropped)
	}
	if r.LogDropped > 0 {
		fmt.Fprintf(w, "lost\t%d bytes of output that no log took; see the disk of the logs\n", r.LogDropped)
	}
	for _, o := range r.Objects {
		fmt.Fprintf(w, "%s\t%s  %s, %s, %s old\n", o.Kind, o.ID, o.Name, o.Phase, o.Age.Round(time.Second))
	}
	return w.Flush()
}
