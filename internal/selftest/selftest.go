// Package selftest tells the owner of a node whether pods can run on it: it looks at
// the node, then runs a pod through the daemon's own socket, and says what to do
// where something falls short.
package selftest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/pod"
	"github.com/crio-minimal/crio/internal/sys"
)

// Result of a check or a step.
type Result string

// The results. Only Fail makes the whole fail.
const (
	OK   Result = "ok"
	Warn Result = "warn"
	Fail Result = "FAIL"
	Skip Result = "skip"
)

// Line is one line of the report.
type Line struct {
	Name   string
	Result Result
	// Milliseconds that a step took; 0 for checks.
	Milliseconds float64
	Detail       string
	// Advice says what to do, where Result is not OK.
	Advice string `json:",omitempty"`
}

// Report is the whole of it.
type Report struct {
	Checks, Steps []Line
}

// Passed tells whether nothing failed.
func (r Report) Passed() bool {
	return !slices.ContainsFunc(slices.Concat(r.Checks, r.Steps), func(l Line) bool { return l.Result == Fail })
}

// Pod is what is run.
type Pod struct {
	// Socket of the daemon.
	Socket string
	// Image to pull; "" is the built-in one around the program at Guest.
	Image, Guest string
	// CgroupParent of the pod; "" is the daemon's default.
	CgroupParent string
}

// skip is why a step had nothing to do.
type skip string

func (s skip) Error() string { return string(s) }

// run is one pass through the life of a pod.
type run struct {
	Pod
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	logs    string
	config  *cri.PodSandboxConfig
	imageID string
	asked   bool // for the image
	box     string
	ctr     string
	lines   []Line
}

// stepTime bounds one step; a pull of a large image is the longest.
const stepTime = 5 * time.Minute

// Run takes a pod through its life and returns a line for each step. After a
// failure the steps that build on it are skipped, those that clean up are not.
func Run(ctx context.Context, p Pod) ([]Line, error) {
	logs, err := os.MkdirTemp("", "crio-selftest-logs-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(logs)
	conn, err := grpc.NewClient("passthrough:///crio", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return sys.Dial(ctx, p.Socket) }))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r := &run{Pod: p, runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn), logs: logs}
	if p.Image == "" {
		registry, err := startRegistry(p.Guest)
		if err != nil {
			return nil, err
		}
		defer registry.close()
		r.Image = registry.reference()
	}
	r.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "selftest", Namespace: "crio", Uid: pod.NewID()[:32]},
		Hostname:     "selftest",
		LogDirectory: logs,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: p.CgroupParent, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: podOptions()}},
	}
	r.all(ctx)
	return r.lines, nil
}

func podOptions() *cri.NamespaceOption { return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER} }

func (r *run) all(ctx context.Context) {
	forward := []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"version", r.version}, {"status", r.status}, {"pull image", r.pull}, {"run pod", r.runPod},
		{"create container", r.create}, {"start container", r.start}, {"read log", r.log}, {"exec", r.exec}, {"stats", r.stats},
	}
	failed := false
	for _, step := range forward {
		switch {
		case failed:
			r.lines = append(r.lines, Line{Name: step.name, Result: Skip, Detail: "an earlier step failed"})
		case ctx.Err() != nil:
			failed = true
			r.lines = append(r.lines, Line{Name: step.name, Result: Fail, Detail: "interrupted", Advice: "run it again"})
		default:
			failed = !r.step(ctx, step.name, step.do)
		}
	}
	// Whatever there is, also of a step that failed half-way or was interrupted.
	ctx = context.WithoutCancel(ctx)
	r.step(ctx, "stop container", r.stop)
	r.step(ctx, "remove container", r.remove)
	r.step(ctx, "stop pod", r.stopPod)
	r.step(ctx, "remove pod", r.removePod)
	r.step(ctx, "remove image", r.removeImage)
}

func (r *run) step(ctx context.Context, name string, do func(context.Context) (string, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	begun := time.Now()
	detail, err := do(ctx)
	line := Line{Name: name, Result: OK, Milliseconds: float64(time.Since(begun).Microseconds()) / 1000, Detail: detail}
	switch {
	case errors.As(err, new(skip)):
		line.Result, line.Detail = Skip, err.Error()
	case err != nil:
		line.Result, line.Detail, line.Advice = Fail, status.Convert(err).Message(), advice(name, err)
	}
	r.lines = append(r.lines, line)
	return line.Result != Fail
}

// advice for the failures that owners of nodes meet.
func advice(step string, err error) string {
	switch {
	case status.Code(err) == codes.Unavailable && step == "version":
		return "start the daemon (systemctl start crio), or run with --standalone"
	case step == "status" || step == "run pod":
		return "see the check \"cni\" above, and `crio status`"
	case step == "pull image":
		return "see the image's name, and the registry's certificate and entry in registries.conf"
	}
	return "see the daemon's log, and `crio status`"
}

func (r *run) version(ctx context.Context) (string, error) {
	v, err := r.runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s, CRI %s", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion()), nil
}

func (r *run) status(ctx context.Context) (string, error) {
	s, err := r.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return "", err
	}
	var ready []string
	for _, c := range s.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return "", fmt.Errorf("%s: %s", c.GetType(), c.GetMessage())
		}
		ready = append(ready, c.GetType())
	}
	return strings.Join(ready, ", "), nil
}

func (r *run) pull(ctx context.Context) (string, error) {
	r.asked = true
	if r.builtIn() {
		// It is tiny, and half of it would stay in the store for the next pull to use.
		var cancel context.CancelFunc
		ctx, cancel = uninterrupted(ctx)
		defer cancel()
	}
	a, err := r.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: r.Image}})
	if err != nil {
		return "", err
	}
	r.imageID = a.GetImageRef()
	return r.Image, nil
}

// uninterrupted is for what the daemon makes: it goes on whatever interrupts us, and we
// need the ID to take it away.
func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), stepTime)
}

func (r *run) runPod(ctx context.Context) (string, error) {
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	a, err := r.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: r.config})
	if err != nil {
		return "", err
	}
	r.box = a.GetPodSandboxId()
	s, err := r.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: r.box})
	if err != nil {
		return "", err
	}
	return "address " + s.GetStatus().GetNetwork().GetIp(), nil
}

func (r *run) create(ctx context.Context) (string, error) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "guest"}, Image: &cri.ImageSpec{Image: r.imageID}, LogPath: "guest/0.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: podOptions(), Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	if !r.builtIn() {
		// What the image would run may say nothing, want arguments, or end.
		config.Command = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; echo hello; while :; do sleep 60 & wait $!; done"}
	}
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	a, err := r.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.box, SandboxConfig: r.config, Config: config})
	if err != nil {
		return "", err
	}
	r.ctr = a.GetContainerId()
	return r.ctr[:12], nil
}

func (r *run) start(ctx context.Context) (string, error) {
	_, err := r.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: r.ctr})
	return "", err
}

// builtIn tells whether the guest is ours, so that its words are known.
func (r *run) builtIn() bool { return r.Guest != "" && strings.HasSuffix(r.Image, repository+":"+tag) }

func (r *run) log(ctx context.Context) (string, error) {
	want := " stdout F hello\n"
	if r.builtIn() {
		want = " stderr F guest stderr line 4\n"
	}
	text, err := readLog(ctx, filepath.Join(r.logs, "guest/0.log"), want)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d lines", strings.Count(text, "\n")), nil
}

func (r *run) exec(ctx context.Context) (string, error) {
	command := []string{"/bin/sh", "-c", "echo hello"}
	if r.builtIn() {
		command = []string{guestPath, "echo", "hello"}
	}
	a, err := r.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: r.ctr, Cmd: command, Timeout: 10})
	if err != nil {
		return "", err
	}
	if a.GetExitCode() != 0 || string(a.GetStdout()) != "hello\n" {
		return "", fmt.Errorf("%q: exit code %d, stdout %q, stderr %q", command, a.GetExitCode(), a.GetStdout(), a.GetStderr())
	}
	return strings.Join(command, " "), nil
}

func (r *run) stats(ctx context.Context) (string, error) {
	s, err := r.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: r.ctr})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes of memory", s.GetStats().GetMemory().GetWorkingSetBytes().GetValue()), nil
}

func (r *run) stop(ctx context.Context) (string, error) {
	if r.ctr == "" {
		return "", skip("there is none")
	}
	if _, err := r.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: r.ctr, Timeout: 10}); err != nil {
		return "", err
	}
	s, err := r.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: r.ctr})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("exit code %d, %s", s.GetStatus().GetExitCode(), s.GetStatus().GetReason()), nil
}

func (r *run) remove(ctx context.Context) (string, error) {
	if r.ctr == "" {
		return "", skip("there is none")
	}
	_, err := r.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: r.ctr})
	return "", err
}

func (r *run) stopPod(ctx context.Context) (string, error) {
	if r.box == "" {
		return "", skip("there is none")
	}
	_, err := r.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: r.box})
	return "", err
}

func (r *run) removePod(ctx context.Context) (string, error) {
	if r.box == "" {
		return "", skip("there is none")
	}
	_, err := r.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.box})
	return "", err
}

// removeImage leaves a real image, which may have been there before.
func (r *run) removeImage(ctx context.Context) (string, error) {
	switch {
	case !r.asked:
		return "", skip("there is none")
	case !r.builtIn():
		return "", skip("kept")
	}
	// By name: a pull that was interrupted may have been done all the same.
	_, err := r.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: r.Image}})
	return "", err
}
