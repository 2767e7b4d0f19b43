package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/internal/monitor"
)

func conformContainerCases() []conformCase {
	return []conformCase{
		{
			name: "a container's names and life", run: conformLife,
			proves: []string{
				"CreateContainer", "CreateContainerRequest.pod_sandbox_id", "CreateContainerRequest.config", "CreateContainerResponse.container_id",
				"ContainerConfig.metadata", "ContainerMetadata.name", "ContainerMetadata.attempt", "ContainerConfig.labels", "ContainerConfig.annotations",
				"StartContainer", "StartContainerRequest.container_id", "StopContainer", "StopContainerRequest.container_id",
				"ContainerStatus", "ContainerStatusRequest.container_id", "ContainerStatusRequest.verbose", "ContainerStatusResponse.status",
				"ContainerStatusResponse.info", "ContainerStatus.id", "ContainerStatus.metadata", "ContainerStatus.state",
				"ContainerStatus.created_at", "ContainerStatus.started_at", "ContainerStatus.finished_at", "ContainerStatus.exit_code",
				"ContainerStatus.reason", "ContainerStatus.message", "ContainerStatus.labels", "ContainerStatus.annotations",
				"RemoveContainer", "RemoveContainerRequest.container_id",
			},
			refuses: []string{"ContainerConfig.metadata", "ContainerConfig.image", "ContainerConfig.windows"},
		},
		{
			name: "lists of containers", run: conformContainerList,
			proves: []string{
				"ListContainers", "ListContainersRequest.filter", "ListContainersResponse.containers", "ContainerFilter.id", "ContainerFilter.state",
				"ContainerStateValue.state", "ContainerFilter.pod_sandbox_id", "ContainerFilter.label_selector", "Container.id",
				"Container.pod_sandbox_id", "Container.metadata", "Container.image", "Container.image_ref", "Container.state",
				"Container.created_at", "Container.labels", "Container.annotations", "Container.image_id",
			},
		},
		{
			name: "command, environment and directory", run: conformProcess,
			proves: []string{
				"ContainerConfig.command", "ContainerConfig.args", "ContainerConfig.working_dir", "ContainerConfig.envs", "KeyValue.key", "KeyValue.value",
			},
			refuses: []string{"ContainerConfig.command", "KeyValue.key", "KeyValue.value"},
		},
		{
			name: "user and groups", run: conformUser,
			proves: []string{
				"LinuxContainerConfig.security_context", "LinuxContainerSecurityContext.run_as_user", "LinuxContainerSecurityContext.run_as_group",
				"LinuxContainerSecurityContext.run_as_username", "LinuxContainerSecurityContext.supplemental_groups",
				"LinuxContainerSecurityContext.supplemental_groups_policy", "Int64Value.value", "ContainerStatus.user", "ContainerUser.linux",
				"LinuxContainerUser.uid", "LinuxContainerUser.gid", "LinuxContainerUser.supplemental_groups",
			},
			refuses: []string{
				"LinuxContainerSecurityContext.run_as_user", "LinuxContainerSecurityContext.run_as_group", "LinuxContainerSecurityContext.run_as_username",
				"LinuxContainerSecurityContext.supplemental_groups", "LinuxContainerSecurityContext.supplemental_groups_policy",
			},
		},
		{
			name: "stop signals", run: conformStopSignal,
			proves:  []string{"ContainerConfig.stop_signal", "ContainerStatus.stop_signal", "StopContainerRequest.timeout"},
			refuses: []string{"ContainerConfig.stop_signal", "StopContainerRequest.timeout"},
		},
		{
			name: "stdin and tty", run: conformTerminal,
			proves: []string{"ContainerConfig.stdin", "ContainerConfig.stdin_once", "ContainerConfig.tty"},
		},
		{
			name: "binds of the node", run: conformMounts,
			proves: []string{
				"ContainerConfig.mounts", "Mount.container_path", "Mount.host_path", "Mount.readonly", "Mount.recursive_read_only",
				"Mount.mount_options", "ContainerStatus.mounts",
			},
			refuses: []string{"Mount.container_path", "Mount.host_path", "Mount.recursive_read_only", "Mount.mount_options"},
		},
		{
			name: "exec", run: conformExec,
			proves: []string{
				"ExecSync", "ExecSyncRequest.container_id", "ExecSyncRequest.cmd", "ExecSyncRequest.timeout", "ExecSyncResponse.stdout",
				"ExecSyncResponse.stderr", "ExecSyncResponse.exit_code",
			},
			refuses: []string{"ExecSyncRequest.cmd", "ExecSyncRequest.timeout"},
		},
		{name: "a reopened log", run: conformReopen, proves: []string{"ReopenContainerLog", "ReopenContainerLogRequest.container_id"}},
	}
}

func conformLife(c *conform) {
	odd := map[string]string{"a/b": "ü\n\x01", "org.systemd.property.Description": "'x'", "": ""}
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, shell("exit 3")...)
	config.Metadata.Attempt, config.Labels, config.Annotations = 5, maps.Clone(odd), maps.Clone(odd)
	id := c.create(box, pod, config)
	s := c.container(id)
	if s.GetId() != id || s.GetMetadata().GetName() != config.Metadata.Name || s.GetMetadata().GetAttempt() != 5 || s.GetState() != cri.ContainerState_CONTAINER_CREATED ||
		s.GetCreatedAt() <= 0 || s.GetStartedAt() != 0 || s.GetFinishedAt() != 0 {
		c.t.Errorf("created: %v", s)
	}
	if !maps.Equal(s.GetLabels(), odd) || !maps.Equal(s.GetAnnotations(), odd) {
		c.t.Errorf("labels %q, annotations %q, want %q", s.GetLabels(), s.GetAnnotations(), odd)
	}
	c.startContainer(id)
	s = c.exited(id)
	if s.GetExitCode() != 3 || s.GetReason() != "Error" || s.GetCreatedAt() > s.GetStartedAt() || s.GetStartedAt() > s.GetFinishedAt() {
		c.t.Errorf("exited: %v", s)
	}
	if s := c.exited(c.runContainer(box, pod, c.containerConfig(c.image, "true"))); s.GetReason() != "Completed" || s.GetExitCode() != 0 {
		c.t.Errorf("exited well: %v", s)
	}
	broken := c.create(box, pod, c.containerConfig(c.image, "/no/such/program"))
	if _, err := c.StartContainer(c.ctx(), &cri.StartContainerRequest{ContainerId: broken}); err == nil {
		c.t.Error("a program that is not there was started")
	}
	if s := c.container(broken); s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), "/no/such/program") || s.GetState() != cri.ContainerState_CONTAINER_EXITED {
		c.t.Errorf("a start that failed: %v", s)
	}
	if info := c.pidOf(c.sleeperIn(box, pod, nil)); info <= 1 {
		c.t.Errorf("pid %d", info)
	}
	for range 2 {
		if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
			c.t.Error(err)
		}
		if _, err := c.RemoveContainer(c.ctx(), &cri.RemoveContainerRequest{ContainerId: broken}); err != nil {
			c.t.Error(err)
		}
	}
	_, err := c.ContainerStatus(c.ctx(), &cri.ContainerStatusRequest{ContainerId: broken})
	c.refused(err, codes.NotFound, broken)
	_, err = c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: strings.Repeat("0", 64), Config: config})
	c.refused(err, codes.NotFound, strings.Repeat("0", 64))
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Metadata.Name = "" }, "metadata")
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Image = nil }, "image")
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Windows = &cri.WindowsContainerConfig{} }, "windows")
}

func conformContainerList(c *conform) {
	mark := map[string]string{"conform": c.t.Name()}
	box, pod := c.pod(nil)
	other, otherPod := c.pod(nil)
	made := func(box string, pod *cri.PodSandboxConfig, more string) string {
		config := c.containerConfig(c.image, "sleep", "3600")
		config.Labels, config.Annotations = maps.Clone(mark), map[string]string{"k": more}
		if more != "" {
			config.Labels["more"] = more
		}
		return c.create(box, pod, config)
	}
	first, second, third := made(box, pod, ""), made(box, pod, "yes"), made(other, otherPod, "")
	c.startContainer(second)
	list := func(f *cri.ContainerFilter) (ids string, all []*cri.Container) {
		c.t.Helper()
		if f.LabelSelector == nil {
			f.LabelSelector = mark
		}
		l, err := c.ListContainers(c.ctx(), &cri.ListContainersRequest{Filter: f})
		if err != nil {
			c.t.Fatal(err)
		}
		for _, k := range l.GetContainers() {
			ids += k.GetId() + " "
		}
		return ids, l.GetContainers()
	}
	running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
	for _, tt := range []struct {
		filter *cri.ContainerFilter
		want   string
	}{
		{&cri.ContainerFilter{}, third + " " + second + " " + first + " "}, {&cri.ContainerFilter{Id: first}, first + " "},
		{&cri.ContainerFilter{Id: first[:20]}, first + " "}, {&cri.ContainerFilter{PodSandboxId: box}, second + " " + first + " "},
		{&cri.ContainerFilter{State: running}, second + " "}, {&cri.ContainerFilter{PodSandboxId: other, State: running}, ""},
		{&cri.ContainerFilter{LabelSelector: map[string]string{"conform": c.t.Name(), "more": "yes"}}, second + " "},
	} {
		if got, _ := list(tt.filter); got != tt.want {
			c.t.Errorf("%v lists %q, want %q", tt.filter, got, tt.want)
		}
	}
	_, all := list(&cri.ContainerFilter{Id: second})
	s := c.container(second)
	if len(all) != 1 {
		c.t.Fatalf("%v", all)
	}
	k := all[0]
	if k.GetPodSandboxId() != box || k.GetMetadata().String() != s.GetMetadata().String() || k.GetImage().String() != s.GetImage().String() ||
		k.GetImageRef() != s.GetImageRef() || k.GetState() != s.GetState() || k.GetCreatedAt() != s.GetCreatedAt() ||
		k.GetLabels()["more"] != "yes" || k.GetAnnotations()["k"] != "yes" || k.GetImageId() != c.image {
		c.t.Errorf("listed %v, status %v", k, s)
	}
}

func conformProcess(c *conform) {
	id := c.sleeper(func(k *cri.ContainerConfig) {
		k.Command, k.Args = []string{"sh", "-c", `echo "$@" > /args; pwd > /pwd; exec sleep 3600`}, []string{"zero", "one two", "$HOME", "three"}
		k.WorkingDir = "/made/for/it"
		k.Envs = []*cri.KeyValue{{Key: "GREETING", Value: []byte("a\nb  c")}, {Key: "PATH", Value: []byte("/bin:/mine")}, {Key: "EMPTY"}}
	})
	c.sees(id, "cat /args /pwd", "one two $HOME three\n/made/for/it\n")
	c.sees(id, `echo "$GREETING"; echo $PATH; env | grep -c ^EMPTY=$`, "a\nb  c\n/bin:/mine\n1\n")
	// Arguments alone replace those of the image; this image has no entrypoint.
	args := c.sleeper(func(k *cri.ContainerConfig) { k.Command, k.Args = nil, []string{"sleep", "1234"} })
	c.sees(args, `tr "\0" " " < /proc/1/cmdline`, "sleep 1234 ")
	image := c.sleeper(func(k *cri.ContainerConfig) { k.Command = nil })
	c.sees(image, `tr "\0" " " < /proc/1/cmdline`, "sleep 3600 ")
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Command = []string{""} }, "command")
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Envs = []*cri.KeyValue{{Key: "A=B"}} }, "envs", "A=B")
	c.refusedContainer(func(k *cri.ContainerConfig) { k.Envs = []*cri.KeyValue{{Key: "NUL", Value: []byte("a\x00b")}} }, "envs", "NUL")
}

func conformUser(c *conform) {
	for _, tt := range []struct {
		change func(*cri.LinuxContainerSecurityContext)
		want   string // uid, gid, groups
	}{
		{func(*cri.LinuxContainerSecurityContext) {}, "0 0 0"},
		{func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1234} }, "1234 0 0"},
		{func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1234}, &cri.Int64Value{Value: 77}
			s.SupplementalGroups = []int64{2000, 1000}
		}, "1234 77 77 1000 2000"},
		{func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody" }, "65534 65534 65534"},
		{func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUsername, s.SupplementalGroups = "member", []int64{2000}
		}, "500 500 500 600 2000"},
		{func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUsername, s.SupplementalGroups = "member", []int64{2000}
			s.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		}, "500 500 500 2000"},
	} {
		id := c.sleeper(func(k *cri.ContainerConfig) { tt.change(k.Linux.SecurityContext) })
		c.sees(id, "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n -u | tr '\\n' ' ')", tt.want+"\n")
		u := c.container(id).GetUser().GetLinux()
		told := fmt.Sprintf("%d %d", u.GetUid(), u.GetGid())
		for _, g := range u.GetSupplementalGroups() {
			told += fmt.Sprintf(" %d", g)
		}
		if told != tt.want {
			c.t.Errorf("status tells user %q, want %q", told, tt.want)
		}
	}
	for word, change := range map[string]func(*cri.LinuxContainerSecurityContext){
		"4294967295": func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1<<32 - 1} },
		"-1":         func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} },
		"run_as_group": func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsGroup = &cri.Int64Value{Value: 1}
		},
		"stranger":            func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "stranger" },
		"supplemental_groups": func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{1 << 32} },
		"supplemental_groups_policy": func(s *cri.LinuxContainerSecurityContext) {
			s.SupplementalGroupsPolicy = 9
		},
		"run_as_username": func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &cri.Int64Value{Value: 1}, "nobody"
		},
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { change(k.Linux.SecurityContext) }, word)
	}
}

func conformStopSignal(c *conform) {
	box, pod := c.pod(nil)
	for _, tt := range []struct {
		signal cri.Signal
		trap   string
	}{
		{cri.Signal_SIGNAL_RUNTIME_DEFAULT, "TERM"}, {cri.Signal_SIGNAL_SIGUSR1, "USR1"}, {cri.Signal_SIGNAL_SIGRTMIN, "34"},
		{cri.Signal_SIGNAL_SIGRTMINPLUS3, "37"}, {cri.Signal_SIGNAL_SIGRTMAX, "64"},
	} {
		config := c.containerConfig(c.image, shell("trap 'echo got it; exit 9' "+tt.trap+"; echo up; while :; do sleep 0.02; done")...)
		config.StopSignal = tt.signal
		id := c.runContainer(box, pod, config)
		c.awaitLog(logOf(pod, config), "up")
		if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
			c.t.Fatal(err)
		}
		want := tt.signal
		if want == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
			want = cri.Signal_SIGNAL_SIGTERM
		}
		if s := c.container(id); s.GetExitCode() != 9 || s.GetStopSignal() != want {
			c.t.Errorf("%s: exit code %d, stop signal %s", tt.signal, s.GetExitCode(), s.GetStopSignal())
		}
	}
	deaf := c.containerConfig(c.image, shell("trap '' TERM; echo up; while :; do sleep 0.02; done")...)
	id := c.runContainer(box, pod, deaf)
	c.awaitLog(logOf(pod, deaf), "up")
	begun := time.Now()
	if _, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		c.t.Fatal(err)
	}
	if took := time.Since(begun); took < time.Second || c.container(id).GetExitCode() != 137 {
		c.t.Errorf("after %s: %v", took, c.container(id))
	}
	c.refusedContainer(func(k *cri.ContainerConfig) { k.StopSignal = 99 }, "stop_signal")
	_, err := c.StopContainer(c.ctx(), &cri.StopContainerRequest{ContainerId: id, Timeout: -1})
	c.refused(err, codes.InvalidArgument, "timeout")
}

func conformTerminal(c *conform) {
	box, pod := c.pod(nil)
	tty := func(k *cri.ContainerConfig) { k.Tty = true }
	id := c.sleeperIn(box, pod, tty)
	c.sees(id, "readlink /proc/1/fd/0 | sed s/[0-9]*$//; grep -c TERM=xterm /proc/1/environ", "/dev/pts/\n1\n")
	plain := c.sleeperIn(box, pod, nil)
	c.sees(plain, "readlink /proc/1/fd/0", "/dev/null\n")
	// With stdin somebody may still write; nobody has, so the reader waits.
	reader := c.containerConfig(c.image, "cat")
	reader.Stdin = true
	waiting := c.runContainer(box, pod, reader)
	c.sees(waiting, "readlink /proc/1/fd/0 | cut -c1-5; cut -d' ' -f3 /proc/1/stat", "pipe:\nS\n")
	if s := c.exited(c.runContainer(box, pod, c.containerConfig(c.image, "cat"))); s.GetExitCode() != 0 {
		c.t.Errorf("cat without stdin: %v", s)
	}
	c.sends(waiting, "one\n")
	c.sends(waiting, "two\n")
	if s := c.container(waiting); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		c.t.Errorf("stdin ended with a client of it: %v", s)
	}
	reader.Metadata.Attempt, reader.StdinOnce = 1, true
	once := c.runContainer(box, pod, reader)
	c.sends(once, "three\n")
	if s := c.exited(once); s.GetExitCode() != 0 {
		c.t.Errorf("after the end of the only client's stdin: %v", s)
	}
	text := ""
	for _, r := range c.log(logOf(pod, reader)) {
		text += r.text + " "
	}
	if text != "one two three " {
		c.t.Errorf("the readers wrote %q", text)
	}
}

// sends writes to the stdin of a container as a client that comes, writes, and goes.
func (c *conform) sends(id, text string) {
	c.t.Helper()
	a, err := monitor.Attach(c.ctx(), c.path("run/containers/"+id), monitor.Streams{Stdin: true})
	if err != nil {
		c.t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Write([]byte(text)); err != nil {
		c.t.Error(err)
	}
	if err := a.CloseWrite(); err != nil {
		c.t.Error(err)
	}
}

func conformMounts(c *conform) {
	dir := c.t.TempDir()
	for _, d := range []string{"/data/inner", "/other"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Symlink(dir+"/data", dir+"/link"); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/data/script", []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		c.t.Fatal(err)
	}
	id := c.sleeper(func(k *cri.ContainerConfig) {
		k.Mounts = []*cri.Mount{
			{HostPath: dir + "/link", ContainerPath: "/data"}, {HostPath: dir + "/data", ContainerPath: "/fixed", Readonly: true},
			{HostPath: dir + "/data", ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
			{HostPath: dir + "/data", ContainerPath: "/strict", MountOptions: []string{"noexec", "nodev", "nosuid"}},
			{HostPath: dir + "/data/script", ContainerPath: "/bin/one-file"},
		}
	})
	c.sees(id, "touch /data/new && /data/script; /bin/one-file", "ran\nran\n")
	if _, err := os.Stat(dir + "/data/new"); err != nil {
		c.t.Error(err)
	}
	c.sees(id, "touch /fixed/x 2>&1; touch /rro/x 2>&1; /strict/script 2>&1 | grep -c denied; touch /strict/y && echo wrote",
		"touch: /fixed/x: Read-only file system\ntouch: /rro/x: Read-only file system\n1\nwrote\n")
	c.sees(id, "awk '$2 == \"/strict\" { print $4 }' /proc/mounts | cut -d, -f2-4", "nosuid,nodev,noexec\n")
	mounts := c.container(id).GetMounts()
	if len(mounts) != 5 || mounts[0].GetContainerPath() != "/data" || mounts[0].GetHostPath() != dir+"/link" || !mounts[1].GetReadonly() ||
		!mounts[2].GetRecursiveReadOnly() || strings.Join(mounts[3].GetMountOptions(), ",") != "noexec,nodev,nosuid" {
		c.t.Errorf("status tells mounts %v", mounts)
	}
	absent := filepath.Join(dir, "absent")
	for word, m := range map[string]*cri.Mount{
		absent: {HostPath: absent, ContainerPath: "/x"}, "host_path": {HostPath: "relative", ContainerPath: "/x"},
		"container_path": {HostPath: dir, ContainerPath: "x"}, "suid": {HostPath: dir, ContainerPath: "/x", MountOptions: []string{"suid"}},
		"recursive_read_only": {HostPath: dir, ContainerPath: "/x", RecursiveReadOnly: true},
		"private propagation": {HostPath: dir, ContainerPath: "/x", RecursiveReadOnly: true, Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	} {
		c.refusedContainer(func(k *cri.ContainerConfig) { k.Mounts = []*cri.Mount{m} }, word)
	}
	if _, err := os.Stat(absent); err == nil {
		c.t.Error("a host path that was not there was made")
	}
}

func conformExec(c *conform) {
	id := c.sleeper(func(k *cri.ContainerConfig) { k.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 7} })
	a := c.exec(id, shell("echo out; echo err >&2; id -u; exit 42")...)
	if string(a.GetStdout()) != "out\n7\n" || string(a.GetStderr()) != "err\n" || a.GetExitCode() != 42 {
		c.t.Errorf("%v", a)
	}
	if !cgroupV2() {
		// What a command uses is its container's, whatever the runtime.
		c.sees(id, "grep -E ':(memory|cpu|pids|devices):' /proc/self/cgroup | grep -c /crio-"+id, "4\n")
	}
	begun := time.Now()
	_, err := c.ExecSync(c.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "77"}, Timeout: 1})
	if took := time.Since(begun); took < time.Second || took > 15*time.Second {
		c.t.Errorf("a timeout of 1 s took %s", took)
	}
	c.refused(err, codes.DeadlineExceeded, "in time")
	c.sees(id, "ps | grep -c '[s]leep 77'", "0\n")
	_, err = c.ExecSync(c.ctx(), &cri.ExecSyncRequest{ContainerId: id})
	c.refused(err, codes.InvalidArgument, "cmd")
	_, err = c.ExecSync(c.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: -1})
	c.refused(err, codes.InvalidArgument, "timeout")
	_, err = c.ExecSync(c.ctx(), &cri.ExecSyncRequest{ContainerId: strings.Repeat("0", 64), Cmd: []string{"true"}})
	c.refused(err, codes.NotFound, "does not exist")
}

func conformReopen(c *conform) {
	box, pod := c.pod(nil)
	config := c.containerConfig(c.image, shell("echo before; while [ ! -e /go ]; do sleep 0.02; done; echo after; sleep 3600")...)
	id := c.runContainer(box, pod, config)
	path := logOf(pod, config)
	c.awaitLog(path, "before")
	if err := os.Rename(path, path+".1"); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.ReopenContainerLog(c.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		c.t.Fatal(err)
	}
	c.exec(id, "touch", "/go")
	c.awaitLog(path, "after")
	if records := c.log(path + ".1"); len(records) != 1 || records[0].text != "before" {
		c.t.Errorf("the old log has %v", records)
	}
	stopped := c.create(box, pod, c.containerConfig(c.image, "true"))
	_, err := c.ReopenContainerLog(c.ctx(), &cri.ReopenContainerLogRequest{ContainerId: stopped})
	c.refused(err, codes.FailedPrecondition, stopped)
}
