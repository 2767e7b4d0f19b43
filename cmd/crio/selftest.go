package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/selftest"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/telemetry"
	"github.com/crio-minimal/crio/pkg/config"
)

func selftestCommand() *cli.Command {
	return &cli.Command{
		Name:  "selftest",
		Usage: "check the node and run a pod on it, from pull to removal",
		Description: "Looks at the node as the daemon sees it, then runs a pod through the daemon's socket. The image is\n" +
			"built in and served on loopback, so that no network is needed. It leaves nothing behind.",
		Flags: []cli.Flag{
			outputFlag(),
			&cli.StringFlag{Name: "image", Usage: "pull `REF` instead of the built-in image; it must have /bin/sh and sleep"},
			&cli.BoolFlag{Name: "standalone", Usage: "start a private daemon in a temporary directory first, with a network of its own"},
		},
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			// The first signal ends the steps, and lets what they made be taken away; a
			// second one ends at once.
			ctx, stop := signal.NotifyContext(c.Context, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
			defer stop()
			defer context.AfterFunc(ctx, stop)()
			test := runSelftest
			if c.Bool("standalone") {
				test = standalone
			}
			report, err := test(ctx, cfg, c.String("image"))
			if err != nil {
				return fmt.Errorf("selftest: %w", err)
			}
			if c.String("output") == outputJSON {
				err = json.NewEncoder(c.App.Writer).Encode(report)
			} else {
				err = printReport(c.App.Writer, report)
			}
			if err == nil && !report.Passed() {
				err = errors.New("selftest: failed, see the lines that say FAIL")
			}
			return err
		},
	}
}

// runSelftest looks at the node and drives the daemon of the configuration.
func runSelftest(ctx context.Context, cfg *config.Config, image string) (selftest.Report, error) {
	node, guest := inspect(ctx, cfg)
	report := selftest.Report{Checks: selftest.Check(ctx, node)}
	steps, err := selftest.Run(ctx, selftest.Pod{Socket: cfg.API.Listen, Image: image, Guest: guest})
	report.Steps = steps
	return report, err
}

// inspect finds the parts that a daemon with this configuration would use.
func inspect(ctx context.Context, cfg *config.Config) (node selftest.Node, guest string) {
	log, _ := telemetry.NewLogger(io.Discard, "error")
	node = selftest.Node{
		Root: cfg.Root, StateDir: cfg.StateDir, RunDir: cfg.RunDir, CgroupDriver: cfg.Runtime.CgroupManager,
		Networks: network.New(networkOptions(cfg, log)),
		Runtimes: map[string]selftest.RuntimeCheck{}, Programs: map[string]selftest.ProgramCheck{},
	}
	layout := pod.Layout{State: cfg.StateDir, Run: cfg.RunDir}
	for name, h := range cfg.Runtime.Runtimes {
		handler, err := probeHandler(ctx, cfg, layout, name, h)
		node.Runtimes[name] = selftest.RuntimeCheck{Version: handler.Features.Version, Err: err}
	}
	conmon, err := findBeside("conmon", cfg.Runtime.Conmon)
	node.Programs["conmon"] = selftest.ProgramCheck{Path: conmon, Err: err}
	pause, err := findBeside("pause", cfg.Runtime.PausePath, filepath.Dir(conmon))
	node.Programs["pause"] = selftest.ProgramCheck{Path: pause, Err: err}
	guest, err = findBeside("guest", "", filepath.Dir(conmon))
	node.Programs["guest"] = selftest.ProgramCheck{Path: guest, Err: err}
	return node, guest
}

// standalone runs the daemon in this process, with everything it has below one
// temporary directory, and takes all of it away again.
func standalone(ctx context.Context, cfg *config.Config, image string) (report selftest.Report, err error) {
	dir, err := os.MkdirTemp("", "crio-selftest-")
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	restore, err := saveForwarding()
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	private, err := privateConfig(cfg, dir, image == "")
	if err != nil {
		return report, err
	}
	// It outlives an interrupt: somebody has to take the pod away.
	daemon, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	begun := time.Now()
	go func() { ended <- runDaemon(daemon, private) }()
	if err := awaitDaemon(ctx, private.API.Listen, ended); err != nil {
		stop()
		<-ended
		return report, errors.Join(err, sys.Unmount(filepath.Join(dir, "storage/overlay")))
	}
	start := selftest.Line{Name: "start daemon", Result: selftest.OK, Milliseconds: sinceMilliseconds(begun), Detail: dir}
	report, err = runSelftest(ctx, private, image)
	begun = time.Now()
	stop()
	endErr := <-ended
	end := selftest.Line{Name: "stop daemon", Result: selftest.OK, Milliseconds: sinceMilliseconds(begun)}
	if left := leftovers(dir); endErr != nil || left != "" {
		end.Result, end.Detail = selftest.Fail, fmt.Sprint(endErr, " ", left)
	}
	report.Steps = append(append([]selftest.Line{start}, report.Steps...), end)
	return report, err
}

func sinceMilliseconds(t time.Time) float64 { return float64(time.Since(t).Microseconds()) / 1000 }

// awaitDaemon returns when the socket answers, or with the daemon's error.
func awaitDaemon(ctx context.Context, socket string, ended chan error) error {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			ended <- err // for whoever waits for the end
			return errors.Join(errors.New("the private daemon did not start"), err)
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			if conn, err := sys.Dial(ctx, socket); err == nil {
				return conn.Close()
			}
		}
	}
}

// leftovers are mounts below dir that a daemon which has ended should not have left.
func leftovers(dir string) string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err.Error()
	}
	var left []string
	for line := range strings.Lines(string(data)) {
		// The storage library keeps its own directory a mount, to make it private.
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) && f[4] != filepath.Join(dir, "storage/overlay") {
			left = append(left, f[4])
		}
	}
	if err := sys.Unmount(filepath.Join(dir, "storage/overlay")); err != nil {
		left = append(left, err.Error())
	}
	return strings.Join(left, " ")
}

// privateConfig is the node's configuration moved below dir. Its network is a pair of
// interfaces for the pod alone, which leaves no bridge behind. The built-in image is
// unsigned, and so the node's trust policy counts for real ones alone.
func privateConfig(cfg *config.Config, dir string, builtIn bool) (*config.Config, error) {
	c := *cfg
	c.Root, c.RunRoot = filepath.Join(dir, "storage"), filepath.Join(dir, "storage-run")
	c.StateDir, c.RunDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	c.API.Listen = filepath.Join(dir, "crio.sock")
	c.Network.NetworkDir, c.Network.CacheDir = filepath.Join(dir, "cni"), filepath.Join(dir, "cni-cache")
	c.Network.CNIDefaultNetwork = ""
	policy := filepath.Join(dir, "policy.json")
	if builtIn {
		c.Image.SignaturePolicy = policy
	}
	c.Runtime.LogLevel = "error"
	if !cgroup.Booted() {
		c.Runtime.CgroupManager = cgroup.Cgroupfs
	}
	for path, text := range map[string]string{
		policy: `{"default":[{"type":"insecureAcceptAnything"}]}`,
		filepath.Join(c.Network.NetworkDir, "selftest.conflist"): fmt.Sprintf(`{"cniVersion":"1.0.0","name":"crio-selftest","plugins":[
			{"type":"ptp","ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.255.249.0/29"}]]}}]}`, filepath.Join(dir, "ipam")),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// saveForwarding: the network plugin turns on forwarding for the whole node.
func saveForwarding() (restore func() error, err error) {
	const path = "/proc/sys/net/ipv4/ip_forward"
	before, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return func() error { return os.WriteFile(path, before, 0) }, nil
}

func printReport(out io.Writer, r selftest.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tRESULT")
	for _, l := range r.Checks {
		fmt.Fprintf(w, "%s\t%s\t%s\n", l.Name, l.Result, withAdvice(l))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nSTEP\tRESULT\tMS")
	total := 0.0
	for _, l := range r.Steps {
		fmt.Fprintf(w, "%s\t%s\t%.1f", l.Name, l.Result, l.Milliseconds)
		if text := withAdvice(l); text != "" {
			fmt.Fprintf(w, "\t%s", text)
		}
		fmt.Fprintln(w)
		total += l.Milliseconds
	}
	fmt.Fprintf(w, "all\t\t%.1f\n", total)
	return w.Flush()
}

func withAdvice(l selftest.Line) string {
	if l.Advice == "" {
		return l.Detail
	}
	return l.Detail + " => " + l.Advice
}
