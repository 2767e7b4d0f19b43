package monitor

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestFuzzTarget runs conmon's fuzz target on inputs of its own, the same ones each time.
func TestFuzzTarget(t *testing.T) {
	for seed := range 4 {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command(filepath.Join(build, "asan/fuzz"), fmt.Sprint(seed), torture("5000", "250000")).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestAnalyzer: gcc's -fanalyzer has nothing to say.
func TestAnalyzer(t *testing.T) {
	if out, err := exec.Command("make", "-s", "--no-print-directory", "-C", "../../conmon", "analyze").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestValgrind: one container's whole life. The full run has every test under it.
func TestValgrind(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("valgrind"); err != nil {
		t.Skip("needs valgrind")
	}
	c := sh("seq 1 5000; printf x >&2; sleep 1000 & read line; echo $line; exit 3").make(t, filepath.Join(build, "valgrind/conmon"))
	c.spec.Stdin, c.spec.StdinOnce = true, true
	c.start(t)
	s := c.attach(t, Streams{Stdin: true, Stdout: true, Stderr: true})
	_, err := s.Write([]byte("line\n"))
	must(t, err)
	if x := c.wait(t); x.Code != 3 || x.Dropped != 0 {
		t.Errorf("got %+v", x)
	}
	s.wait(t)
	if all := records(t, c.log); len(all) != 5002 || all[len(all)-1].content != "line" && all[len(all)-2].content != "line" {
		t.Errorf("%d records", len(all))
	}
}
