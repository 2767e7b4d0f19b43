package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/netns"
)

// floor is the bare parts: the OCI runtime with the bundle of a daemon's container, and
// the CNI plugins with the daemon's configuration. What the kernel does for a pod beside
// that, its namespaces and its root file system, is made outside of the times of one pod,
// but within those of many clients.
type floor struct {
	runtime string // path
	dir     string // bundles, state, lower directory
	cgroup  string
	spec    specs.Spec
	cni     *libcni.CNIConfig
	network *libcni.NetworkConfigList
	// The container that the bundle is of: its pod's files are mounted into all of them.
	daemon *daemon
	pod    *pod
}

// floorOf makes the floor for a handler from a container of the first daemon.
func (b *bench) floorOf(ctx context.Context, handler string) (*floor, error) {
	if f, ok := b.floors[handler]; ok {
		return f, nil
	}
	d := b.daemons[0]
	f := &floor{
		runtime: filepath.Join(b.runtimes, handler), dir: b.path("floor-" + handler), cgroup: b.cgroup, daemon: d,
		cni: libcni.NewCNIConfigWithCacheDir(pluginDirs(), b.path("floor-cni-cache"), nil),
	}
	var err error
	if f.pod, err = d.runningPod(ctx, handler, "template-"+handler); err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	if f.spec, err = d.specOf(ctx, f.pod.container); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	files, err := libcni.ConfFiles(b.cniDir, []string{".conflist"})
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s: %w", b.cniDir, err)
	}
	if f.network, err = libcni.NetworkConfFromFile(slices.Min(files)); err != nil {
		return nil, err
	}
	root, err := rootFiles()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(f.path("lower"), 0o755), root.unpack(f.path("lower"))); err != nil {
		return nil, err
	}
	b.floors[handler] = f
	return f, nil
}

func (f *floor) path(name string) string { return filepath.Join(f.dir, name) }

// specOf is the OCI specification of a container: from its bundle, or as containerd and
// CRI-O tell it.
func (d *daemon) specOf(ctx context.Context, container string) (s specs.Spec, err error) {
	answer, err := d.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container, Verbose: true})
	if err != nil {
		return s, err
	}
	var info struct {
		Bundle      string      `json:"bundle"`
		RuntimeSpec *specs.Spec `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
		return s, err
	}
	if info.RuntimeSpec != nil {
		return *info.RuntimeSpec, nil
	}
	data, err := os.ReadFile(filepath.Join(info.Bundle, "config.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// bare is a pod of the floor.
type bare struct {
	*floor
	id     string
	bundle string
	conf   *libcni.RuntimeConf
	output *os.File
	init   int // pidfd
	// leaveCgroup takes the pod's cgroup away.
	leaveCgroup func() error
}

// parent is the pod's cgroup: the container's is in it, as those of daemons' containers are.
func (p *bare) parent() string { return p.cgroup + "/" + p.id }

// prepare makes what is not measured: namespaces, root file system, the pod's cgroup, bundle.
func (f *floor) prepare(ctx context.Context, name string, command []string) (_ *bare, err error) {
	p := &bare{floor: f, id: "floor-" + name, bundle: f.path(name), init: -1, leaveCgroup: func() error { return nil }}
	dirs := map[string]string{}
	for _, dir := range []string{"upper", "work", "rootfs"} {
		dirs[dir] = filepath.Join(p.bundle, dir)
		if err := os.MkdirAll(dirs[dir], 0o755); err != nil {
			return nil, err
		}
	}
	// Volatile, as those of containers are.
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile", f.path("lower"), dirs["upper"], dirs["work"])
	if err := unix.Mount("overlay", dirs["rootfs"], "overlay", 0, data); err != nil {
		return nil, fmt.Errorf("mount %s: %w", dirs["rootfs"], err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.discard(context.WithoutCancel(ctx)))
		}
	}()
	namespaces := filepath.Join(p.bundle, "ns")
	leave, err := podCgroup(p.daemon.tree, p.parent())
	if err != nil {
		return nil, err
	}
	p.leaveCgroup = leave
	p.conf = &libcni.RuntimeConf{ContainerID: p.id, NetNS: filepath.Join(namespaces, "net"), IfName: "eth0"}
	spec := f.spec
	process, linux := *spec.Process, *spec.Linux
	spec.Process, spec.Linux, spec.Root = &process, &linux, &specs.Root{Path: dirs["rootfs"], Readonly: spec.Root.Readonly}
	process.Args = command
	linux.CgroupsPath = p.parent() + "/container"
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for i, ns := range linux.Namespaces {
		if kind := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"}[ns.Type]; kind != "" {
			linux.Namespaces[i].Path = filepath.Join(namespaces, kind)
		}
	}
	encoded, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.bundle, "config.json"), encoded, 0o600); err != nil {
		return nil, err
	}
	// Last, as in a daemon: what the kernel does after it has made them costs the plugins 0.5 ms.
	return p, netns.Make(ctx, netns.Kinds{Net: true, IPC: true, UTS: true, Hostname: "bench"}).Pin(ctx, namespaces)
}

// discard takes away what prepare made.
func (p *bare) discard(ctx context.Context) error {
	if p.init >= 0 {
		_ = unix.Close(p.init)
	}
	if p.output != nil {
		p.output.Close()
	}
	return errors.Join(netns.Remove(ctx, filepath.Join(p.bundle, "ns")), unix.Unmount(filepath.Join(p.bundle, "rootfs"), 0), p.leaveCgroup(), os.RemoveAll(p.bundle))
}

func (p *bare) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.runtime, append([]string{"--root", p.path("state"), "--log", filepath.Join(p.bundle, "log"), "--log-format", "json"}, args...)...)
	cmd.Dir = "/"
	return cmd
}

func (p *bare) run(ctx context.Context, args ...string) error {
	if err := p.command(ctx, args...).Run(); err != nil {
		log, _ := tail(filepath.Join(p.bundle, "log"), 1024)
		return fmt.Errorf("%s %s: %w: %s", p.runtime, strings.Join(args, " "), err, log)
	}
	return nil
}

func (p *bare) attach(ctx context.Context) error {
	_, err := p.cni.AddNetworkList(ctx, p.network, p.conf)
	return err
}

func (p *bare) detach(ctx context.Context) error {
	return p.cni.DelNetworkList(ctx, p.network, p.conf)
}

// start is create and start, with a pipe for the output.
func (p *bare) start(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	p.output = r
	file := filepath.Join(p.bundle, "pid")
	cmd := p.command(ctx, "create", "--bundle", p.bundle, "--pid-file", file, p.id)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		log, _ := tail(filepath.Join(p.bundle, "log"), 1024)
		return fmt.Errorf("create: %w: %s", err, log)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return err
	}
	if p.init, err = unix.PidfdOpen(pid, 0); err != nil {
		return err
	}
	return p.run(ctx, "start", p.id)
}

// firstLine reads what the container says when it is there.
func (p *bare) firstLine() error {
	line, err := bufio.NewReader(p.output).ReadString('\n')
	if err == nil && line != ready {
		err = fmt.Errorf("the container said %q", line)
	}
	return err
}

// kill returns when the container's first process has ended.
func (p *bare) kill(ctx context.Context) error {
	if err := p.run(ctx, "kill", p.id, "KILL"); err != nil {
		return err
	}
	for {
		// Readable once it has ended (pidfd_open(2)).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.init), Events: unix.POLLIN}}, int(time.Minute.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("%s does not end", p.id)
		default:
			return nil
		}
	}
}
