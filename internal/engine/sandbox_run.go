package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/network"
	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/sys"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// RunSandbox makes a sandbox and returns its ID when it is ready. A call with the
// metadata of one that is being made joins it; with that of a ready one returns its ID.
func (e *Engine) RunSandbox(ctx context.Context, config *cri.PodSandboxConfig, handlerName string) (string, error) {
	h, err := e.handler(handlerName)
	if err != nil {
		return "", err
	}
	if err := e.checkSandbox(ctx, config); err != nil {
		return "", fault.As(fault.InvalidArgument, err)
	}
	if err := e.canHaveUsers(config, h); err != nil {
		return "", err
	}
	if err := checkRuntimeSandbox(config, h); err != nil {
		return "", fault.As(fault.InvalidArgument, err)
	}
	key := pod.KeyOfSandbox(config.GetMetadata())
	return e.run(ctx, opKey{"run sandbox", key.String()}, createBudget, func(ctx context.Context, op *operation) (string, error) {
		if s, ok := e.index.sandboxWithKey(key); ok {
			switch v := s.snapshot(); v.Phase {
			case pod.SandboxReady:
				return v.ID, nil
			case pod.SandboxNotReady:
				return "", fault.New(fault.AlreadyExists, "%s exists as %s and is stopped: remove it or use the next attempt", key, v.ID)
			}
		}
		return e.runSandbox(ctx, op, pod.Sandbox{
			ID: pod.NewID(), Phase: pod.SandboxCreating, Config: config, Handler: h,
			CreatedAt: time.Now().UnixNano(), BootID: e.bootID,
			Overhead: config.GetLinux().GetOverhead(), Resources: config.GetLinux().GetResources(),
		})
	})
}

// runSandbox makes the sandbox that the record describes, or undoes what it made of it.
func (e *Engine) runSandbox(ctx context.Context, op *operation, v pod.Sandbox) (string, error) {
	sysctls, err := e.sysctls(v)
	if err != nil {
		return "", err
	}
	// The kernel makes them meanwhile. Nothing is pinned before it is recorded.
	namespaces := e.makeNamespaces(ctx, v, sysctls)
	defer namespaces.Discard()
	if !v.HostNetwork() {
		op.stage("cni status")
		if v.Network, err = e.chooseNetwork(ctx); err != nil {
			return "", err
		}
	}
	op.stage("record")
	s, err := e.recordSandbox(v)
	if err != nil {
		return "", err
	}
	// In its queue, so that a removal waits until there is something to remove, or nothing.
	err = s.queue.wait(func() error {
		err := e.makeSandbox(ctx, op, s, namespaces)
		if err == nil {
			return nil
		}
		op.stage("undo")
		// Not beyond the daemon's end: the next one finds the record and goes on.
		undo, cancel := context.WithTimeout(e.ctx, removeBudget)
		defer cancel()
		if undoErr := e.removeSandbox(undo, op, s); undoErr != nil {
			e.Log.Error("a sandbox that could not be made cannot be undone yet", "sandbox", v.ID, "err", undoErr)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return v.ID, nil
}

// recordSandbox records what is about to be made, and makes the sandbox known.
func (e *Engine) recordSandbox(v pod.Sandbox) (*sandbox, error) {
	// A pod that is asked for again while what a killed daemon made of it is being removed
	// has the same cgroup: it is either there until this pod goes, or gone by now.
	e.parents.Lock()
	defer e.parents.Unlock()
	var made []string
	for _, s := range e.index.sandboxes() {
		made = append(made, s.snapshot().Cgroups...)
	}
	parent := v.Config.GetLinux().GetCgroupParent()
	missing, err := e.Cgroups.MissingParents(parent, made...)
	if err != nil {
		return nil, fault.As(fault.InvalidArgument, fmt.Errorf("cgroup_parent %q: %w", parent, err))
	}
	v.Cgroups = missing
	labels, err := e.podLabels(v.Config)
	if err != nil {
		return nil, err
	}
	v.ProcessLabel, v.MountLabel = labels.Process, labels.Mount
	if err := e.sandboxRecords.Save(v); err != nil {
		e.Labels.Release(labels)
		return nil, err
	}
	s := newSandbox(v)
	e.index.addSandbox(s, false)
	return s, nil
}

func (e *Engine) makeSandbox(ctx context.Context, op *operation, s *sandbox, namespaces *netns.Unpinned) error {
	v := s.snapshot()
	var onDisk errgroup.Group
	if !v.HostNetwork() {
		// Before ADD, since IPAM's own files survive a power cut.
		onDisk.Go(func() error {
			err := e.sandboxRecords.Sync(v.ID)
			sys.Failpoint("network", "recorded")
			return err
		})
	}
	op.stage("cgroup")
	err := e.Cgroups.MakeParents(v.Cgroups)
	if err != nil {
		err = fmt.Errorf("cgroup %s: %w", v.ID, err)
	}
	op.stage("namespaces")
	if err == nil {
		err = pinNamespaces(ctx, namespaces, e.Layout.NamespaceDir(v.ID))
	}
	if err := errors.Join(err, onDisk.Wait()); err != nil {
		return err
	}
	// Who needs the files and the counters comes after the network, and ADD leaves a CPU idle.
	var beside errgroup.Group
	beside.Go(func() error { return e.makeCountersGroup(v) })
	beside.Go(func() error {
		if err := e.sandboxFiles(v); err != nil {
			return fmt.Errorf("sandbox files %s: %w", v.ID, err)
		}
		return nil
	})
	var made pod.SandboxMade
	if !v.HostNetwork() {
		op.stage("cni add")
		made.Network, err = e.addNetwork(ctx, v)
	}
	op.stage("files")
	if err := errors.Join(err, beside.Wait()); err != nil {
		return err
	}
	if err := e.hostsFile(v, made.Network); err != nil {
		return fmt.Errorf("hosts file %s: %w", v.ID, err)
	}
	if v.NeedsPause() {
		op.stage("pause")
		if made.Pause, err = e.startPause(ctx, s); err != nil {
			return err
		}
	}
	op.stage("commit")
	if err := e.commitSandbox(s, made); err != nil {
		return err
	}
	select {
	case <-s.paused:
		return fmt.Errorf("pause %s: it ended at once", v.ID)
	default:
		return nil
	}
}

// chooseNetwork returns what the pod will be attached to. It fails at once when that cannot
// be: the kubelet retries, and a wait would only hide the reason.
func (e *Engine) chooseNetwork(ctx context.Context) (*pod.Network, error) {
	chosen, err := e.Networks.Choose(ctx)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "network is not ready: %w", err)
	}
	return &pod.Network{Name: chosen.Network, Config: chosen.Config}, nil
}

// makeNamespaces begins to make those that the pod has for itself.
func (e *Engine) makeNamespaces(ctx context.Context, v pod.Sandbox, sysctls map[string]string) *netns.Unpinned {
	private := privateTo(v)
	return netns.Make(ctx, netns.Kinds{
		Net: private.Net, IPC: private.IPC, UTS: private.UTS, Users: v.Users(), Holder: e.Pause,
		Hostname: v.Config.GetHostname(), Sysctls: sysctls,
	})
}

func pinNamespaces(ctx context.Context, namespaces *netns.Unpinned, dir string) error {
	err := namespaces.Pin(ctx, dir)
	if errors.Is(err, netns.ErrSysctl) {
		err = fault.As(fault.InvalidArgument, err)
	}
	if err != nil {
		return fmt.Errorf("namespaces in %s: %w", dir, err)
	}
	return nil
}

// addNetwork calls ADD with what has been recorded.
func (e *Engine) addNetwork(ctx context.Context, v pod.Sandbox) (*pod.Network, error) {
	ctx, cancel := context.WithTimeout(ctx, sys.Budget(networkBudget))
	defer cancel()
	done, err := e.Networks.Add(ctx, e.networkPod(v), attachmentOf(v.Network))
	if err != nil {
		return nil, fmt.Errorf("cni add %s: %w", v.ID, err)
	}
	return &pod.Network{Name: done.Network, Config: done.Config, Result: done.Result, IPs: done.IPs}, nil
}

// networkPod is the pod as CNI sees it. The network namespace is left out when it
// is gone, which tells the plugins to free what lies outside of it.
func (e *Engine) networkPod(v pod.Sandbox) network.Pod {
	m := v.Config.GetMetadata()
	p := network.Pod{ID: v.ID, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid()}
	if path := e.Layout.Namespace(v.ID, "net"); v.BootID == e.bootID && netns.Pinned(path) {
		p.Netns = path
	}
	for _, port := range v.Config.GetPortMappings() {
		// "The value 0 indicates NO host port should be allocated" (PortMapping.host_port).
		if port.GetHostPort() != 0 {
			p.Ports = append(p.Ports, network.Port{
				Protocol: protocolName(port.GetProtocol()), HostIP: port.GetHostIp(),
				HostPort: port.GetHostPort(), ContainerPort: port.GetContainerPort(),
			})
		}
	}
	if d := v.Config.GetDnsConfig(); d != nil {
		p.DNS = &network.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	return p
}

func protocolName(p cri.Protocol) string {
	switch p {
	case cri.Protocol_UDP:
		return "udp"
	case cri.Protocol_SCTP:
		return "sctp"
	}
	return "tcp"
}

// privateTo says which namespaces of the node's kernel the pod has for itself. In a sandbox
// of its runtime only the network is of that kernel.
func privateTo(v pod.Sandbox) untrusted.Private {
	return untrusted.Private{Net: !v.HostNetwork(), IPC: !v.HostIPC() && !v.Handler.Sandbox, UTS: !v.HostNetwork() && !v.Handler.Sandbox}
}

// sysctls are the node's defaults and the pod's own. A default that does not fit
// the pod's namespaces is left out; one of the pod's is an error.
func (e *Engine) sysctls(v pod.Sandbox) (map[string]string, error) {
	all := map[string]string{}
	private := privateTo(v)
	for _, kv := range e.DefaultSysctls {
		name, value, _ := cutSysctl(kv)
		if untrusted.CheckSysctl(name, value, private) == nil {
			all[name] = value
		}
	}
	for name, value := range v.Config.GetLinux().GetSysctls() {
		if err := untrusted.CheckSysctl(name, value, private); err != nil {
			return nil, fault.New(fault.InvalidArgument, "sysctls: %w", err)
		}
		all[name] = value
	}
	return all, nil
}

// podNamespaces are the paths that every process of the pod joins.
func (e *Engine) podNamespaces(v pod.Sandbox) spec.Namespaces {
	if v.Handler.Sandbox {
		return spec.Namespaces{Net: e.Layout.Namespace(v.ID, "net")}
	}
	n := spec.Namespaces{HostNet: v.HostNetwork(), HostIPC: v.HostIPC(), HostUTS: v.HostNetwork()}
	if !n.HostNet {
		n.Net, n.UTS = e.Layout.Namespace(v.ID, "net"), e.Layout.Namespace(v.ID, "uts")
	}
	if !n.HostIPC {
		n.IPC = e.Layout.Namespace(v.ID, "ipc")
	}
	if u := v.Users(); u.Private() {
		joinUsers(&n, u, e.Layout.Namespace(v.ID, "user"))
	}
	return n
}

// hostname of the pod; on the host network it is the node's.
func (e *Engine) hostname(v pod.Sandbox) (string, error) {
	if v.HostNetwork() {
		return os.Hostname()
	}
	return v.Config.GetHostname(), nil
}
