package oci

import (
	"slices"
	"testing"
)

func TestDescendantsAreThoseOfTheCommand(t *testing.T) {
	const table = `UID       PID       PPID      C         TTY       STIME     TIME      CMD
0         2         0         0         ?         12:45     0s        busybox
0         3         2         0         ?         12:45     10ms      sleep
0         5         0         0         ?         12:45     10ms      busybox
0         6         5         0         ?         12:45     0s        busybox
0         7         6         0         ?         12:45     0s        a b 8 9
0         9         1         0         ?         12:45     0s        busybox
`
	for _, tt := range []struct {
		first  int
		killed []int
		want   []int
	}{
		{5, nil, []int{5, 6, 7}},
		{5, []int{5, 6}, []int{7}},
		{5, []int{5, 6, 7}, nil},
		{8, nil, nil},
		{8, []int{2}, []int{3}}, // the first has ended; a child that was killed had one of its own
	} {
		killed := map[int]bool{}
		for _, pid := range tt.killed {
			killed[pid] = true
		}
		if got := descendants(table, tt.first, killed); !slices.Equal(got, tt.want) {
			t.Errorf("of %d, %v being killed: %v, want %v", tt.first, tt.killed, got, tt.want)
		}
	}
	if got := descendants("no table\n\n1 2", 2, nil); got != nil {
		t.Errorf("no table: %v", got)
	}
	// Processes that are each other's parents are nobody's, and end the search.
	if got := descendants("0 2 3\n0 3 2\n", 9, nil); got != nil {
		t.Errorf("a circle: %v", got)
	}
}
