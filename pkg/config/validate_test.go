package config

import (
	"bytes"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

func TestDefaultsAreValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateNamesKeyValueAndFix(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // "" when it is to be accepted
	}{
		{"relative root", func(c *Config) { c.Root = "storage" }, `crio.root: "storage" is no absolute path: let it begin with /`},
		{"root of storage.conf", func(c *Config) { c.Root, c.RunRoot = "", "" }, ""},
		{"no state directory", func(c *Config) { c.StateDir = "" }, "crio.state_dir: is empty: give it a value"},
		{"NUL", func(c *Config) { c.StorageDriver = "a\x00b" }, "crio.storage_driver: \"a\\x00b\" has a NUL byte: remove it"},
		{"NUL in path", func(c *Config) { c.StateDir = "/a\x00b" }, `crio.state_dir: "/a\x00b" has a NUL byte`},
		{"one directory for both", func(c *Config) { c.RunDir = c.StateDir + "/" }, "crio.run_dir: \"/var/lib/crio/\" is crio.state_dir too"},
		{"one storage for both", func(c *Config) { c.RunRoot = c.Root }, "crio.runroot:"},
		{"socket as URL", func(c *Config) { c.API.Listen = "unix:///run/crio.sock" }, "crio.api.listen:"},
		{"no message", func(c *Config) { c.API.GRPCMaxRecvMsgSize = 0 }, "crio.api.grpc_max_recv_msg_size: 0 is too small: use at least 1"},
		{"no such handler", func(c *Config) { c.Runtime.DefaultRuntime = "kata" }, `crio.runtime.default_runtime: "kata" has no table: add [crio.runtime.runtimes.kata]`},
		{"no handler", func(c *Config) { c.Runtime.DefaultRuntime = "" }, "crio.runtime.default_runtime: is empty"},
		{"handler outside", func(c *Config) { c.Runtime.Runtimes["../x"] = newHandler() }, `"../x" is no name for a handler`},
		{"vm", func(c *Config) {
			c.Runtime.Runtimes["kata"] = RuntimeHandler{RuntimeType: "vm", ContainerCreateTimeout: 30}
		}, `crio.runtime.runtimes.kata.runtime_type: "vm" is not served: use oci, sandbox`},
		{"relative runtime", func(c *Config) {
			c.Runtime.Runtimes["a.b"] = RuntimeHandler{RuntimePath: "x", ContainerCreateTimeout: 30}
		}, `crio.runtime.runtimes."a.b".runtime_path: "x" is no absolute path`},
		{"hasty", func(c *Config) { c.Runtime.Runtimes["x"] = RuntimeHandler{ContainerCreateTimeout: 29} }, "container_create_timeout: 29 is too short"},
		{"cgroup manager", func(c *Config) { c.Runtime.CgroupManager = "cgroups" }, `crio.runtime.cgroup_manager: "cgroups" is not served: use systemd, cgroupfs`},
		{"log level", func(c *Config) { c.Runtime.LogLevel = "loud" }, "crio.runtime.log_level:"},
		{"short names", func(c *Config) { c.Image.ShortNameMode = "on" }, "use enforcing, permissive, disabled"},
		{"transport", func(c *Config) { c.Image.DefaultTransport = "oci:" }, "use docker://"},
		{"small log", func(c *Config) { c.Runtime.LogSizeMax = 8191 }, "crio.runtime.log_size_max: 8191 is too small"},
		{"least log", func(c *Config) { c.Runtime.LogSizeMax = 8192 }, ""},
		{"pids", func(c *Config) { c.Runtime.PidsLimit = -2 }, "crio.runtime.pids_limit: -2"},
		{"negative grace", func(c *Config) { c.Runtime.CtrStopTimeout = -1 }, "crio.runtime.ctr_stop_timeout: -1 is negative"},
		{"negative timeout", func(c *Config) { c.Image.PullProgressTimeout = -1e9 }, "crio.image.pull_progress_timeout: -1s is negative"},
		{"plugins nowhere", func(c *Config) { c.Network.PluginDirs = nil }, "crio.network.plugin_dirs: is empty"},
		{"relative plugins", func(c *Config) { c.Network.PluginDirs = []string{"/a", "b"} }, `"b" is no absolute path`},
		{"empty entry", func(c *Config) { c.Network.PluginDirs = []string{"/a", ""} }, "entry 2 is empty"},
		{"env", func(c *Config) { c.Runtime.DefaultEnv = []string{"A=1", "B"} }, `crio.runtime.default_env: "B" is not of the form NAME=value`},
		{"env without name", func(c *Config) { c.Runtime.DefaultEnv = []string{"=1"} }, `"=1" is not`},
		{"env with commas", func(c *Config) { c.Runtime.DefaultEnv = []string{"A=1,2=3", "B="} }, ""},
		{"sysctl", func(c *Config) { c.Runtime.DefaultSysctls = []string{"net.ipv4.ip_forward"} }, "crio.runtime.default_sysctls:"},
		{"sysctl outside", func(c *Config) { c.Runtime.DefaultSysctls = []string{"net/../x=1"} }, "crio.runtime.default_sysctls:"},
		{"good sysctls", func(c *Config) {
			c.Runtime.DefaultSysctls = []string{"net.ipv4.conf.eth0/1.forwarding=1", "kernel.msgmax = 1"}
		}, `"kernel.msgmax = 1"`},
		{"capability", func(c *Config) { c.Runtime.DefaultCapabilities = []string{"net raw"} }, `"net raw" is no capability`},
		{"capability with prefix", func(c *Config) { c.Runtime.DefaultCapabilities = []string{"CAP_NET_RAW"} }, ""},
		{"no capabilities", func(c *Config) { c.Runtime.DefaultCapabilities = []string{} }, ""},
		{"ulimits", func(c *Config) { c.Runtime.DefaultUlimits = []string{"nofile=1024:2048", "core=-1:-1", "nproc=5"} }, ""},
		{"ulimit name", func(c *Config) { c.Runtime.DefaultUlimits = []string{"files=1:2"} }, `"files=1:2" names no limit`},
		{"ulimit form", func(c *Config) { c.Runtime.DefaultUlimits = []string{"nofile=1:b"} }, "is not of the form name=soft:hard"},
		{"ulimit order", func(c *Config) { c.Runtime.DefaultUlimits = []string{"nofile=-1:5"} }, "soft limit over the hard one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Default()
			tt.change(c)
			err := c.Validate()
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && err == nil:
				t.Errorf("accepted, want an error with %q", tt.want)
			case tt.want != "" && !strings.Contains(err.Error(), tt.want):
				t.Errorf("error %q, want it to have %q", err, tt.want)
			}
		})
	}
}

func TestBadValuesNameTheirFile(t *testing.T) {
	file := write(t, t.TempDir(), "crio.conf", "[crio.runtime]\n\ncgroup_manager = 'none'\n")
	if _, err := Load(Sources{File: file}); err == nil || !strings.HasPrefix(err.Error(), file+":3: crio.runtime.cgroup_manager:") {
		t.Errorf("error %v, want it to begin with file, line and key", err)
	}
}

// TestPrintedConfigLoadsAgain guards "crio config > file": nothing is lost or frozen.
func TestPrintedConfigLoadsAgain(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "crio\n.conf", `
[crio]
root = "/with \"quotes\"\t\\ and \u0001"
storage_option = []
[crio.runtime]
default_env = ["A=1", "B=\n"]
default_runtime = "a.b"
[crio.runtime.runtimes."a.b"]
runtime_path = "/x"
[crio.image]
pull_progress_timeout = "1m30s"
`)
	c, err := Load(Sources{File: file, Overrides: []Override{{"crio.api.listen", "--listen", []string{"/s"}}}})
	if err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	if err := Print(&printed, c); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\n# From: --listen\nlisten = \"/s\"\n", "\n# From: default\n#runroot = ", ".conf:3\nroot = "} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("printed text lacks %q:\n%s", want, printed.String())
		}
	}
	again, err := Load(Sources{File: write(t, dir, "again.conf", printed.String())})
	if err != nil {
		t.Fatal(err)
	}
	for key := range c.origins {
		if again.Origin(key) == originDefault {
			t.Errorf("%s is not set any more", key)
		}
	}
	if len(again.origins) != len(c.origins) {
		t.Errorf("%d keys are set, want %d", len(again.origins), len(c.origins))
	}
	c.origins, again.origins = nil, nil
	if !reflect.DeepEqual(again, c) {
		t.Errorf("loaded again:\n%+v\nwant\n%+v", again, c)
	}
}

// TestDefaultsWorkWithoutTheirCommentMarks takes the printed defaults at their word.
func TestDefaultsWorkWithoutTheirCommentMarks(t *testing.T) {
	var printed bytes.Buffer
	if err := Print(&printed, Default()); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(printed.String()) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") {
			line = line[1:]
		}
		text.WriteString(line)
	}
	c, err := Load(Sources{File: write(t, t.TempDir(), "crio.conf", text.String())})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(Fields()) + reflect.TypeFor[RuntimeHandler]().NumField(); len(c.origins) != want {
		t.Errorf("%d keys are in the file, want %d", len(c.origins), want)
	}
	var again bytes.Buffer
	c.origins = nil
	if err := Print(&again, c); err != nil {
		t.Fatal(err)
	}
	if again.String() != printed.String() {
		t.Errorf("the printed defaults are other values:\n%s", again.String())
	}
}

func TestSlogLevel(t *testing.T) {
	for level, want := range map[string]slog.Level{
		"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
		"warning": slog.LevelWarn, "error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
	} {
		if got := (Runtime{LogLevel: level}).SlogLevel(); got != want {
			t.Errorf("%s is %v, want %v", level, got, want)
		}
	}
}

// FuzzDecode guards against panics and endless loops, and holds what is accepted to
// being printed and loaded again.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"[crio]\nroot = '/a'\n", "crio.runtime.runtimes.'a.b' = {runtime_path = \"/x\"}\n",
		"[crio.runtime]\ndefault_env = [\n'A=1', # x\n\"\"\"B\\\"=\n\"\"\"]\n", "[[crio]]\n[", "a.\"b\".c = [{x=1},{y=2}]", "[crio.nri]\nx=1\r\n\x00",
		"crio = {image = {pull_progress_timeout = '1h'}}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		keyLines(text)
		c := Default()
		c.origins = map[string]string{}
		if _, err := decode(c, "fuzz.conf", text); err != nil || c.Validate() != nil {
			return
		}
		var printed bytes.Buffer
		if err := Print(&printed, c); err != nil {
			t.Fatal(err)
		}
		again := Default()
		again.origins = map[string]string{}
		if _, err := decode(again, "printed.conf", printed.String()); err != nil {
			t.Fatalf("%v\n%s", err, printed.String())
		}
		if len(c.origins) != len(again.origins) {
			t.Fatalf("%v\nbecame\n%v", c.origins, again.origins)
		}
		c.origins, again.origins = nil, nil
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v\nbecame\n%+v", c, again)
		}
	})
}
