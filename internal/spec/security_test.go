package spec

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCapabilities(t *testing.T) {
	all := slices.Sorted(slices.Values(held()))
	caps := func(names string) []string {
		var full []string
		for _, name := range strings.Fields(names) {
			full = append(full, "CAP_"+name)
		}
		return full
	}
	for name, c := range map[string]struct {
		add, drop, ambient string
		want, wantAmbient  []string
		clamped            string
	}{
		"the defaults":                  {want: caps("CHOWN KILL NET_BIND_SERVICE SETUID")},
		"add and drop":                  {add: "NET_RAW", drop: "KILL SETUID", want: caps("CHOWN NET_BIND_SERVICE NET_RAW")},
		"any spelling":                  {add: "cap_net_raw Sys_Time", drop: "CAP_kill", want: caps("CHOWN NET_BIND_SERVICE NET_RAW SETUID SYS_TIME")},
		"add what is there":             {add: "KILL CAP_KILL", want: caps("CHOWN KILL NET_BIND_SERVICE SETUID")},
		"drop beats add":                {add: "NET_RAW", drop: "NET_RAW", want: caps("CHOWN KILL NET_BIND_SERVICE SETUID")},
		"drop ALL":                      {drop: "ALL"},
		"drop ALL, add one":             {add: "NET_BIND_SERVICE", drop: "all", want: caps("NET_BIND_SERVICE")},
		"add ALL":                       {add: "all", want: all},
		"add ALL, drop one":             {add: "ALL", drop: "SYS_ADMIN", want: without(all, caps("SYS_ADMIN"))},
		"ambient":                       {ambient: "NET_BIND_SERVICE NET_RAW", want: caps("CHOWN KILL NET_BIND_SERVICE NET_RAW SETUID"), wantAmbient: caps("NET_BIND_SERVICE NET_RAW")},
		"ambient twice":                 {drop: "ALL", ambient: "NET_RAW CAP_NET_RAW", want: caps("NET_RAW"), wantAmbient: caps("NET_RAW")},
		"ambient and add":               {drop: "ALL", add: "KILL NET_RAW", ambient: "NET_RAW", want: caps("KILL NET_RAW"), wantAmbient: caps("NET_RAW")},
		"drop beats ambient":            {drop: "NET_RAW", ambient: "NET_RAW", want: caps("CHOWN KILL NET_BIND_SERVICE SETUID")},
		"ambient ALL":                   {ambient: "ALL", want: all, wantAmbient: all},
		"ambient ALL, drop one":         {drop: "CHOWN", ambient: "ALL", want: without(all, caps("CHOWN")), wantAmbient: without(all, caps("CHOWN"))},
		"the daemon lacks one":          {add: "SYS_RESOURCE KILL", want: caps("CHOWN KILL NET_BIND_SERVICE SETUID"), clamped: "CAP_SYS_RESOURCE"},
		"the daemon lacks an ambient":   {ambient: "SYS_MODULE", want: caps("CHOWN KILL NET_BIND_SERVICE SETUID"), clamped: "CAP_SYS_MODULE"},
		"what is dropped is not lacked": {add: "SYS_MODULE", drop: "SYS_MODULE", want: caps("CHOWN KILL NET_BIND_SERVICE SETUID")},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Container(podInput(func(in *Input) {
				security(in).Capabilities = &cri.Capability{
					AddCapabilities: strings.Fields(c.add), DropCapabilities: strings.Fields(c.drop), AddAmbientCapabilities: strings.Fields(c.ambient),
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			wantCapabilities(t, result.Spec, c.want, c.wantAmbient)
			if text := strings.Join(result.Clamped, "\n"); (text == "") != (c.clamped == "") || !strings.Contains(text, c.clamped) {
				t.Errorf("clamped %q, want %q", text, c.clamped)
			}
		})
	}
}

func wantCapabilities(t *testing.T, s *specs.Spec, want, ambient []string) {
	t.Helper()
	got := s.Process.Capabilities
	for name, set := range map[string][]string{"bounding": got.Bounding, "permitted": got.Permitted, "effective": got.Effective} {
		if !slices.Equal(set, want) {
			t.Errorf("%s is %v\nwant %v", name, set, want)
		}
	}
	for name, set := range map[string][]string{"inheritable": got.Inheritable, "ambient": got.Ambient} {
		if !slices.Equal(set, ambient) {
			t.Errorf("%s is %v\nwant %v", name, set, ambient)
		}
	}
}

// TestDropAllBeatsAddAll: least privilege, and what CRI-O and containerd do. It once
// gave the pod everything.
func TestDropAllBeatsAddAll(t *testing.T) {
	for name, asked := range map[string]*cri.Capability{
		"add":     {AddCapabilities: []string{"ALL", "KILL"}, DropCapabilities: []string{"ALL"}},
		"ambient": {AddAmbientCapabilities: []string{"ALL"}, AddCapabilities: []string{"KILL"}, DropCapabilities: []string{"ALL"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, podInput(func(in *Input) { security(in).Capabilities = asked }))
			wantCapabilities(t, s, []string{"CAP_KILL"}, nil)
		})
	}
}

func TestUnknownCapability(t *testing.T) {
	for field, change := range map[string]func(*Input, []string){
		"add_capabilities":         func(in *Input, c []string) { security(in).Capabilities.AddCapabilities = c },
		"drop_capabilities":        func(in *Input, c []string) { security(in).Capabilities.DropCapabilities = c },
		"add_ambient_capabilities": func(in *Input, c []string) { security(in).Capabilities.AddAmbientCapabilities = c },
		"default_capabilities":     func(in *Input, c []string) { in.Node.DefaultCapabilities = c },
	} {
		for _, bad := range []string{"NET_RAWW", "", "CAP_CAP_KILL", "CAP_ALL"} {
			in := podInput()
			security(&in).Capabilities = &cri.Capability{}
			change(&in, []string{"KILL", bad})
			_, err := Container(in)
			wantError(t, err, field, `"`+bad+`"`)
		}
	}
}

func TestPrivilegedCapabilities(t *testing.T) {
	for name, c := range map[string]struct {
		held    []string
		clamped []string
	}{
		"all":                {KnownCapabilities(), nil},
		"the daemon's limit": {held(), []string{"CAP_SYS_MODULE", "CAP_SYS_RESOURCE"}},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Container(podInput(privilegedPod, func(in *Input) {
				in.Node.Capabilities = c.held
				security(in).Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
			}))
			if err != nil {
				t.Fatal(err)
			}
			wantCapabilities(t, result.Spec, c.held, nil)
			if (len(result.Clamped) == 0) != (c.clamped == nil) {
				t.Errorf("clamped %q", result.Clamped)
			}
			for _, lacking := range c.clamped {
				if !strings.Contains(strings.Join(result.Clamped, " "), lacking) {
					t.Errorf("clamped %q does not name %s", result.Clamped, lacking)
				}
			}
		})
	}
	// They change nothing, but are read.
	for field, bad := range map[string]*cri.Capability{
		"add_capabilities": {AddCapabilities: []string{"FLY"}}, "drop_capabilities": {DropCapabilities: []string{"FLY"}},
		"add_ambient_capabilities": {AddAmbientCapabilities: []string{"FLY"}},
	} {
		_, err := Container(podInput(privilegedPod, func(in *Input) { security(in).Capabilities = bad }))
		wantError(t, err, field, "FLY")
	}
}

const (
	runtimeDefault = cri.SecurityProfile_RuntimeDefault
	unconfined     = cri.SecurityProfile_Unconfined
	localhost      = cri.SecurityProfile_Localhost
)

func profile(kind cri.SecurityProfile_ProfileType, ref string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

// profileCase is what both kinds of profile have in common.
type profileCase struct {
	new    *cri.SecurityProfile
	old    string
	kind   cri.SecurityProfile_ProfileType
	ref    string
	refuse string
}

func profileCases() map[string]profileCase {
	return map[string]profileCase{
		"runtime default":             {new: profile(runtimeDefault, ""), kind: runtimeDefault},
		"unconfined":                  {new: profile(unconfined, ""), kind: unconfined},
		"localhost":                   {new: profile(localhost, "/p"), kind: localhost, ref: "/p"},
		"old runtime default":         {old: "runtime/default", kind: runtimeDefault},
		"old unconfined":              {old: "unconfined", kind: unconfined},
		"old localhost":               {old: "localhost//p", kind: localhost, ref: "/p"},
		"new over old":                {new: profile(unconfined, ""), old: "localhost//p", kind: unconfined},
		"new over a broken old":       {new: profile(runtimeDefault, ""), old: "nonsense", kind: runtimeDefault},
		"localhost without reference": {new: profile(localhost, ""), refuse: "localhost_ref"},
		"reference without localhost": {new: profile(unconfined, "/p"), refuse: "localhost_ref"},
		"unknown type":                {new: profile(9, ""), refuse: "9"},
		"old nonsense":                {old: "nonsense", refuse: `"nonsense"`},
		"old localhost, no reference": {old: "localhost/", refuse: "localhost_ref"},
		"old in another case":         {old: "Unconfined", refuse: `"Unconfined"`},
	}
}

func TestProfiles(t *testing.T) {
	for kind, choose := range map[string]func(profileCase) (*cri.SecurityProfile, error){
		"seccomp": func(c profileCase) (*cri.SecurityProfile, error) {
			//lint:ignore SA1019 older kubelets send it
			return SeccompProfile(&cri.LinuxContainerSecurityContext{Seccomp: c.new, SeccompProfilePath: c.old})
		},
		"apparmor": func(c profileCase) (*cri.SecurityProfile, error) {
			//lint:ignore SA1019 older kubelets send it
			return AppArmorProfile(&cri.LinuxContainerSecurityContext{Apparmor: c.new, ApparmorProfile: c.old})
		},
	} {
		cases := profileCases()
		// Absent is where they differ (seccomp_profile_path, apparmor_profile in the proto).
		cases["absent"] = profileCase{kind: map[string]cri.SecurityProfile_ProfileType{"seccomp": unconfined, "apparmor": runtimeDefault}[kind]}
		for name, c := range cases {
			t.Run(kind+"/"+name, func(t *testing.T) {
				got, err := choose(c)
				if c.refuse != "" {
					wantError(t, err, kind, c.refuse)
					return
				}
				if err != nil || got.GetProfileType() != c.kind || got.GetLocalhostRef() != c.ref {
					t.Errorf("got %v, %v, want %s %q", got, err, c.kind, c.ref)
				}
			})
		}
	}
}

func TestSeccomp(t *testing.T) {
	const own = `{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}]}`
	for name, c := range map[string]struct {
		profile    *cri.SecurityProfile
		text       string
		privileged bool
		want       specs.LinuxSeccompAction // "" is no seccomp
		refuse     string
	}{
		"built-in":                      {profile: profile(runtimeDefault, ""), want: specs.ActErrno},
		"the node's own RuntimeDefault": {profile: profile(runtimeDefault, ""), text: own, want: specs.ActLog},
		"localhost":                     {profile: profile(localhost, "/p.json"), text: own, want: specs.ActLog},
		"unconfined":                    {profile: profile(unconfined, ""), text: own},
		"absent":                        {text: own},
		"privileged":                    {profile: profile(localhost, "/p.json"), text: own, privileged: true},
		"empty text":                    {profile: profile(localhost, "/p.json"), refuse: "/p.json"},
		"broken text":                   {profile: profile(localhost, "/p.json"), text: "{", refuse: "/p.json"},
		"broken text of the node":       {profile: profile(runtimeDefault, ""), text: "[]", refuse: "RuntimeDefault"},
		"unknown type":                  {profile: profile(9, ""), refuse: "profile type 9"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := Container(podInput(func(in *Input) {
				security(in).Seccomp, in.SeccompProfile, security(in).Privileged = c.profile, []byte(c.text), c.privileged
			}))
			if c.refuse != "" {
				wantError(t, err, "seccomp", c.refuse)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := result.Spec.Linux.Seccomp; (s == nil) != (c.want == "") || (s != nil && s.DefaultAction != c.want) {
				t.Errorf("got %+v, want %q", s, c.want)
			}
		})
	}
}

// TestSeccompFollowsCapabilities: the built-in profile opens calls to who may use them.
func TestSeccompFollowsCapabilities(t *testing.T) {
	allows := func(add ...string) bool {
		s := build(t, podInput(func(in *Input) { security(in).Capabilities = &cri.Capability{AddCapabilities: add} }))
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, "mount")
		})
	}
	if allows() || !allows("SYS_ADMIN") {
		t.Errorf("mount: %v without CAP_SYS_ADMIN, %v with it", allows(), allows("SYS_ADMIN"))
	}
}

func TestAppArmor(t *testing.T) {
	for name, c := range map[string]struct {
		profile         *cri.SecurityProfile
		old             string
		none, privilege bool
		node            string
		want, refuse    string
	}{
		"localhost":                 {profile: profile(localhost, "web"), want: "web"},
		"localhost, old":            {old: "localhost/web", want: "web"},
		"the new field wins":        {profile: profile(localhost, "web"), old: "localhost/db", want: "web"},
		"the new field's none":      {profile: profile(unconfined, ""), old: "localhost/db"},
		"default":                   {profile: profile(runtimeDefault, ""), node: "crio-default", want: "crio-default"},
		"default, old":              {old: "runtime/default", node: "crio-default", want: "crio-default"},
		"absent is default":         {node: "crio-default", want: "crio-default"},
		"default is unconfined":     {profile: profile(runtimeDefault, ""), node: Unconfined},
		"default is not loaded":     {profile: profile(runtimeDefault, ""), refuse: "RuntimeDefault"},
		"old default is not loaded": {old: "runtime/default", refuse: "RuntimeDefault"},
		"nobody asked":              {},
		"unconfined":                {profile: profile(unconfined, ""), node: "crio-default"},
		"unconfined, old":           {old: "unconfined", node: "crio-default"},
		"privileged":                {privilege: true, node: "crio-default"},
		"privileged and default":    {profile: profile(runtimeDefault, ""), privilege: true, node: "crio-default"},
		"privileged by its name":    {profile: profile(localhost, "web"), privilege: true, want: "web"},
		"bad and privileged":        {profile: profile(localhost, ""), privilege: true, refuse: "localhost_ref"},
		"localhost, no support":     {profile: profile(localhost, "web"), none: true, refuse: "\"web\""},
		"default, no support":       {profile: profile(runtimeDefault, ""), none: true},
		"unconfined, no support":    {profile: profile(unconfined, ""), none: true},
	} {
		t.Run(name, func(t *testing.T) {
			in := podInput(func(in *Input) {
				in.Node.AppArmor, in.Node.AppArmorProfile = !c.none, c.node
				security(in).Apparmor, security(in).Privileged = c.profile, c.privilege
				//lint:ignore SA1019 older kubelets send it
				security(in).ApparmorProfile = c.old
			})
			result, err := Container(in)
			pause, pauseErr := Pause(in)
			if c.refuse != "" {
				wantError(t, err, "apparmor", c.refuse)
				wantError(t, pauseErr, "apparmor", c.refuse)
				return
			}
			if err != nil || pauseErr != nil {
				t.Fatal(err, pauseErr)
			}
			for of, got := range map[string]string{"container": result.Spec.Process.ApparmorProfile, "pause": pause.Process.ApparmorProfile} {
				if got != c.want {
					t.Errorf("%s: %q, want %q", of, got, c.want)
				}
			}
		})
	}
}

func TestMaskedPaths(t *testing.T) {
	asked := &cri.LinuxContainerSecurityContext{MaskedPaths: []string{"/proc/m"}, ReadonlyPaths: []string{"/proc/r"}}
	for name, c := range map[string]struct {
		context          *cri.LinuxContainerSecurityContext
		masked, readonly []string
	}{
		"as asked":            {asked, []string{"/proc/m"}, []string{"/proc/r"}},
		"procMount Unmasked":  {&cri.LinuxContainerSecurityContext{}, nil, nil},
		"nobody chose":        {nil, safeMasked(), safeReadonly()},
		"privileged sees all": {&cri.LinuxContainerSecurityContext{Privileged: true, MaskedPaths: []string{"/proc/m"}, ReadonlyPaths: []string{"/proc/r"}}, nil, nil},
	} {
		l := build(t, podInput(func(in *Input) { in.Config.Linux.SecurityContext = c.context })).Linux
		if !slices.Equal(l.MaskedPaths, c.masked) || !slices.Equal(l.ReadonlyPaths, c.readonly) {
			t.Errorf("%s: masked %v, read-only %v", name, l.MaskedPaths, l.ReadonlyPaths)
		}
	}
}
