//go:build !failpoints

package sys

import "time"

// Failpoint marks a moment after which the daemon may be killed, and from which the next
// one has to go on: part tells who is at work, moment what has happened, or comes next.
// It does nothing and is not in the binary, unless that is built with the tag failpoints.
func Failpoint(part, moment string) {}

// Budget is d, after which something that hangs is ended, unless a test has made it shorter.
func Budget(d time.Duration) time.Duration { return d }
