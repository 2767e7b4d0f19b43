package engine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// sandboxFiles makes what the containers share: resolv.conf, hostname, /dev/shm.
func (e *Engine) sandboxFiles(v pod.Sandbox) error {
	dir := e.Layout.SandboxDir(v.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	resolv, err := resolvConf(v.Config.GetDnsConfig())
	if err != nil {
		return err
	}
	if err := e.sandboxFile(v, "resolv.conf", resolv); err != nil {
		return err
	}
	hostname, err := e.hostname(v)
	if err != nil {
		return err
	}
	if err := e.sandboxFile(v, "hostname", []byte(hostname+"\n")); err != nil {
		return err
	}
	if v.HostIPC() {
		return nil
	}
	shm := e.Layout.Shm(v.ID)
	if err := os.MkdirAll(shm, 0o700); err != nil {
		return err
	}
	options := e.Labels.MountOptions(shmOptions(v), labelsOf(v))
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

// shmOptions are the size of a pod's /dev/shm that users of other runtimes know, and its owner.
func shmOptions(v pod.Sandbox) string {
	root := rootOf(v)
	return fmt.Sprintf("mode=1777,size=65536k,uid=%d,gid=%d", root.UID, root.GID)
}

// sandboxFile writes a file of the pod's. It is the root's of the containers, as if it
// were in their image.
func (e *Engine) sandboxFile(v pod.Sandbox, name string, data []byte) error {
	path, root := filepath.Join(e.Layout.SandboxDir(v.ID), name), rootOf(v)
	if err := sys.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	if err := os.Chown(path, root.UID, root.GID); err != nil {
		return err
	}
	return e.Labels.LabelFile(path, v.MountLabel)
}

// resolvConf writes what the pod asks for (resolv.conf(5)), or copies the node's for
// one that asks for nothing.
func resolvConf(dns *cri.DNSConfig) ([]byte, error) {
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		data, err := os.ReadFile("/etc/resolv.conf")
		if os.IsNotExist(err) {
			return nil, nil
		}
		return data, err
	}
	var out bytes.Buffer
	for _, line := range []struct {
		keyword string
		values  []string
	}{{"search", dns.GetSearches()}, {"options", dns.GetOptions()}} {
		if len(line.values) > 0 {
			fmt.Fprintf(&out, "%s %s\n", line.keyword, strings.Join(line.values, " "))
		}
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&out, "nameserver %s\n", server)
	}
	return out.Bytes(), nil
}

// checkDNS keeps each value on the line that it belongs to, and each line a whole one.
func checkDNS(dns *cri.DNSConfig) error {
	for _, field := range []struct {
		name   string
		values []string
	}{{"servers", dns.GetServers()}, {"searches", dns.GetSearches()}, {"options", dns.GetOptions()}} {
		for _, value := range field.values {
			if value == "" || strings.ContainsAny(value, " \t\n\r\x00") {
				return fmt.Errorf("dns_config.%s: %q is empty or contains a space or a control character", field.name, value)
			}
		}
	}
	return nil
}

// hostsFile is for containers whose client mounts none; the kubelet mounts its own.
func (e *Engine) hostsFile(v pod.Sandbox, n *pod.Network) error {
	if v.HostNetwork() {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		return e.sandboxFile(v, "hosts", data)
	}
	var out bytes.Buffer
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if n != nil {
		for _, ip := range n.IPs {
			fmt.Fprintf(&out, "%s\t%s\n", ip, v.Config.GetHostname())
		}
	}
	return e.sandboxFile(v, "hosts", out.Bytes())
}

// cutSysctl takes "name=value" apart.
func cutSysctl(kv string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(kv, "=")
	return strings.TrimSpace(name), strings.TrimSpace(value), ok
}
