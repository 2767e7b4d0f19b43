// Command bench takes the same pod through its life on several CRI daemons in turns,
// and prints what each step took and what each daemon keeps in memory.
//
//	go run ./test/bench -image 127.0.0.1:5000/busybox:v1 crio=/run/crio/crio.sock other=/run/other.sock
//
// The daemons are ready, on the same disk, with the same OCI runtime and the same CNI
// configuration. Turns are taken round by round, so that what else the machine does
// falls on all of them alike. Memory is counted in the network namespace of the
// benchmark, which is best one of its own (unshare -nm).
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// peer is one daemon with what was measured of it.
type peer struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	name   string
	socket string
	image  string
	took   map[string][]time.Duration
}

func main() {
	image := flag.String("image", "", "image with sleep and true, which every daemon can pull")
	rounds := flag.Int("rounds", 20, "pods per daemon")
	many := flag.Int("containers", 20, "containers that run while memory is read")
	flag.Parse()
	if err := run(context.Background(), *image, *rounds, *many, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, image string, rounds, many int, sockets []string) error {
	var peers []*peer
	for _, arg := range sockets {
		p, err := dial(ctx, arg, image)
		if err != nil {
			return err
		}
		peers = append(peers, p)
	}
	for round := range rounds + 1 {
		for _, p := range peers {
			if err := p.round(ctx, fmt.Sprint(round)); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if round == 0 {
				clear(p.took) // what is done once: chains of the packet filter, caches
			}
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "milliseconds: median (p95)\t")
	for _, p := range peers {
		fmt.Fprintf(w, "%s\t", p.name)
	}
	for _, step := range []string{"run pod", "create", "start", "pod to running", "exec", "stop container", "remove container", "stop pod", "remove pod"} {
		fmt.Fprintf(w, "\n%s\t", step)
		for _, p := range peers {
			all := slices.Sorted(slices.Values(p.took[step]))
			fmt.Fprintf(w, "%.1f (%.1f)\t", ms(all[len(all)/2]), ms(all[len(all)*95/100]))
		}
	}
	fmt.Fprint(w, "\n")
	for _, p := range peers {
		m, err := p.memory(ctx, many)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(w, "%s: KiB PSS of the daemon, of the helpers per container\t%d\t%d\t\n", p.name, m.daemon, m.perContainer)
	}
	return w.Flush()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func dial(ctx context.Context, arg, image string) (*peer, error) {
	name, socket, ok := strings.Cut(arg, "=")
	if !ok {
		return nil, fmt.Errorf("%q is not NAME=SOCKET", arg)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	p := &peer{
		RuntimeServiceClient: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn),
		name: name, socket: socket, took: map[string][]time.Duration{},
	}
	a, err := p.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		return nil, fmt.Errorf("%s: pull: %w", name, err)
	}
	p.image = a.GetImageRef()
	return p, nil
}

// timed adds what do takes to the step.
func (p *peer) timed(step string, do func() error) error {
	begun := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	p.took[step] = append(p.took[step], time.Since(begun))
	return nil
}

func podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "bench-" + name, Namespace: "bench", Uid: "bench-" + name}, Hostname: "bench",
		LogDirectory: os.TempDir() + "/crio-bench-logs/" + name,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/crio-bench/" + name, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options()}},
	}
}

func options() *cri.NamespaceOption { return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER} }

func (p *peer) create(ctx context.Context, pod *cri.PodSandboxConfig, box, name string) (string, error) {
	a, err := p.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: box, SandboxConfig: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: p.image}, LogPath: name + ".log",
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait $!"},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: options(), Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}})
	return a.GetContainerId(), err
}

// round is one pod with one container, from nothing to nothing.
func (p *peer) round(ctx context.Context, name string) error {
	pod := podConfig(p.name + name)
	if err := os.MkdirAll(pod.GetLogDirectory(), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(pod.GetLogDirectory())
	var box, id string
	begun := time.Now()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"run pod", func() error {
			a, err := p.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
			box = a.GetPodSandboxId()
			return err
		}},
		{"create", func() (err error) { id, err = p.create(ctx, pod, box, "c"); return }},
		{"start", func() error {
			_, err := p.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			p.took["pod to running"] = append(p.took["pod to running"], time.Since(begun))
			return err
		}},
		{"exec", func() error {
			_, err := p.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
			return err
		}},
		{"stop container", func() error {
			_, err := p.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 10})
			return err
		}},
		{"remove container", func() error {
			_, err := p.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		}},
		{"stop pod", func() error {
			_, err := p.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: box})
			return err
		}},
		{"remove pod", func() error {
			_, err := p.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: box})
			return err
		}},
	} {
		if err := p.timed(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}
