package untrusted

import (
	"fmt"
	"strings"
)

// Private says which namespaces are the pod's own.
type Private struct{ Net, IPC, UTS bool }

// CheckSysctl refuses a sysctl that would change more than the pod: one without a
// namespace, or whose namespace is the node's (CVE-2022-0532), and a name or value
// that is more than one line of plain text (CVE-2022-0811).
func CheckSysctl(name, value string, own Private) error {
	if name == "" || strings.Contains(name, "..") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") != "" {
		return fmt.Errorf("%q is not the name of a sysctl", name)
	}
	for _, r := range []byte(value) {
		if r != '\t' && (r < ' ' || r > '~') {
			return fmt.Errorf("the value of %s contains a control character", name)
		}
	}
	// Dots part a name, and a slash stands for a dot inside a part (an interface
	// "eth0.1"); the other way round would need another reading of it.
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return fmt.Errorf("%q: write it with dots between its parts", name)
	}
	switch {
	case strings.HasPrefix(name, "net."):
		return needs(own.Net, name, "network")
	case isIPC(name):
		return needs(own.IPC, name, "IPC")
	case name == "kernel.hostname" || name == "kernel.domainname":
		return needs(own.UTS, name, "UTS")
	}
	return fmt.Errorf("%s belongs to no namespace: setting it would change the whole node", name)
}

func needs(own bool, name, namespace string) error {
	if own {
		return nil
	}
	return fmt.Errorf("%s cannot be set: the pod uses the node's %s namespace", name, namespace)
}

// isIPC: the sysctls of an IPC namespace (ipc_namespaces(7)).
func isIPC(name string) bool {
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
		"kernel.shmmni", "kernel.shm_rmid_forced":
		return true
	}
	return strings.HasPrefix(name, "fs.mqueue.")
}
