// Package network attaches pods to CNI networks through libcni, and detaches them
// with what they were attached with, whatever the configuration says by then.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/crio-minimal/crio/internal/sys"
)

// Interface is the pod's end of the network, as every CNI runtime calls it.
const Interface = "eth0"

// Options of the network; they do not change while the daemon lives.
type Options struct {
	// ConfDir holds the network configurations.
	ConfDir string
	// DefaultNetwork is the name of the one to use; "" is the first by file name.
	DefaultNetwork string
	// CacheDir is libcni's own.
	CacheDir   string
	PluginDirs []string
	// Template of the configuration that SetPodCIDR writes; "" is none.
	Template string
	Log      *slog.Logger
}

// Network is safe for concurrent use. It holds no lock while a plugin runs.
type Network struct {
	Options
	cni    *libcni.CNIConfig
	loaded atomic.Pointer[loaded]
	// loading lets one caller at a time read the directory.
	loading sync.Mutex
	podCIDR atomic.Pointer[string]

	status atomic.Pointer[status]
	asking sync.Mutex // guards those below
	// asked is closed when the running STATUS, which began at askedAt, has been answered;
	// nil: none runs.
	asked   chan struct{}
	askedAt time.Time
}

// New makes a Network; nothing is read before the first call.
func New(o Options) *Network {
	return &Network{Options: o, cni: libcni.NewCNIConfigWithCacheDir(o.PluginDirs, o.CacheDir, &pluginExec{})}
}

// Port is one port mapping.
type Port struct {
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	HostIP        string `json:"hostIP,omitempty"`
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
}

// DNS is what the pod's resolver is told.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Pod is what plugins are told of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	// Netns is the path of the network namespace; "" when it is gone.
	Netns string
	Ports []Port
	// DNS may be nil.
	DNS *DNS
}

// Attachment is what a pod was attached with. The caller keeps it and gives it back to Del.
type Attachment struct {
	Network string
	// Config is the whole network list.
	Config json.RawMessage
	// Result is CNI's, in its newest form.
	Result json.RawMessage
	// IPs of the pod, the first of each family first.
	IPs []string
}

// Add attaches the pod as Choose said. After an error something may be attached:
// the caller calls Del.
func (n *Network) Add(ctx context.Context, p Pod, a Attachment) (Attachment, error) {
	list, err := parse(a)
	if err != nil {
		return a, err
	}
	result, err := n.cni.AddNetworkList(ctx, list, runtimeConf(p))
	if err != nil {
		return a, inTime(ctx, fmt.Errorf("network %s: %w", a.Network, err))
	}
	sys.Failpoint("network", "attached")
	a.Result, a.IPs, err = readResult(result)
	if err != nil {
		return a, fmt.Errorf("network %s: %w", a.Network, err)
	}
	return a, nil
}

// Del detaches the pod. It is idempotent, and works when the namespace is gone.
func (n *Network) Del(ctx context.Context, p Pod, a Attachment) error {
	list, err := parse(a)
	if err != nil {
		return err
	}
	if err := n.cni.DelNetworkList(ctx, list, runtimeConf(p)); err != nil {
		return inTime(ctx, fmt.Errorf("network %s: %w", a.Network, err))
	}
	sys.Failpoint("network", "detached")
	return nil
}

// Attached is what libcni's cache says of one pod, whoever attached it.
type Attached struct {
	// ID and Netns are the pod's, as ADD was told them.
	ID, Netns string
	list      *libcni.NetworkConfigList
	conf      *libcni.RuntimeConf
}

// Attached returns the pods that the cache knows to be attached. A file of it that
// cannot be read is passed over.
func (n *Network) Attached() ([]Attached, error) {
	cached, err := n.cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("network cache %s: %w", n.CacheDir, err)
	}
	var all []Attached
	for _, c := range cached {
		list, err := libcni.NetworkConfFromBytes(c.Config)
		if err != nil {
			continue
		}
		all = append(all, Attached{ID: c.ContainerID, Netns: c.NetNS, list: list, conf: &libcni.RuntimeConf{
			ContainerID: c.ContainerID, IfName: c.IfName, Args: c.CniArgs, CapabilityArgs: c.CapabilityArgs,
		}})
	}
	return all, nil
}

// Detach is Del for a pod of which nothing but the cache is left.
func (n *Network) Detach(ctx context.Context, a Attached) error {
	a.conf.NetNS = a.Netns
	if err := n.cni.DelNetworkList(ctx, a.list, a.conf); err != nil {
		return inTime(ctx, fmt.Errorf("network %s: %w", a.list.Name, err))
	}
	return nil
}

func parse(a Attachment) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", a.Network, err)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("network %s: its configuration has no plugins", a.Network)
	}
	return list, nil
}

// inTime makes a plugin that was killed at the deadline look like what it is.
func inTime(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return err
}

func runtimeConf(p Pod) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: p.ID, NetNS: p.Netns, IfName: Interface,
		// The names that plugins know from the first Kubernetes runtimes.
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID}, {"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: map[string]any{},
	}
	// The names are CNI's conventions (CONVENTIONS.md); a plugin gets those it declares.
	if len(p.Ports) > 0 {
		rt.CapabilityArgs["portMappings"] = p.Ports
	}
	if p.DNS != nil {
		rt.CapabilityArgs["dns"] = p.DNS
	}
	return rt
}

// readResult takes the pod's addresses: those of interfaces inside the namespace.
func readResult(result types.Result) (json.RawMessage, []string, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, nil, fmt.Errorf("result: %w", err)
	}
	var first, rest []string
	families := map[bool]bool{}
	for _, ip := range r.IPs {
		if ip == nil || len(ip.Address.IP) == 0 || !inPod(r, ip) {
			continue
		}
		if v4 := ip.Address.IP.To4() != nil; !families[v4] {
			families[v4] = true
			first = append(first, ip.Address.IP.String())
			continue
		}
		rest = append(rest, ip.Address.IP.String())
	}
	ips := append(first, rest...)
	if len(ips) == 0 {
		return nil, nil, errors.New("result: the plugins gave the pod no address")
	}
	data, err := json.Marshal(r)
	return data, ips, err
}

// inPod: an address without an interface is the pod's; one of an interface without
// a sandbox is the node's.
func inPod(r *types100.Result, ip *types100.IPConfig) bool {
	if ip.Interface == nil {
		return true
	}
	i := *ip.Interface
	return i >= 0 && i < len(r.Interfaces) && r.Interfaces[i] != nil && r.Interfaces[i].Sandbox != ""
}
