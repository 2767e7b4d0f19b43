package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// conf_template makes the network from what the kubelet tells of the node's addresses.
func TestPodCIDRMakesTheNetwork(t *testing.T) {
	template := filepath.Join(t.TempDir(), "template")
	n := newNode(t, options{bare: true, env: []string{"CONTAINER_CONF_TEMPLATE=" + template}})
	c := &conform{node: n}
	c.refused(c.setPodCIDR("10.77.0.0/24"), codes.FailedPrecondition, "conf_template", template)
	for text, word := range map[string]string{"{{.Nothing}}": "Nothing", "no json": "network list", `{"cniVersion":"1.0.0","name":"x"}`: "network list"} {
		if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.refused(c.setPodCIDR("10.77.0.0/24"), codes.FailedPrecondition, "conf_template", word)
	}
	list := strings.ReplaceAll(n.conflist(), fmt.Sprintf("10.%d.%d.0/24", 200+n.number/250, n.number%250), "{{.PodCIDR}}")
	if err := os.WriteFile(template, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	if n.condition(cri.NetworkReady).GetStatus() {
		t.Error("the network is ready before it was told")
	}
	for range 2 {
		if err := c.setPodCIDR("10.77.0.0/24"); err != nil {
			t.Fatal(err)
		}
	}
	if ip := n.sandbox(n.runPod(n.podConfig())).GetNetwork().GetIp(); !strings.HasPrefix(ip, "10.77.0.") {
		t.Errorf("the pod's address is %s", ip)
	}
}

// failingUpdate is runc, whose update does half of its work and then fails as often as
// there are lines in the file that it is given.
func failingUpdate(t *testing.T, runtime string) (path, failures string) {
	t.Helper()
	dir := t.TempDir()
	path, failures = dir+"/runtime", dir+"/failures"
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in
*" update "*)
	%[1]s "$@" || exit
	if [ -s %[2]s ]; then
		sed -i 1d %[2]s
		echo "half an update" >&2
		[ ! -e %[2]s.kill ] || kill -9 $(cat %[2]s.kill)
		exit 1
	fi
	exit ;;
esac
exec %[1]s "$@"
`, runtime, failures)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, failures
}

func updateNode(t *testing.T, handler string) (c *conform, failures string) {
	path, failures := failingUpdate(t, runtimePath(t, handler))
	n, image := readyNode(t, options{
		conf: fmt.Sprintf("[crio.runtime.runtimes.%s]\nruntime_path = %q\n", handler, path),
		env:  []string{"CONTAINER_DEFAULT_RUNTIME=" + handler},
	})
	return &conform{node: n, image: image, handler: handler}, failures
}

// An update that the runtime fails half-way is taken back: on the node, in the status, and
// for the daemon that comes after. So is one that asks for what was open before.
func TestFailedUpdateIsTakenBack(t *testing.T) {
	for _, handler := range conformHandlers {
		t.Run(handler, func(t *testing.T) {
			c, failures := updateNode(t, handler)
			limited := c.sleeper(func(k *cri.ContainerConfig) { k.Linux.Resources = someLimits() })
			open := c.sleeper(nil)
			change := withoutCpuset(&cri.LinuxContainerResources{
				CpuPeriod: 70000, CpuQuota: 7000, CpuShares: 77, MemoryLimitInBytes: 70 << 20, MemorySwapLimitInBytes: 70 << 20,
				CpusetCpus: "1", OomScoreAdj: 888,
			})
			untouched := c.limits(open).String()
			for _, id := range []string{limited, open} {
				if err := os.WriteFile(failures, []byte("once\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				c.refused(c.update(id, change), codes.FailedPrecondition, "half an update")
			}
			check := func() {
				t.Helper()
				c.sameLimits(limited, someLimits())
				if got := c.limits(open).String(); got != untouched {
					t.Errorf("limits %s, want %s", got, untouched)
				}
				if got := c.container(open).GetResources().GetLinux(); got != nil {
					t.Errorf("status tells %v", got)
				}
				c.sees(limited, "cat /proc/1/oom_score_adj", "777\n")
			}
			check()
			c.kill()
			c.start()
			check()
			if err := c.update(limited, change); err != nil {
				t.Fatal(err)
			}
			c.kill()
			c.start()
			want := change
			want.CpusetMems = someLimits().CpusetMems
			c.sameLimits(limited, want)
			if got := c.container(limited).GetResources().GetLinux(); got.String() != want.String() {
				t.Errorf("after a restart: %v, want %v", got, want)
			}
		})
	}
}

// A daemon that is killed in an update has told nobody of a success.
func TestKilledInAnUpdateIsTakenBack(t *testing.T) {
	c, failures := updateNode(t, "runc")
	id := c.sleeper(func(k *cri.ContainerConfig) { k.Linux.Resources = someLimits() })
	if err := os.WriteFile(failures, []byte("once\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(failures+".kill", fmt.Append(nil, c.daemon.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	cgroup := c.cgroupOf(id, "memory")
	limit := func() string {
		data, err := os.ReadFile(cgroup + "/memory.max")
		if !cgroupV2() {
			data, err = os.ReadFile(cgroup + "/memory.limit_in_bytes")
		}
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	if err := c.update(id, &cri.LinuxContainerResources{MemoryLimitInBytes: 70 << 20, CpuShares: 99}); err == nil {
		t.Fatal("the update succeeded")
	}
	<-c.ended
	if got := limit(); got != fmt.Sprint(70<<20) {
		t.Fatalf("the runtime did nothing: %s", got)
	}
	if err := os.Remove(failures + ".kill"); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.await("the limits from before", func() error {
		if got := limit(); got != fmt.Sprint(64<<20) {
			return fmt.Errorf("memory limit %s", got)
		}
		return nil
	})
	c.sameLimits(id, someLimits())
}

// An update whose taking back fails, too, is not forgotten: the next one begins with it.
func TestUpdateAfterOneThatCouldNotBeTakenBack(t *testing.T) {
	c, failures := updateNode(t, "runc")
	id := c.sleeper(func(k *cri.ContainerConfig) { k.Linux.Resources = someLimits() })
	if err := os.WriteFile(failures, []byte("once\ntwice\nthrice\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.update(id, &cri.LinuxContainerResources{CpuQuota: 7000, MemoryLimitInBytes: 70 << 20}); err == nil {
		t.Fatal("the update succeeded")
	}
	c.refused(c.update(id, &cri.LinuxContainerResources{CpuShares: 99}), codes.FailedPrecondition, "take back")
	if blocked := c.status().Blocked; len(blocked) != 1 || blocked[0].ID != id {
		t.Errorf("blocked: %+v", blocked)
	}
	if err := c.update(id, &cri.LinuxContainerResources{CpuShares: 99}); err != nil {
		t.Fatal(err)
	}
	want := someLimits()
	want.CpuShares = 99
	c.sameLimits(id, want)
	if blocked := c.status().Blocked; len(blocked) != 0 {
		t.Errorf("blocked: %+v", blocked)
	}
}

// What an update did after the runtime's part is taken back as well: here the bundle
// cannot be written.
func TestUpdateThatCannotWriteTheBundle(t *testing.T) {
	n, image := readyNode(t, options{})
	c := &conform{node: n, image: image}
	id := c.sleeper(func(k *cri.ContainerConfig) { k.Linux.Resources = someLimits() })
	dir := c.path("run/containers/" + id)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.update(id, &cri.LinuxContainerResources{OomScoreAdj: 900, CpuShares: 99}); err == nil {
		t.Error("the update succeeded")
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	c.await("the score from before", func() error {
		if got := string(c.exec(id, "cat", "/proc/1/oom_score_adj").GetStdout()); got != "777\n" {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	c.sameLimits(id, someLimits())
}
