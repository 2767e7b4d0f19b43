package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const stock = "/usr/lib/cni"

// enterNode moves the test into a network namespace that stands for the node's. All
// that plugins make in it (bridges, veths, iptables rules, ip_forward) ends with the
// test, even with one that is killed.
func enterNode(t *testing.T) {
	t.Helper()
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		if _, err := os.Stat(filepath.Join(stock, plugin)); err != nil || os.Geteuid() != 0 {
			t.Skip("needs root and the plugins of containernetworking-plugins: ", err)
		}
	}
	runtime.LockOSThread()
	outer := currentNetns(t)
	unshareNet(t)
	t.Cleanup(func() {
		enter(t, outer) // else the thread ends with its goroutine
		runtime.UnlockOSThread()
	})
	output(t, "ip", "link", "set", "lo", "up")
}

func currentNetns(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func unshareNet(t *testing.T) {
	t.Helper()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func enter(t *testing.T, netns *os.File) {
	t.Helper()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// newPod makes a pod with a network namespace that only the file keeps.
func newPod(t *testing.T, id string) (p Pod, netns *os.File) {
	t.Helper()
	node := currentNetns(t)
	defer enter(t, node)
	unshareNet(t)
	netns = currentNetns(t)
	return Pod{ID: id, Name: "web-" + id, Namespace: "default", UID: "uid-" + id, Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), netns.Fd())}, netns
}

func output(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

type site struct {
	*Network
	dir string
	log *bytes.Buffer
}

// unasked is what Choose would answer of plugins that are ready.
func (s *site) unasked() (Attachment, error) {
	l, err := s.current()
	if err != nil {
		return Attachment{}, err
	}
	return l.attachment(), nil
}

// newSite is a configuration directory with the given files, and a daemon's Network on it.
func newSite(t *testing.T, files map[string]string) *site {
	t.Helper()
	dir, log := t.TempDir(), &bytes.Buffer{}
	s := &site{dir: dir, log: log, Network: New(Options{
		ConfDir: dir + "/net.d", CacheDir: dir + "/cache", PluginDirs: []string{dir + "/bin", stock}, Log: slog.New(slog.NewTextHandler(log, nil)),
	})}
	for _, d := range []string{"net.d", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		s.write(t, "net.d/"+name, text)
	}
	return s
}

// write installs a file as package managers do: whole, by rename.
func (s *site) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(s.dir, name)
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path+".new", []byte(text), 0o755), os.Rename(path+".new", path))
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) attach(t *testing.T, p Pod) Attachment {
	t.Helper()
	a, err := s.unasked()
	if err == nil {
		a, err = s.Add(t.Context(), p, a)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// bridgeList is the stock chain. No ipMasq: the bridge plugin of Debian 12 forgets its
// rule when it is to delete without a namespace.
func bridgeList(dataDir string) string {
	return `{"cniVersion": "1.0.0", "name": "stock", "plugins": [
		{"type": "bridge", "bridge": "crio-test0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": "` + dataDir + `",
			"ranges": [[{"subnet": "10.231.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}]}`
}

func newStockSite(t *testing.T) *site {
	t.Helper()
	enterNode(t)
	s := newSite(t, nil)
	s.write(t, "net.d/10-stock.conflist", bridgeList(s.dir+"/ipam"))
	return s
}

// inventory lists what plugins keep outside of the pod.
func (s *site) inventory(t *testing.T) string {
	t.Helper()
	var left []string
	for line := range strings.Lines(output(t, "ip", "-o", "link", "show", "type", "veth")) {
		left = append(left, line)
	}
	for line := range strings.Lines(output(t, "iptables-save", "-t", "nat")) {
		if strings.Contains(line, "DNAT --to") || strings.HasPrefix(line, ":CNI-DN-") {
			left = append(left, line)
		}
	}
	for _, pattern := range []string{"ipam/stock/10.*", "cache/results/*"} {
		files, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, files...)
	}
	return strings.Join(left, "\n")
}

// emptied waits: the kernel takes a namespace down after its last user has gone.
func (s *site) emptied(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for tick := time.Tick(20 * time.Millisecond); ; {
		left := s.inventory(t)
		if left == "" {
			return
		}
		select {
		case <-tick:
		case <-ctx.Done():
			t.Fatalf("this is left:\n%s", left)
		}
	}
}

func TestAddAndDelWithStockPlugins(t *testing.T) {
	s := newStockSite(t)
	one, netns := newPod(t, "one")
	one.Ports = []Port{{Protocol: "tcp", HostPort: 18080, ContainerPort: 80}, {Protocol: "udp", HostIP: "10.231.7.1", HostPort: 18080, ContainerPort: 53}}
	a := s.attach(t, one)
	if a.Network != "stock" || !slices.Equal(a.IPs, []string{"10.231.7.2"}) || !json.Valid(a.Result) {
		t.Errorf("got %+v", a)
	}
	inside := output(t, "nsenter", "--net="+one.Netns, "ip", "-o", "addr", "show", "eth0", "up")
	if !strings.Contains(inside, "10.231.7.2/24") {
		t.Errorf("eth0 is %s", inside)
	}
	if route := output(t, "nsenter", "--net="+one.Netns, "ip", "route"); !strings.Contains(route, "default via 10.231.7.1 dev eth0") {
		t.Errorf("routes are %s", route)
	}
	other, _ := newPod(t, "other")
	if b := s.attach(t, other); slices.Equal(b.IPs, a.IPs) {
		t.Errorf("two pods have %v", b.IPs)
	} else if err := s.Del(t.Context(), other, b); err != nil {
		t.Error(err)
	}
	// The host port answers from the pod, and no more after DEL.
	node := currentNetns(t)
	enter(t, netns)
	l, err := net.Listen("tcp4", "10.231.7.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	enter(t, node)
	dial := func() error {
		c, err := net.DialTimeout("tcp4", "10.231.7.1:18080", 5*time.Second)
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		t.Errorf("the host port does not lead into the pod: %v", err)
	}
	if rules := output(t, "iptables-save", "-t", "nat"); !strings.Contains(rules, "-d 10.231.7.1/32 -p udp -m udp --dport 18080 -j DNAT --to-destination 10.231.7.2:53") {
		t.Errorf("no rule for the udp port on its own address:\n%s", rules)
	}
	for range 2 {
		if err := s.Del(t.Context(), one, a); err != nil {
			t.Fatal(err)
		}
		s.emptied(t)
	}
	if err := dial(); err == nil {
		t.Error("the host port still answers")
	}
	if links := output(t, "nsenter", "--net="+one.Netns, "ip", "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("the pod still has %s", links)
	}
}

// TestDelLeavesNothing however the world has changed since ADD. The attachment goes
// through JSON, as it does in the sandbox's record.
func TestDelLeavesNothing(t *testing.T) {
	remove := func(t *testing.T, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	const cache = "cache/results/stock-pod-eth0"
	for name, change := range map[string]func(*testing.T, *site, *Pod, *os.File){
		"nothing has changed":       func(*testing.T, *site, *Pod, *os.File) {},
		"the configuration is gone": func(t *testing.T, s *site, _ *Pod, _ *os.File) { remove(t, s.dir+"/net.d/10-stock.conflist") },
		"another network is in use": func(t *testing.T, s *site, _ *Pod, _ *os.File) {
			s.write(t, "net.d/10-stock.conflist", `{"cniVersion":"1.0.0","name":"new","plugins":[{"type":"ptp"}]}`)
		},
		"the cache is gone":         func(t *testing.T, s *site, _ *Pod, _ *os.File) { remove(t, filepath.Join(s.dir, cache)) },
		"the cache is cut off":      func(t *testing.T, s *site, _ *Pod, _ *os.File) { s.write(t, cache, "") },
		"the namespace is gone":     func(_ *testing.T, _ *site, p *Pod, netns *os.File) { p.Netns = ""; netns.Close() },
		"the namespace's path lies": func(_ *testing.T, s *site, p *Pod, netns *os.File) { p.Netns = s.dir + "/nowhere"; netns.Close() },
		"the daemon is another":     func(_ *testing.T, s *site, _ *Pod, _ *os.File) { s.Network = New(s.Options) },
		"the interface is gone": func(t *testing.T, _ *site, p *Pod, _ *os.File) {
			output(t, "nsenter", "--net="+p.Netns, "ip", "link", "del", "eth0")
		},
		"somebody flushed the rules": func(t *testing.T, _ *site, _ *Pod, _ *os.File) {
			output(t, "iptables", "-t", "nat", "-F")
			output(t, "iptables", "-t", "nat", "-X")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStockSite(t)
			p, netns := newPod(t, "pod")
			p.Ports = []Port{{Protocol: "tcp", HostPort: 18080, ContainerPort: 80}}
			data, err := json.Marshal(s.attach(t, p))
			var a Attachment
			if err = errors.Join(err, json.Unmarshal(data, &a)); err != nil {
				t.Fatal(err)
			}
			if s.inventory(t) == "" {
				t.Fatal("nothing was made")
			}
			change(t, s, &p, netns)
			for range 2 {
				if err := s.Del(t.Context(), p, a); err != nil {
					t.Fatal(err)
				}
			}
			s.emptied(t)
		})
	}
}

// TestDelAfterHalfAnAdd: the second plugin fails, the first has made an interface.
func TestDelAfterHalfAnAdd(t *testing.T) {
	s := newStockSite(t)
	p, _ := newPod(t, "half")
	p.Ports = []Port{{Protocol: "pigeon", HostPort: 18080, ContainerPort: 80}}
	a, err := s.unasked()
	if err != nil {
		t.Fatal(err)
	}
	a, err = s.Add(t.Context(), p, a)
	if err == nil || !strings.Contains(err.Error(), "pigeon") || !strings.Contains(err.Error(), `"portmap"`) {
		t.Errorf("got %v", err)
	}
	if s.inventory(t) == "" {
		t.Error("ADD failed before it made anything: this test tests nothing")
	}
	if err := s.Del(t.Context(), p, a); err != nil {
		t.Fatal(err)
	}
	s.emptied(t)
}
