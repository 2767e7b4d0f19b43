package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/apparmor"
)

func appArmorProfile(kind cri.SecurityProfile_ProfileType, name string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: kind, LocalhostRef: name}
}

// loadProfile has the kernel know a profile that lets everything be done but reading /secret.
func loadProfile(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile")
	text := "profile " + name + " flags=(attach_disconnected,mediate_deleted) {\n  file,\n  capability,\n  network,\n  signal,\n  ptrace,\n  unix,\n  deny /secret r,\n}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("apparmor_parser", "-Kr", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("apparmor_parser", "-R", path).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// Each way to ask for a profile, seen from the first process and from a command that is
// run beside it. It needs a kernel with AppArmor.
func TestAppArmorConfines(t *testing.T) {
	if !apparmor.Enabled() {
		t.Skip("the kernel has no AppArmor")
	}
	const mine = "crio-test-profile"
	loadProfile(t, mine)
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	pod.Linux.SecurityContext.Privileged = true
	box := n.runPod(pod)
	const standard, none = apparmor.DefaultProfile + " (enforce)", "unconfined"
	for name, tt := range map[string]struct {
		profile    *cri.SecurityProfile
		old        string
		privileged bool
		want       string
	}{
		"RuntimeDefault":         {profile: appArmorProfile(cri.SecurityProfile_RuntimeDefault, ""), want: standard},
		"absent":                 {want: standard},
		"runtime/default":        {old: "runtime/default", want: standard},
		"Unconfined":             {profile: appArmorProfile(cri.SecurityProfile_Unconfined, ""), want: none},
		"unconfined":             {old: "unconfined", want: none},
		"Localhost":              {profile: appArmorProfile(cri.SecurityProfile_Localhost, mine), want: mine + " (enforce)"},
		"localhost/":             {old: "localhost/" + mine, want: mine + " (enforce)"},
		"the new field counts":   {profile: appArmorProfile(cri.SecurityProfile_Unconfined, ""), old: "localhost/" + mine, want: none},
		"privileged":             {privileged: true, want: none},
		"privileged, by profile": {privileged: true, profile: appArmorProfile(cri.SecurityProfile_Localhost, mine), want: mine + " (enforce)"},
	} {
		t.Run(name, func(t *testing.T) {
			config := n.containerConfig(image, shell("cat /proc/self/attr/current; echo hidden > /secret; cat /secret; exec sleep 999")...)
			s := config.Linux.SecurityContext
			//lint:ignore SA1019 older kubelets send it
			s.Apparmor, s.ApparmorProfile, s.Privileged = tt.profile, tt.old, tt.privileged
			id := n.runContainer(box, pod, config)
			n.awaitLog(logOf(pod, config), tt.want)
			if got := strings.TrimSpace(string(n.exec(id, "cat", "/proc/self/attr/current").GetStdout())); got != tt.want {
				t.Errorf("a command is %q, want %q", got, tt.want)
			}
			if denied := n.exec(id, "cat", "/secret").GetExitCode() != 0; denied != strings.HasPrefix(tt.want, mine) {
				t.Errorf("the profile's denial: %t", denied)
			}
			// What /proc/sys/kernel/panic says already, so that nothing changes.
			if denied := n.exec(id, shell("v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic")...).GetExitCode() != 0; denied != (tt.want == standard) {
				t.Errorf("the default profile's denial: %t", denied)
			}
		})
	}
	config := n.containerConfig(image, "true")
	config.Linux.SecurityContext.Apparmor = appArmorProfile(cri.SecurityProfile_Localhost, "crio-test-absent")
	_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"crio-test-absent" is not loaded`) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
}

// The pod's own process is confined as LinuxSandboxSecurityContext.apparmor says.
func TestAppArmorConfinesThePausesProcess(t *testing.T) {
	if !apparmor.Enabled() {
		t.Skip("the kernel has no AppArmor")
	}
	const mine = "crio-test-pause"
	loadProfile(t, mine)
	n, image := readyNode(t, options{})
	for want, profile := range map[string]*cri.SecurityProfile{
		mine + " (enforce)":                    appArmorProfile(cri.SecurityProfile_Localhost, mine),
		apparmor.DefaultProfile + " (enforce)": nil,
		"unconfined":                           appArmorProfile(cri.SecurityProfile_Unconfined, ""),
	} {
		pod := n.podConfig()
		pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		pod.Linux.SecurityContext.Apparmor = profile
		box := n.runPod(pod)
		config := n.containerConfig(image, "sleep", "999")
		config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		config.Linux.SecurityContext.Apparmor = appArmorProfile(cri.SecurityProfile_Unconfined, "")
		id := n.runContainer(box, pod, config)
		if got := strings.TrimSpace(string(n.exec(id, "cat", "/proc/1/attr/current").GetStdout())); got != want {
			t.Errorf("the pause is %q, want %q", got, want)
		}
	}
}

// Without AppArmor a profile by name is refused, and what every kubelet sends is not.
func TestAppArmorOnAKernelWithoutIt(t *testing.T) {
	if apparmor.Enabled() {
		t.Skip("the kernel has AppArmor")
	}
	n, image := readyNode(t, options{})
	pod := n.podConfig()
	box := n.runPod(pod)
	config := n.containerConfig(image, "sleep", "999")
	config.Linux.SecurityContext.Apparmor = appArmorProfile(cri.SecurityProfile_RuntimeDefault, "")
	n.runContainer(box, pod, config)
	config = n.containerConfig(image, "true")
	config.Linux.SecurityContext.Apparmor = appArmorProfile(cri.SecurityProfile_Localhost, "crio-test-profile")
	_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"crio-test-profile": the node's kernel does not have AppArmor`) {
		t.Errorf("a profile without AppArmor: %v", err)
	}
}
