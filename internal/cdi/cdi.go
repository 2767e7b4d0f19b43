// Package cdi injects devices into an OCI specification, as the Container Device
// Interface describes them (https://tags.cncf.io/container-device-interface): files
// that a device's vendor puts on the node say what a container needs to use it.
//
// Those files are the administrator's and are trusted as such: their hooks run as root.
package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/crio-minimal/crio/internal/fault"
)

// Registry are the directories of CDI files. A device that is described in two of them
// is the one of the later directory. It is a value and safe to share: nothing is kept
// between two calls.
type Registry struct {
	Dirs []string
}

// Inject adds device nodes with access to them, mounts, environment, hooks, groups and
// whatever else the named devices (ContainerConfig.CDI_devices) need to s. The files are
// read anew, so that one that a driver has just written counts. A file that cannot be
// read costs the devices that it describes, and is told as a warning. On an error s is
// as it was, or has lost its use.
//
// Errors: InvalidArgument for a name that can be no device's, NotFound for a device that
// no file describes.
func (r Registry) Inject(s *specs.Spec, devices []string) (warnings []string, err error) {
	var names []string
	for _, name := range devices {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return nil, fault.New(fault.InvalidArgument, "CDI_devices: %q is not of the form vendor.com/class=name: %w", name, err)
		}
		// One that is asked for twice must not have its hooks run twice.
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(r.Dirs...))
	if err != nil {
		return nil, fmt.Errorf("CDI_devices: %w", err)
	}
	broken := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(broken)) {
		for _, err := range broken[path] {
			warnings = append(warnings, fmt.Sprintf("CDI file %s: %v", path, err))
		}
	}
	unknown, err := cache.InjectDevices(s, names...)
	if len(unknown) > 0 {
		hint := ""
		if len(warnings) > 0 {
			hint = "; " + strings.Join(warnings, "; ")
		}
		return warnings, fault.New(fault.NotFound, "CDI_devices: %s: no file in %s describes it: is its driver running?%s",
			strings.Join(unknown, ", "), strings.Join(r.Dirs, ", "), hint)
	}
	if err != nil {
		return warnings, fmt.Errorf("CDI_devices %s: %w", strings.Join(names, ", "), err)
	}
	return warnings, nil
}
