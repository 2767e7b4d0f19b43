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
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pluginDirs are where Debian and others install CNI plugins.
func pluginDirs() []string { return []string{"/usr/lib/cni", "/opt/cni/bin"} }

// bench is the node that is measured on: a registry, daemons, and the floor.
type bench struct {
	options
	*report
	dir     string // everything that is on disk
	cgroup  string // below which all cgroups of pods and of the floor are
	images  *registry
	daemons []*daemon
	floors  map[string]*floor // by handler
	madeCNI bool              // the directory in which go-cni, containerd's, has its cache
}

// newBench starts everything. After an error nothing is left.
func newBench(ctx context.Context, o options) (*bench, error) {
	dir, err := os.MkdirTemp("", "crio-bench-")
	if err != nil {
		return nil, err
	}
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
	if b.images, err = newRegistry(b.path("registry")); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	if b.endpoint != "" {
		return b.openEndpoint(ctx)
	}
	b.cniDir = b.path("cni")
	if err := os.Mkdir(b.cniDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.cniDir, "10-bench.conflist"), []byte(b.conflist()), 0o644); err != nil {
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

// conflist is the stock plugins on a bridge of our own, with room for many pods.
func (b *bench) conflist() string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","plugins":[
		{"type":"bridge","bridge":"crio-bench","isGateway":true,"ipMasq":true,"hairpinMode":true,
		 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.253.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}`, b.path("ipam"))
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
	const cache = "/var/lib/cni"
	switch err := os.Mkdir(cache, 0o755); {
	case err == nil:
		b.madeCNI = true
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	if err := unix.Mount("cni", cache, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", cache, err)
	}
	program, err := os.ReadFile(filepath.Join(b.build, "pause"))
	if err != nil {
		return err
	}
	pause, err := b.images.add("pause", []layer{{file{name: "pause", data: program}}}, "/pause")
	if err != nil {
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
`, b.path("containerd"), pause, strings.Join(pluginDirs(), `", "`), b.cniDir, b.handlerNames()[0])
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
		return errors.Join(err, d.process.stop(), fmt.Errorf("its log: %s", d.process.words()))
	}
	return nil
}

// add makes the daemon one of those that are measured.
func (b *bench) add(ctx context.Context, d *daemon) error {
	d.dir, d.cgroup = b.path(d.name), b.cgroup
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
		if err != nil {
			return err
		}
		reason := ""
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

// close takes everything away, in the order in which it depends on each other. It does
// so also when the measurements were interrupted.
func (b *bench) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var errs []error
	for _, d := range b.daemons {
		errs = append(errs, d.removeAll(ctx), d.conn.Close())
		if d.process != nil {
			errs = append(errs, d.process.stop())
		}
	}
	for _, f := range b.floors {
		errs = append(errs, f.close())
	}
	if b.images != nil {
		errs = append(errs, b.images.close())
	}
	if b.madeCNI {
		errs = append(errs, unix.Unmount("/var/lib/cni", unix.MNT_DETACH), os.Remove("/var/lib/cni"))
	}
	// The storage library leaves a bind mount of its directory.
	if err := unix.Unmount(b.path("crio/storage/overlay"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, removeCgroups(b.cgroup), os.RemoveAll(b.dir))...)
}

// removeCgroups removes a cgroup with those in it, in every hierarchy.
func removeCgroups(path string) error {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		roots, err := filepath.Glob(pattern + path)
		if err != nil {
			return err
		}
		for _, root := range roots {
			var dirs []string
			err := filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, dir)
				}
				return err
			})
			for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
				err = os.Remove(dirs[i])
			}
			if err != nil {
				return fmt.Errorf("a cgroup is left: %w", err)
			}
		}
	}
	return nil
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(30 * time.Second):
		return errors.Join(fmt.Errorf("%s does not end on SIGTERM", p.path), p.kill())
	}
}

// words are the last that the daemon logged.
func (p *process) words() []byte {
	text, err := tail(p.log, 2048)
	if err != nil {
		return []byte(err.Error())
	}
	return text
}
