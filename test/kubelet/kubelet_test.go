package kubelet

import "testing"

// TestKubelet takes one set of pods through what happens on a node. Each part finds the
// node as the parts before it have left it: pods that start side by side make the test short.
func TestKubelet(t *testing.T) {
	n := newNode(t)
	n.startCrio()
	n.runPods()
	n.startKubelet("")
	for _, part := range []struct {
		name string
		run  func(*testing.T, *node)
	}{
		{"init containers and sidecars", initContainers},
		{"restart policies", restartPolicies},
		{"containers that cannot start", failures},
		{"volumes", volumes},
		{"hostPort", hostPort},
		{"the node's namespaces", nodeNamespaces},
		{"a shared process namespace", sharedProcesses},
		{"security context", securityContext},
		{"user namespaces", userNamespaces},
		{"quality of service", qualityOfService},
		{"probes", probes},
		{"lifecycle hooks", hooks},
		{"logs", logs},
		{"streams", streams},
		{"statistics by the socket's name", statisticsByName},
		{"restart of the daemon", crioRestart},
		{"restart of the kubelet", kubeletRestart},
		{"statistics by CRI, in streams", statisticsInStreams},
		{"events", events},
		{"restart of the daemon under events", crioRestartUnderEvents},
		{"garbage collection", garbage},
		{"termination", termination},
		{"nothing is left", nothingLeft},
		{"complaints", quiet},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, within(n, t)) })
	}
}
