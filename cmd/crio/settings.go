package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crio-minimal/crio/internal/apparmor"
	"github.com/crio-minimal/crio/internal/cdi"
	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/engine"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/oci"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/stream"
	"github.com/crio-minimal/crio/pkg/config"
)

// libexec is where `make install` puts the programs that the daemon starts.
const libexec = "/usr/libexec/crio"

// cadvisorSocket ends the path of a socket at which the kubelet does not ask for statistics
// over CRI (k8s.io/kubernetes/pkg/kubelet/cadvisor: CrioSocketSuffix).
const cadvisorSocket = "run/crio/crio.sock"

// probeTime bounds a runtime's answer to --version and features.
const probeTime = 10 * time.Second

// engineSettings turns the configuration and what the node can do into the engine's settings.
func engineSettings(ctx context.Context, cfg *config.Config, layout pod.Layout, log *slog.Logger) (engine.Settings, error) {
	r := cfg.Runtime
	conmon, err := findBeside("conmon", r.Conmon)
	if err != nil {
		return engine.Settings{}, err
	}
	pause, err := findBeside("pause", r.PausePath, filepath.Dir(conmon))
	if err != nil {
		return engine.Settings{}, err
	}
	s := engine.Settings{
		Layout: layout, Handlers: map[string]engine.Handler{}, DefaultHandler: r.DefaultRuntime, Pause: pause,
		KillWait: time.Duration(r.CtrStopTimeout) * time.Second, LogSizeMax: r.LogSizeMax, DefaultSysctls: r.DefaultSysctls,
		CDI: cdi.Registry{Dirs: r.CDISpecDirs}, ServesCAdvisor: strings.HasSuffix(cfg.API.Listen, cadvisorSocket),
	}
	for name, probe := range probeHandlers(ctx, cfg, layout) {
		handler, err := probe.handler, probe.err
		if err != nil {
			// Its pods are refused by name; the others must not suffer.
			if name == r.DefaultRuntime {
				return s, err
			}
			log.Warn("runtime handler is left out", "handler", name, "err", err)
			continue
		}
		if handler.Monitor == "" {
			handler.Monitor = conmon
		}
		if reason := oci.BelowFloor(handler.Features.Version); reason != "" {
			log.Warn("runtime below the security floor", "handler", name, "reason", reason)
		}
		s.Handlers[name] = handler
	}
	if s.Node, err = nodeSettings(cfg); err == nil && s.Node.AppArmor {
		s.Node.AppArmorProfile, err = appArmorProfile(ctx, r.ApparmorProfile, log)
	}
	return s, err
}

// probed is a handler with what its runtime has told, or why it told nothing.
type probed struct {
	handler engine.Handler
	err     error
}

// probeHandlers asks all runtimes at once.
func probeHandlers(ctx context.Context, cfg *config.Config, layout pod.Layout) map[string]*probed {
	all := make(map[string]*probed, len(cfg.Runtime.Runtimes))
	var probes sync.WaitGroup
	for name, h := range cfg.Runtime.Runtimes {
		p := &probed{}
		all[name] = p
		probes.Go(func() { p.handler, p.err = probeHandler(ctx, cfg, layout, name, h) })
	}
	probes.Wait()
	return all
}

func probeHandler(ctx context.Context, cfg *config.Config, layout pod.Layout, name string, h config.RuntimeHandler) (engine.Handler, error) {
	path := h.RuntimePath
	if path == "" {
		path = name
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return engine.Handler{}, fmt.Errorf("crio.runtime.runtimes.%s: %w: install it or set runtime_path", name, err)
	}
	root := h.RuntimeRoot
	if root == "" {
		root = layout.RuntimeRoot(name)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	features, err := oci.Probe(ctx, path)
	if err != nil {
		return engine.Handler{}, fmt.Errorf("crio.runtime.runtimes.%s: %w", name, err)
	}
	monitorCgroup := h.MonitorCgroup
	if monitorCgroup == "" {
		monitorCgroup = cfg.Runtime.ConmonCgroup
	}
	return engine.Handler{
		Runtime:  oci.Runtime{Path: path, Root: root, Systemd: cfg.Runtime.CgroupManager == cgroup.Systemd, Args: h.RuntimeArgs, Sandbox: h.RuntimeType == config.RuntimeSandbox},
		Features: features, Monitor: h.MonitorPath, MonitorEnv: h.MonitorEnv, MonitorCgroup: monitorCgroup,
		WithoutNodeDevices: h.PrivilegedWithoutHostDevices,
		StartTimeout:       time.Duration(h.ContainerCreateTimeout) * time.Second, AllowedAnnotations: h.AllowedAnnotations,
	}, nil
}

// findBeside looks for a program of ours: as configured, else in the given
// directories, beside the daemon, and where it is installed.
func findBeside(name, configured string, dirs ...string) (string, error) {
	if configured != "" {
		if _, err := os.Stat(configured); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return configured, nil
	}
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self), filepath.Join(filepath.Dir(self), "../libexec/crio"))
	}
	for _, dir := range append(dirs, libexec) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is in none of %s: run make install, or set its path in the configuration",
		name, strings.Join(append(dirs, libexec), ", "))
}

// nodeSettings asks the kernel what the daemon itself may do: it cannot give more.
func nodeSettings(cfg *config.Config) (engine.NodeSettings, error) {
	r := cfg.Runtime
	n := engine.NodeSettings{
		DefaultCapabilities: r.DefaultCapabilities, DefaultEnv: r.DefaultEnv, PidsLimit: r.PidsLimit, ReadOnly: r.ReadOnly,
		AppArmor: apparmor.Enabled(),
	}
	var err error
	if n.Capabilities, err = heldCapabilities(); err != nil {
		return n, err
	}
	if n.MinOOMScoreAdj, err = minOOMScoreAdj(n.Capabilities); err != nil {
		return n, err
	}
	if n.HardLimits, err = hardLimits(n.Capabilities); err != nil {
		return n, err
	}
	for _, ulimit := range r.DefaultUlimits {
		limit, err := spec.Rlimit(ulimit)
		if err != nil {
			return n, fmt.Errorf("crio.runtime.default_ulimits: %w", err)
		}
		n.Rlimits = append(n.Rlimits, limit)
	}
	if r.SeccompProfile != "" {
		if n.SeccompProfile, err = os.ReadFile(r.SeccompProfile); err != nil {
			return n, fmt.Errorf("crio.runtime.seccomp_profile: %w", err)
		}
	}
	return n, nil
}

// appArmorProfile makes sure that the profile of RuntimeDefault is loaded, and returns
// what spec.Node.AppArmorProfile has to be. Without our own, pods that do not ask for it
// run as they would without AppArmor; one that is configured must be there.
func appArmorProfile(ctx context.Context, name string, log *slog.Logger) (string, error) {
	switch name {
	case spec.Unconfined:
		return name, nil
	case apparmor.DefaultProfile:
		if err := apparmor.LoadDefault(ctx); err != nil {
			log.Warn("containers that do not name an AppArmor profile are not confined by one, and those that ask for RuntimeDefault are refused: install apparmor, or set crio.runtime.apparmor_profile", "err", err)
			return "", nil
		}
		return name, nil
	}
	loaded, err := apparmor.Loaded(name)
	if err == nil && !loaded {
		err = fmt.Errorf("profile %q is not loaded: load it with apparmor_parser before crio starts, or use %s", name, apparmor.DefaultProfile)
	}
	if err != nil {
		return "", fmt.Errorf("crio.runtime.apparmor_profile: %w", err)
	}
	return name, nil
}

// heldCapabilities are those of the bounding set (capabilities(7), PR_CAPBSET_READ)
// whose names we know.
func heldCapabilities() ([]string, error) {
	var held []string
	for number, name := range spec.KnownCapabilities() {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		}
		if err != nil {
			return nil, fmt.Errorf("bounding set: %w", err)
		}
		if set == 1 {
			held = append(held, name)
		}
	}
	slices.Sort(held)
	return held, nil
}

// minOOMScoreAdj is how low the daemon may set the score of others: with
// CAP_SYS_RESOURCE anything, without it not below its own (proc(5)).
func minOOMScoreAdj(held []string) (int64, error) {
	if slices.Contains(held, "CAP_SYS_RESOURCE") {
		return -1000, nil
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// hardLimits are those that the daemon cannot raise for others: all without
// CAP_SYS_RESOURCE, none with it (setrlimit(2)).
func hardLimits(held []string) (map[string]uint64, error) {
	limits := map[string]uint64{}
	if slices.Contains(held, "CAP_SYS_RESOURCE") {
		return limits, nil
	}
	for name, number := range map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
		"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
	} {
		var limit unix.Rlimit
		if err := unix.Getrlimit(number, &limit); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		limits[name] = limit.Max
	}
	return limits, nil
}

func streamOptions(cfg *config.Config, log *slog.Logger) stream.Options {
	a := cfg.API
	o := stream.Options{Address: net.JoinHostPort(a.StreamAddress, a.StreamPort), Log: log}
	// Validated: nothing else than "", which is 0, is an error.
	o.IdleTimeout, _ = time.ParseDuration(a.StreamIdleTimeout)
	if a.StreamEnableTLS {
		o.TLS = &stream.Credentials{Cert: a.StreamTLSCert, Key: a.StreamTLSKey, CA: a.StreamTLSCA}
	}
	return o
}

func imageOptions(cfg *config.Config, log *slog.Logger) image.Options {
	i := cfg.Image
	return image.Options{
		Root: cfg.Root, RunRoot: cfg.RunRoot, Driver: cfg.StorageDriver, DriverOptions: cfg.StorageOptions,
		GlobalAuthFile: i.GlobalAuthFile, SignaturePolicy: i.SignaturePolicy, RegistriesConf: i.RegistriesConf,
		RegistriesConfDir: i.RegistriesConfDir, CertsDir: i.CertsDir, TmpDir: i.BigFilesTemporaryDir,
		ShortNameMode: i.ShortNameMode, DefaultTransport: i.DefaultTransport, Pinned: i.PinnedImages,
		StallTimeout: i.PullProgressTimeout, Log: log,
	}
}

func networkOptions(cfg *config.Config, log *slog.Logger) network.Options {
	n := cfg.Network
	return network.Options{
		ConfDir: n.NetworkDir, DefaultNetwork: n.CNIDefaultNetwork, PluginDirs: n.PluginDirs, CacheDir: n.CacheDir, Template: n.ConfTemplate, Log: log,
	}
}
