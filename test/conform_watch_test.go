package test

import (
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func conformWatchCases() []conformCase {
	return []conformCase{
		{
			name: "events of a pod", run: conformEvents,
			proves: []string{
				"GetContainerEvents", "ContainerEventResponse.container_id", "ContainerEventResponse.container_event_type",
				"ContainerEventResponse.created_at", "ContainerEventResponse.pod_sandbox_status", "ContainerEventResponse.containers_statuses",
			},
		},
		{
			name: "lists as streams", run: conformStreams,
			proves: []string{
				"StreamPodSandboxes", "StreamPodSandboxesRequest.filter", "StreamPodSandboxesResponse.pod_sandboxes",
				"StreamContainers", "StreamContainersRequest.filter", "StreamContainersResponse.containers",
				"StreamImages", "StreamImagesRequest.filter", "StreamImagesResponse.images",
			},
		},
		{
			name: "statistics as streams", run: conformStatsStreams,
			proves: []string{
				"StreamContainerStats", "StreamContainerStatsRequest.filter", "StreamContainerStatsResponse.container_stats",
				"StreamPodSandboxStats", "StreamPodSandboxStatsRequest.filter", "StreamPodSandboxStatsResponse.pod_sandbox_stats",
				"StreamPodSandboxMetrics", "StreamPodSandboxMetricsResponse.pod_sandbox_metrics",
			},
		},
	}
}

// conformEvents takes a pod through its life, and sees each step of it once, with the pod
// as its status tells it at that moment.
func conformEvents(c *conform) {
	events, cancel := c.subscribe(c.RuntimeServiceClient)
	defer cancel()
	box, pod := c.pod(nil)
	last := int64(0)
	next := func(of string, want cri.ContainerEventType) *cri.ContainerEventResponse {
		c.t.Helper()
		for {
			e, err := events.Recv()
			if err != nil {
				c.t.Fatalf("instead of %s: %v", want, err)
			}
			if e.GetPodSandboxStatus().GetId() != box {
				continue // of another case's
			}
			if e.GetContainerId() != of || e.GetContainerEventType() != want || e.GetCreatedAt() < last {
				c.t.Errorf("%s of %s at %d, want %s of %s after %d", e.GetContainerEventType(), e.GetContainerId(), e.GetCreatedAt(), want, of, last)
			}
			last = e.GetCreatedAt()
			return e
		}
	}
	// told compares with what the calls for the same tell.
	told := func(e *cri.ContainerEventResponse) {
		c.t.Helper()
		now, err := c.PodSandboxStatus(c.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: box})
		if err != nil {
			c.t.Fatal(err)
		}
		same := slices.EqualFunc(e.GetContainersStatuses(), now.GetContainersStatuses(), func(a, b *cri.ContainerStatus) bool { return proto.Equal(a, b) })
		if !same || !proto.Equal(e.GetPodSandboxStatus(), now.GetStatus()) {
			c.t.Errorf("the event has %v, the pod's status is %v", e, now)
		}
	}
	told(next(box, cri.ContainerEventType_CONTAINER_STARTED_EVENT))
	id := c.create(box, pod, c.containerConfig(c.image, shell("exit 3")...))
	told(next(id, cri.ContainerEventType_CONTAINER_CREATED_EVENT))
	c.startContainer(id)
	if e := next(id, cri.ContainerEventType_CONTAINER_STARTED_EVENT); e.GetContainersStatuses()[0].GetState() != cri.ContainerState_CONTAINER_RUNNING {
		c.t.Errorf("a container that has started is told as %v", e)
	}
	e := next(id, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
	told(e)
	if s := e.GetContainersStatuses(); len(s) != 1 || s[0].GetExitCode() != 3 || s[0].GetReason() != "Error" {
		c.t.Errorf("a container that has ended is told as %v", s)
	}
	if _, err := c.RemoveContainer(c.ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		c.t.Fatal(err)
	}
	told(next(id, cri.ContainerEventType_CONTAINER_DELETED_EVENT))
	if _, err := c.StopPodSandbox(c.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		c.t.Fatal(err)
	}
	told(next(box, cri.ContainerEventType_CONTAINER_STOPPED_EVENT))
	if _, err := c.RemovePodSandbox(c.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		c.t.Fatal(err)
	}
	e = next(box, cri.ContainerEventType_CONTAINER_DELETED_EVENT)
	if s := e.GetPodSandboxStatus(); s.GetMetadata().GetUid() != pod.GetMetadata().GetUid() || s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		c.t.Errorf("a pod that has gone is told as %v", s)
	}
}

// conformStreams compares each streamed list with the list itself, one of them with more
// than a message's worth in it.
func conformStreams(c *conform) {
	box, pod := c.pod(nil)
	other, _ := c.pod(nil)
	for range 8 {
		config := c.containerConfig(c.image, "true")
		config.Annotations = map[string]string{"much": strings.Repeat("x", 250<<10)}
		c.create(box, pod, config)
	}
	boxes, err := c.StreamPodSandboxes(c.ctx(), &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{Id: other}})
	if err != nil {
		c.t.Fatal(err)
	}
	got := collect(c, boxes.Recv, (*cri.StreamPodSandboxesResponse).GetPodSandboxes, 1)
	if len(got) != 1 || got[0].GetId() != other {
		c.t.Errorf("the pod with id %s is %v", other, got)
	}
	filter := &cri.ContainerFilter{PodSandboxId: box}
	containers, err := c.StreamContainers(c.ctx(), &cri.StreamContainersRequest{Filter: filter})
	if err != nil {
		c.t.Fatal(err)
	}
	list, err := c.ListContainers(c.ctx(), &cri.ListContainersRequest{Filter: filter})
	if err != nil || len(list.GetContainers()) != 8 {
		c.t.Fatalf("%d containers, %v", len(list.GetContainers()), err)
	}
	sameItems(c, collect(c, containers.Recv, (*cri.StreamContainersResponse).GetContainers, 2), list.GetContainers())
	// Without a filter there are images of other cases, which come and go.
	for _, filter := range []*cri.ImageFilter{{Image: &cri.ImageSpec{Image: c.image}}, {Image: &cri.ImageSpec{Image: "no.such/image:v1"}}} {
		images, err := c.images.StreamImages(c.ctx(), &cri.StreamImagesRequest{Filter: filter})
		if err != nil {
			c.t.Fatal(err)
		}
		list, err := c.images.ListImages(c.ctx(), &cri.ListImagesRequest{Filter: filter})
		if err != nil {
			c.t.Fatal(err)
		}
		sameItems(c, collect(c, images.Recv, (*cri.StreamImagesResponse).GetImages, 0), list.GetImages())
	}
}

// conformStatsStreams looks for one of two pods in each stream; what is told of it is what
// the lists tell, which have cases of their own.
func conformStatsStreams(c *conform) {
	box, pod := c.pod(nil)
	id := c.sleeperIn(box, pod, nil)
	c.sleeper(nil)
	containers, err := c.StreamContainerStats(c.ctx(), &cri.StreamContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: box}})
	if err != nil {
		c.t.Fatal(err)
	}
	if got := collect(c, containers.Recv, (*cri.StreamContainerStatsResponse).GetContainerStats, 1); len(got) != 1 ||
		got[0].GetAttributes().GetId() != id || got[0].GetMemory().GetUsageBytes().GetValue() == 0 {
		c.t.Errorf("statistics of %s: %v", id, got)
	}
	pods, err := c.StreamPodSandboxStats(c.ctx(), &cri.StreamPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: box}})
	if err != nil {
		c.t.Fatal(err)
	}
	if got := collect(c, pods.Recv, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats, 1); len(got) != 1 ||
		got[0].GetAttributes().GetId() != box || len(got[0].GetLinux().GetContainers()) != 1 {
		c.t.Errorf("statistics of %s: %v", box, got)
	}
	metrics, err := c.StreamPodSandboxMetrics(c.ctx(), &cri.StreamPodSandboxMetricsRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	times := map[string]int{}
	for _, m := range collect(c, metrics.Recv, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, 1) {
		if times[m.GetPodSandboxId()]++; m.GetPodSandboxId() == box && len(m.GetContainerMetrics()) != 1 {
			c.t.Errorf("metrics of the pod: %v", m)
		}
	}
	if times[box] != 1 {
		c.t.Errorf("metrics of the pod come %d times", times[box])
	}
}

// collect reads a stream to its end: at least so many messages, none of them empty.
func collect[M, T any](c *conform, receive func() (M, error), items func(M) []T, messages int) (all []T) {
	c.t.Helper()
	for n := 0; ; n++ {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			if n < messages {
				c.t.Errorf("all came in %d messages", n)
			}
			return all
		}
		if err != nil {
			c.t.Fatal(err)
		}
		if len(items(m)) == 0 {
			c.t.Error("an empty message")
		}
		all = append(all, items(m)...)
	}
}

func sameItems[T proto.Message](c *conform, got, want []T) {
	c.t.Helper()
	if !slices.EqualFunc(got, want, func(a, b T) bool { return proto.Equal(a, b) }) {
		c.t.Errorf("the stream has %d items, the list %d, or others", len(got), len(want))
	}
}
