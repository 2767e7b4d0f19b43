package network

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
)

// printed is a plugin that has printed something and ended well.
type printed struct {
	pluginExec
	stdout []byte
}

func (p *printed) ExecPlugin(context.Context, string, []byte, []string) ([]byte, error) {
	return p.stdout, checkLists("plugin", p.stdout)
}

func resultOf(stdout []byte, version string) (types.Result, error) {
	config := []byte(`{"cniVersion": "` + version + `", "name": "n", "type": "t"}`)
	return invoke.ExecPluginWithResult(context.Background(), "plugin", config, &invoke.Args{}, &printed{stdout: stdout})
}

func TestReadResult(t *testing.T) {
	for name, c := range map[string]struct {
		stdout string
		want   []string
	}{
		"both families, the first of each first": {`{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8"}, {"address": "10.0.0.2/8"}, {"address": "fd00::1/64"}, {"address": "fd00::2/64"}]}`, []string{"10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"}},
		"the plugin's order of families":         {`{"cniVersion": "1.0.0", "ips": [{"address": "fd00::1/64"}, {"address": "10.0.0.1/8"}]}`, []string{"fd00::1", "10.0.0.1"}},
		"those inside only": {`{"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/n"}],
			"ips": [{"address": "10.0.0.1/8", "interface": 0}, {"address": "10.0.0.2/8", "interface": 1}]}`, []string{"10.0.0.2"}},
		"interfaces that are not there": {`{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "interface": 3}, {"address": "10.0.0.2/8", "interface": -1}]}`, nil},
		"an old version":                {`{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.1/8"}]}`, []string{"10.0.0.1"}},
		"the oldest version":            {`{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8"}, "ip6": {"ip": "fd00::1/64"}}`, []string{"10.0.0.1", "fd00::1"}},
		"no version is the list's":      {`{"ips": [{"address": "10.0.0.1/8"}]}`, []string{"10.0.0.1"}},
		"an address without a length":   {`{"cniVersion": "1.0.0", "ips": [{}]}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := resultOf([]byte(c.stdout), "1.0.0")
			if err != nil {
				t.Fatal(err)
			}
			data, ips, err := readResult(result)
			if (err == nil) != (c.want != nil) || !slices.Equal(ips, c.want) || (err == nil && !json.Valid(data)) {
				t.Errorf("got %v, %v, want %v", ips, err, c.want)
			}
		})
	}
}

// FuzzResult: what a plugin prints never panics, and what passes has addresses. A null
// in a list once took the daemon down.
func FuzzResult(f *testing.F) {
	for _, seed := range []string{
		answer, "null", "[]", `{"cniVersion": "0.4.0", "ips": [null]}`, `{"cniVersion": "0.3.1", "interfaces": [null]}`,
		`{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8", "routes": [{"dst": "0.0.0.0/0"}]}, "dns": {"nameservers": ["1.1.1.1"]}}`,
		`{"cniVersion": "1.0.0", "interfaces": [{"name": "a", "sandbox": "b"}], "ips": [{"interface": 0, "address": "fd00::1/64", "gateway": "fd00::2"}], "routes": [{"dst": "::/0", "mtu": 1}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stdout []byte) {
		for _, version := range []string{"", "0.2.0", "0.4.0", "1.0.0", "1.1.0"} {
			result, err := resultOf(stdout, version)
			if err != nil {
				continue
			}
			data, ips, err := readResult(result)
			if err != nil {
				continue
			}
			if len(ips) == 0 || !json.Valid(data) {
				t.Errorf("version %q: %v, %s", version, ips, data)
			}
			for _, ip := range ips {
				if net.ParseIP(ip) == nil {
					t.Errorf("version %q: %q is no address", version, ip)
				}
			}
		}
	})
}

// FuzzConf: no file panics, and what is chosen can be parsed again at DEL.
func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		conf("a", "script"), conflist("a", `{"type": "script"}`), conflist("a", "null"), "null", "[]", "{", `{"name": 1, "plugins": {}}`,
		`{"name": "a", "cniVersions": ["1.0.0", null], "disableCheck": "true", "plugins": [{"type": "x", "ipam": null, "capabilities": {"dns": true}}]}`,
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, list bool) {
		n := New(Options{ConfDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))})
		file := n.ConfDir + "/10.conf"
		if list {
			file += "list"
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		l := n.load("")
		if l.err != nil {
			return
		}
		again, err := parse(Attachment{Network: l.list.Name, Config: l.config})
		if err != nil || again.Name != l.list.Name || len(again.Plugins) != len(l.list.Plugins) {
			t.Errorf("%q became %q: %+v, %v", text, l.config, again, err)
		}
	})
}
