package test

import (
	"os"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/apparmor"
)

// conformSELinuxCases see labels where the kernel has SELinux, and elsewhere that the
// pod runs and the log tells what has no effect.
func conformSELinuxCases() []conformCase {
	return []conformCase{
		{
			name: "selinux", run: conformSELinux,
			proves: []string{
				"LinuxSandboxSecurityContext.selinux_options", "LinuxContainerSecurityContext.selinux_options", "SELinuxOption.user",
				"SELinuxOption.role", "SELinuxOption.type", "SELinuxOption.level", "Mount.selinux_relabel",
			},
			refuses: []string{
				"LinuxSandboxSecurityContext.selinux_options", "LinuxContainerSecurityContext.selinux_options", "SELinuxOption.user", "SELinuxOption.type",
			},
		},
		{
			name: "apparmor of the pause process", run: conformPauseAppArmor,
			proves: []string{"LinuxSandboxSecurityContext.apparmor"}, refuses: []string{"LinuxSandboxSecurityContext.apparmor"},
		},
	}
}

func conformSELinux(c *conform) {
	dir := c.t.TempDir()
	box, pod := c.pod(func(p *cri.PodSandboxConfig) {
		p.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c3,c4"}
	})
	of := func(o *cri.SELinuxOption) string {
		return c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
			k.Linux.SecurityContext.SelinuxOptions = o
			k.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/data", SelinuxRelabel: true}}
		})
	}
	pods, own := of(nil), of(&cri.SELinuxOption{Level: "s0:c7,c8"})
	c.sees(own, "touch /data/x && echo wrote", "wrote\n")
	if haveSELinux() {
		for id, want := range map[string]string{pods: "system_u:system_r:container_t:s0:c3,c4", own: "system_u:system_r:container_t:s0:c7,c8"} {
			if got := c.context(id); got != want {
				c.t.Errorf("context %s, want %s", got, want)
			}
		}
		if got := label(c.t, dir); got != files+"s0:c7,c8" {
			c.t.Errorf("the volume has the label %s", got)
		}
	} else if told := "pod test/" + pod.GetMetadata().GetName() + " has selinux_options"; !strings.Contains(c.output.String(), told) {
		c.t.Errorf("the log does not tell that %s", told)
	}
	c.refusedPod(func(p *cri.PodSandboxConfig) {
		p.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{User: "a:b"}
	}, "selinux_options.user")
	c.refusedContainer(func(k *cri.ContainerConfig) {
		k.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Type: "a b"}
	}, "selinux_options.type")
}

func conformPauseAppArmor(c *conform) {
	sharing := func(p *cri.SecurityProfile) func(*cri.PodSandboxConfig) {
		return func(config *cri.PodSandboxConfig) {
			config.Linux.SecurityContext.NamespaceOptions.Pid, config.Linux.SecurityContext.Apparmor = cri.NamespaceMode_POD, p
		}
	}
	for kind, want := range map[cri.SecurityProfile_ProfileType]string{
		cri.SecurityProfile_RuntimeDefault: apparmor.DefaultProfile, cri.SecurityProfile_Unconfined: "unconfined",
	} {
		box, _ := c.pod(sharing(appArmorProfile(kind, "")))
		pid, _ := c.pauseStatus(box)
		// Without AppArmor the kernel has no answer.
		got, err := os.ReadFile(procFile(pid, "attr/current"))
		if enabled := apparmor.Enabled(); enabled != (err == nil) || enabled && !strings.HasPrefix(string(got), want) {
			c.t.Errorf("%s: profile %q, %v", kind, got, err)
		}
	}
	c.refusedPod(sharing(appArmorProfile(cri.SecurityProfile_Localhost, "crio-test-absent")), "apparmor", "crio-test-absent")
}
