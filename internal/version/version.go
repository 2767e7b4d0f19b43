// Package version holds the version numbers of this build, the only place that has them.
package version

import "runtime/debug"

const (
	// Version is crio's own: the Kubernetes minor that it is locked to, and a patch number.
	Version = "1.37.0"
	// KubernetesMinor is the Kubernetes release whose kubelet crio serves.
	KubernetesMinor = "1.37"
	// CRI is the CRI package that is served (RuntimeApiVersion of the CRI Version call).
	CRI = "v1"
	// CRIAPI is the version of k8s.io/cri-api that crio is built with; a test holds it to go.mod.
	CRIAPI = "v0.37.2"
	// RuntimeName is CRI-O's, since it becomes the scheme of the kubelet's container
	// IDs ("cri-o://...") on nodes that change over.
	RuntimeName = "cri-o"
)

// Commit returns the git commit of the build, with "-dirty" appended when files were
// changed, or "unknown" when it was built outside of a repository.
func Commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	commit, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && s.Value != "":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	return commit + dirty
}
