package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/spec"
	"github.com/crio-minimal/crio/internal/untrusted"
)

// checkSandbox refuses what can never work, and what this version does not do.
func (e *Engine) checkSandbox(ctx context.Context, config *cri.PodSandboxConfig) error {
	m := config.GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return errors.New("metadata: name, namespace and uid must be set")
	}
	// They go into CNI_ARGS, "KEY=VALUE;..."; no name of Kubernetes has these.
	if strings.ContainsAny(m.GetName()+m.GetNamespace()+m.GetUid(), ";=\n\x00") {
		return errors.New("metadata: name, namespace and uid must not contain ;, = or control characters")
	}
	security := config.GetLinux().GetSecurityContext()
	options := security.GetNamespaceOptions()
	switch {
	case options.GetNetwork() != cri.NamespaceMode_POD && options.GetNetwork() != cri.NamespaceMode_NODE:
		return fmt.Errorf("namespace_options.network: %s is neither POD nor NODE", options.GetNetwork())
	case options.GetIpc() != cri.NamespaceMode_POD && options.GetIpc() != cri.NamespaceMode_NODE:
		return fmt.Errorf("namespace_options.ipc: %s is neither POD nor NODE", options.GetIpc())
	case options.GetPid() == cri.NamespaceMode_TARGET:
		return errors.New("namespace_options.pid: TARGET is for containers")
	case options.GetPid() != cri.NamespaceMode_POD && options.GetPid() != cri.NamespaceMode_CONTAINER && options.GetPid() != cri.NamespaceMode_NODE:
		return fmt.Errorf("namespace_options.pid: %s is unknown", options.GetPid())
	case options.GetTargetId() != "":
		return fmt.Errorf("namespace_options.target_id %q: it is for containers with pid TARGET", options.GetTargetId())
	case config.GetWindows() != nil:
		return errors.New("windows: this node runs Linux")
	}
	if _, err := pauseUser(security); err != nil {
		return err
	}
	if _, ok := cri.SupplementalGroupsPolicy_name[int32(security.GetSupplementalGroupsPolicy())]; !ok {
		return fmt.Errorf("supplemental_groups_policy: %d is neither Merge nor Strict", security.GetSupplementalGroupsPolicy())
	}
	if err := e.checkProfiles(ctx, config); err != nil {
		return err
	}
	if err := checkPorts(config.GetPortMappings(), options.GetNetwork() == cri.NamespaceMode_NODE); err != nil {
		return err
	}
	if err := untrusted.CheckLogDirectory(config.GetLogDirectory()); err != nil {
		return err
	}
	if err := e.checkPodResources(config.GetLinux().GetOverhead(), config.GetLinux().GetResources()); err != nil {
		return err
	}
	if err := checkSandboxUsers(security); err != nil {
		return err
	}
	if options.GetNetwork() != cri.NamespaceMode_NODE {
		if err := untrusted.CheckHostname(config.GetHostname()); err != nil {
			return fmt.Errorf("hostname: %w", err)
		}
	}
	return checkDNS(config.GetDnsConfig())
}

// checkProfiles refuses what the pause process could not be started with, also where the
// pod has none: the answer must not depend on that.
func (e *Engine) checkProfiles(ctx context.Context, config *cri.PodSandboxConfig) error {
	pause := pauseConfig(config)
	if err := e.checkAppArmor(pause.GetLinux().GetSecurityContext()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, createBudget)
	defer cancel()
	text, err := e.seccompProfile(ctx, pause)
	if err != nil {
		return err
	}
	return spec.CheckSeccomp(pause.GetLinux().GetSecurityContext(), text)
}

// checkPorts refuses what no node can map, and what only one of two could have. On the
// host network nothing is mapped: the API server gives each port of such a pod the same
// number as host port, and the kubelet sends that, so that it is accepted without effect.
func checkPorts(ports []*cri.PortMapping, hostNetwork bool) error {
	type node struct {
		protocol cri.Protocol
		ip       netip.Addr // the zero value is every address
		port     int32
	}
	taken := map[node]bool{}
	for _, p := range ports {
		if _, ok := cri.Protocol_name[int32(p.GetProtocol())]; !ok {
			return fmt.Errorf("port_mappings.protocol: %d is none of TCP, UDP and SCTP", p.GetProtocol())
		}
		for field, port := range map[string]int32{"host_port": p.GetHostPort(), "container_port": p.GetContainerPort()} {
			if port < 0 || port > math.MaxUint16 {
				return fmt.Errorf("port_mappings.%s: %d is not between 0 and 65535", field, port)
			}
		}
		if p.GetHostPort() != 0 && p.GetContainerPort() == 0 {
			return fmt.Errorf("port_mappings.container_port of host_port %d is missing", p.GetHostPort())
		}
		at := node{protocol: p.GetProtocol(), port: p.GetHostPort()}
		if ip := p.GetHostIp(); ip != "" {
			var err error
			if at.ip, err = netip.ParseAddr(ip); err != nil {
				return fmt.Errorf("port_mappings.host_ip: %w", err)
			}
			if at.ip.Zone() != "" {
				return fmt.Errorf("port_mappings.host_ip: %q has a zone, which no rule of a firewall can hold", ip)
			}
		}
		if taken[at] && at.port != 0 && !hostNetwork {
			return fmt.Errorf("port_mappings.host_port: %s %d of host_ip %q is mapped twice", at.protocol, at.port, p.GetHostIp())
		}
		taken[at] = true
	}
	return nil
}
