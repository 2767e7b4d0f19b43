package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
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

const (
	// pipeTime is how long the output of an ended plugin may stay open.
	pipeTime = time.Second
	// maxOutput bounds what is kept of a plugin's stdout and stderr; a result of a
	// dual-stack pod has 1 KiB.
	maxOutput = 1 << 20
)

// bounded keeps the first bytes that are written to it. It takes the others without
// an error, so that a talkative plugin does not die of its log.
type bounded struct {
	kept bytes.Buffer
	cut  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := min(len(p), maxOutput-b.kept.Len())
	b.cut = b.cut || room < len(p)
	b.kept.Write(p[:room])
	return len(p), nil
}

func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bounded
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipeTime
	err := cmd.Run()
	switch {
	case stdout.cut:
		return nil, fmt.Errorf("plugin %s: it printed more than %d bytes on stdout", path, maxOutput)
	// It ended well, and has left somebody behind who holds its output open.
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, pluginError(path, err, stdout.kept.Bytes(), stderr.kept.String())
	}
	return stdout.kept.Bytes(), checkLists(path, stdout.kept.Bytes())
}

// checkLists refuses null where a result has an object: libcni panics when it converts
// such a result to a newer version. What is no JSON at all it refuses itself.
func checkLists(path string, stdout []byte) error {
	var document map[string]json.RawMessage
	if json.Unmarshal(stdout, &document) != nil {
		return nil
	}
	for name, value := range document {
		var list []json.RawMessage
		if json.Unmarshal(value, &list) != nil {
			continue
		}
		if slices.ContainsFunc(list, func(entry json.RawMessage) bool { return string(entry) == "null" }) {
			return fmt.Errorf("plugin %s: its result has null in %q", path, name)
		}
	}
	return nil
}

// pluginError is what the plugin printed (CNI specification, section 5), or all that there is.
func pluginError(path string, err error, stdout []byte, stderr string) error {
	const most = 1024
	var told types.Error
	if json.Unmarshal(stdout, &told) == nil && told.Msg != "" {
		told.Msg, told.Details = fmt.Sprintf("%.*s", most, told.Msg), fmt.Sprintf("%.*s", most, told.Details)
		return &told
	}
	text := strings.TrimSpace(string(stdout) + " " + stderr)
	return fmt.Errorf("plugin %s: %w: %.*s", path, err, most, text)
}

func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}
