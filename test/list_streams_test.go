package test

import (
	"context"
	"strings"
	"sync"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStreamsWhilePodsComeAndGo reads the streamed lists, of several messages some, while
// others make and remove pods: what stays is told in each, and nothing is told twice.
func TestStreamsWhilePodsComeAndGo(t *testing.T) {
	n, image := readyNode(t, options{})
	c := &conform{n, image, "runc"}
	box, pod := c.pod(nil)
	for range 8 {
		config := c.containerConfig(image, "true")
		config.Annotations = map[string]string{"much": strings.Repeat("x", 250<<10)}
		c.create(box, pod, config)
	}
	sleeper := c.sleeper(nil)
	stay, err := c.ListContainers(c.ctx(), &cri.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	boxes := map[string]bool{}
	ids := map[string]bool{}
	for _, container := range stay.GetContainers() {
		ids[container.GetId()], boxes[container.GetPodSandboxId()] = true, true
	}
	stop := c.churn(3)
	seen := map[string]bool{}
	for range 20 {
		c.wantOnce("containers", ids, streamed(c, 2, func(ctx context.Context) (func() (*cri.StreamContainersResponse, error), error) {
			s, err := c.StreamContainers(ctx, &cri.StreamContainersRequest{})
			return s.Recv, err
		}, (*cri.StreamContainersResponse).GetContainers, func(of *cri.Container) string { seen[of.GetId()] = true; return of.GetId() }))
		c.wantOnce("pods", boxes, streamed(c, 1, func(ctx context.Context) (func() (*cri.StreamPodSandboxesResponse, error), error) {
			s, err := c.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{})
			return s.Recv, err
		}, (*cri.StreamPodSandboxesResponse).GetPodSandboxes, (*cri.PodSandbox).GetId))
		c.wantOnce("statistics of containers", map[string]bool{sleeper: true}, streamed(c, 1, func(ctx context.Context) (func() (*cri.StreamContainerStatsResponse, error), error) {
			s, err := c.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{})
			return s.Recv, err
		}, (*cri.StreamContainerStatsResponse).GetContainerStats, func(of *cri.ContainerStats) string { return of.GetAttributes().GetId() }))
		c.wantOnce("statistics of pods", boxes, streamed(c, 1, func(ctx context.Context) (func() (*cri.StreamPodSandboxStatsResponse, error), error) {
			s, err := c.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{})
			return s.Recv, err
		}, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats, func(of *cri.PodSandboxStats) string { return of.GetAttributes().GetId() }))
		c.wantOnce("metrics of pods", boxes, streamed(c, 1, func(ctx context.Context) (func() (*cri.StreamPodSandboxMetricsResponse, error), error) {
			s, err := c.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
			return s.Recv, err
		}, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, (*cri.PodSandboxMetrics).GetPodSandboxId))
		c.wantOnce("images", map[string]bool{image: true}, streamed(c, 1, func(ctx context.Context) (func() (*cri.StreamImagesResponse, error), error) {
			s, err := c.images.StreamImages(ctx, &cri.StreamImagesRequest{})
			return s.Recv, err
		}, (*cri.StreamImagesResponse).GetImages, (*cri.Image).GetId))
	}
	stop()
	if len(seen) < len(ids)+3 {
		t.Errorf("nothing came and went meanwhile: %d containers were seen, and %d stay", len(seen), len(ids))
	}
	// A client that goes amid a stream leaves nothing; what is left fails the test at its end.
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.StreamContainers(ctx, &cri.StreamContainersRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if cancel(); err != nil {
			t.Fatal(err)
		}
	}
}

// churn has workers make and remove pods until stop is called.
func (c *conform) churn(workers int) (stop func()) {
	done := make(chan struct{})
	var churn sync.WaitGroup
	for range workers {
		churn.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				sub := &conform{c.in(c.t), c.image, c.handler}
				sub.sleeper(nil)
				sub.removeMade()
			}
		})
	}
	return func() { close(done); churn.Wait() }
}

// streamed reads one stream to its end, and returns what its items are called.
func streamed[R, T any](c *conform, least int, open func(context.Context) (func() (R, error), error), items func(R) []T, id func(T) string) (ids []string) {
	c.t.Helper()
	next, err := open(c.ctx())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, item := range collect(c, next, items, least) {
		ids = append(ids, id(item))
	}
	return ids
}

// wantOnce wants what stays in a list, and nothing in it twice.
func (c *conform) wantOnce(what string, stay map[string]bool, got []string) {
	c.t.Helper()
	counts := map[string]int{}
	for _, id := range got {
		if counts[id]++; counts[id] > 1 {
			c.t.Errorf("%s: %s is told twice", what, id)
		}
	}
	for id := range stay {
		if counts[id] == 0 {
			c.t.Errorf("%s: %s is missing", what, id)
		}
	}
}
