package oci

import "testing"

func TestBelowFloor(t *testing.T) {
	for line, below := range map[string]bool{
		"runc version 1.1.5+ds1": true, "runc version 1.2.9": true, "runc version 1.3.5": true, "runc version 1.3.6": false,
		"runc version 1.4.2": true, "runc version 1.4.3": false, "runc version 1.5.0-rc.2": true, "runc version 1.5.0-rc.3": false,
		"runc version 1.5.2": false, "runc version 1.6.0": false, "runc version 2.0.0-rc.1": false, "runc version 1.3.6-rc.1": true,
		"runc version unknown": true, "crun version 1.8.1": false,
	} {
		if reason := BelowFloor(line); (reason != "") != below {
			t.Errorf("%s: %q", line, reason)
		}
	}
}
