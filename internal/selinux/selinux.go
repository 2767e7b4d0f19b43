// Package selinux decides which SELinux labels pods, their containers and their files
// get, keeps the categories of the pods apart, and labels files. That a process runs
// with its label is the OCI runtime's doing.
package selinux

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels are the contexts (user:role:type:level) of a process and of the files that it
// may write. Empty ones are none: the kernel or the policy chooses.
type Labels struct{ Process, Mount string }

// Policy gives out labels. It may be used by any number of goroutines.
type Policy struct {
	enabled bool

	mu sync.Mutex
	// levels are how many pods hold each. The library's own list is not enough: it does
	// not count, and the storage library clears it whenever it reads its layers anew.
	levels map[string]int
}

// Open returns the policy of the node: labels are given where they are wanted and the
// kernel has SELinux, enforcing or permissive. It is to be called once, before storage
// is opened, which asks the same library.
func Open(wanted bool) (*Policy, error) {
	p := &Policy{enabled: wanted && selinux.GetEnabled(), levels: map[string]int{}}
	if !p.enabled {
		selinux.SetDisabled()
		return p, nil
	}
	l, err := p.fresh(nil)
	if err == nil && l.Process == "" {
		err = errors.New("its contexts/lxc_contexts has no process and file: install a policy for containers, such as container-selinux")
	}
	if err != nil {
		return nil, fmt.Errorf("selinux policy: %w", err)
	}
	p.Release(l)
	return p, nil
}

// Enabled tells whether there are any labels.
func (p *Policy) Enabled() bool { return p.enabled }

// Pod returns the labels of a new pod and holds their level until Release. Without a
// level in o it is one that no other pod holds.
func (p *Policy) Pod(o *cri.SELinuxOption) (Labels, error) {
	options, err := initOptions(o)
	if err != nil || !p.enabled {
		return Labels{}, err
	}
	return p.fresh(options)
}

func (p *Policy) fresh(options []string) (Labels, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		process, mount, err := label.InitLabels(options)
		if err != nil {
			return Labels{}, fmt.Errorf("selinux_options: %w", err)
		}
		given := slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "level:") })
		level := levelOf(process)
		if p.levels[level] > 0 && !given && strings.Contains(level, ":c") {
			continue // the library has forgotten that it is taken, and knows again now
		}
		l := Labels{process, mount}
		if err := l.check(); err != nil {
			if p.levels[level] == 0 {
				selinux.ReleaseLabel(process)
			}
			return Labels{}, err
		}
		p.levels[level]++
		return l, nil
	}
}

// Reserve holds the level of a pod that an earlier daemon made.
func (p *Policy) Reserve(l Labels) {
	if !p.enabled || l.Process == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.levels[levelOf(l.Process)]++
	// What it says is only that another pod holds the level, too.
	_ = selinux.ReserveLabelV2(l.Process)
}

// Release gives the level of a pod back, once for each Pod or Reserve.
func (p *Policy) Release(l Labels) {
	if !p.enabled || l.Process == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	level := levelOf(l.Process)
	if p.levels[level]--; p.levels[level] <= 0 {
		delete(p.levels, level)
		selinux.ReleaseLabel(l.Process)
	}
}

// Container returns the labels of a container: the pod's, but for what o says. It holds
// no level: one that is given is shared with whoever has it.
func (p *Policy) Container(of Labels, o *cri.SELinuxOption) (Labels, error) {
	if _, err := initOptions(o); err != nil || !p.enabled || of.Process == "" {
		return Labels{}, err
	}
	process, err := selinux.NewContext(of.Process)
	if err != nil {
		return Labels{}, fmt.Errorf("selinux: the label %q of the pod: %w", of.Process, err)
	}
	mount, err := selinux.NewContext(of.Mount)
	if err != nil {
		return Labels{}, fmt.Errorf("selinux: the label %q of the pod: %w", of.Mount, err)
	}
	for part, value := range map[string]string{"user": o.GetUser(), "role": o.GetRole(), "type": o.GetType(), "level": o.GetLevel()} {
		if value == "" {
			continue
		}
		process[part] = value
		// A file's role and type say nothing of who may use it in the same way.
		if part == "user" || part == "level" {
			mount[part] = value
		}
	}
	l := Labels{process.Get(), mount.Get()}
	return l, l.check()
}

// check asks the kernel whether its policy has these contexts.
func (l Labels) check() error {
	for _, context := range []string{l.Process, l.Mount} {
		if context == "" {
			continue
		}
		if err := selinux.SecurityCheckContext(context); err != nil {
			return fmt.Errorf("selinux_options: the node's policy does not have the context %q: %w", context, err)
		}
	}
	return nil
}

// initOptions are o in the library's words.
func initOptions(o *cri.SELinuxOption) ([]string, error) {
	var options []string
	for _, part := range []struct{ name, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()},
	} {
		// Only a level has colons; in another part one would move the rest along.
		if strings.ContainsAny(part.value, " \t\n\x00\"\\") || part.name != "level" && strings.Contains(part.value, ":") {
			return nil, fmt.Errorf("selinux_options.%s: %q is no part of a context", part.name, part.value)
		}
		if part.value != "" {
			options = append(options, part.name+":"+part.value)
		}
	}
	return options, nil
}

func levelOf(context string) string {
	parts := strings.SplitN(context, ":", 4)
	return parts[len(parts)-1]
}

// typeOf is the third part of a context.
func typeOf(context string) string {
	parts := strings.SplitN(context, ":", 4)
	if len(parts) < 3 {
		return ""
	}
	return parts[2]
}

// MountOptions adds the label to the options of a file system that a pod gets for itself.
func (p *Policy) MountOptions(options string, l Labels) string {
	return label.FormatMountLabel(options, l.Mount)
}

// LabelFile labels one file or directory; "" is no label. A link is not followed.
func (p *Policy) LabelFile(path, label string) error {
	if !p.enabled || label == "" {
		return nil
	}
	if err := selinux.LsetFileLabel(path, label); err != nil {
		return fmt.Errorf("selinux label of %s: %w", path, err)
	}
	return nil
}

// Shared is the label of files that every container may read.
func (p *Policy) Shared() string {
	if !p.enabled {
		return ""
	}
	context, err := selinux.NewContext(selinux.PrivContainerMountLabel())
	if err != nil {
		return ""
	}
	context["level"] = "s0"
	return context.Get()
}

// ErrProtected: the node itself does not work with other labels there.
var ErrProtected = errors.New("a directory of the node's own system must keep its labels: mount it without")

// protected holds what the library refuses, too, and all of /usr: of /bin and /lib the
// library knows only the old names.
func protected(path string) bool {
	own := strings.Fields("/ /bin /boot /dev /etc /home /lib /lib64 /media /opt /proc /root /run /sbin /srv /sys /tmp /usr /var /var/lib /var/log")
	return slices.Contains(own, path) || strings.HasPrefix(path, "/usr/")
}

// Relabel gives everything below path, which has no link in it, the label of the
// container's files (Mount.selinux_relabel), path itself last: one that has it has been
// through. Nothing is done without SELinux, for a container that no label holds back, and
// on a file system that keeps no labels. It may take as long as reading every directory.
func (p *Policy) Relabel(path string, l Labels) error {
	if !p.enabled || l.Process == "" || typeOf(l.Process) == "spc_t" {
		return nil
	}
	if has, err := selinux.LfileLabel(path); err == nil && has == l.Mount {
		return nil
	}
	if protected(path) {
		return fmt.Errorf("selinux_relabel of %s: %w", path, ErrProtected)
	}
	err := label.Relabel(path, l.Mount, false)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("selinux_relabel of %s: %w", path, err)
	}
	return nil
}
