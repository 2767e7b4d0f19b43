package oci

import (
	"fmt"
	"strings"
)

// version is major, minor, patch and the number of the release candidate; a release
// has the highest of those.
type version [4]int

const released = 1 << 20

func (v version) less(other version) bool {
	for i := range v {
		if v[i] != other[i] {
			return v[i] < other[i]
		}
	}
	return false
}

// runcFloors are the first runc of each minor, from the oldest that has one, without
// CVE-2026-41579 (an image's /dev that is a symbolic link) and the ones before it.
func runcFloors() []version {
	return []version{{1, 3, 6, released}, {1, 4, 3, released}, {1, 5, 0, 3}}
}

// BelowFloor says why a runtime, by the first line of its --version, should not run
// what is not trusted; "" when there is nothing to say. A distribution may have mended
// an older version, which its number does not tell.
func BelowFloor(line string) string {
	text, ok := strings.CutPrefix(line, "runc version ")
	if !ok {
		return ""
	}
	v := version{3: released}
	if n, _ := fmt.Sscanf(text, "%d.%d.%d-rc.%d", &v[0], &v[1], &v[2], &v[3]); n < 3 {
		return fmt.Sprintf("%q is no version that crio knows to be safe", line)
	}
	floors := runcFloors()
	needed := floors[0]
	for _, floor := range floors {
		if floor[0] == v[0] && floor[1] == v[1] {
			needed = floor
		}
	}
	if !v.less(needed) {
		return ""
	}
	return fmt.Sprintf("%s has known ways out of a container: use runc 1.3.6, 1.4.3, 1.5.0 or newer, unless your distribution has mended it (CVE-2026-41579, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)", line)
}
