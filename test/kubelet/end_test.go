package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// termination takes all pods away, and looks how they went.
func termination(t *testing.T, n *node) {
	manifests, err := filepath.Glob(n.path("manifests/*"))
	check(t, err)
	for _, file := range manifests {
		check(t, os.Remove(file))
	}
	n.await("the end of all containers", func() error {
		list, err := n.runtime.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		}})
		if err == nil && len(list.GetContainers()) > 0 {
			err = fmt.Errorf("%d are running", len(list.GetContainers()))
		}
		return err
	})
	n.await("the kubelet's end of all pods", func() error {
		all, err := n.pods()
		if err == nil && len(all) > 0 {
			err = fmt.Errorf("%d pods", len(all))
		}
		return err
	})
	for file, want := range map[string]string{
		"order":    "first\nsidecar\nsecond\nmain\nmain ends\nsidecar ends",
		"hooks":    "started\nstopping\nterm",
		"polite":   "asked\ngone",
		"stubborn": "asked",
	} {
		if got := n.read("trail/" + file); got != want {
			t.Errorf("%s is %q, want %q", file, strings.ReplaceAll(got, "\n", ", "), strings.ReplaceAll(want, "\n", ", "))
		}
	}
}
