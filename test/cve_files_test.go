package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// grown is by how many bytes the daemon's memory was larger, at most, while something ran.
func (n *node) grown(run func()) int {
	n.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", n.daemon.Process.Pid)
	if err := os.WriteFile(proc+"clear_refs", []byte("5"), 0); err != nil { // resets VmHWM (proc(5))
		n.t.Fatal(err)
	}
	read := func(name string) (size int) {
		data, err := os.ReadFile(proc + "status")
		if err != nil {
			n.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), name+":")
		if _, err := fmt.Sscan(rest, &size); err != nil {
			n.t.Fatal(err)
		}
		return size << 10
	}
	before := read("VmRSS")
	run()
	return read("VmHWM") - before
}

// S2: CVE-2025-4437, CVE-2026-47262. A passwd or group of an image that does not end, or
// never answers, is refused before it is read, also for a user that is not looked up in it.
func TestCVE_2025_4437_EndlessUserDatabases(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, _ := readyNode(t, options{registry: r})
	c := &conform{node: n}
	box, pod := c.pod(nil)
	line := bytes.Repeat([]byte("a"), 1<<20-1)
	for name, tt := range map[string]struct {
		file    fixture.File
		refused bool
	}{
		// 4 GiB would be the same to the daemon, and to the disk of the test not. A layer
		// with a file that has holes is refused by the library that unpacks it.
		"a line of 64 MiB":        {fixture.File{Data: append([]byte("root:x:0:0:"), bytes.Repeat(line, 64)...)}, true},
		"one byte more than 1 MB": {fixture.File{Data: append(bytes.Clone(line), "a\n"...)}, true},
		"a line of 1 MB":          {fixture.File{Data: line}, false},
		"too many lines":          {fixture.File{Data: bytes.Repeat([]byte("a:::\n"), 1<<17)}, true},
		"a pipe":                  {fixture.File{Kind: tar.TypeFifo}, true},
		"a device":                {fixture.File{Kind: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 5}, true},
		"a link to a device":      {fixture.File{Link: "../dev/zero"}, true},
		"a link to the node's":    {fixture.File{Link: "/proc/kmsg"}, false}, // which is not in the image
		"a link to itself":        {fixture.File{Link: "../etc/itself"}, true},
		"a directory":             {fixture.File{Dir: true}, true},
	} {
		for _, base := range []string{"passwd", "group"} {
			if len(tt.file.Data) > 1<<24 && base == "group" {
				continue // to pull it once is slow enough
			}
			t.Run(name+" as "+base, func(t *testing.T) {
				sub := n.in(t)
				tt.file.Path = "etc/" + base
				files := []fixture.File{
					{Path: "dev/zero", Kind: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 5}, {Path: "etc/itself", Link: "itself"},
					{Path: "mark", Data: []byte(t.Name())}, tt.file,
				}
				img := fixture.BuildImage(t, fixture.ImageSpec{Layers: [][]fixture.File{files}})
				image := sub.pull(r.Push(t, "made", fmt.Sprintf("v%d", pods.Add(1)), img))
				defer sub.dropImages(image)
				for _, user := range []*cri.Int64Value{nil, {Value: 4321}} {
					config := sub.containerConfig(image, "true")
					config.Linux.SecurityContext.RunAsUser = user
					var err error
					var made *cri.CreateContainerResponse
					begun := time.Now()
					grown := sub.grown(func() {
						made, err = sub.CreateContainer(sub.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
					})
					if took := time.Since(begun); took > 10*time.Second || grown > 48<<20 {
						t.Errorf("it took %s and %d MiB of memory", took, grown>>20)
					}
					if tt.refused {
						(&conform{node: sub}).refused(err, codes.InvalidArgument, "/etc/"+base, "user")
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if _, err := sub.RemoveContainer(sub.ctx(), &cri.RemoveContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	// What a container makes of its own costs an exec in it, and nobody else.
	config := n.containerConfig(n.madeImage(r, fixture.ImageSpec{}), shell("dd if=/dev/zero of=/etc/passwd bs=1 count=1 seek=4G; echo made; sleep 99")...)
	id := n.runContainer(box, pod, config)
	n.awaitLog(logOf(pod, config), "made")
	begun := time.Now()
	grown := n.grown(func() {
		_, err := n.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 15})
		t.Logf("exec: %v", err)
	})
	if took := time.Since(begun); took > 20*time.Second || grown > 48<<20 {
		t.Errorf("an exec took %s and %d MiB of memory", took, grown>>20)
	}
}

// S3: CVE-2025-0750. A log is below its pod's log directory, or nowhere: neither a path
// nor a link that a container may have put there leads elsewhere, not even for a directory.
func TestCVE_2025_0750_LogsStayInTheirDirectory(t *testing.T) {
	n, image := readyNode(t, options{})
	c := &conform{node: n}
	v := newVictim(t)
	for _, tt := range []struct{ directory, path, word string }{
		{n.dir + "/logs/../../x", "a/0.log", "log_directory"}, {v.dir + "/sub/..", "passwd", "log_directory"}, {"logs", "0.log", "log_directory"},
		{n.path("logs/x"), "../0.log", "log_path"}, {n.path("logs/x"), "a/../../../0.log", "log_path"}, {n.path("logs/x"), "..", "log_path"},
		{n.path("logs/x"), v.dir + "/passwd", "log_path"}, {n.path("logs/x"), "a/", "log_path"}, {n.path("logs/x"), ".", "log_path"},
		{n.path("logs/x"), "a\n/0.log", "log path"}, {n.path("logs/x"), "a\x00b", "log path"},
	} {
		pod := n.podConfig()
		pod.LogDirectory = tt.directory
		config := n.containerConfig(image, "true")
		config.LogPath = tt.path
		a, err := n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: pod})
		if err == nil {
			_, err = n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: a.GetPodSandboxId(), Config: config, SandboxConfig: pod})
		}
		c.refused(err, codes.InvalidArgument, tt.word)
		v.unharmed(t)
	}
	up := strings.Repeat("../", 30) + v.dir[1:]
	for i, link := range []struct{ at, to, path string }{
		{"ctr", v.dir, "ctr/0.log"}, {"ctr", up, "ctr/new/0.log"}, {"ctr", v.dir, "ctr/new/newer/passwd"}, {"ctr", v.dir + "/sub", "ctr/file"},
		{"", v.dir, "passwd"}, {"", up, "ctr/0.log"}, {"", v.dir, "sub/new/0.log"},
	} {
		pod := n.podConfig()
		at := filepath.Join(pod.LogDirectory, link.at)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(link.to, at); err != nil {
			t.Fatal(err)
		}
		config := n.containerConfig(image, shell("echo evil")...)
		config.LogPath = link.path
		if n.tryLog(pod, config) == nil {
			t.Errorf("%d: a container with the log %s, where %s is a link, runs", i, logOf(pod, config), at)
		}
		v.unharmed(t)
	}
	// A link above is the node's own.
	if err := os.MkdirAll(n.path("elsewhere"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", n.path("linked")); err != nil {
		t.Fatal(err)
	}
	pod := n.podConfig()
	pod.LogDirectory = n.path("linked/pods/" + pod.Metadata.Name)
	config := n.containerConfig(image, shell("echo fine")...)
	if err := n.tryLog(pod, config); err != nil {
		t.Errorf("with a link above the pod's directory: %v", err)
	}
	n.awaitLog(n.path("elsewhere/pods/"+pod.Metadata.Name+"/"+config.LogPath), "stdout F fine\n")
}

// tryLog creates and starts a container, and tells what refused it.
func (n *node) tryLog(pod *cri.PodSandboxConfig, config *cri.ContainerConfig) error {
	n.t.Helper()
	box := n.runPod(pod)
	a, err := n.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
	if err != nil {
		return err
	}
	_, err = n.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: a.GetContainerId()})
	return err
}

// S15: CVE-2026-53489. What stands at the place of the log already is written to if it is a
// file, and otherwise neither followed nor waited for, at the start and when it is reopened.
func TestCVE_2026_53489_OnlyAFileBecomesALog(t *testing.T) {
	n, image := readyNode(t, options{})
	v := newVictim(t)
	things := map[string]func(path string) error{
		"link to a file":       func(path string) error { return os.Symlink(v.dir+"/passwd", path) },
		"relative link":        func(path string) error { return os.Symlink(strings.Repeat("../", 30)+v.dir[1:]+"/passwd", path) },
		"link to nothing":      func(path string) error { return os.Symlink(v.dir+"/new", path) },
		"link to the next log": func(path string) error { return os.Symlink("1.log", path) },
		"pipe":                 func(path string) error { return unix.Mkfifo(path, 0o644) },
		"directory":            func(path string) error { return os.Mkdir(path, 0o755) },
		"device":               func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
	}
	for name, place := range things {
		t.Run(name, func(t *testing.T) {
			sub := n.in(t)
			pod, config := sub.podConfig(), sub.containerConfig(image, shell("while echo a line; do sleep 0.05; done")...)
			path := logOf(pod, config)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := place(path); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			if err := sub.tryLog(pod, config); err == nil || !strings.Contains(err.Error(), "log") {
				t.Errorf("start: %v", err)
			}
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
			v.unharmed(t)
			config.Metadata.Attempt, config.LogPath = 1, filepath.Dir(config.LogPath)+"/good.log"
			id := sub.runContainer(sub.made[0], pod, config)
			path = logOf(pod, config)
			sub.awaitLog(path, "a line")
			kept := path + ".1"
			if err := os.Rename(path, kept); err != nil {
				t.Fatal(err)
			}
			if err := place(path); err != nil {
				t.Fatal(err)
			}
			if _, err := sub.ReopenContainerLog(sub.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id}); err == nil {
				t.Error("it was reopened")
			}
			lines := len(sub.log(kept))
			sub.await("another line in the file that it had", func() error {
				if more := len(sub.log(kept)); more <= lines+1 {
					return fmt.Errorf("%d lines", more)
				}
				return nil
			})
			v.unharmed(t)
			sub.removeMade()
		})
	}
	pod, config := n.podConfig(), n.containerConfig(image, shell("echo after")...)
	if err := os.MkdirAll(filepath.Dir(logOf(pod, config)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(logOf(pod, config), []byte("2020-01-01T00:00:00Z stdout F before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.tryLog(pod, config); err != nil {
		t.Fatal(err)
	}
	n.awaitLog(logOf(pod, config), "stdout F after\n")
	if lines := n.log(logOf(pod, config)); len(lines) != 2 || lines[0].text != "before" {
		t.Errorf("the log is %v", lines)
	}
}

// S19: CVE-2024-25621, CVE-2021-41103. A user of the node who is not root finds nothing
// below the daemon's directories, and what is open by its mode is named here.
func TestCVE_2024_25621_NobodyElseSeesOurFiles(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	n, image := readyNode(t, options{registry: r})
	pod := n.podConfig()
	pod.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	box := n.runPod(pod)
	config := n.containerConfig(n.madeImage(r, fixture.ImageSpec{Config: imgspec.ImageConfig{Volumes: map[string]struct{}{"/volume": {}}}}), "sleep", "99")
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	config.Linux.SecurityContext.ReadonlyRootfs = true // so that the volume is mounted
	config.Mounts = []*cri.Mount{{Image: &cri.ImageSpec{Image: image}, ContainerPath: "/image", Readonly: true}}
	id := n.runContainer(box, pod, config)
	n.exec(id, "true")
	// All of it is below directories that are closed.
	open := map[string]string{
		"run/pause":              "the first process of a pod is another user's, and runs from here",
		"run/pause/*":            "as that",
		"run/pods/*/hosts":       "bound into containers, where any user reads it",
		"run/pods/*/hostname":    "as hosts",
		"run/pods/*/resolv.conf": "as hosts",
		"run/containers/*/pid":   "the OCI runtime writes it",
		"run/containers/*/oci-*": "the OCI runtime writes it",
		"run/oci/*/*":            "the OCI runtime's own",
	}
	seen := 0
	for _, top := range []string{"state", "run"} {
		err := filepath.WalkDir(n.path(top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, info := strings.TrimPrefix(path, n.dir+"/"), stat(t, path)
			if info.Dev != stat(t, filepath.Dir(path)).Dev { // a namespace, or a file system of the container's
				if entry.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
			seen++
			allowed := entry.Type() == fs.ModeSymlink
			for pattern := range open {
				if match, err := filepath.Match(pattern, name); err != nil || match {
					allowed = true
				}
			}
			if info.Mode&0o077 != 0 && !allowed || info.Uid != 0 || info.Gid != 0 {
				t.Errorf("%s of %d:%d has mode %o", name, info.Uid, info.Gid, info.Mode)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if seen < 20 {
		t.Errorf("there are only %d files", seen)
	}
	stranger := exec.Command("find", n.path("state"), n.path("run"), n.path("storage"), n.path("storage-run"), "-mindepth", "1")
	stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	found, _ := stranger.CombinedOutput()
	for line := range strings.Lines(string(found)) {
		if !strings.Contains(line, "Permission denied") {
			t.Errorf("a stranger finds %s", line)
		}
	}
	if !slices.ContainsFunc(strings.Split(string(found), "\n"), func(line string) bool { return strings.Contains(line, n.path("state")) }) {
		t.Errorf("the stranger did not look: %s", found)
	}
}

func stat(t *testing.T, path string) *unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return &st
}
