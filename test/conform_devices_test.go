package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
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

// cdiSpecDirs is the variable by which a node of the suite has its directories of CDI
// files.
const cdiSpecDirs = "CONTAINER_CDI_SPEC_DIRS="

// conformCDI: all that the files say reaches the container and what is run in it; files
// are read when a container is made; annotations name no devices.
func conformCDI(c *conform) {
	var dirs []string
	for _, variable := range c.env {
		if list, ok := strings.CutPrefix(variable, cdiSpecDirs); ok {
			dirs = strings.Split(list, ",")
		}
	}
	number := pods.Add(1)
	early, late, mark := fmt.Sprintf("early%d", number), fmt.Sprintf("late%d", number), filepath.Join(c.t.TempDir(), "mark")
	write := func(dir, name, text string) {
		c.t.Helper()
		path := filepath.Join(dir, fmt.Sprintf("%d-%s", number, name))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = os.Remove(path) })
	}
	write(dirs[0], "early.yaml", cdiFile(early, mark, "early"))
	write(dirs[0], "broken.json", "{")
	box, pod := c.pod(nil)
	asking := func(devices ...string) func(*cri.ContainerConfig) {
		return func(k *cri.ContainerConfig) {
			for _, name := range devices {
				k.CDIDevices = append(k.CDIDevices, &cri.CDIDevice{Name: name})
			}
			k.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
			k.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 2000}
		}
	}
	id := c.sleeperIn(box, pod, asking("vendor.test/"+early+"=one"))
	for script, want := range map[string]string{
		"echo $EVERY $VARIABLE":                             early + " early\n",
		"stat -c '%F %t:%T %a %u:%g' /dev/thing":            "character special file 1:5 600 1000:3000\n",
		"head -c 3 /dev/thing | wc -c":                      "3\n",
		"(echo x >/dev/log) 2>&1 | grep -o 'Operation not'": "Operation not\n", // by the device cgroup, not by the mode
		"ls /from/node; touch /from/node/x 2>&1":            "mark\ntouch: /from/node/x: Read-only file system\n",
		"id -G":                                             "2000 4711\n",
		"cat /from/node/mark":                               "hook\n",
	} {
		c.sees(id, script, want)
	}
	if groups := c.container(id).GetUser().GetLinux().GetSupplementalGroups(); !strings.Contains(fmt.Sprint(groups), "4711") {
		c.t.Errorf("the status has the groups %v", groups)
	}
	warning := fmt.Sprintf("msg=\"CDI file %s/%d-broken.json", dirs[0], number)
	if count := strings.Count(c.output.String(), warning); count != 1 {
		c.t.Errorf("the broken file is told %d times", count)
	}
	refused := func(code codes.Code, name string, words ...string) {
		c.t.Helper()
		config := c.containerConfig(c.image, "true")
		config.CDIDevices = []*cri.CDIDevice{{Name: name}}
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, code, append(words, "CDI_devices", name)...)
	}
	refused(codes.NotFound, "vendor.test/"+late+"=one", dirs...)
	refused(codes.NotFound, "vendor.test/"+early+"=two", dirs...)
	refused(codes.InvalidArgument, "thing")
	write(dirs[1], "late.yaml", cdiFile(late, mark, "late"))
	c.sees(c.sleeperIn(box, pod, asking("vendor.test/"+late+"=one")), "echo $VARIABLE", "late\n")
	write(dirs[1], "early.yaml", cdiFile(early, mark, "overruled"))
	c.sees(c.sleeperIn(box, pod, asking("vendor.test/"+early+"=one")), "echo $VARIABLE", "overruled\n")
	annotated := c.sleeperIn(box, pod, func(k *cri.ContainerConfig) {
		k.Annotations = map[string]string{"cdi.k8s.io/vendor_thing": "vendor.test/" + early + "=one"}
	})
	c.sees(annotated, "echo $VARIABLE; ls /dev/thing", "\n")
}
