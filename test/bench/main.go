// Command bench measures what CRI daemons take for pods, beside what the parts that
// they call take by themselves: the floor. "make bench" runs it, README.md explains it.
//
// Daemons and floor take turns in one run, on the same image, the same CNI configuration
// and the same bundle, so that what else the machine does falls on all of them alike.
// Times differ from machine to machine; their ratios to the floor are compared with those
// that are committed (-check).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// options are the command line.
type options struct {
	build    string // directory of crio, conmon and runtimes
	peer     string // containerd's binary, "" for none
	endpoint string // NAME=SOCKET of a running daemon, "" for daemons of our own
	cniDir   string
	runtimes string // directory of runc and crun
	handlers string
	rounds   int
	pods     int
	objects  int
	pullMiB  int
	only     string
	json     string
	from     string
	check    string
	write    string
}

// group is measurements that share their preparation.
type group struct {
	name string
	does string
	run  func(*bench, context.Context) error
}

func groups() []group {
	return []group{
		{"size", "binaries, start-up, idle memory", (*bench).sizes},
		{"life", "one pod after the other, from nothing to nothing, with each runtime", (*bench).lives},
		{"clients", "pods of 8 and 32 clients at once", (*bench).clients},
		{"standing", "pods, lists and memory beside 10, 110 and more pods; restart", (*bench).standing},
		{"images", "calls that read images, beside 10, 100 and 1,000 of them", (*bench).readImages},
		{"pull", "an image of many layers and a large one", (*bench).pulls},
		{"log", "lines through the monitor", (*bench).logs},
		{"profile", "what crio executes, forks, syncs and writes, by strace", (*bench).profile},
	}
}

func main() {
	var o options
	flag.StringVar(&o.build, "build", "build", "directory of crio, conmon and pause")
	flag.StringVar(&o.peer, "peer", "build/peer/containerd", "containerd to measure beside crio, if the file is there; its shim is beside it")
	flag.StringVar(&o.endpoint, "endpoint", "", "NAME=SOCKET: measure this running daemon, instead of daemons of our own")
	flag.StringVar(&o.cniDir, "cni", "/etc/cni/net.d", "with -endpoint: the CNI configuration that the daemon uses")
	flag.StringVar(&o.runtimes, "runtimes", "build/runtimes", "directory of runc and crun")
	flag.StringVar(&o.handlers, "handlers", "runc,crun", "runtime handlers, with the names of their binaries")
	flag.IntVar(&o.rounds, "rounds", 30, "samples of each measurement, as far as it is short, and half of the lives")
	flag.IntVar(&o.pods, "pods", 250, "most pods that stand")
	flag.IntVar(&o.objects, "objects", 1000, "most containers that are listed")
	flag.IntVar(&o.pullMiB, "pull-mib", 1024, "size of the large image")
	flag.StringVar(&o.only, "only", "", "groups to run, with commas between; empty: all")
	flag.StringVar(&o.json, "json", "", "file for the results")
	flag.StringVar(&o.from, "from", "", "measure nothing, and take the results of this file")
	flag.StringVar(&o.check, "check", "", "file of committed ratios: fail where one is exceeded")
	flag.StringVar(&o.write, "write", "", "write the ratios into this file, to commit them")
	flag.Usage = usage
	flag.Parse()
	// The garbage of our decoding is not to be collected in the time of a daemon's call.
	debug.SetGCPercent(400)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	code, err := stages(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func usage() {
	fmt.Fprintln(flag.CommandLine.Output(), "bench measures CRI daemons against the floor. Groups for -only:")
	for _, g := range groups() {
		fmt.Fprintf(flag.CommandLine.Output(), "  %-9s %s\n", g.name, g.does)
	}
	flag.PrintDefaults()
}

// stages decides what this process is: the one that was called, the first one of the
// namespaces, or the one in them that measures.
func stages(ctx context.Context, o options) (int, error) {
	switch {
	case o.from != "":
		r, err := readReport(o.from)
		if err != nil {
			return 1, err
		}
		return 0, finish(r, o)
	case os.Getenv(stageVariable) == "":
		if o.endpoint == "" {
			return enter(ctx)
		}
		return onNode(ctx, o)
	case os.Getenv(stageVariable) == stageInit:
		return reap(ctx)
	default:
		if err := setUpNamespaces(); err != nil {
			return 1, err
		}
	}
	return 0, measure(ctx, o, os.Getenv(dirVariable))
}

// onNode measures a daemon of the node's, in the node's namespaces.
func onNode(ctx context.Context, o options) (int, error) {
	dir, err := os.MkdirTemp("", "crio-bench-")
	if err != nil {
		return 1, err
	}
	err = measure(ctx, o, dir)
	return 0, errors.Join(err, removeCgroups("/"+filepath.Base(dir)), os.RemoveAll(dir))
}

// measure runs the groups and reports. What was measured before an error is told, too.
func measure(ctx context.Context, o options, dir string) error {
	b, err := newBench(ctx, o, dir)
	if err != nil {
		return err
	}
	err = b.all(ctx)
	return errors.Join(err, b.close(), finish(b.report, o))
}

func (b *bench) all(ctx context.Context) error {
	wanted := strings.Split(b.only, ",")
	b.report.Part = b.only != ""
	for _, g := range groups() {
		if b.only != "" && !slices.Contains(wanted, g.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %s\n", g.name, g.does)
		if err := g.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	return nil
}

// finish prints and writes the report, and compares it.
func finish(r *report, o options) error {
	r.print(os.Stdout)
	var errs []error
	if o.json != "" {
		errs = append(errs, r.save(o.json))
	}
	if o.write != "" {
		errs = append(errs, r.saveRatios(o.write))
	}
	if o.check != "" {
		errs = append(errs, r.compare(o.check))
	}
	return errors.Join(errs...)
}
