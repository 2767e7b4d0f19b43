package netns

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/crio-minimal/crio/internal/sys"
)

func TestParseDev(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
eth0.5:18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
broken: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16
 short: 1 2
`
	want := []Interface{
		{Name: "lo", Received: Traffic{1, 2, 3, 4}, Sent: Traffic{9, 10, 11, 12}},
		{Name: "eth0.5", Received: Traffic{Bytes: 1<<64 - 1}},
	}
	if got := parseDev([]byte(text)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func FuzzParseDev(f *testing.F) {
	f.Add([]byte("lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"))
	f.Fuzz(func(_ *testing.T, text []byte) { parseDev(text) })
}

// TestCounters reads a namespace that nobody is in, beside places that are none.
func TestCounters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Make(t.Context(), Kinds{Net: true}).Pin(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Unmount(filepath.Join(dir, "net")); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	pinned := filepath.Join(dir, "net")
	all, err := Counters(t.Context(), []string{pinned, filepath.Join(dir, "none"), file, pinned})
	if err != nil || len(all) != 4 || all[1] != nil || all[2] != nil {
		t.Fatalf("%v, %v", all, err)
	}
	for _, i := range []int{0, 3} {
		if len(all[i]) != 1 || all[i][0].Name != "lo" {
			t.Errorf("interfaces %v", all[i])
		}
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("we were in %s and are in %s, %v", before, after, err)
	}
}
