package test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

const (
	// listTime and statusTime are what a list and a status may take (issue 6, 2).
	listTime, statusTime = 5 * time.Millisecond, 100 * time.Millisecond
	// hiccup is what a busy machine may do to one call; what waits for something waits longer.
	hiccup = time.Second
)

// answersInTime: a list takes less than 5 ms and a Status less than 100, whatever hangs.
func (n *node) answersInTime() {
	n.t.Helper()
	n.inTime("list of containers", listTime, func() error { return second(n.ListContainers(n.ctx(), &cri.ListContainersRequest{})) })
	n.inTime("list of pods", listTime, func() error { return second(n.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})) })
	n.inTime("list of images", listTime, func() error { return second(n.images.ListImages(n.ctx(), &cri.ListImagesRequest{})) })
	n.inTime("status", statusTime, func() error { return second(n.Status(n.ctx(), &cri.StatusRequest{})) })
}

// inTime wants nine of ten calls in a row to take less than the time above the floor, which
// is measured beside each, and none to wait for something. Where other processes come and
// go it takes some more calls until there are nine of ten, or eighteen of twenty.
func (n *node) inTime(what string, most time.Duration, call func() error) {
	n.t.Helper()
	var calls, floors []time.Duration
	for tries := 1; ; tries++ {
		floors = append(floors, floor(n.t))
		begun := time.Now()
		if err := call(); err != nil {
			n.t.Errorf("%s: %v", what, err)
		}
		calls = append(calls, time.Since(begun))
		if took := calls[len(calls)-1]; took > hiccup {
			n.t.Errorf("a %s takes %s", what, took)
		}
		calls, floors = calls[max(0, len(calls)-20):], floors[max(0, len(floors)-20):]
		count := late(calls, floors, most)
		switch {
		case tries < 10:
		case count <= len(calls)/10:
			return
		case tries == 100:
			n.t.Errorf("%d of %d times a %s takes more than %s above the floor: %s; the floor: %s", count, len(calls), what, most, calls, floors)
			return
		}
	}
}

// stalledRegistry serves everything but layers, until open is closed.
func stalledRegistry(t *testing.T, r *fixture.Registry) (host string, open chan struct{}) {
	t.Helper()
	forward := httputil.NewSingleHostReverseProxy(r.URL)
	forward.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	open = make(chan struct{})
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			select {
			case <-open:
			case <-req.Context().Done():
			}
		}
		forward.ServeHTTP(w, req)
	}))
	t.Cleanup(proxy.Close)
	return strings.TrimPrefix(proxy.URL, "http://"), open
}

// A pull from a registry that stalls, and a command, were in neither crio status nor the
// answer to SIGUSR1, and no metric told of any operation.
func TestStalledPullAndCommandAreTold(t *testing.T) {
	n, image := readyNode(t, options{})
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	r.Push(t, "stalled", "v1", n.dataImage("stalled"))
	host, open := stalledRegistry(t, r)
	ref := host + "/stalled:v1"
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	pulled, executed := make(chan error, 1), make(chan error, 1)
	var pulledID string
	go func() {
		a, err := n.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		pulledID = a.GetImageRef()
		pulled <- err
	}()
	go func() {
		executed <- second(n.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: shell("until [ -e /go ]; do sleep 0.05; done")}))
	}()
	n.await("what hangs, in crio status", func() error {
		ops := map[string]bool{}
		for _, op := range n.status().Operations {
			ops[op.Kind+" of "+op.Object+": "+op.Stage] = true
		}
		if len(ops) != 2 || !ops["pull image of "+ref+": copy"] || !ops["exec of "+id+": command"] {
			return fmt.Errorf("%v", ops)
		}
		return nil
	})
	n.answersInTime()
	words := []string{"pull image of " + ref + ": stage copy for ", "exec of " + id + ": stage command for "}
	wantWords(t, n.statusCommand(), words...)
	wantWords(t, n.dump(), append(words, "image.(*Store).pullOne", "oci.Runtime.ExecSync")...)
	wantWords(t, string(n.get("/metrics")),
		`crio_operations{kind="pull image",stage="copy"} 1`, `crio_operations{kind="exec",stage="command"} 1`,
		`crio_operation_stage_seconds{kind="pull image",stage="copy"} `)
	n.exec(id, "touch", "/go")
	close(open)
	for what, ended := range map[string]chan error{"pull": pulled, "exec": executed} {
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	n.dropImages(pulledID)
	if ops := n.status().Operations; len(ops) != 0 {
		t.Errorf("at the end: %+v", ops)
	}
}

// A plugin that hangs in STATUS (CNI 1.1) made every Status wait for it. It holds up nobody
// now, and the node stays ready for a minute; pods are refused, and crio status says why.
func TestFaultyPluginInSTATUS(t *testing.T) {
	n := newNode(t, options{bare: true})
	n.write("script", fmt.Sprintf("#!/bin/sh\n[ $CNI_COMMAND != STATUS ] || while [ -e %s ]; do sleep 0.05; done\n", n.path("hang")))
	if err := os.Chmod(n.path("script"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.reconfigure(`plugin_dirs = [`, fmt.Sprintf(`plugin_dirs = [%q, `, n.dir))
	n.stop()
	n.start()
	n.write("cni/10-script.conflist", `{"cniVersion":"1.1.0","name":"scripted","plugins":[{"type":"script"}]}`)
	ready := func() {
		t.Helper()
		if c := n.condition(cri.NetworkReady); !c.GetStatus() {
			t.Fatalf("NetworkReady: %v", c)
		}
	}
	ready()
	n.write("hang", "")
	n.await("the answer of a plugin that hangs", func() error {
		n.answersInTime()
		if told := n.status().Network; !strings.Contains(told, "network scripted") || !strings.Contains(told, "not ready") {
			return fmt.Errorf("network: %s", told)
		}
		return nil
	})
	ready()
	err := second(n.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.podConfig()}))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "network scripted") {
		t.Errorf("run pod: %v", err)
	}
	if err := os.Remove(n.path("hang")); err != nil {
		t.Fatal(err)
	}
	n.await("the plugin's return", func() error {
		if told := n.status().Network; told != "ready" {
			return fmt.Errorf("network: %s", told)
		}
		return nil
	})
}
