package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// killCases are the requests of the matrix: all that change something on the node.
func killCases() []killCase {
	return slices.Concat(killedPods(), killedContainers(), killedProcesses(), killedImages())
}

// sharing is a pod with a PID namespace, and so with a pause process.
func sharing(p *cri.PodSandboxConfig) {
	p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

func killedPods() []killCase {
	run := func(change func(*cri.PodSandboxConfig)) func(*killNode) killRequest {
		return func(k *killNode) killRequest {
			pod := k.podConfig()
			change(pod)
			return killRequest{do: func() error { return second(k.RunPodSandbox(k.ctx(), &cri.RunPodSandboxRequest{Config: pod})) }}
		}
	}
	return []killCase{
		{name: "run pod", prepare: run(sharing)},
		{name: "run pod with users", prepare: run(podUsers(usersFrom(1 << 20)))},
		{name: "run pod that fails", fails: "net.ipv4.ip_forward", prepare: run(func(p *cri.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "neither"}
		})},
		{name: "stop pod", prepare: func(k *killNode) killRequest {
			pod := k.podConfig()
			sharing(pod)
			box := k.runPod(pod)
			k.runContainer(box, pod, k.containerConfig(k.image, "sleep", "3600"))
			return killRequest{do: func() error {
				return second(k.StopPodSandbox(k.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}))
			}}
		}},
		{name: "remove pod", prepare: func(k *killNode) killRequest {
			pod := k.podConfig()
			box := k.runPod(pod)
			k.runContainer(box, pod, k.containerConfig(k.image, "sleep", "3600"))
			k.create(box, pod, k.containerConfig(k.image, "sleep", "3600"))
			return killRequest{do: func() error {
				return second(k.RemovePodSandbox(k.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}))
			}}
		}},
		{name: "update pod", prepare: func(k *killNode) killRequest {
			box, _, id := k.sleeper()
			return killRequest{running: []string{id}, do: func() error {
				return second(k.UpdatePodSandboxResources(k.ctx(), &cri.UpdatePodSandboxResourcesRequest{
					PodSandboxId: box, Resources: &cri.LinuxContainerResources{CpuShares: 77},
				}))
			}}
		}},
		{name: "start of the daemon", prepare: halfMade},
	}
}

// sleeper is a pod with a container that runs.
func (k *killNode) sleeper() (box string, pod *cri.PodSandboxConfig, id string) {
	k.t.Helper()
	pod = k.podConfig()
	box = k.runPod(pod)
	return box, pod, k.runContainer(box, pod, k.containerConfig(k.image, "sleep", "3600"))
}

// halfMade leaves a daemon behind that has not ended what it began, and a pod without
// records.
func halfMade(k *killNode) killRequest {
	lostBox, _, lost := k.sleeper()
	box, pod, id := k.sleeper()
	gone := k.create(box, pod, k.containerConfig(k.image, "sleep", "3600"))
	k.forget()
	var held []*os.File
	var answers sync.WaitGroup
	for name, do := range map[string]func() error{
		"create container: spec": func() error {
			return second(k.CreateContainer(k.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: k.containerConfig(k.image, "true"), SandboxConfig: pod}))
		},
		"remove container: layer": func() error {
			return second(k.RemoveContainer(k.ctx(), &cri.RemoveContainerRequest{ContainerId: gone}))
		},
		"run sandbox: commit": func() error {
			return second(k.RunPodSandbox(k.ctx(), &cri.RunPodSandboxRequest{Config: k.podConfig()}))
		},
	} {
		p := killPoint{name: name, nth: 1}
		k.arm(p)
		answers.Go(func() { _ = do() }) // cut off by the kill
		held = append(held, k.held(p))
	}
	var left []string
	for _, o := range k.status().Objects {
		if !slices.Contains([]string{box, id, k.bystanderBox, k.bystander}, o.ID) {
			left = append(left, o.ID)
		}
	}
	if len(left) != 5 {
		k.t.Fatalf("half-made or lost: %q", left)
	}
	k.kill()
	for _, writer := range held {
		k.release(writer)
	}
	answers.Wait()
	for _, record := range []string{"pods/" + lostBox, "containers/" + lost} {
		if err := os.Remove(k.path("state/" + record)); err != nil {
			k.t.Fatal(err)
		}
	}
	return killRequest{running: []string{id}, done: func() {
		k.awaitOperations("sweep", 0)
		k.swept(left...)
		k.removePodCgroups() // of the pod without a record: the kubelet's
	}}
}

// pullAgain has the next container with the data be the first that is made of it.
func (k *killNode) pullAgain() {
	k.t.Helper()
	k.dropImages(k.data)
	k.pull(k.dataRef)
}

func killedContainers() []killCase {
	create := func(change func(*killNode, *cri.PodSandboxConfig, *cri.ContainerConfig)) func(*killNode) killRequest {
		return func(k *killNode) killRequest {
			pod, config := k.podConfig(), k.containerConfig(k.image, "sleep", "3600")
			change(k, pod, config)
			box := k.runPod(pod)
			beside := k.containerConfig(k.image, "sleep", "3600")
			beside.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
			return killRequest{running: []string{k.runContainer(box, pod, beside)}, do: func() error {
				return second(k.CreateContainer(k.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod}))
			}}
		}
	}
	return []killCase{
		{name: "create container", prepare: create(func(k *killNode, _ *cri.PodSandboxConfig, c *cri.ContainerConfig) {
			k.pullAgain()
			c.Mounts = []*cri.Mount{imageMount(k.data, "/data", "models"), {ContainerPath: "/logs", HostPath: k.path("logs")}}
			c.WorkingDir = "/made/for/it"
		})},
		{name: "create container with users", prepare: create(func(k *killNode, p *cri.PodSandboxConfig, c *cri.ContainerConfig) {
			k.pullAgain()
			podUsers(usersFrom(1 << 20))(p)
			containerUsers(usersFrom(1<<20), cri.NamespaceMode_CONTAINER)(c)
			c.Mounts = []*cri.Mount{imageMount(k.data, "/data", "")}
		})},
		{name: "create container that fails", fails: "nobody-here", prepare: create(func(_ *killNode, _ *cri.PodSandboxConfig, c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUsername = "nobody-here"
		})},
		{name: "start container", prepare: func(k *killNode) killRequest {
			box, pod, beside := k.sleeper()
			id := k.create(box, pod, k.containerConfig(k.image, "sleep", "3600"))
			return killRequest{running: []string{beside}, do: k.starting(id), done: func() {
				if s := k.container(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
					k.t.Errorf("it is started, and does not run: %v", s)
				}
			}}
		}},
		{name: "start container that fails", prepare: func(k *killNode) killRequest {
			box, pod, beside := k.sleeper()
			id := k.create(box, pod, k.containerConfig(k.image, "/does/not/exist"))
			return killRequest{running: []string{beside}, do: func() error {
				// Tried again, it is refused as what it is, or with the runtime's own words.
				err := k.starting(id)()
				if c := status.Code(err); c == codes.FailedPrecondition || strings.Contains(fmt.Sprint(err), "/does/not/exist") {
					return nil
				}
				return fmt.Errorf("start: %w", err)
			}, done: func() {
				if s := k.container(id); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 {
					k.t.Errorf("it could not be started, and is %v", s)
				}
			}}
		}},
		{name: "remove container", prepare: func(k *killNode) killRequest {
			box, pod, beside := k.sleeper()
			config := k.containerConfig(k.image, "sleep", "3600")
			config.Mounts = []*cri.Mount{imageMount(k.data, "/data", "models")}
			id := k.runContainer(box, pod, config)
			return killRequest{running: []string{beside}, do: func() error {
				return second(k.RemoveContainer(k.ctx(), &cri.RemoveContainerRequest{ContainerId: id}))
			}}
		}},
	}
}

func (k *killNode) starting(id string) func() error {
	return func() error {
		return second(k.StartContainer(k.ctx(), &cri.StartContainerRequest{ContainerId: id}))
	}
}

func killedProcesses() []killCase {
	update := func(k *killNode) killRequest {
		_, _, id := k.sleeper()
		return killRequest{running: []string{id}, do: func() error {
			return second(k.UpdateContainerResources(k.ctx(), &cri.UpdateContainerResourcesRequest{
				ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 77, OomScoreAdj: 888},
			}))
		}}
	}
	failures := "" // a file of those to come
	return []killCase{
		{name: "update container", prepare: update},
		{name: "update container that fails", fails: "half an update", options: func(t *testing.T, handler string, o *options) {
			o.conf, failures = failingUpdate(t, runtimePath(t, handler))
			o.conf = fmt.Sprintf("[crio.runtime.runtimes.%s]\nruntime_path = %q\n", handler, o.conf)
		}, prepare: func(k *killNode) killRequest {
			r := update(k)
			do := r.do
			r.do = func() (err error) {
				// The failure may hit the daemon that takes back what the killed one did.
				for range 3 {
					if err = os.WriteFile(failures, []byte("once\n"), 0o600); err == nil {
						err = do()
					}
					if err != nil {
						break
					}
				}
				return err
			}
			return r
		}},
		{name: "stop container", prepare: func(k *killNode) killRequest {
			box, pod, beside := k.sleeper()
			config := k.containerConfig(k.image, shell("trap 'sleep 0.5; exit 7' TERM; echo ready; while true; do sleep 0.02; done")...)
			id := k.runContainer(box, pod, config)
			k.awaitLog(logOf(pod, config), "ready")
			return killRequest{running: []string{beside}, do: func() error {
				return second(k.StopContainer(k.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 20}))
			}, done: func() {
				if s := k.container(id); s.GetExitCode() != 7 {
					k.t.Errorf("it was asked to end, and is %v", s)
				}
			}}
		}},
		{name: "exec", prepare: func(k *killNode) killRequest {
			_, _, id := k.sleeper()
			return killRequest{running: []string{id}, do: func() error {
				a, err := k.ExecSync(k.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "hello"}})
				if err == nil && string(a.GetStdout()) != "hello\n" {
					err = fmt.Errorf("it said %q", a.GetStdout())
				}
				return err
			}}
		}},
	}
}

func killedImages() []killCase {
	pulled := func(k *killNode) string {
		k.t.Helper()
		return k.registry.Push(k.t, "killed", "v1", k.dataImage("another"))
	}
	return []killCase{
		{name: "pull image", prepare: func(k *killNode) killRequest {
			ref := pulled(k)
			return killRequest{do: func() error {
				return second(k.images.PullImage(k.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}))
			}}
		}},
		{name: "pull image that fails", fails: "connection refused", prepare: func(k *killNode) killRequest {
			return killRequest{do: func() error {
				const nobody = "127.0.0.1:1/nobody:v1"
				return second(k.images.PullImage(k.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: nobody}}))
			}}
		}},
		{name: "remove image", prepare: func(k *killNode) killRequest {
			ref := pulled(k)
			id := k.pull(ref)
			pod := k.podConfig()
			box := k.runPod(pod)
			k.create(box, pod, k.containerConfig(ref, "sleep", "3600"))
			if _, err := k.RemovePodSandbox(k.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
				k.t.Fatal(err)
			}
			return killRequest{do: func() error {
				return second(k.images.RemoveImage(k.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}}))
			}}
		}},
	}
}
