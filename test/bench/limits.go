package main

import "strings"

// limits are those of the issue "Fast and small: measured against the floor", for rows of
// that name, with any runtime.
func limits(name string) limit {
	if _, rest, ok := strings.Cut(name, ": "); ok {
		name = rest
	}
	switch name {
	case rowRunPod:
		return limit{Over: 4}
	case rowCreateStart:
		return limit{Over: 8}
	case rowRunning:
		return limit{Over: 12}
	case rowExec:
		return limit{Over: 3}
	case rowEndContainer:
		return limit{Over: 8}
	case rowEndPod:
		return limit{Over: 6}
	case "8 clients":
		return limit{Ratio: 1 / 0.85}
	case "32 clients, each pod against that of 8":
		return limit{Most: 1}
	case "the last ten pods against the first ten":
		return limit{Most: 1.1}
	case "ListContainers of 1000":
		return limit{Most: 3}
	case "ListContainerStats of 250":
		return limit{Most: 25}
	case "ListPodSandboxMetrics of 250":
		return limit{Most: 50}
	case "restart with 250 pods to the first List":
		return limit{Most: 300}
	case "daemon idle, PSS":
		return limit{Most: 32}
	case "daemon idle, anonymous":
		return limit{Most: 12}
	case "daemon, more per container":
		return limit{Most: 60}
	case "monitor, private":
		return limit{Most: 64}
	case rowPullLarge:
		return limit{Ratio: 1.2}
	case "daemon's peak during the large pull":
		return limit{Most: 64}
	}
	return limit{}
}
