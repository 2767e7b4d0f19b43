package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cdiFile describes vendor.test/KIND=one, whose hook leaves a file on the node.
func cdiFile(kind, mark, variable string) string {
	return fmt.Sprintf(`cdiVersion: "0.7.0"
kind: "vendor.test/%s"
containerEdits:
  env: ["EVERY=%s"]
devices:
- name: one
  containerEdits:
    env: ["VARIABLE=%s"]
    deviceNodes:
    - {path: /dev/thing, hostPath: /dev/zero, permissions: r, uid: 1000, gid: 3000, fileMode: 384}
    - {path: /dev/log, type: c, major: 1, minor: 11, permissions: r, uid: 1000, fileMode: 384}
    mounts: [{hostPath: %q, containerPath: /from/node, options: [ro, rbind]}]
    hooks: [{hookName: createRuntime, path: /bin/sh, args: [sh, -c, "cat >/dev/null; echo hook >> %s"]}]
    additionalGids: [4711]
`, kind, kind, variable, filepath.Dir(mark), mark)
}

// ContainerConfig.CDI_devices: all that the files say reaches the container and what is
// run in it; files are read when a container is made; annotations name no devices.
func TestCDIDevices(t *testing.T) {
	dir, late, mark := t.TempDir(), filepath.Join(t.TempDir(), "not/yet"), filepath.Join(t.TempDir(), "mark")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(dir+"/thing.yaml", cdiFile("thing", mark, "early"))
	write(dir+"/broken.json", "{")
	n, image := readyNode(t, options{env: []string{"CONTAINER_CDI_SPEC_DIRS=" + dir + "," + late}})
	pod := n.podConfig()
	box := n.runPod(pod)
	asking := func(devices ...string) *cri.ContainerConfig {
		config := n.containerConfig(image, "sleep", "99")
		for _, name := range devices {
			config.CDIDevices = append(config.CDIDevices, &cri.CDIDevice{Name: name})
		}
		config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 2000}
		return config
	}
	id := n.runContainer(box, pod, asking("vendor.test/thing=one"))
	for command, want := range map[string]string{
		"echo $EVERY $VARIABLE":                             "thing early\n",
		"stat -c '%F %t:%T %a %u:%g' /dev/thing":            "character special file 1:5 600 1000:3000\n",
		"head -c 3 /dev/thing | wc -c":                      "3\n",
		"(echo x >/dev/log) 2>&1 | grep -o 'Operation not'": "Operation not\n", // by the device cgroup, not by the mode
		"ls /from/node; touch /from/node/x 2>&1":            "mark\ntouch: /from/node/x: Read-only file system\n",
		"id -G":                                             "2000 4711\n",
		"cat /from/node/mark":                               "hook\n",
	} {
		if got := string(n.exec(id, shell(command)...).GetStdout()); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	if groups := n.container(id).GetUser().GetLinux().GetSupplementalGroups(); !strings.Contains(fmt.Sprint(groups), "4711") {
		t.Errorf("the status has the groups %v", groups)
	}
	if count := strings.Count(n.output.String(), "msg=\"CDI file "); count != 1 {
		t.Errorf("the broken file is told %d times", count)
	}

	refused := func(code codes.Code, name string, words ...string) {
		t.Helper()
		_, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: asking(name), SandboxConfig: pod})
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %s", name, err, code)
		}
		for _, word := range append(words, fmt.Sprintf("%.10s", name)) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: no %q in %v", name, word, err)
			}
		}
	}
	refused(codes.NotFound, "vendor.test/late=one", "vendor.test/late=one", dir, late)
	refused(codes.InvalidArgument, "thing")
	if err := os.MkdirAll(late, 0o755); err != nil {
		t.Fatal(err)
	}
	write(late+"/late.yaml", cdiFile("late", mark, "late"))
	write(late+"/thing.yaml", cdiFile("thing", mark, "overruled"))
	for name, want := range map[string]string{"vendor.test/late=one": "late", "vendor.test/thing=one": "overruled"} {
		id := n.runContainer(box, pod, asking(name))
		if got := string(n.exec(id, shell("echo $VARIABLE")...).GetStdout()); got != want+"\n" {
			t.Errorf("%s, described after the daemon's start: %q, want %q", name, got, want)
		}
	}
	annotated := asking()
	annotated.Annotations = map[string]string{"cdi.k8s.io/vendor_thing": "vendor.test/thing=one"}
	id = n.runContainer(box, pod, annotated)
	if got := string(n.exec(id, shell("echo $VARIABLE; ls /dev/thing 2>&1")...).GetStdout()); !strings.HasPrefix(got, "\nls:") {
		t.Errorf("an annotation gives a device: %q", got)
	}
}
