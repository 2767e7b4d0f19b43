package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
)

// pluginDirs are where Debian and others install CNI plugins.
func pluginDirs() []string { return []string{"/usr/lib/cni", "/opt/cni/bin"} }

// bench is the node that is measured on: a registry, daemons, and the floor.
type bench struct {
	options
	*report
	dir     string // everything that is on disk
	cgroup  string // below which all cgroups of pods and of the floor are
	tree    *cgroup.Tree
	images  *registry
	daemons []*daemon
	floors  map[string]*floor // by handler
}

// newBench starts everything below dir, whose name is that of the cgroup, too.
func newBench(ctx context.Context, o options, dir string) (*bench, error) {
	b := &bench{options: o, report: &report{Machine: machine()}, dir: dir, cgroup: "/" + filepath.Base(dir), floors: map[string]*floor{}}
	if err := b.open(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) open(ctx context.Context) error {
	var err error
	for _, path := range []*string{&b.build, &b.runtimes, &b.peer} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if b.tree, err = cgroup.Open(cgroup.Cgroupfs); err != nil {
		return err
	}
	if b.images, err = newRegistry(b.path("registry")); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	if b.endpoint != "" {
		return b.openEndpoint(ctx)
	}
	b.cniDir = b.path("cni")
	if err := b.writeNetwork(b.cniDir, "bench", "10.253.0.0/16"); err != nil {
		return err
	}
	if err := b.openOurs(ctx); err != nil {
		return fmt.Errorf("crio: %w", err)
	}
	if _, err := os.Stat(b.peer); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "bench: no containerd beside it: make peer")
		return nil
	}
	if err := b.openPeer(ctx); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// writeNetwork makes a configuration: the stock plugins on a bridge of its own, with room for
// many pods.
func (b *bench) writeNetwork(dir, name, subnet string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[
		{"type":"bridge","bridge":"crio-%s","isGateway":true,"ipMasq":true,"hairpinMode":true,
		 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}`, name, name, b.path("ipam"), subnet)
	return os.WriteFile(filepath.Join(dir, "10-"+name+".conflist"), []byte(text), 0o644)
}

// handlerNames in the order in which they are measured.
func (b *bench) handlerNames() []string { return strings.Split(b.handlers, ",") }

func (b *bench) openEndpoint(ctx context.Context) error {
	name, socket, ok := strings.Cut(b.endpoint, "=")
	if !ok {
		return fmt.Errorf("-endpoint %q is not NAME=SOCKET", b.endpoint)
	}
	return b.add(ctx, &daemon{name: name, socket: strings.TrimPrefix(socket, "unix://")})
}

func (b *bench) openOurs(ctx context.Context) error {
	config := fmt.Sprintf(`
[crio]
root = %q
runroot = "/run/crio-storage"
storage_driver = "overlay"
state_dir = %q
run_dir = "/run/crio"
[crio.api]
listen = "/run/crio/crio.sock"
[crio.runtime]
default_runtime = %q
cgroup_manager = "cgroupfs"
conmon_cgroup = %q
[crio.network]
network_dir = %q
plugin_dirs = ["%s"]
cache_dir = %q
`, b.path("crio/storage"), b.path("crio/state"), b.handlerNames()[0], b.cgroup+"/monitors", b.cniDir, strings.Join(pluginDirs(), `", "`), b.path("crio/cni-cache"))
	for _, name := range b.handlerNames() {
		config += fmt.Sprintf("[crio.runtime.runtimes.%s]\nruntime_path = %q\n", name, filepath.Join(b.runtimes, name))
	}
	file := b.path("crio.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	return b.start(ctx, &daemon{name: ours, socket: "/run/crio/crio.sock", process: &process{
		path: filepath.Join(b.build, "crio"), args: []string{"--config", file, "--config-dir", b.path("none")}, log: b.path("crio.log"),
	}})
}

// openPeer starts containerd with what it needs to do the same.
func (b *bench) openPeer(ctx context.Context) error {
	// Where go-cni, which is containerd's, has a cache.
	if err := unix.Mount("var", "/var/lib", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /var/lib: %w", err)
	}
	program, err := os.ReadFile(filepath.Join(b.build, "pause"))
	if err != nil {
		return err
	}
	pause, err := b.images.add("pause", []layer{{file{name: "pause", data: program}}}, "/pause")
	if err != nil {
		return err
	}
	cni := b.path("cni-peer")
	if err := b.writeNetwork(cni, "peer", "10.254.0.0/16"); err != nil {
		return err
	}
	config := fmt.Sprintf(`version = 3
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["%s"]
conf_dir = %q
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = %q
`, b.path("containerd"), pause, strings.Join(pluginDirs(), `", "`), cni, b.handlerNames()[0])
	for _, name := range b.handlerNames() {
		config += fmt.Sprintf("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.%s]\nruntime_type = \"io.containerd.runc.v2\"\n", name) +
			fmt.Sprintf("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.%s.options]\nBinaryName = %q\nSystemdCgroup = false\n",
				name, filepath.Join(b.runtimes, name))
	}
	file := b.path("containerd.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	return b.start(ctx, &daemon{name: "containerd", socket: "/run/containerd/containerd.sock", process: &process{
		path: b.peer, args: []string{"--config", file}, log: b.path("containerd.log"), environ: []string{"PATH=" + filepath.Dir(b.peer) + ":" + os.Getenv("PATH")},
	}})
}

// start runs the daemon and waits until pods can be run.
func (b *bench) start(ctx context.Context, d *daemon) error {
	if err := d.process.start(); err != nil {
		return err
	}
	if err := b.add(ctx, d); err != nil {
		return errors.Join(err, d.process.kill(), fmt.Errorf("its log: %s", d.process.words()))
	}
	return nil
}

// add makes the daemon one of those that are measured.
func (b *bench) add(ctx context.Context, d *daemon) error {
	d.dir, d.cgroup, d.tree = b.path(d.name), b.cgroup, b.tree
	if err := d.connect(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.awaitReady(ctx); err != nil {
		return err
	}
	ref, err := b.images.busybox()
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if d.image, err = d.pull(ctx, ref); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	b.daemons = append(b.daemons, d)
	b.Names = append(b.Names, d.name)
	return nil
}

// awaitReady waits for the network, which some daemons load after they answer.
func (d *daemon) awaitReady(ctx context.Context) error {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		s, err := d.Status(ctx, &cri.StatusRequest{})
		reason := status.Convert(err).Message()
		if err != nil && status.Code(err) != codes.Unavailable {
			return err
		}
		for _, c := range s.GetStatus().GetConditions() {
			if (c.GetType() == cri.NetworkReady || c.GetType() == cri.RuntimeReady) && !c.GetStatus() {
				reason = c.GetMessage()
			}
		}
		if reason == "" {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("not ready: %s", reason)
		}
	}
}

// close ends what is ours. A daemon that was there before is left without our pods; those
// of daemons of our own end with the namespaces.
func (b *bench) close() error {
	var errs []error
	for _, d := range b.daemons {
		if d.process != nil {
			errs = append(errs, d.process.kill())
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		errs = append(errs, d.removeAll(ctx))
		cancel()
	}
	if b.images != nil {
		errs = append(errs, b.images.close())
	}
	return errors.Join(errs...)
}

// process is a daemon of our own.
type process struct {
	path    string
	args    []string
	environ []string
	log     string
	cmd     *exec.Cmd
	ended   chan struct{}
}

func (p *process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.environ...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is ours alone
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	p.cmd, p.ended = cmd, ended
	return nil
}

// kill ends the daemon as a crash does.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.ended
	return err
}

// words are the last that the daemon logged.
func (p *process) words() []byte {
	text, err := tail(p.log, 2048)
	if err != nil {
		return []byte(err.Error())
	}
	return text
}
