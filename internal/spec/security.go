package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// KnownCapabilities are all that Linux has defined so far, each at the index that is
// its number (linux/capability.h, kernel 5.9 and later).
func KnownCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
		"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
		"CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
		"CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
		"CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
		"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
		"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// capabilities sets bounding, permitted and effective alike. Inheritable stays empty
// but for ambient ones, which the kernel refuses otherwise: a non-empty inheritable
// set lets an unprivileged program regain what it was denied (CVE-2022-27652).
func (b *builder) capabilities() error {
	set, ambient, err := b.capabilitySet()
	if err != nil {
		return err
	}
	b.g.Config.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: set, Permitted: slices.Clone(set), Effective: slices.Clone(set),
		Inheritable: slices.Clone(ambient), Ambient: ambient,
	}
	return nil
}

func (b *builder) capabilitySet() (set, ambient []string, err error) {
	asked := b.security.GetCapabilities()
	add, addAll, err := canonical("add_capabilities", asked.GetAddCapabilities())
	if err != nil {
		return nil, nil, err
	}
	drop, dropAll, err := canonical("drop_capabilities", asked.GetDropCapabilities())
	if err != nil {
		return nil, nil, err
	}
	ambient, ambientAll, err := canonical("add_ambient_capabilities", asked.GetAddAmbientCapabilities())
	if err != nil {
		return nil, nil, err
	}
	// They have all, whatever else is asked for; names that are none are refused all the same.
	if b.privileged() {
		if missing := without(KnownCapabilities(), b.Node.Capabilities); len(missing) > 0 {
			b.clamp("privileged: the daemon itself lacks %s", strings.Join(missing, " "))
		}
		return slices.Clone(b.Node.Capabilities), nil, nil
	}
	// Where ALL is both dropped and added, the drop wins: what remains is what is named.
	switch {
	case dropAll:
	case addAll:
		set = slices.Clone(b.Node.Capabilities)
	default:
		if set, _, err = canonical("default_capabilities", b.Node.DefaultCapabilities); err != nil {
			return nil, nil, err
		}
	}
	if ambientAll && !dropAll {
		ambient = append(ambient, b.Node.Capabilities...)
	}
	slices.Sort(ambient)
	ambient = slices.Compact(ambient)
	set = append(append(set, add...), ambient...)
	slices.Sort(set)
	set = without(slices.Compact(set), drop)
	if missing := without(set, b.Node.Capabilities); len(missing) > 0 {
		b.clamp("capabilities: the daemon itself lacks %s", strings.Join(missing, " "))
		set = without(set, missing)
	}
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return !slices.Contains(set, c) })
	return set, ambient, nil
}

// canonical gives names the CAP_ prefix and takes "ALL" apart.
func canonical(field string, names []string) (caps []string, all bool, err error) {
	known := KnownCapabilities()
	for _, name := range names {
		upper := strings.ToUpper(name)
		if upper == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(upper, "CAP_") {
			upper = "CAP_" + upper
		}
		if !slices.Contains(known, upper) {
			return nil, false, fmt.Errorf("%s: %q is not a capability", field, name)
		}
		caps = append(caps, upper)
	}
	return caps, all, nil
}

func without(set, drop []string) []string {
	return slices.DeleteFunc(slices.Clone(set), func(c string) bool { return slices.Contains(drop, c) })
}

// SeccompProfile returns what the security context asks for, the new field before
// the deprecated one; nil means unconfined.
func SeccompProfile(s *cri.LinuxContainerSecurityContext) (*cri.SecurityProfile, error) {
	if p := s.GetSeccomp(); p != nil {
		return checkProfile("seccomp", p)
	}
	//lint:ignore SA1019 older kubelets send it
	return deprecatedProfile("seccomp_profile_path", s.GetSeccompProfilePath())
}

// AppArmorProfile is the same for AppArmor, where absent means RuntimeDefault.
func AppArmorProfile(s *cri.LinuxContainerSecurityContext) (*cri.SecurityProfile, error) {
	if p := s.GetApparmor(); p != nil {
		return checkProfile("apparmor", p)
	}
	//lint:ignore SA1019 older kubelets send it
	name := s.GetApparmorProfile()
	if name == "" {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	}
	return deprecatedProfile("apparmor_profile", name)
}

func checkProfile(field string, p *cri.SecurityProfile) (*cri.SecurityProfile, error) {
	if _, known := cri.SecurityProfile_ProfileType_name[int32(p.GetProfileType())]; !known {
		return nil, fmt.Errorf("%s: profile type %d is unknown", field, p.GetProfileType())
	}
	local := p.GetProfileType() == cri.SecurityProfile_Localhost
	if local != (p.GetLocalhostRef() != "") {
		return nil, fmt.Errorf("%s: localhost_ref goes with the profile type Localhost, and only with it", field)
	}
	return p, nil
}

func deprecatedProfile(field, value string) (*cri.SecurityProfile, error) {
	switch {
	case value == "" || value == "unconfined":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case value == "runtime/default":
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case strings.HasPrefix(value, "localhost/"):
		return checkProfile(field, &cri.SecurityProfile{
			ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: strings.TrimPrefix(value, "localhost/"),
		})
	}
	return nil, fmt.Errorf("%s: %q is none of runtime/default, unconfined and localhost/PATH", field, value)
}

func (b *builder) seccomp() error {
	b.g.Config.Linux.Seccomp = nil
	if b.privileged() {
		return nil
	}
	profile, err := SeccompProfile(b.security)
	if err != nil {
		return err
	}
	switch kind := profile.GetProfileType(); {
	case kind == cri.SecurityProfile_Unconfined:
		return nil
	case kind == cri.SecurityProfile_RuntimeDefault && len(b.SeccompProfile) == 0:
		b.g.Config.Linux.Seccomp, err = seccomp.GetDefaultProfile(b.g.Config)
	default:
		b.g.Config.Linux.Seccomp, err = seccomp.LoadProfile(string(b.SeccompProfile), b.g.Config)
	}
	if err != nil {
		return fmt.Errorf("seccomp profile %s %q: %w", profile.GetProfileType(), profile.GetLocalhostRef(), err)
	}
	return nil
}

// CheckSeccomp parses the text of a Localhost profile; the others are the node's.
func CheckSeccomp(s *cri.LinuxContainerSecurityContext, text []byte) error {
	p, err := SeccompProfile(s)
	if err != nil || p.GetProfileType() != cri.SecurityProfile_Localhost {
		return err
	}
	process := &specs.Process{Capabilities: &specs.LinuxCapabilities{}}
	if _, err := seccomp.LoadProfile(string(text), &specs.Spec{Process: process, Linux: &specs.Linux{}}); err != nil {
		return fmt.Errorf("seccomp: localhost_ref %q: %w", p.GetLocalhostRef(), err)
	}
	return nil
}

// ErrNoAppArmor answers those who ask for a profile by its name.
var ErrNoAppArmor = errors.New("the node's kernel does not have AppArmor enabled")

// Unconfined is the name by which an AppArmor profile is none.
const Unconfined = "unconfined"

// apparmor confines the process. A privileged one is confined only where it asks for a
// profile by name: "AppArmor confinement is not applied", but the field is not without
// effect (LinuxContainerSecurityContext.privileged).
func (b *builder) apparmor() error {
	profile, err := AppArmorProfile(b.security)
	if err != nil {
		return err
	}
	name := ""
	switch profile.GetProfileType() {
	case cri.SecurityProfile_Localhost:
		if !b.Node.AppArmor {
			return fmt.Errorf("apparmor: profile %q: %w", profile.GetLocalhostRef(), ErrNoAppArmor)
		}
		name = profile.GetLocalhostRef()
	case cri.SecurityProfile_RuntimeDefault:
		if b.privileged() || !b.Node.AppArmor {
			return nil
		}
		//lint:ignore SA1019 older kubelets send it
		asked := b.security.GetApparmor() != nil || b.security.GetApparmorProfile() != ""
		if name = b.Node.AppArmorProfile; name == "" && asked {
			return errors.New("apparmor: RuntimeDefault: the default profile could not be loaded: see the daemon's log of its start")
		}
	}
	if name != Unconfined {
		b.g.SetProcessApparmorProfile(name)
	}
	return nil
}

// selinux passes on labels that were decided on elsewhere.
func (b *builder) selinux() error {
	b.g.SetProcessSelinuxLabel(b.ProcessLabel)
	b.g.SetLinuxMountLabel(b.MountLabel)
	return nil
}
