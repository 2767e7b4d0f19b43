package network

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// answer is a result that says nothing but an address.
const answer = `{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.9/24"}]}`

// newScript is a network of one plugin, a shell script. $dir is the site's directory.
func newScript(t *testing.T, script string) *site {
	t.Helper()
	s := newSite(t, map[string]string{"10-script.conflist": `{"cniVersion": "1.1.0", "name": "scripted", "plugins": [
		{"type": "script", "own": "yes", "capabilities": {"portMappings": true, "dns": true, "mac": true}}]}`})
	s.write(t, "bin/script", "#!/bin/sh\ndir="+s.dir+"\n"+script+"\n")
	return s
}

func (s *site) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func pod() Pod {
	return Pod{ID: "id1", Name: "web", Namespace: "shop", UID: "u1", Netns: "/run/ns/1"}
}

func TestPluginIsToldOfThePod(t *testing.T) {
	const record = "env | grep ^CNI_ | sort > $dir/$CNI_COMMAND.env; cat > $dir/$CNI_COMMAND.stdin; [ $CNI_COMMAND = ADD ] && echo '" + answer + "' || :"
	full := pod()
	full.Ports = []Port{{Protocol: "udp", HostIP: "127.0.0.1", HostPort: 53, ContainerPort: 5353}, {Protocol: "tcp", HostPort: 80, ContainerPort: 8080}}
	full.DNS = &DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}}
	for name, c := range map[string]struct {
		pod     Pod
		runtime string // JSON of runtimeConfig; "" is none
	}{
		"plain": {pod: pod()},
		"capabilities": {pod: full, runtime: `{
			"portMappings": [{"protocol": "udp", "hostIP": "127.0.0.1", "hostPort": 53, "containerPort": 5353}, {"protocol": "tcp", "hostPort": 80, "containerPort": 8080}],
			"dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, record)
			if err := s.Del(t.Context(), c.pod, s.attach(t, c.pod)); err != nil {
				t.Fatal(err)
			}
			for _, verb := range []string{"ADD", "DEL"} {
				wantCall(t, s, verb, c.runtime)
			}
		})
	}
}

// wantCall compares what the recording script was called with. PrevResult is for DEL only.
func wantCall(t *testing.T, s *site, verb, runtime string) {
	t.Helper()
	env := fmt.Sprintf(`CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=id1;K8S_POD_UID=u1
CNI_COMMAND=%s
CNI_CONTAINERID=id1
CNI_IFNAME=eth0
CNI_NETNS=/run/ns/1
CNI_PATH=%s
`, verb, strings.Join(s.PluginDirs, ":"))
	if got := s.read(t, verb+".env"); got != env {
		t.Errorf("%s: environment is\n%s\nwant\n%s", verb, got, env)
	}
	var got struct {
		CNIVersion, Name, Type, Own string
		RuntimeConfig, PrevResult   any
	}
	var want any
	err := json.Unmarshal([]byte(s.read(t, verb+".stdin")), &got)
	if runtime != "" {
		err = errors.Join(err, json.Unmarshal([]byte(runtime), &want))
	}
	if err != nil || got.CNIVersion != "1.1.0" || got.Name != "scripted" || got.Type != "script" || got.Own != "yes" || (got.PrevResult != nil) != (verb == "DEL") {
		t.Errorf("%s: stdin is %+v, %v", verb, got, err)
	}
	if !reflect.DeepEqual(got.RuntimeConfig, want) {
		t.Errorf("%s: runtimeConfig is %v, want %v", verb, got.RuntimeConfig, want)
	}
}

func TestPluginOutput(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		says   []string // nil is success
	}{
		"an address":                   {script: "echo '" + answer + "'"},
		"talks on stderr":              {script: "head -c 3000000 /dev/zero >&2; echo '" + answer + "'"},
		"an error document":            {script: `echo '{"cniVersion": "1.0.0", "code": 11, "msg": "try later", "details": "no lease"}'; exit 1`, says: []string{"try later", "no lease"}},
		"an error without a message":   {script: `echo '{"code": 11}'; exit 1`, says: []string{"exit status 1", `{"code": 11}`}},
		"garbage and failure":          {script: "echo rubbish; echo oops >&2; exit 3", says: []string{"bin/script", "exit status 3", "rubbish", "oops"}},
		"silent failure":               {script: "exit 4", says: []string{"bin/script", "exit status 4"}},
		"a signal":                     {script: "kill -SEGV $$", says: []string{"bin/script", "segmentation fault"}},
		"garbage and success":          {script: "echo rubbish", says: []string{"invalid character 'r'"}},
		"silent success":               {script: ":", says: []string{"unexpected end of JSON input"}},
		"null":                         {script: "echo null", says: []string{"no address"}},
		"no address":                   {script: "echo {}", says: []string{"no address"}},
		"the node's address only":      {script: `echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "br0"}], "ips": [{"interface": 0, "address": "10.0.0.1/24"}]}'`, says: []string{"no address"}},
		"an unknown version":           {script: `echo '{"cniVersion": "9.9.9"}'`, says: []string{"9.9.9"}},
		"an address that is not one":   {script: `echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.256/24"}]}'`, says: []string{"10.0.0.256"}},
		"a null address":               {script: `echo '{"cniVersion": "0.4.0", "ips": [null]}'`, says: []string{"bin/script", `null in "ips"`}},
		"a null interface":             {script: `echo '{"cniVersion": "0.3.1", "interfaces": [null], "ips": []}'`, says: []string{"bin/script", `null in "interfaces"`}},
		"endless output":               {script: "head -c 3000000 /dev/zero", says: []string{"bin/script", "more than 1048576 bytes"}},
		"an endless error is cut":      {script: "head -c 500000 /dev/zero | tr '\\0' x; exit 1", says: []string{"bin/script", "exit status 1", "xxx"}},
		"an endless message is cut":    {script: `printf '{"msg": "%s"}' $(head -c 100000 /dev/zero | tr '\0' x); exit 1`, says: []string{"xxx"}},
		"the plugin is not executable": {script: "", says: []string{"bin/script", "permission denied"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, c.script)
			a, err := s.unasked()
			if err != nil {
				t.Fatal(err)
			}
			if c.script == "" {
				if err := os.Chmod(s.dir+"/bin/script", 0o644); err != nil {
					t.Fatal(err)
				}
			}
			a, err = s.Add(t.Context(), pod(), a)
			if c.says == nil {
				if err != nil || len(a.IPs) != 1 || a.IPs[0] != "10.0.0.9" {
					t.Errorf("got %+v, %v", a, err)
				}
				return
			}
			for _, word := range append(c.says, "scripted") {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("got %.2000v, want one that says %q", err, word)
				}
			}
			if err != nil && len(err.Error()) > 4096 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// fifo is where a script tells of the processes that it starts.
func (s *site) fifo(t *testing.T) *bufio.Reader {
	t.Helper()
	if err := unix.Mkfifo(s.dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.dir+"/fifo", os.O_RDWR, 0)
	if err == nil {
		err = f.SetReadDeadline(time.Now().Add(20 * time.Second))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return bufio.NewReader(f)
}

// process opens the next process that the script tells of. It is killed at the end.
func process(t *testing.T, fifo *bufio.Reader) (pidfd int) {
	t.Helper()
	line, err := fifo.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err == nil {
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	t.Cleanup(func() {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		unix.Close(pidfd)
	})
	return pidfd
}

// ended waits for the end of a process; one that nobody has reaped yet has ended too.
func ended(t *testing.T, pidfd int, patience time.Duration) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 1
		}
	}
}

// TestHangingPluginIsKilled with what it started: CNI knows no cancel, and a plugin
// that waits for a dead API server would hold the sandbox for ever.
func TestHangingPluginIsKilled(t *testing.T) {
	const hang = "[ $CNI_COMMAND = $(cat $dir/verb) ] || { echo '" + answer + "'; exit 0; }; sleep 1000 & echo $! > $dir/fifo; sleep 1000 & wait"
	for verb, call := range map[string]func(context.Context, *site, Attachment) error{
		"ADD": func(ctx context.Context, s *site, a Attachment) error { _, err := s.Add(ctx, pod(), a); return err },
		"DEL": func(ctx context.Context, s *site, a Attachment) error { return s.Del(ctx, pod(), a) },
		// It has a deadline of its own, so that its caller's does not matter.
		"STATUS": func(ctx context.Context, s *site, _ Attachment) error {
			_, err := s.Choose(context.WithoutCancel(ctx))
			return err
		},
	} {
		t.Run(verb, func(t *testing.T) {
			s := newScript(t, hang)
			s.write(t, "verb", verb)
			fifo := s.fifo(t)
			a, err := s.unasked()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- call(ctx, s, a) }()
			child := process(t, fifo)
			cancel()
			select {
			case err = <-result:
			case <-time.After(20 * time.Second):
				t.Fatal("the call does not end with its context")
			}
			if verb != "STATUS" && !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			for _, word := range []string{"scripted", "bin/script", "killed"} {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("got %v, want one that says %q", err, word)
				}
			}
			if !ended(t, child, 10*time.Second) {
				t.Error("what the plugin started lives on")
			}
		})
	}
}

// TestLeftBehindIsNoFailure: a plugin that ended well has done its work, even if a
// daemon that it started holds its output open. It once failed the pod.
func TestLeftBehindIsNoFailure(t *testing.T) {
	s := newScript(t, "sleep 1000 & echo $! > $dir/fifo; echo '"+answer+"'")
	fifo := s.fifo(t)
	a := s.attach(t, pod())
	if len(a.IPs) != 1 {
		t.Errorf("got %+v", a)
	}
	if ended(t, process(t, fifo), 0) {
		t.Error("the daemon was killed")
	}
}
