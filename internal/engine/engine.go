// Package engine makes and unmakes pods: linear scripts that run, create, start,
// stop and remove, each of which records what it is about to make before it makes
// it, and one teardown that undoes a record however far its script came.
//
// Readers take snapshots and wait for nobody. Three things keep the rest apart, and
// each has one job:
//
//   - an operation (operation.go) joins equal requests, and outlives them;
//   - the queue of an object (queue.go) runs what makes, starts, cleans and removes it,
//     one after the other. A stop is not in it: it must not wait behind a start;
//   - commit (object.go) is the only writer of a snapshot. Exits come to it from the
//     monitor whenever they happen, and the reducer says whether they still count.
//
// What is beside the snapshot in an object (its connection, the deadline of its stop,
// why its teardown is blocked) is of this daemon's life alone; the next one finds it anew.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crio-minimal/crio/internal/cdi"
	"github.com/crio-minimal/crio/internal/cgroup"
	"github.com/crio-minimal/crio/internal/event"
	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/image"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/oci"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/record"
	"github.com/crio-minimal/crio/internal/rootfs"
	"github.com/crio-minimal/crio/internal/selinux"
	"github.com/crio-minimal/crio/internal/spec"
)

// Budgets bound operations that nobody waits for any more. They are longer than
// any deadline of the kubelet's, which retries and then joins.
const (
	createBudget = 4 * time.Minute
	removeBudget = 4 * time.Minute
	// reopenBudget bounds the monitor's answer to a log reopen.
	reopenBudget = 5 * time.Second
	// killBudget bounds the wait for a killed cgroup to empty before the reason is told.
	killBudget = 10 * time.Second
	// dialBudget bounds the wait for a port of a pod to answer.
	dialBudget = 10 * time.Second
	// networkBudget bounds one CNI ADD or DEL of the whole chain of plugins.
	networkBudget = 90 * time.Second
)

// errEnding answers what arrives while the daemon ends.
var errEnding = fault.New(fault.Unavailable, "crio is ending; the request can be repeated when it is back")

// Handler is a configured OCI runtime.
type Handler struct {
	Runtime  oci.Runtime
	Features oci.Features
	// Monitor is the path of the conmon binary, MonitorEnv its environment.
	Monitor    string
	MonitorEnv []string
	// MonitorCgroup is the parent of the monitors' cgroups; "" is the node's default.
	MonitorCgroup string
	// WithoutNodeDevices: privileged containers have no more devices than others.
	WithoutNodeDevices bool
	// StartTimeout bounds the runtime's create and start together.
	StartTimeout time.Duration
	// AllowedAnnotations are names, or with a * at the end beginnings of names, of those
	// that are passed to the runtime.
	AllowedAnnotations []string
}

// Settings are the engine's share of the configuration; they do not change while it lives.
type Settings struct {
	Layout pod.Layout
	// Handlers by name. DefaultHandler is the one for "".
	Handlers       map[string]Handler
	DefaultHandler string
	// Pause is the path of the built-in static pause binary.
	Pause string
	Node  NodeSettings
	// CDI finds the devices that pods ask for by name.
	CDI cdi.Registry
	// KillWait is how long a stop waits for the end of a killed container.
	KillWait time.Duration
	// LogSizeMax in bytes; 0 or less is unlimited.
	LogSizeMax int64
	// ServesCAdvisor: the kubelet takes what pods use from its cAdvisor.
	ServesCAdvisor bool
	// DefaultSysctls of every pod, "name=value".
	DefaultSysctls []string
}

// NodeSettings are what every container gets from the node and the configuration.
type NodeSettings struct {
	Capabilities        []string
	MinOOMScoreAdj      int64
	DefaultCapabilities []string
	DefaultEnv          []string
	Rlimits             []specs.POSIXRlimit
	HardLimits          map[string]uint64
	PidsLimit           int64
	ReadOnly            bool
	AppArmor            bool
	AppArmorProfile     string // of RuntimeDefault, see spec.Node
	SeccompProfile      []byte // text of the configured default profile; nil is the built-in one
}

// Drivers are the parts that the scripts call. They are shared with the rest of the daemon.
type Drivers struct {
	Images   *image.Store
	Layers   *rootfs.Store
	Networks *network.Network
	Cgroups  *cgroup.Tree
	Labels   *selinux.Policy
	Log      *slog.Logger
}

// Engine holds every sandbox and container of the node.
type Engine struct {
	Settings
	Drivers
	ctx    context.Context // ends with the daemon
	cancel context.CancelFunc
	bootID string

	sandboxRecords   record.Sandboxes
	containerRecords record.Containers
	index            index
	ops              operations
	// parents orders who makes cgroups for pods and who removes them. It is held over one
	// small record, or a few rmdir(2).
	parents     sync.Mutex
	events      event.Hub[*Event]
	told        told
	quarantined []record.Broken
	// orphans are those *orphan, by ID, that are not removed yet.
	orphans sync.Map
	// unlisted are the tries to list them.
	unlisted attempts
	// usersRefused is why no layer can have the owners of a user namespace; nil where it can.
	usersRefused error
	logDropped   atomic.Uint64 // bytes, of containers that ended in this daemon's life
}

// told are the messages that were logged once. Requests have a say in them, and so
// their number is bounded: past it they are told again.
type told struct {
	mu       sync.Mutex
	messages map[string]bool
}

const toldMost = 1000

// New opens the records. Recover loads them and has to come before any request.
func New(settings Settings, drivers Drivers, bootID string) (*Engine, error) {
	if _, ok := settings.Handlers[settings.DefaultHandler]; !ok {
		return nil, fmt.Errorf("default runtime %q is not configured", settings.DefaultHandler)
	}
	l := settings.Layout
	sandboxes, err := record.Open(l.SandboxRecords(), l.Quarantine())
	if err != nil {
		return nil, err
	}
	containers, err := record.Open(l.ContainerRecords(), l.Quarantine())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &Engine{
		Settings: settings, Drivers: drivers, ctx: ctx, cancel: cancel, bootID: bootID,
		sandboxRecords:   record.Sandboxes{Dir: sandboxes},
		containerRecords: record.Containers{Dir: containers},
	}
	e.index.init()
	e.ops.byKey = map[string]*operation{}
	e.told.messages = map[string]bool{}
	return e, nil
}

// Close lets running operations end until ctx does, then abandons them: their
// records tell the next daemon what to undo. Containers and monitors go on.
func (e *Engine) Close(ctx context.Context) {
	e.ops.mu.Lock()
	e.ops.closed = true
	e.ops.mu.Unlock()
	ended := make(chan struct{})
	go func() { e.ops.asked.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	e.cancel()
	<-ended
	e.ops.watches.Wait()
	for _, c := range e.index.containers() {
		c.disconnect()
	}
	for _, s := range e.index.sandboxes() {
		s.disconnect()
	}
	if err := e.Cgroups.RemoveDefaults(); err != nil {
		e.Log.Debug("default cgroups", "err", err)
	}
}

// handler resolves the name that a request brings.
func (e *Engine) handler(name string) (pod.Handler, error) {
	key := name
	if key == "" {
		key = e.DefaultHandler
	}
	h, ok := e.Handlers[key]
	if !ok {
		return pod.Handler{}, fault.New(fault.InvalidArgument,
			"runtime handler %q is not configured: add [crio.runtime.runtimes.%s] or use the default", name, name)
	}
	return pod.Handler{Name: name, Path: h.Runtime.Path, Root: h.Runtime.Root, Systemd: h.Runtime.Systemd, Args: h.Runtime.Args, Sandbox: h.Runtime.Sandbox}, nil
}

// configured returns the handler's settings; those of the default one when the
// handler has left the configuration, so that its pods can still be stopped and removed.
func (e *Engine) configured(h pod.Handler) Handler {
	key := h.Name
	if key == "" {
		key = e.DefaultHandler
	}
	if c, ok := e.Handlers[key]; ok {
		return c
	}
	return e.Handlers[e.DefaultHandler]
}

func runtimeOf(h pod.Handler) oci.Runtime {
	return oci.Runtime{Path: h.Path, Root: h.Root, Systemd: h.Systemd, Args: h.Args, Sandbox: h.Sandbox}
}

func (e *Engine) node(h Handler) spec.Node {
	n := e.Settings.Node
	if h.Runtime.Sandbox {
		n.Capabilities = sandboxCapabilities(n.Capabilities)
	}
	return spec.Node{
		OCIVersion: h.Features.OCIVersion, RecursiveReadOnly: h.Features.RecursiveReadOnly, IDMap: h.Features.IDMap,
		WithoutNodeDevices: h.WithoutNodeDevices || h.Runtime.Sandbox,
		CgroupV2:           e.Cgroups.Version() == 2, Hugetlb: e.Cgroups.HasHugetlb(), Swap: e.Cgroups.HasSwap(),
		Cpuset: e.Cgroups.HasCpuset(), CPUs: e.nodeSet(presentCPUs, ""), MemoryNodes: e.nodeSet(onlineNodes, "0"),
		Capabilities: n.Capabilities, MinOOMScoreAdj: n.MinOOMScoreAdj,
		AppArmor: n.AppArmor, AppArmorProfile: n.AppArmorProfile, DefaultCapabilities: n.DefaultCapabilities, DefaultEnv: n.DefaultEnv,
		Rlimits: n.Rlimits, HardLimits: n.HardLimits, PidsLimit: n.PidsLimit, ReadOnly: n.ReadOnly,
	}
}

// Lists of sysfs-devices-system-cpu and sysfs-devices-node. A CPU that is present may be
// offline now and online at the start. They are read anew for each request, since parts
// of a machine come and go; what a pod's own cgroup leaves of them is its client's to
// change and no reason to refuse.
const (
	presentCPUs = "/sys/devices/system/cpu/present"
	onlineNodes = "/sys/devices/system/node/online"
)

// nodeSet reads one of them. absent stands for a kernel that has no such file: without
// NUMA there is node 0 alone. "" is not known, and the kernel's to refuse.
func (e *Engine) nodeSet(file, absent string) string {
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent
	case err != nil:
		e.warnOnce(fmt.Sprintf("cpuset_cpus and cpuset_mems are not checked: %v", err))
		return ""
	}
	return strings.TrimSpace(string(data))
}

// warnOnce logs a message the first time it comes.
func (e *Engine) warnOnce(message string) {
	e.told.mu.Lock()
	defer e.told.mu.Unlock()
	if e.told.messages[message] {
		return
	}
	if len(e.told.messages) >= toldMost {
		clear(e.told.messages)
	}
	e.told.messages[message] = true
	e.Log.Warn(message)
}

// joined wraps what went wrong with its stage and object; nil when nothing did.
func joined(stage, object string, errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s %s: %w", stage, object, err)
	}
	return nil
}
