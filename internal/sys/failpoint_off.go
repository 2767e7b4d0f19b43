//go:build !failpoints

package sys

// Failpoint marks a moment after which the daemon may be killed, and from which the next
// one has to go on: part tells who is at work, moment what has happened, or comes next.
// It does nothing and is not in the binary, unless that is built with the tag failpoints.
func Failpoint(part, moment string) {}
