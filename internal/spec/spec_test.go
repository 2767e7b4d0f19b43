package spec

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite testdata/*.json with what the builder makes now")

// held is what a daemon in a container has: no CAP_SYS_RESOURCE, no CAP_SYS_MODULE.
func held() []string {
	return without(KnownCapabilities(), []string{"CAP_SYS_RESOURCE", "CAP_SYS_MODULE"})
}

// podInput is a pod's container as the kubelet asks for it, changed as the test wants.
func podInput(changes ...func(*Input)) Input {
	in := Input{
		Node: Node{
			OCIVersion: "1.2.0", CgroupV2: true, Hugetlb: true, Swap: true, Cpuset: true, Capabilities: held(), MinOOMScoreAdj: -500, RecursiveReadOnly: true,
			DefaultCapabilities: []string{"CHOWN", "KILL", "NET_BIND_SERVICE", "SETUID"},
		},
		Config: &cri.ContainerConfig{
			Image: &cri.ImageSpec{Image: "docker.io/library/web:1"},
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{OomScoreAdj: 1000},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					Seccomp:     &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
					MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
				},
			},
		},
		Image:       imagespec.ImageConfig{Entrypoint: []string{"/web"}, Cmd: []string{"--port=80"}, Env: []string{"LANG=C"}, WorkingDir: "/srv"},
		Rootfs:      "/var/lib/containers/storage/overlay/l1/merged",
		User:        User{UID: 33, GID: 34, Groups: []uint32{34, 50}, Home: "/srv/web"},
		Namespaces:  Namespaces{Net: "/run/crio/ns/p1/net", IPC: "/run/crio/ns/p1/ipc", UTS: "/run/crio/ns/p1/uts"},
		CgroupsPath: "/kubepods/pod1/crio-c1",
		Hostname:    "web-0",
		Files: map[string]string{
			"/etc/resolv.conf": "/run/crio/p1/resolv.conf", "/etc/hosts": "/run/crio/p1/hosts", "/etc/hostname": "/run/crio/p1/hostname",
		},
		Shm: "/run/crio/p1/shm",
	}
	for _, change := range changes {
		change(&in)
	}
	return in
}

func security(in *Input) *cri.LinuxContainerSecurityContext {
	return in.Config.Linux.SecurityContext
}

func build(t *testing.T, in Input) *specs.Spec {
	t.Helper()
	result, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	return result.Spec
}

// wantError fails unless err says all of the words; no words means no error.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if len(words) == 0 && err != nil {
		t.Errorf("got error %v", err)
	}
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("got error %v, want one that says %q", err, word)
		}
	}
}

func TestGolden(t *testing.T) {
	container := func(changes ...func(*Input)) func(*testing.T) *specs.Spec {
		return func(t *testing.T) *specs.Spec { return build(t, podInput(changes...)) }
	}
	for name, made := range map[string]func(*testing.T) *specs.Spec{
		"plain":       container(plainPod),
		"privileged":  container(privilegedPod),
		"hostnetwork": container(hostPod),
		"resources":   container(limitedPod),
		"users":       container(usersPod),
		"users-hostnetwork": container(usersPod, func(in *Input) {
			in.Namespaces.HostNet, in.Namespaces.Net, in.Namespaces.HostUTS, in.Namespaces.UTS = true, "", true, ""
		}),
		"users-pause": func(t *testing.T) *specs.Spec {
			in := podInput(usersPod)
			s, err := Pause(Input{Node: in.Node, Rootfs: "/run/crio/containers/p1/rootfs", CgroupsPath: "/kubepods/pod1/crio-p1", Namespaces: in.Namespaces})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		"sandbox-pause": func(t *testing.T) *specs.Spec {
			s, err := Pause(Input{
				Node: podInput().Node, Rootfs: "/run/crio/pause", CgroupsPath: "/kubepods/pod1/crio-p1", Namespaces: Namespaces{Net: "/run/crio/ns/p1/net"},
				Hostname: "web-0", Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
			})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		"pause": func(t *testing.T) *specs.Spec {
			s, err := Pause(Input{
				Node: podInput().Node, Rootfs: "/run/crio/pause", CgroupsPath: "/kubepods/pod1/crio-p1", Namespaces: podInput().Namespaces,
			})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
	} {
		t.Run(name, func(t *testing.T) { golden(t, filepath.Join("testdata", name+".json"), made(t)) })
	}
}

func plainPod(in *Input) {
	in.Config.Envs = []*cri.KeyValue{{Key: "PORT", Value: []byte("80")}}
	in.Config.Mounts = nil
	in.Mounts = []Mount{
		{Source: "/var/lib/kubelet/pods/1/volumes/data", Mount: &cri.Mount{ContainerPath: "/srv/data"}},
		{Source: "/var/lib/kubelet/pods/1/etc-hosts", Mount: &cri.Mount{ContainerPath: "/etc/hosts"}},
		{Source: "/var/lib/kubelet/pods/1/volumes/token", Mount: &cri.Mount{
			ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", Readonly: true, RecursiveReadOnly: true,
		}},
	}
}

func privilegedPod(in *Input) {
	security(in).Privileged = true
	in.User = User{Home: "/root"}
	in.Devices = []Device{{Access: "rwm", LinuxDevice: specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}}
	in.Mounts = []Mount{{Source: "/var/lib/kubelet", Mount: &cri.Mount{
		ContainerPath: "/var/lib/kubelet", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL,
	}}}
}

func hostPod(in *Input) {
	in.Namespaces, in.HostMqueue = Namespaces{HostNet: true, HostIPC: true, HostUTS: true, HostPID: true}, true
	in.Hostname, in.Shm = "node-7", "/dev/shm"
	in.Config.Tty = true
}

func limitedPod(in *Input) {
	security(in).ReadonlyRootfs, security(in).NoNewPrivs = true, true
	in.Node.PidsLimit = 2048
	in.Node.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}}
	in.Devices = []Device{{Access: "rw", LinuxDevice: specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}}
	in.Config.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 512, CpusetCpus: "0-1", CpusetMems: "0", OomScoreAdj: 985,
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "60000000"},
	}
}

// usersPod has a user namespace and a volume whose owners are the same inside.
func usersPod(in *Input) {
	in.Node.IDMap = true
	in.Namespaces.User = "/run/crio/ns/p1/user"
	in.Namespaces.UIDs = specs.LinuxIDMapping{HostID: 1 << 20, Size: 1 << 16}
	in.Namespaces.GIDs = specs.LinuxIDMapping{HostID: 1 << 21, Size: 1 << 16}
	in.Mounts = []Mount{{Source: "/var/lib/kubelet/pods/1/volumes/data", Mount: &cri.Mount{
		ContainerPath: "/srv/data",
		UidMappings:   []*cri.IDMapping{{HostId: 1 << 20, Length: 1 << 16}},
		GidMappings:   []*cri.IDMapping{{HostId: 1 << 21, Length: 1 << 16}},
	}}}
}

func TestUsers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Input)
		refuse []string
	}{
		"as it is":            {change: func(*Input) {}},
		"user beyond":         {change: func(in *Input) { in.User.UID = 1 << 16 }, refuse: []string{"user 65536"}},
		"group beyond":        {change: func(in *Input) { in.User.GID = 1 << 16 }, refuse: []string{"group 65536"}},
		"other groups beyond": {change: func(in *Input) { in.User.Groups = []uint32{1, 1 << 20} }, refuse: []string{"group 1048576"}},
		"runtime without":     {change: func(in *Input) { in.Node.IDMap = false }, refuse: []string{"uidMappings of /srv/data", "runtime handler"}},
		"uids alone":          {change: func(in *Input) { in.Mounts[0].GidMappings = nil }, refuse: []string{"uidMappings of /srv/data", "gidMappings"}},
		"gids alone":          {change: func(in *Input) { in.Mounts[0].UidMappings = nil }, refuse: []string{"gidMappings of /srv/data", "uidMappings"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Container(podInput(usersPod, c.change))
			wantError(t, err, c.refuse...)
		})
	}
	// The group of terminals is not in a small map, and devpts would not mount with it.
	small := podInput(usersPod, func(in *Input) { in.Namespaces.GIDs.Size, in.User = 5, User{} })
	if o := at(t, build(t, small), "/dev/pts").Options; slices.Contains(o, "gid=5") {
		t.Errorf("devpts has options %v", o)
	}
}

func golden(t *testing.T, path string, s *specs.Spec) {
	t.Helper()
	if profile := s.Linux.Seccomp; profile != nil {
		// The rules are the library's, and they differ with the architecture.
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: profile.DefaultAction, DefaultErrnoRet: profile.DefaultErrnoRet}
	}
	got, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs; if that is right, run go test -update and read the difference. Got:\n%s", path, got)
	}
}

// TestIsDeterministic guards the maps in Input.
func TestIsDeterministic(t *testing.T) {
	text := func() string {
		in := podInput(limitedPod)
		in.Sysctls = map[string]string{"net.core.somaxconn": "1", "kernel.shmmni": "2"}
		data, err := json.Marshal(build(t, in))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	first := text()
	for range 20 {
		if again := text(); again != first {
			t.Fatalf("two specifications from one input:\n%s\n%s", first, again)
		}
	}
}

func TestCommandLine(t *testing.T) {
	image := imagespec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}}
	for name, c := range map[string]struct {
		image         imagespec.ImageConfig
		command, args []string
		want          []string // nil is an error
	}{
		"the image's own":                     {image: image, want: []string{"/entry", "cmd"}},
		"args replace cmd":                    {image: image, args: []string{"a", "b"}, want: []string{"/entry", "a", "b"}},
		"command replaces entrypoint and cmd": {image: image, command: []string{"sh", "-c"}, want: []string{"sh", "-c"}},
		"command and args replace both":       {image: image, command: []string{"sh"}, args: []string{"x"}, want: []string{"sh", "x"}},
		"cmd alone":                           {image: imagespec.ImageConfig{Cmd: []string{"cmd"}}, want: []string{"cmd"}},
		"args alone":                          {args: []string{"ls", "-l"}, want: []string{"ls", "-l"}},
		"an empty argument stays":             {command: []string{"echo", ""}, want: []string{"echo", ""}},
		"nobody names one":                    {},
		"an empty name":                       {command: []string{""}, args: []string{"x"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := &cri.ContainerConfig{Image: &cri.ImageSpec{Image: "web:1"}, Command: c.command, Args: c.args}
			got, err := commandLine(config, c.image)
			if c.want == nil {
				wantError(t, err, "command", "web:1")
			} else if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
	// The slices belong to the image's snapshot, which other containers read.
	shared := append(make([]string, 0, 4), "/entry")
	for _, arg := range []string{"one", "two"} {
		line, err := commandLine(&cri.ContainerConfig{Args: []string{arg}}, imagespec.ImageConfig{Entrypoint: shared})
		if err != nil || shared[:2][1] != "" {
			t.Errorf("%q, %v wrote into the image's own entrypoint: %q", line, err, shared[:2])
		}
	}
}

func TestEnvironment(t *testing.T) {
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	kv := func(key, value string) *cri.KeyValue { return &cri.KeyValue{Key: key, Value: []byte(value)} }
	for name, c := range map[string]struct {
		node, image []string
		pod         []*cri.KeyValue
		home        string
		tty         bool
		want        []string
	}{
		"nothing said":                     {want: []string{path, "HOSTNAME=h"}},
		"home and terminal":                {home: "/root", tty: true, want: []string{path, "HOSTNAME=h", "HOME=/root", "TERM=xterm"}},
		"image over defaults":              {home: "/root", image: []string{"HOME=/i", "PATH=/i"}, want: []string{"PATH=/i", "HOSTNAME=h", "HOME=/i"}},
		"pod over image over node":         {node: []string{"A=n", "B=n", "C=n"}, image: []string{"A=i", "B=i"}, pod: []*cri.KeyValue{kv("A", "p")}, want: []string{path, "HOSTNAME=h", "A=p", "B=i", "C=n"}},
		"the last of the pod's own wins":   {pod: []*cri.KeyValue{kv("A", "1"), kv("B", "2"), kv("A", "3")}, want: []string{path, "HOSTNAME=h", "A=3", "B=2"}},
		"= and newline belong to a value":  {pod: []*cri.KeyValue{kv("A", "x=y\nz"), kv("E", "")}, want: []string{path, "HOSTNAME=h", "A=x=y\nz", "E="}},
		"broken ones of an image are left": {image: []string{"NOVALUE", "=x", "", "A=1"}, want: []string{path, "HOSTNAME=h", "A=1"}},
		"names are not folded":             {image: []string{"path=/i"}, want: []string{path, "HOSTNAME=h", "path=/i"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := podInput()
			in.Hostname, in.User.Home, in.Config.Tty = "h", c.home, c.tty
			in.Node.DefaultEnv, in.Image.Env, in.Config.Envs = c.node, c.image, c.pod
			if got := build(t, in).Process.Env; !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
	for name, bad := range map[string]*cri.KeyValue{"": kv("", "x"), "A=B": kv("A=B", "x"), "NUL": kv("NUL", "a\x00b"), "A\\x00": kv("A\x00", "x")} {
		_, err := Container(podInput(func(in *Input) { in.Config.Envs = []*cri.KeyValue{bad} }))
		wantError(t, err, "envs", name)
	}
}

// The CRI's value is of bytes, the specification is JSON: a value must not change on the way.
func TestEnvironmentIsText(t *testing.T) {
	value := func(v string) func(*Input) {
		return func(in *Input) { in.Config.Envs = []*cri.KeyValue{{Key: "KEYSTORE", Value: []byte(v)}} }
	}
	if env := build(t, podInput(value("caf\xc3\xa9"))).Process.Env; !slices.Contains(env, "KEYSTORE=café") {
		t.Errorf("%q", env)
	}
	_, err := Container(podInput(value("\xff\xfe")))
	wantError(t, err, "envs", "KEYSTORE", "UTF-8")
}

func TestCommandLineWithoutNUL(t *testing.T) {
	const bad = "a\x00b"
	for field, change := range map[string]func(*Input){
		"command: word 1": func(in *Input) { in.Config.Command = []string{"sh", bad} },
		"args: word 0":    func(in *Input) { in.Config.Command, in.Config.Args = []string{"sh"}, []string{bad} },
		"command: word 0": func(in *Input) { in.Config.Command, in.Image.Entrypoint = nil, []string{bad} },
		"args: word 1":    func(in *Input) { in.Config.Command, in.Config.Args, in.Image.Cmd = nil, nil, []string{"sh", bad} },
	} {
		_, err := Container(podInput(change))
		wantError(t, err, field, "NUL")
	}
}

func TestWorkingDir(t *testing.T) {
	for _, c := range []struct{ pod, image, want string }{
		{"", "", "/"}, {"", "/i", "/i"}, {"/p", "/i", "/p"}, {"", "rel", "/rel"}, {"../..", "", "/"}, {"/a//b/.", "", "/a/b"},
	} {
		in := podInput()
		in.Config.WorkingDir, in.Image.WorkingDir = c.pod, c.image
		if got := build(t, in).Process.Cwd; got != c.want {
			t.Errorf("pod %q, image %q: got %q, want %q", c.pod, c.image, got, c.want)
		}
	}
}

func TestUser(t *testing.T) {
	for name, u := range map[string]User{
		"root without groups": {},
		"groups in order":     {UID: 33, GID: 34, Groups: []uint32{70, 34, 50}},
		"largest":             {UID: 1<<32 - 2, GID: 1<<32 - 2, Groups: []uint32{1<<32 - 2}},
	} {
		t.Run(name, func(t *testing.T) {
			got := build(t, podInput(func(in *Input) { in.User = u })).Process.User
			if got.UID != u.UID || got.GID != u.GID || !slices.Equal(got.AdditionalGids, u.Groups) || got.Umask != nil || got.Username != "" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestNamespaces(t *testing.T) {
	pinned := Namespaces{Net: "/n/net", IPC: "/n/ipc", UTS: "/n/uts"}
	with := func(n Namespaces, change func(*Namespaces)) Namespaces { change(&n); return n }
	for name, c := range map[string]struct {
		namespaces Namespaces
		cgroupV1   bool
		privileged bool
		want       string
	}{
		"CONTAINER has its own pid":   {namespaces: pinned, want: "mount network=/n/net ipc=/n/ipc uts=/n/uts pid cgroup"},
		"POD joins the pause's pid":   {namespaces: with(pinned, func(n *Namespaces) { n.PID = "/proc/7/ns/pid" }), want: "mount network=/n/net ipc=/n/ipc uts=/n/uts pid=/proc/7/ns/pid cgroup"},
		"NODE keeps the node's pid":   {namespaces: with(pinned, func(n *Namespaces) { n.HostPID = true }), want: "mount network=/n/net ipc=/n/ipc uts=/n/uts cgroup"},
		"NODE network":                {namespaces: Namespaces{IPC: "/n/ipc", HostNet: true, HostUTS: true}, want: "mount ipc=/n/ipc pid cgroup"},
		"all of the node's":           {namespaces: Namespaces{HostNet: true, HostUTS: true, HostIPC: true, HostPID: true}, want: "mount cgroup"},
		"privileged sees all cgroups": {namespaces: pinned, privileged: true, want: "mount network=/n/net ipc=/n/ipc uts=/n/uts pid"},
		"cgroup v1":                   {namespaces: pinned, cgroupV1: true, want: "mount network=/n/net ipc=/n/ipc uts=/n/uts pid"},
		"nothing pinned is new":       {want: "mount network ipc uts pid cgroup"},
	} {
		t.Run(name, func(t *testing.T) {
			in := podInput()
			in.Namespaces, in.Node.CgroupV2, security(&in).Privileged = c.namespaces, !c.cgroupV1, c.privileged
			var got []string
			for _, ns := range build(t, in).Linux.Namespaces {
				text := string(ns.Type)
				if ns.Path != "" {
					text += "=" + ns.Path
				}
				got = append(got, text)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, " "), c.want)
			}
		})
	}
}

// A runtime refuses a hostname without a new UTS namespace: the one that a pod has
// pinned carries its name already.
func TestHostname(t *testing.T) {
	for name, c := range map[string]struct {
		namespaces Namespaces
		want       string
	}{
		"pinned namespace": {Namespaces{UTS: "/n/uts"}, ""},
		"the node's":       {Namespaces{HostUTS: true}, ""},
		"a new one":        {Namespaces{}, "web-0"},
	} {
		s := build(t, podInput(func(in *Input) { in.Namespaces = c.namespaces }))
		if s.Hostname != c.want || !slices.Contains(s.Process.Env, "HOSTNAME=web-0") {
			t.Errorf("%s: hostname %q, environment %q", name, s.Hostname, s.Process.Env)
		}
	}
}

func TestSysctls(t *testing.T) {
	want := map[string]string{"net.core.somaxconn": "1024", "kernel.shm_rmid_forced": "1"}
	if got := build(t, podInput(func(in *Input) { in.Sysctls = want })).Linux.Sysctl; !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if got := build(t, podInput()).Linux.Sysctl; len(got) != 0 {
		t.Errorf("the template's sysctls are left: %v", got)
	}
}

func TestPlainFlags(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Input)
		ok     func(*specs.Spec) bool
	}{
		"defaults":             {func(*Input) {}, func(s *specs.Spec) bool { return !s.Process.Terminal && !s.Process.NoNewPrivileges && !s.Root.Readonly }},
		"tty":                  {func(in *Input) { in.Config.Tty = true }, func(s *specs.Spec) bool { return s.Process.Terminal }},
		"no_new_privs":         {func(in *Input) { security(in).NoNewPrivs = true }, func(s *specs.Spec) bool { return s.Process.NoNewPrivileges }},
		"readonly_rootfs":      {func(in *Input) { security(in).ReadonlyRootfs = true }, func(s *specs.Spec) bool { return s.Root.Readonly }},
		"the node's read_only": {func(in *Input) { in.Node.ReadOnly = true }, func(s *specs.Spec) bool { return s.Root.Readonly }},
		"version":              {func(in *Input) { in.Node.OCIVersion = "1.0.2" }, func(s *specs.Spec) bool { return s.Version == "1.0.2" }},
		"no linux part":        {func(in *Input) { in.Config.Linux = nil }, func(s *specs.Spec) bool { return s.Linux.Seccomp == nil && len(s.Linux.MaskedPaths) > 0 }},
	} {
		if s := build(t, podInput(c.change)); !c.ok(s) {
			t.Errorf("%s: got %+v, root %+v", name, s.Process, s.Root)
		}
	}
}
