package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// pod is what the tests read of the kubelet's /pods (k8s.io/api/core/v1, Pod).
type pod struct {
	Metadata struct {
		Name, UID string
	}
	Status struct {
		Phase, PodIP, HostIP, QOSClass string
		InitContainerStatuses          []container
		ContainerStatuses              []container
	}
}

type container struct {
	Name, ContainerID, ImageID string
	Ready                      bool
	RestartCount               int
	State, LastState           struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *struct {
			ExitCode              int
			Reason, Message       string
			StartedAt, FinishedAt time.Time
		}
	}
}

// id is the container's without the runtime's name.
func (c container) id() string {
	_, id, _ := strings.Cut(c.ContainerID, "://")
	return id
}

func (c container) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// ask sends a request to the kubelet and returns the answer's body, or its error.
func (n *node) ask(method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	body, err := n.send(ctx, method, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// send returns the answer's body while it comes, as long as ctx lives.
func (n *node) send(ctx context.Context, method, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, "https://127.0.0.1:10250"+path, nil)
	if err != nil {
		return nil, err
	}
	// The kubelet has signed its certificate itself.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	return answer.Body, nil
}

func (n *node) get(path string) ([]byte, error) { return n.ask(http.MethodGet, path) }

// pods is the kubelet's view of all pods by their names, without the node's at their ends.
func (n *node) pods() (map[string]pod, error) {
	body, err := n.get("/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []pod }
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	all := map[string]pod{}
	for _, p := range list.Items {
		all[strings.TrimSuffix(p.Metadata.Name, "-"+nodeName)] = p
	}
	return all, nil
}

// awaitPod waits until the kubelet's view of a pod is good, and returns it.
func (n *node) awaitPod(t *testing.T, name string, good func(p pod) error) pod {
	t.Helper()
	var p pod
	within(n, t).await("pod "+name, func() error {
		all, err := n.pods()
		if err != nil {
			return err
		}
		p = all[name]
		return good(p)
	})
	return p
}

// awaitContainer waits until the kubelet's view of a container of a pod is good, and returns it.
func (n *node) awaitContainer(t *testing.T, podName, name string, good func(c container) bool) container {
	t.Helper()
	var found container
	n.awaitPod(t, podName, func(p pod) (err error) {
		found, err = p.container(name)
		if err == nil && !good(found) {
			err = fmt.Errorf("it is %s", found)
		}
		return err
	})
	return found
}

// container returns the status of a container, of the pod's own or those of its beginning.
func (p pod) container(name string) (container, error) {
	all := append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...)
	i := slices.IndexFunc(all, func(c container) bool { return c.Name == name })
	if i < 0 {
		return container{}, fmt.Errorf("pod %s (%s) has no status of container %s", p.Metadata.Name, p.Status.Phase, name)
	}
	return all[i], nil
}

func ready(c container) bool   { return c.Ready }
func running(c container) bool { return c.State.Running != nil }

// exec runs a command in a container by the kubelet, and returns its output without the
// newline at its end. The kubelet splits the command at its blanks.
func (n *node) exec(t *testing.T, pod, container, command string) string {
	t.Helper()
	text, err := n.ask(http.MethodPost, fmt.Sprintf("/run/default/%s-%s/%s?cmd=%s", pod, nodeName, container, url.QueryEscape(command)))
	if err != nil {
		t.Errorf("%s/%s: %s: %v", pod, container, command, err)
	}
	return strings.TrimSuffix(string(text), "\n")
}

// logs are a container's by the kubelet, query being options of its /containerLogs.
func (n *node) logs(t *testing.T, pod, container, query string) string {
	t.Helper()
	text, err := n.get(fmt.Sprintf("/containerLogs/default/%s-%s/%s?%s", pod, nodeName, container, query))
	check(t, err)
	return string(text)
}

// within is the node for a part of the test, which fails on its own.
func within(n *node, t *testing.T) *node {
	part := *n
	part.t = t
	return &part
}

// same compares what a test has with what it wants.
func same[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}
