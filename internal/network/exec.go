package network

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// pluginExec runs plugins for libcni. Unlike libcni's own it ends with its context:
// the plugin is killed together with what it started (IPAM plugins, iptables), and a
// descendant that holds the output open is not waited for.
type pluginExec struct{ version.PluginDecoder }

// pipeTime is how long the output of an ended plugin may stay open.
const pipeTime = time.Second

func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipeTime
	if err := cmd.Run(); err != nil {
		return nil, pluginError(path, err, stdout.Bytes(), stderr.String())
	}
	return stdout.Bytes(), nil
}

// pluginError is what the plugin printed (CNI specification, section 5), or all that there is.
func pluginError(path string, err error, stdout []byte, stderr string) error {
	var told types.Error
	if json.Unmarshal(stdout, &told) == nil && told.Msg != "" {
		return &told
	}
	text := strings.TrimSpace(string(stdout) + " " + stderr)
	const most = 1024
	return fmt.Errorf("plugin %s: %w: %.*s", path, err, most, text)
}

func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}
