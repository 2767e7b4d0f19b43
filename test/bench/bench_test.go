package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRatiosAreCompared(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ratios.json")
	made := func(ours float64) *report {
		r := &report{}
		r.add("start", "ms", floorName, 10)
		r.add("start", "ms", "crio", ours)
		r.add("list", "ms", floorName, 0.1)
		r.add("list", "ms", "crio", ours/100)
		return r
	}
	if err := made(20).saveRatios(file); err != nil {
		t.Fatal(err)
	}
	other := &report{}
	other.add("stop", "ms", floorName, 1)
	for _, test := range []struct {
		name  string
		r     *report
		part  bool
		wrong string
	}{
		{"the same", made(20), false, ""},
		{"within the tolerance", made(22.9), false, ""},
		{"better", made(5), false, ""},
		{"worse", made(23.1), false, "start: 2.31 times the floor, committed are 2.00"},
		{"short, too", made(60), false, "list: 6.00 times"},
		{"missing", other, false, "start: was not measured"},
		{"a part", other, true, ""},
	} {
		test.r.Part = test.part
		err := test.r.compare(file)
		if n := strings.Count(fmt.Sprint(err), "list:"); test.name == "worse" && n != 0 {
			t.Errorf("a difference of 31 µs counts: %v", err)
		}
		if (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%s: %v, want %q", test.name, err, test.wrong)
		}
	}
}

// The ratios of a part leave the others as they were committed.
func TestRatiosOfAPartReplaceTheirOwn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ratios.json")
	for _, measured := range []struct {
		row  string
		ours float64
		part bool
	}{{"stop", 3, false}, {"start", 2, true}, {"start", 4, true}} {
		r := &report{Part: measured.part}
		r.add(measured.row, "ms", floorName, 1)
		r.add(measured.row, "ms", ours, measured.ours)
		if err := r.saveRatios(file); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := readRatios(file); err != nil || len(all) != 2 || all["stop"] != 3 || all["start"] != 4 {
		t.Errorf("%v, %v", all, err)
	}
}

// What is saved says the same when it is read again.
func TestReport(t *testing.T) {
	r := &report{Machine: "a machine", Names: []string{ours, "other"}}
	for i := range 100 {
		r.add("runc: "+rowExec, "ms", floorName, float64(10+i%2))
		r.add("runc: "+rowExec, "ms", ours, float64(15+i))
	}
	r.note("runc: "+rowExec, "ms", "other", "Unimplemented")
	file := filepath.Join(t.TempDir(), "report.json")
	var first, again bytes.Buffer
	r.print(&first)
	if err := r.save(file); err != nil {
		t.Fatal(err)
	}
	read, err := readReport(file)
	if err != nil {
		t.Fatal(err)
	}
	read.print(&again)
	if first.String() != again.String() {
		t.Errorf("%s\nwas\n%s", &again, &first)
	}
	for _, part := range []string{"65.0 (110) 5.91x", "Unimplemented", "MISSED: over 54.0, limit 3.00"} {
		if !strings.Contains(first.String(), part) {
			t.Errorf("no %q in\n%s", part, &first)
		}
	}
}

func TestTrace(t *testing.T) {
	const lines = `10 100.000100 execve("/usr/bin/crio", ["crio"], 0x1 /* 2 vars */) = 0
10 100.000200 clone(child_stack=NULL, flags=CLONE_VM|CLONE_THREAD) = 11
11 100.000300 write(5</var/lib/.0123456789abcdef0123456789abcdef.KXYP2CSQNA>, "x"..., 100 <unfinished ...>
10 100.000400 clone(child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD) = 12
11 100.000500 <... write resumed>) = 100
11 100.000600 fsync(5</var/lib/x>) = 0
12 100.000700 execve("/proc/self/fd/6", ["runc", "init"], 0x1) = 0
12 100.000800 write(1<pipe:[7]>, "x", 1) = 1
12 100.000900 openat(AT_FDCWD, "/etc/hosts", O_RDONLY) = 3</etc/hosts>
12 100.001000 openat(AT_FDCWD, "/none", O_RDONLY) = -1 ENOENT (No such file or directory)
12 100.001100 exit_group(0) = ?
11 100.500000 flock(3</run/lock>, LOCK_EX) = 0
`
	tr := newTrace()
	tr.steps = []span{{"start", time.Unix(100, 0), time.UnixMicro(100_400_000)}}
	if err := tr.read(strings.NewReader(lines)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		step, program string
		want          counted
	}{
		{"start", "crio", counted{execs: 1, forks: 1, syncs: 1, bytes: 100}},
		{"start", "runc init", counted{execs: 1, opens: 1}},
		{after, "crio", counted{locks: 1}},
	} {
		if got := tr.counts[test.step][test.program]; got == nil || *got != test.want {
			t.Errorf("%s: %s: %+v, want %+v", test.step, test.program, got, test.want)
		}
	}
	if n := tr.written["crio | /var/lib/.ID*"]; n != 100 {
		t.Errorf("written: %v", tr.written)
	}
}
