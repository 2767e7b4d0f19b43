package test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// killCase is a request that is killed at every moment of it and then made again.
type killCase struct {
	name string
	// options change the node's.
	options func(t *testing.T, handler string, o *options)
	// prepare makes what the request needs, anew for each kill.
	prepare func(*killNode) killRequest
	// fails is a word of the error that the request always ends with; "" is success.
	fails string
}

// killRequest is made, killed, and made again.
type killRequest struct {
	// do is the request; nil is the start of the daemon, which prepare has killed then.
	do func() error
	// running are containers that have to run on whatever becomes of the daemon.
	running []string
	// done looks at what the request has brought about; may be nil.
	done func()
}

// killNode is a node whose daemon can be held, and killed, at its failpoints.
type killNode struct {
	*node
	*killCase
	// image is busybox, data one to be mounted, by their IDs.
	image, data string
	dataRef     string
	registry    *fixture.Registry
	// dir is where the daemon tells of its failpoints (internal/sys/failpoint_on.go).
	dir string
	// places are what failpoints returns.
	places map[string]bool
	// bystander is a container of another pod, which runs all the time, and its pod.
	bystander, bystanderBox string
	// rest is the node between the cases, reference what it has after the request when
	// nobody was killed, without what tells one pod from another.
	rest, reference inventory
}

// killPoint is the nth time that one place in the source was reached. At a stage an
// operation begins it.
type killPoint struct {
	name, place string
	nth         int
	stage       bool
}

// killed are the places at which a daemon was killed.
type killed struct {
	places map[string]bool
	cases  int
}

// TestKilledAnywhereNothingIsLostOrLeft kills the daemon at every failpoint of every
// request. The daemon after it is asked the same again, and has to do it, or to refuse it
// with the reason that it would have without the kill; containers that ran run; and the
// node has what it would have without the kill. While the daemon is held it answers
// everybody else, and tells where it is.
//
// A place is passed over where it was killed in this case before, and one that names a
// stage or writes just a file where it was in another, but not with CRIO_TORTURE, which
// takes the other OCI runtime, too.
func TestKilledAnywhereNothingIsLostOrLeft(t *testing.T) {
	handlers := conformHandlers[:1]
	if os.Getenv("CRIO_TORTURE") != "" {
		handlers = conformHandlers
	}
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { killedWith(t, handler) })
	}
}

func killedWith(t *testing.T, handler string) {
	done := killed{places: map[string]bool{}}
	t.Run("cases", func(t *testing.T) {
		for _, c := range killCases() {
			t.Run(c.name, func(t *testing.T) {
				killAll(t, handler, &c, &done)
			})
		}
	})
	if done.cases < len(killCases()) || t.Failed() {
		return // somebody asked for some of them alone
	}
	for place := range failpoints(t) {
		if !done.places[place] {
			t.Errorf("no case kills the daemon at %s", place)
		}
	}
}

func killAll(t *testing.T, handler string, c *killCase, done *killed) {
	k := newKillNode(t, handler, c)
	points := k.unharmed()
	for _, p := range points {
		once := p.stage || strings.HasPrefix(p.name, "file: ")
		if os.Getenv("CRIO_TORTURE") == "" && done.places[p.place] && once {
			continue
		}
		begun := time.Now()
		k.killAt(p)
		t.Logf("%6.0f ms %s, %s (%d)", time.Since(begun).Seconds()*1000, p.name, p.place, p.nth)
		if t.Failed() {
			t.Fatalf("killed at %s, %s, time %d", p.name, p.place, p.nth)
		}
		done.places[p.place] = true
	}
	done.cases++
}

func newKillNode(t *testing.T, handler string, c *killCase) *killNode {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	o := conformOptions(t, handler)
	dir := t.TempDir()
	o.registry, o.failpoints, o.env = r, true, append(o.env, "CRIO_FAILPOINTS="+dir)
	if c.options != nil {
		c.options(t, handler, &o)
	}
	n, image := readyNode(t, o)
	k := &killNode{node: n, killCase: c, image: image, registry: r, dir: dir, places: failpoints(t)}
	k.dataRef = r.Push(t, "data", "v1", n.dataImage(""))
	k.data = n.pull(k.dataRef)
	n.before = n.settled()
	pod := n.podConfig()
	k.bystanderBox = n.runPod(pod)
	k.bystander = n.runContainer(k.bystanderBox, pod, n.containerConfig(image, "sleep", "3600"))
	n.kill()
	n.start()
	k.rest = n.settled()
	return k
}

// unharmed makes the request without a kill and returns the points that it came to.
func (k *killNode) unharmed() []killPoint {
	k.t.Helper()
	r := k.prepare(k)
	if r.do != nil {
		k.kill()
		k.start()
		k.awaitOperations("sweep", 0) // whose stages are not the request's
		k.forget()
	} else {
		k.forget()
		k.start()
	}
	k.check(r)
	k.reference = alike(k.settled())
	points := k.trace()
	k.tidy()
	return points
}

// killAt holds the daemon at the point, looks at it, kills it, and goes on with another.
func (k *killNode) killAt(p killPoint) {
	k.t.Helper()
	r := k.prepare(k)
	k.arm(p)
	answered := make(chan error, 1)
	k.forget()
	if r.do == nil {
		k.launch()
	} else {
		go func() { answered <- r.do() }()
	}
	writer := k.held(p)
	if r.do != nil {
		k.look(p, answered)
	}
	k.kill()
	k.release(writer)
	k.start()
	if r.do != nil {
		<-answered // cut off, or told already
	}
	k.check(r)
	k.sameAs(k.reference)
	k.tidy()
}

func (k *killNode) fifo(p killPoint) string {
	return filepath.Join(k.dir, fmt.Sprintf("%s#%d", p.name, p.nth))
}

// arm has the daemon wait at the point.
func (k *killNode) arm(p killPoint) {
	k.t.Helper()
	if err := unix.Mkfifo(k.fifo(p), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// release lets it go on, if it is alive.
func (k *killNode) release(writer *os.File) {
	k.t.Helper()
	writer.Close()
	if err := os.Remove(writer.Name()); err != nil {
		k.t.Fatal(err)
	}
}

// held waits until the daemon is at the point, and returns what keeps it there.
func (k *killNode) held(p killPoint) *os.File {
	k.t.Helper()
	var fd int
	fifo := k.fifo(p)
	k.await(fmt.Sprintf("%s, time %d", p.name, p.nth), func() (err error) {
		fd, err = unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	return os.NewFile(uintptr(fd), fifo)
}

// look asks a daemon that is held for what everybody asks all the time, and what it is
// doing: as long as the caller waits some operation has to say so, and at the beginning of
// a stage which one.
func (k *killNode) look(p killPoint, answered <-chan error) {
	k.t.Helper()
	k.answersInTime()
	kind, stage, _ := strings.Cut(p.name, ": ")
	// The containers of a pod are removed side by side, by one operation.
	shared := kind == "remove sandbox" && !strings.Contains(p.place, "/sandbox_")
	begun := time.Now()
	// An operation ends a moment before its caller has the answer.
	k.await("what is done, in crio status", func() error {
		ops := k.status().Operations
		for _, op := range ops {
			if p.stage && op.Kind == kind && (shared || op.Stage == stage) || !p.stage && op.Kind != "reach monitor" {
				return nil
			}
		}
		if len(answered) > 0 && !p.stage {
			return nil // what comes after the answer
		}
		return fmt.Errorf("%s is not in %+v", p.name, ops)
	})
	if took := time.Since(begun); took > time.Second { // T22.2
		k.t.Errorf("crio status tells of %s only after %s", p.name, took)
	}
}

// check makes the request, and looks at what came of it.
func (k *killNode) check(r killRequest) {
	k.t.Helper()
	if r.do != nil {
		switch err := r.do(); {
		case k.fails == "" && err != nil:
			k.t.Errorf("again: %v", err)
		case k.fails != "" && !strings.Contains(fmt.Sprint(err), k.fails):
			k.t.Errorf("again: %v, want %q", err, k.fails)
		}
	}
	if r.done != nil {
		r.done()
	}
	for _, id := range append(r.running, k.bystander) {
		if s := k.container(id); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			k.t.Errorf("a container that ran does not: %v", s)
		}
	}
}

// sameAs waits until the node has what it would have without the kill.
func (k *killNode) sameAs(reference inventory) {
	k.t.Helper()
	var now inventory
	for end := time.Now().Add(waitTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if now = alike(k.inventory()); maps.Equal(now, reference) {
			return
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if now[name] != reference[name] {
			k.t.Errorf("%d of %s, without the kill %d", now[name], name, reference[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(reference)) {
		if now[name] == 0 {
			k.t.Errorf("no %s, without the kill %d", name, reference[name])
		}
	}
}

// tidy removes what the case has made, and nothing else is to be left.
func (k *killNode) tidy() {
	k.t.Helper()
	list, err := k.ListPodSandbox(k.ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, s := range list.GetItems() {
		if s.GetId() == k.bystanderBox {
			continue
		}
		if _, err := k.RemovePodSandbox(k.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			k.t.Errorf("remove pod: %v", err)
		}
	}
	images, err := k.images.ListImages(k.ctx(), &cri.ListImagesRequest{})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, i := range images.GetImages() {
		if i.GetId() != k.image && i.GetId() != k.data {
			k.dropImages(i.GetId())
		}
	}
	k.compare(k.rest)
}

// forget begins a new trace.
func (k *killNode) forget() {
	k.t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, "trace"), nil, 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// trace are the points that the daemon has come to, in their order: each place once, or
// with CRIO_TORTURE as often as it came there.
func (k *killNode) trace() []killPoint {
	k.t.Helper()
	text, err := os.ReadFile(filepath.Join(k.dir, "trace"))
	if err != nil {
		k.t.Fatal(err)
	}
	var points []killPoint
	count, seen := map[string]int{}, map[string]bool{}
	for line := range strings.Lines(string(text)) {
		name, place, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		count[name]++
		if where := name + place; !seen[where] || os.Getenv("CRIO_TORTURE") != "" {
			seen[where] = true
			points = append(points, killPoint{name, place, count[name], k.places[place]})
		}
	}
	if len(points) == 0 {
		k.t.Fatal("the daemon has come to no failpoint")
	}
	return points
}

// alike leaves out what tells one pod from another, and what is inside the daemon.
func alike(inv inventory) inventory {
	out := inventory{}
	for name, count := range inv {
		if strings.HasPrefix(name, "goroutine ") || strings.HasPrefix(name, "daemon's") {
			continue
		}
		for _, r := range replacements() {
			name = r.what.ReplaceAllString(name, r.by)
		}
		out[name] += count
	}
	return out
}

type replacement struct {
	what *regexp.Regexp
	by   string
}

func replacements() []replacement {
	return []replacement{
		{regexp.MustCompile(`[0-9a-f]{64}`), "ID"},
		{regexp.MustCompile(`/overlay/l/[A-Z0-9]{26}`), "/overlay/l/SHORT"},
		{regexp.MustCompile(`\b(pod|ctr)-\d+`), "$1-N"},
		{regexp.MustCompile(`veth[0-9a-f]+`), "vethN"},
		{regexp.MustCompile(`\b10\.\d+\.\d+\.\d+`), "ADDRESS"},
		{regexp.MustCompile(`fd00:[0-9a-f]+::[0-9a-f]+`), "ADDRESS"},
	}
}

// failpoints are all that the source has, as "file:line" from the root of the repository,
// and whether each is the beginning of a stage.
func failpoints(t *testing.T) map[string]bool {
	t.Helper()
	places := map[string]bool{}
	for _, path := range sources(t, ".go") {
		if strings.HasSuffix(path, "_test.go") || !strings.HasPrefix(path, "../internal/") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if name := failpoint(call); name != "" {
					places[fmt.Sprintf("%s:%d", strings.TrimPrefix(path, "../"), set.Position(call.Pos()).Line)] = name == "stage"
				}
			}
			return true
		})
	}
	if len(places) < 50 {
		t.Fatalf("found %d failpoints", len(places))
	}
	return places
}

// failpoint is the name of the function in a call of sys.Failpoint or of an operation's
// stage, with the moment as it is written in the source; "" for others.
func failpoint(call *ast.CallExpr) (name string) {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name = f.Sel.Name
	}
	if name != "Failpoint" && name != "stage" || len(call.Args) == 0 {
		return ""
	}
	if _, written := call.Args[len(call.Args)-1].(*ast.BasicLit); !written {
		return ""
	}
	return name
}

// What is made for tests alone is in no binary that is shipped.
func TestShippedBinaryHasNoFailpoints(t *testing.T) {
	words := []string{"CRIO_FAILPOINTS", "CRIO_BUDGET", "written, not renamed", "one unpinned", "taken back by the runtime", "told of the start"}
	for program, wanted := range map[string]bool{"crio": false, "failpoints/crio": true} {
		text, err := os.ReadFile(binary(t, program))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range words {
			if bytes.Contains(text, []byte(word)) != wanted {
				t.Errorf("%s has %q: %t", program, word, !wanted)
			}
		}
	}
}
