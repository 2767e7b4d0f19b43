package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/engine"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/rootfs"
	"github.com/crio-minimal/crio/internal/selinux"
	"github.com/crio-minimal/crio/internal/stats"
	"github.com/crio-minimal/crio/internal/stream"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/telemetry"
	"github.com/crio-minimal/crio/internal/version"
	"github.com/crio-minimal/crio/pkg/config"
	"github.com/crio-minimal/crio/server"
)

// drainTime is how long a SIGTERM lets running calls end. What it cuts off is
// finished or undone by the next daemon.
const drainTime = 15 * time.Second

// daemonCommand is runDaemon until SIGTERM or SIGINT.
func daemonCommand(ctx context.Context, cfg *config.Config) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // a second one ends at once
	// Caught and dropped, for their default is to end the daemon: SIGHUP asks for a
	// reload, which is not served; SIGPIPE says that nobody reads the log any more. Not
	// ignored, for containers would inherit that.
	dropped := make(chan os.Signal, 1)
	signal.Notify(dropped, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(dropped)
	return runDaemon(ctx, cfg)
}

// runDaemon wires the parts, recovers what an earlier daemon left, serves, and
// returns when ctx ends. Containers go on.
func runDaemon(ctx context.Context, cfg *config.Config) error {
	log, err := telemetry.NewLogger(os.Stderr, cfg.Runtime.LogLevel)
	if err != nil {
		return err
	}
	dump := newDumper(filepath.Join(cfg.RunDir, "status.txt"), log)
	defer dump.close()
	for _, warning := range cfg.Warnings() {
		log.Warn(warning)
	}
	if err := cgroup.Check(cfg.Runtime.CgroupManager); err != nil {
		return err
	}
	// The socket's directory is often the run directory, too: its group has to get
	// through. What is private has directories of its own in it.
	if err := os.MkdirAll(filepath.Dir(cfg.API.Listen), 0o755); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	layout := pod.Layout{State: cfg.StateDir, Run: cfg.RunDir}
	for _, dir := range []string{layout.State, layout.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
		// Both: a daemon sweeps what has no record of its own.
		release, err := sys.LockDir(dir)
		if err != nil {
			return err
		}
		defer release()
	}

	parts, err := openParts(ctx, cfg, layout, log)
	if err != nil {
		return err
	}
	defer parts.close(log)
	if err := parts.engine.MakeRunDirectories(); err != nil {
		return err
	}
	unwanted, err := parts.engine.Recover(ctx)
	if err != nil {
		parts.engine.Close(ctx)
		if ctx.Err() != nil {
			return nil // asked to end
		}
		return fmt.Errorf("recovery: %w", err)
	}
	parts.dump = dump
	return serve(ctx, cfg, parts, unwanted, log)
}

func serve(ctx context.Context, cfg *config.Config, p *parts, unwanted engine.Unwanted, log *slog.Logger) error {
	listener, err := sys.Listen(cfg.API.Listen, 0o660)
	if err != nil {
		p.engine.Close(ctx)
		return fmt.Errorf("listen: %w", err)
	}
	streams, err := stream.Listen(streamOptions(cfg, log), p.engine)
	if err != nil {
		p.engine.Close(ctx)
		return err
	}
	s := server.New(server.Options{
		MaxReceive: cfg.API.GRPCMaxRecvMsgSize, MaxSend: cfg.API.GRPCMaxSendMsgSize,
		SystemdCgroup: cfg.Runtime.CgroupManager == cgroup.Systemd, DefaultHandler: cfg.Runtime.DefaultRuntime,
		Config: cfg, Log: log,
	}, server.Parts{Engine: p.engine, Images: p.images, Networks: p.networks, Stats: p.stats, Streams: streams})
	p.dump.server.Store(s)
	// Before the first answer: who is answered finds it in crio status until it is over.
	p.engine.Sweep(unwanted)
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(listener) }()
	go func() { ended <- streams.Serve() }()
	log.Info("crio is ready", "version", version.Version, "socket", cfg.API.Listen)
	if err := sys.Notify("READY=1"); err != nil {
		log.Warn("systemd notify", "err", err)
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		log.Info("crio is ending; containers go on")
		if err := sys.Notify("STOPPING=1"); err != nil {
			log.Warn("systemd notify", "err", err)
		}
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	s.Stop(drain)
	streams.Close(drain)
	p.engine.Close(drain)
	return err
}

// parts are what the daemon is made of, in the order in which they are opened.
type parts struct {
	images   *image.Store
	layers   *rootfs.Store
	networks *network.Network
	engine   *engine.Engine
	stats    *stats.Collector
	dump     *dumper
}

func (p *parts) close(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	p.stats.Close()
	if err := p.layers.Close(ctx); err != nil {
		log.Warn("container layers", "err", err)
	}
	if err := p.images.Close(ctx); err != nil {
		log.Warn("storage", "err", err)
	}
}

// openParts loads the store while the runtimes answer what they can: both take their time.
func openParts(ctx context.Context, cfg *config.Config, layout pod.Layout, log *slog.Logger) (_ *parts, err error) {
	var images *image.Store
	var opening errgroup.Group
	opening.Go(func() (err error) {
		if images, err = image.Open(imageOptions(cfg, log)); err != nil {
			err = fmt.Errorf("storage: %w", err)
		}
		return err
	})
	settings, err := engineSettings(ctx, cfg, layout, log)
	err = errors.Join(err, opening.Wait())
	defer func() {
		if err != nil && images != nil {
			err = errors.Join(err, images.Close(ctx))
		}
	}()
	if err != nil {
		return nil, err
	}
	cgroups, err := cgroup.Open(cfg.Runtime.CgroupManager)
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	bootID, err := sys.BootID()
	if err != nil {
		return nil, err
	}
	labels, err := selinux.Open(cfg.Runtime.SELinux)
	if err != nil {
		return nil, fmt.Errorf("crio.runtime.selinux: %w", err)
	}
	layers := rootfs.New(images.Storage, layout.State)
	p := &parts{images: images, layers: layers, networks: network.New(networkOptions(cfg, log))}
	_, storage, _ := images.Place()
	p.engine, err = engine.New(settings, engine.Drivers{
		Images: images, Layers: layers, Networks: p.networks, Cgroups: cgroups, Labels: labels, Log: log,
	}, bootID)
	if err != nil {
		return nil, err
	}
	p.stats = stats.New(stats.Options{
		Layout: layout, Cgroups: cgroups, Layers: layers, Storage: storage,
		DefaultInterface: network.Interface, Groups: cfg.Stats.IncludedPodMetrics, Log: log,
	})
	return p, nil
}
