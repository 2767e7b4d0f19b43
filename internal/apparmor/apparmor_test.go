package apparmor

import "testing"

func TestProfileName(t *testing.T) {
	for line, want := range map[string]string{
		"crio-default (enforce)":              "crio-default",
		"/usr/bin/man (complain)":             "/usr/bin/man",
		"/usr/sbin/sshd//null-1 (unconfined)": "/usr/sbin/sshd//null-1",
		"a name (with) words (enforce)":       "a name (with) words",
		"bare":                                "bare",
	} {
		if got := profileName(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// With the kernel's own list where it has one.
func TestLoadedAsksTheKernel(t *testing.T) {
	got, err := Loaded("no profile has this name")
	if got || (err == nil) != Enabled() {
		t.Errorf("loaded %t, %v; enabled %t", got, err, Enabled())
	}
}
