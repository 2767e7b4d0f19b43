package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/netns"
	"github.com/crio-minimal/crio/internal/pod"
)

// Forwardable refuses a pod that has no network now. over is closed when it begins to
// lose it.
func (e *Engine) Forwardable(id string) (whole string, over <-chan struct{}, err error) {
	s, err := e.withNetwork(id)
	if err != nil {
		return "", nil, err
	}
	return s.snapshot().ID, s.over, nil
}

func (e *Engine) withNetwork(id string) (*sandbox, error) {
	s, err := e.index.sandbox(id)
	if err != nil {
		return nil, err
	}
	if v := s.snapshot(); v.Phase != pod.SandboxReady {
		return nil, fault.New(fault.FailedPrecondition, "sandbox %s is not ready: it has no network", v.ID)
	}
	return s, nil
}

// DialPod connects to a TCP port of the pod's own loopback, IPv4 first. What the pod's
// runtime has a network stack of its own for is reached by the pod's address instead,
// since that loopback is none of the node's.
func (e *Engine) DialPod(ctx context.Context, id string, port uint16) (*net.TCPConn, error) {
	s, err := e.withNetwork(id)
	if err != nil {
		return nil, err
	}
	v := s.snapshot()
	namespace, hosts := "", []string{"127.0.0.1", "::1"}
	switch {
	case v.Handler.Sandbox:
		hosts = v.IPs()
	case !v.HostNetwork():
		namespace = e.Layout.Namespace(v.ID, "net")
	}
	ctx, cancel := context.WithTimeout(ctx, dialBudget)
	defer cancel()
	var refused error
	for _, host := range hosts {
		conn, err := netns.DialTCP(ctx, namespace, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		refused = errors.Join(refused, err)
	}
	return nil, fmt.Errorf("port %d of pod %s: %w", port, v.ID, refused)
}
