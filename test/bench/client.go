package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/cgroup"
)

// daemon is one that is measured, over its socket.
type daemon struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient

	name    string
	socket  string
	dir     string // for the logs of pods
	cgroup  string // parent of the pods' cgroups
	tree    *cgroup.Tree
	conn    *grpc.ClientConn
	image   string // what containers are made of, once it is pulled
	process *process
}

// connect does not wait: the first call does, until the daemon answers.
func (d *daemon) connect() error {
	// The usual second between two tries would be most of what a start takes.
	retry := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}}
	conn, err := grpc.NewClient("passthrough:///"+d.name, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(80<<20), grpc.WaitForReady(true)), grpc.WithConnectParams(retry),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.socket)
		}))
	if err != nil {
		return err
	}
	d.conn, d.RuntimeServiceClient, d.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return nil
}

func (d *daemon) pull(ctx context.Context, ref string) (string, error) {
	a, err := d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return a.GetImageRef(), err
}

func (d *daemon) podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "bench-" + name, Namespace: "bench", Uid: "bench-" + name}, Hostname: "bench",
		LogDirectory: filepath.Join(d.dir, "logs", name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: d.cgroup + "/" + d.name + "-" + name, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: podOptions()},
		},
	}
}

func podOptions() *cri.NamespaceOption { return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER} }

// ready is the first line that a container writes, with the break that ends it.
const ready = "ready\n"

// standingCommand says that it is there, and stays.
func standingCommand() []string { return []string{"sh", "-c", "echo ready; exec sleep 100000"} }

// pod is one that a daemon runs, or has run.
type pod struct {
	config    *cri.PodSandboxConfig
	box       string
	container string
}

// runPod also makes the directory of its logs, which are the kubelet's.
func (d *daemon) runPod(ctx context.Context, handler, name string) (*pod, error) {
	p := &pod{config: d.podConfig(name)}
	if err := os.MkdirAll(p.config.GetLogDirectory(), 0o755); err != nil {
		return nil, err
	}
	a, err := d.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	p.box = a.GetPodSandboxId()
	return p, err
}

func (d *daemon) create(ctx context.Context, p *pod, name string, command []string) (string, error) {
	a, err := d.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.box, SandboxConfig: p.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: d.image}, LogPath: name + ".log", Command: command,
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: podOptions(), Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}})
	return a.GetContainerId(), err
}

// runningPod is a pod with a container that runs.
func (d *daemon) runningPod(ctx context.Context, handler, name string) (*pod, error) {
	p, err := d.runPod(ctx, handler, name)
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	if p.container, err = d.create(ctx, p, "c", standingCommand()); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if _, err = d.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return p, nil
}

func (d *daemon) remove(ctx context.Context, box string) error {
	if _, err := d.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if _, err := d.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}

func (d *daemon) removePods(ctx context.Context, pods []*pod) error {
	for _, p := range pods {
		if err := d.remove(ctx, p.box); err != nil {
			return err
		}
	}
	return nil
}

// removeAll takes away every pod of the benchmark's.
func (d *daemon) removeAll(ctx context.Context) error {
	list, err := d.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, box := range list.GetItems() {
		if box.GetMetadata().GetNamespace() != "bench" {
			continue
		}
		if err := d.remove(ctx, box.GetId()); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(d.dir, "logs"))
}

// awaitLog waits until the log of the pod's container has a text. A log has no event that
// a reader could wait for, and so it is looked at again.
func awaitLog(ctx context.Context, path, text string) error {
	look := time.NewTicker(200 * time.Microsecond)
	defer look.Stop()
	for {
		if data, err := tail(path, 4096); err == nil && bytes.Contains(data, []byte(text)) {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("log %s has no %q: %w", path, text, ctx.Err())
		}
	}
}

// tail is the end of a file, of at most so many bytes.
func tail(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size(), most))
	n, err := f.ReadAt(data, info.Size()-int64(len(data)))
	return data[:n], err
}
