package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// inventory is everything a pod could leave on a node, each thing by a name that
// says what it is, with how often it is there.
type inventory map[string]int

// compare waits until the node has what it had before, no more and no less: monitors
// end a moment after they have told the exit.
func (n *node) compare(before inventory) {
	n.t.Helper()
	var after inventory
	for end := time.Now().Add(waitTime); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if after = n.inventory(); maps.Equal(before, after) {
			return
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if after[name] > before[name] {
			n.t.Errorf("left on the node: %s (%d more)", name, after[name]-before[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if before[name] > after[name] {
			n.t.Errorf("lost from the node: %s (%d less)", name, before[name]-after[name])
		}
	}
}

// settled is the inventory once it does not change any more.
func (n *node) settled() inventory {
	n.t.Helper()
	last := n.inventory()
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		next := n.inventory()
		if maps.Equal(last, next) {
			return last
		}
		last = next
	}
	n.t.Fatal("the node does not come to rest")
	return nil
}

func (n *node) inventory() inventory {
	n.t.Helper()
	inv := inventory{}
	n.processes(inv)
	n.mounts(inv)
	n.cgroups(inv)
	n.links(inv)
	n.files(inv)
	n.insideDaemon(inv)
	return inv
}

func (n *node) processes(inv inventory) {
	for _, cmdline := range n.pids() {
		inv[fmt.Sprintf("process %q", strings.ReplaceAll(cmdline, "\x00", " "))]++
	}
}

// pids are the processes that have to do with the node and their command lines, the
// daemon itself not counted, nor zombies that wait for another than it.
func (n *node) pids() map[int]string {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		n.t.Fatal(err)
	}
	found := map[int]string{}
	for _, dir := range procs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == n.daemon.Process.Pid || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		// The pid, a name in brackets that may have more of them, the state, the parent (proc_pid_stat(5)).
		begin, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if after := strings.Fields(string(stat[end+1:])); after[0] == "Z" {
			if after[1] == strconv.Itoa(n.daemon.Process.Pid) {
				found[pid] = "zombie " + string(stat[begin:end+1])
			}
			continue
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		cgroup, _ := os.ReadFile(dir + "/cgroup")
		if strings.Contains(string(cmdline), n.dir) || strings.Contains(string(cgroup), testParent()) {
			found[pid] = string(cmdline)
		}
	}
	return found
}

// mounts include the pinned namespaces.
func (n *node) mounts(inv inventory) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if path := strings.Fields(line)[4]; strings.HasPrefix(path, n.dir) {
			inv["mount "+path]++
		}
	}
}

func (n *node) cgroups(inv inventory) {
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		// A pod's slice is the kubelet's, or systemd's own where nobody made it.
		if err == nil && entry.IsDir() && strings.Contains(path, testParent()) && !strings.HasSuffix(path, ".slice") {
			inv["cgroup "+path]++
		}
		return nil // groups of others come and go
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

var peerIndex = regexp.MustCompile(`@if\d+`)

// links, addresses and packet filter rules of the tests' own network namespace.
func (n *node) links(inv inventory) {
	for _, command := range []string{"ip -o link", "iptables -w -t nat -S"} {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if err != nil {
			n.t.Fatalf("%s: %v\n%s", command, err, out)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if strings.HasPrefix(command, "ip ") {
				fields = fields[1:2]
			}
			inv[command+": "+peerIndex.ReplaceAllString(strings.Join(fields, " "), "")]++
		}
	}
}

// heldImage is the ID of the image that a name of the store stands for as a hold, else "".
func heldImage(name string) string {
	by, image, _ := strings.Cut(name, "-holds-")
	if !strings.HasPrefix(by, "crio-") {
		return ""
	}
	return image
}

// files: layers, records, bundles, sockets, addresses that IPAM gave, CNI's cache.
func (n *node) files(inv inventory) {
	data, _ := os.ReadFile(n.path("storage/overlay-images/images.json"))
	images := string(data)
	for _, pattern := range []string{
		"tmp/*", "storage/crio-pulls/*", "state/*/*", "run/*/*", "run/oci/*/*", "ipam/*/*", "cni-cache/*/*", "storage/overlay/*", "storage/overlay/l/*",
		"storage/crio-layers/*/overlay/*", "storage/crio-layers/*/overlay/l/*", "storage/overlay-containers/*", "storage-run/overlay-containers/*",
	} {
		found, err := filepath.Glob(n.path(pattern))
		if err != nil {
			n.t.Fatal(err)
		}
		for _, path := range found {
			// crun keeps compiled seccomp profiles, one file for each that was ever asked for.
			if strings.HasSuffix(path, "/.cache") {
				continue
			}
			// The storage library leaves a temporary file where it is killed in a write;
			// the store is shared with other tools, and so nobody else may remove it.
			base := filepath.Base(path)
			target, _ := os.Readlink(path)
			switch {
			// An image that a container was made of is held until it is removed.
			case heldImage(base) != "" && strings.Contains(images, heldImage(base)), strings.Contains(target, "-holds-"):
			case filepath.Base(filepath.Dir(path)) == "l":
				inv["short name of a layer"]++ // a random one
			// crun's cache of seccomp filters is its own.
			case !strings.HasPrefix(base, "last_reserved_ip") && !strings.HasPrefix(base, ".tmp-") && base != ".cache":
				inv["file "+strings.TrimPrefix(path, n.dir+"/")]++
			}
		}
	}
}

var number = regexp.MustCompile(`\d+`)

// insideDaemon: descriptors by kind, and goroutines by what they do.
func (n *node) insideDaemon(inv inventory) {
	dir := fmt.Sprintf("/proc/%d/fd/", n.daemon.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, entry := range entries {
		target, err := os.Readlink(dir + entry.Name())
		if err == nil {
			inv["daemon's descriptor of "+number.ReplaceAllString(target, "N")]++
		}
	}
	for stack := range strings.SplitSeq(string(n.get("/debug/goroutines")), "\n\n") {
		// One that has not begun yet, as happens on a busy machine, has no function so far.
		if function := outermost(stack); function != "runtime.goexit" {
			inv["goroutine of "+function]++
		}
	}
}

// outermost is the function of a goroutine, which the stack ends with.
func outermost(stack string) (function string) {
	for line := range strings.Lines(stack) {
		if call := strings.LastIndexByte(line, '('); call > 0 && !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, "created by ") {
			function = line[:call]
		}
	}
	return function
}
