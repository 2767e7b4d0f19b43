// Package apparmor asks the kernel which AppArmor profiles it has, and gives it the
// default one. That a process is confined is the OCI runtime's doing.
package apparmor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/moby/profiles/apparmor"
)

// DefaultProfile is the name of the profile that LoadDefault loads; CRI-O's has the same.
const DefaultProfile = "crio-default"

// loadTime bounds apparmor_parser, which compiles the profile: a tenth of a second, or
// some on a slow machine.
const loadTime = 30 * time.Second

// profiles lists what is loaded, a line "NAME (MODE)" each.
const profiles = "/sys/kernel/security/apparmor/profiles"

// Enabled tells whether the kernel has AppArmor and uses it.
func Enabled() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(data), "Y")
}

// Loaded tells whether the kernel has the profile. A parent's child is "PARENT//CHILD".
func Loaded(name string) (bool, error) {
	f, err := os.Open(profiles)
	if err != nil {
		return false, fmt.Errorf("apparmor: %w: is securityfs mounted?", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if profileName(lines.Text()) == name {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("apparmor: %w", err)
	}
	return false, nil
}

// profileName cuts the mode off. The name may have spaces and parentheses.
func profileName(line string) string {
	if i := strings.LastIndex(line, " ("); i >= 0 {
		return line[:i]
	}
	return line
}

// LoadDefault gives the kernel DefaultProfile, unless it has one of the name: the
// administrator may have put another in its place. The profile is the one that docker,
// podman and containerd use, compiled by apparmor_parser, which has to be installed.
func LoadDefault(ctx context.Context) error {
	if loaded, err := Loaded(DefaultProfile); err != nil || loaded {
		return err
	}
	// The library waits for the parser without an end.
	done := make(chan error, 1)
	go func() { done <- apparmor.InstallDefault(DefaultProfile) }()
	ctx, cancel := context.WithTimeoutCause(ctx, loadTime, errors.New("apparmor_parser does not end"))
	defer cancel()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("apparmor: load %s: %w", DefaultProfile, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("apparmor: load %s: %w", DefaultProfile, context.Cause(ctx))
	}
}
