package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/containernetworking/cni/libcni"

	"github.com/crio-minimal/crio/internal/fault"
	"github.com/crio-minimal/crio/internal/sys"
)

// generatedFile is what SetPodCIDR writes into ConfDir. Files that sort before it win.
const generatedFile = "10-crio-pod-cidr.conflist"

// templateValues are what Options.Template may name.
type templateValues struct {
	// PodCIDR is the first of PodCIDRs, in the form of a prefix ("10.0.0.0/24").
	PodCIDR  string
	PodCIDRs []string
}

// SetPodCIDR takes the addresses that the cluster has given to this node's pods: one
// prefix, or one of each family with a comma between. With a template it writes the
// network configuration that follows from it; without one the network plugin has
// addresses of its own, and the value is only kept for Report. "" changes nothing.
func (n *Network) SetPodCIDR(cidr string) error {
	if cidr == "" {
		return nil
	}
	prefixes := strings.Split(cidr, ",")
	for _, p := range prefixes {
		if _, err := netip.ParsePrefix(p); err != nil {
			return fault.New(fault.InvalidArgument, "pod_cidr %q: %w", cidr, err)
		}
	}
	if n.Template != "" {
		if err := n.generate(templateValues{PodCIDR: prefixes[0], PodCIDRs: prefixes}); err != nil {
			return fault.New(fault.FailedPrecondition, "pod_cidr %s: crio.network.conf_template %s: %w", cidr, n.Template, err)
		}
	}
	n.podCIDR.Store(&cidr)
	return nil
}

func (n *Network) generate(values templateValues) error {
	text, err := os.ReadFile(n.Template)
	if err != nil {
		return err
	}
	t, err := template.New(filepath.Base(n.Template)).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, values); err != nil {
		return err
	}
	path := filepath.Join(n.ConfDir, generatedFile)
	list, err := libcni.NetworkConfFromBytes(out.Bytes())
	if err == nil {
		err = check(path, list)
	}
	if err != nil {
		return fmt.Errorf("what it makes is no network list: %w", err)
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The kubelet repeats itself, and a new file would have the network loaded anew.
	if err == nil && bytes.Equal(old, out.Bytes()) {
		return nil
	}
	return sys.WriteFile(path, out.Bytes(), 0o644)
}

// Report is what a verbose Status tells of the network.
type Report struct {
	// PodCIDR is that of the last UpdateRuntimeConfig of this daemon's life.
	PodCIDR string `json:"podCIDR"`
	// Name and File are of the network that the next pod would get.
	Name string `json:"name"`
	File string `json:"file"`
}

// Report takes a look; a network that is not there has no name.
func (n *Network) Report() Report {
	var r Report
	if cidr := n.podCIDR.Load(); cidr != nil {
		r.PodCIDR = *cidr
	}
	if l, err := n.current(); err == nil {
		r.Name, r.File = l.list.Name, l.file
	}
	return r
}
