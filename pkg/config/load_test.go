package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// write makes a file in dir and returns its path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLaterLayersWin(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "crio.conf", `
[crio]
root = "/file"
storage_option = ["a=1", "b=2"]
state_dir = "/file/state"
[crio.runtime]
log_level = "warn"
[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
monitor_env = ["A=1", "B=2"]
[crio.image]
pull_progress_timeout = "90s"
`)
	drop := filepath.Join(dir, "crio.conf.d")
	if err := os.Mkdir(drop, 0o700); err != nil {
		t.Fatal(err)
	}
	second := write(t, drop, "20-b.conf", "[crio]\nroot = '/second'\n[crio.runtime.runtimes.crun]\nmonitor_env = []\n")
	first := write(t, drop, "10-a.conf", "crio.root = '/first'\ncrio.storage_option = ['c=3']\ncrio.runtime.default_runtime = 'crun'\n"+
		"[crio.runtime.runtimes]\ncrun = { runtime_root = '/run/crun' }\n")
	write(t, drop, "30-c.conf.bak", "no TOML at all")
	write(t, drop, ".40-d.conf", "no TOML at all")

	c, err := Load(Sources{File: file, FileRequired: true, Dir: drop, Overrides: []Override{
		{Key: "crio.runtime.log_level", Origin: "CONTAINER_LOG_LEVEL", Values: []string{"error"}},
		{Key: "crio.runtime.log_level", Origin: "--log-level", Values: []string{"debug"}},
		{Key: "crio.network.plugin_dirs", Origin: "--plugin-dirs", Values: []string{"/x", "/y"}},
		{Key: "crio.runtime.read_only", Origin: "--read-only", Values: []string{"true"}},
		{Key: "crio.runtime.ctr_stop_timeout", Origin: "--ctr-stop-timeout", Values: []string{"7"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	handlers := map[string]RuntimeHandler{
		"runc": newHandler(),
		"crun": {RuntimePath: "/usr/bin/crun", RuntimeType: "oci", RuntimeRoot: "/run/crun", MonitorEnv: []string{}, ContainerCreateTimeout: 240},
	}
	for _, tt := range []struct {
		key       string
		got, want any
		origin    string
	}{
		{"crio.root", c.Root, "/second", second + ":2"},
		{"crio.runroot", c.RunRoot, "/run/containers/storage", "default"},
		{"crio.state_dir", c.StateDir, "/file/state", file + ":5"},
		{"crio.storage_option", c.StorageOptions, []string{"c=3"}, first + ":2"},
		{"crio.runtime.default_runtime", c.Runtime.DefaultRuntime, "crun", first + ":3"},
		{"crio.runtime.runtimes", c.Runtime.Runtimes, handlers, "default"},
		{"crio.runtime.runtimes.crun.runtime_root", c.Runtime.Runtimes["crun"].RuntimeRoot, "/run/crun", first + ":5"},
		{"crio.runtime.log_level", c.Runtime.LogLevel, "debug", "--log-level"},
		{"crio.runtime.read_only", c.Runtime.ReadOnly, true, "--read-only"},
		{"crio.runtime.ctr_stop_timeout", c.Runtime.CtrStopTimeout, int64(7), "--ctr-stop-timeout"},
		{"crio.network.plugin_dirs", c.Network.PluginDirs, []string{"/x", "/y"}, "--plugin-dirs"},
		{"crio.image.pull_progress_timeout", c.Image.PullProgressTimeout, 90 * time.Second, file + ":12"},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s is %v, want %v", tt.key, tt.got, tt.want)
		}
		if got := c.Origin(tt.key); got != tt.origin {
			t.Errorf("%s comes from %q, want %q", tt.key, got, tt.origin)
		}
	}
	if len(c.Warnings()) > 0 {
		t.Errorf("warnings: %q", c.Warnings())
	}
}

func TestOnlyARequiredFileMustExist(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "crio.conf")
	c, err := Load(Sources{File: missing, Dir: missing + ".d"})
	if err != nil {
		t.Fatal(err)
	}
	c.origins = nil
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("without files: %+v, want the defaults", c)
	}
	if _, err := Load(Sources{File: missing, FileRequired: true}); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a missing --config gives %v, want an error with its path", err)
	}
}

// TestBadFilesAreRefused holds the message to file, line, key and what to write.
func TestBadFilesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		line       int
		want       []string
	}{
		{"syntax", "[crio]\nroot = \n", 2, nil},
		{"duplicate", "[crio]\nroot = '/a'\nroot = '/b'\n", 3, []string{"root"}},
		{"misspelt", "# x\n[crio.runtime]\n\nlog_levle = 'info'\n", 4, []string{"unknown key crio.runtime.log_levle", "nearest known one is crio.runtime.log_level"}},
		{"wrong table", "[crio.api]\nlog_level = 'info'\n", 2, []string{"crio.api.log_level", "crio.runtime.log_level"}},
		{"no table", "root = '/a'\n", 1, []string{"unknown key root", "is crio.root"}},
		{"misspelt table", "[crio]\n[crio.metric]\nenable_metrics = true\n", 2, []string{"crio.metric:", "is crio.metrics"}},
		{"misspelt unserved key", "[crio.metrics]\nenable_metric = true\n", 2, []string{"is crio.metrics.enable_metrics"}},
		{"handler", "[crio.runtime.runtimes.crun]\nruntime_path = '/x'\n\truntime_pth = '/x'\n", 3, []string{"crio.runtime.runtimes.crun.runtime_pth", "is crio.runtime.runtimes.crun.runtime_path"}},
		{"quoted", "['crio'.\"runtime\"]\n\"log_levle\" = 'info'\n", 2, []string{"crio.runtime.log_levle"}},
		{"dotted", "[crio]\nroot = '/a' # root2 = 1\nruntime . log_levle = 'info'\n", 3, []string{"crio.runtime.log_levle"}},
		{"after multi-line strings", "[crio]\nroot = '''\n/a\nrun_dri = 1\n'''\nstate_dir = \"\"\"\\\"\"\"\nrun_dri = 2\n\"\"\"\nrun_dri = '/b'\n", 9, []string{"crio.run_dri"}},
		{"after a list", "[crio]\nstorage_option = [\n 'a]', # ]\n \"b\\\"]\",\n]\nrun_dri = '/b'\n", 6, []string{"crio.run_dri"}},
		{"inline table", "[crio]\nruntime = { read_only = true, x = [1, {a = 2}], log_levle = 'info' }\n", 2, []string{"crio.runtime.log_levle", "crio.runtime.x"}},
		{"CRLF", "[crio]\r\nroot = '/a'\r\nrun_dri = '/b'\r\n", 3, []string{"crio.run_dri"}},
		{"string for integer", "[crio.api]\ngrpc_max_send_msg_size = '1'\n", 2, []string{"crio.api.grpc_max_send_msg_size: want an integer, got the string \"1\""}},
		{"number for integer", "[crio.api]\ngrpc_max_send_msg_size = 1.5\n", 2, []string{"want an integer, got the number 1.5"}},
		{"integer for string", "[crio]\n\nroot = 5\n", 3, []string{"crio.root: want a string, got the integer 5"}},
		{"string for list", "[crio]\nstorage_option = 'a'\n", 2, []string{"want a list of strings, got the string"}},
		{"list of integers", "[crio]\nstorage_option = ['a', 1]\n", 2, []string{"want a list of strings, got a list"}},
		{"integer for truth", "[crio.runtime]\nread_only = 1\n", 2, []string{"want true or false, got the integer 1"}},
		{"integer for duration", "[crio.image]\npull_progress_timeout = 5\n", 2, []string{"want a duration such as \"30s\", got the integer 5"}},
		{"bad duration", "[crio.image]\npull_progress_timeout = 'soon'\n", 2, []string{"got the string \"soon\""}},
		{"value for table", "[crio]\nruntime = true\n", 2, []string{"crio.runtime: want a table, got true"}},
		{"value for handlers", "[crio.runtime]\nruntimes = 2026-01-01\n", 2, []string{"want a table, got a date or time"}},
		{"value for handler", "[crio.runtime.runtimes]\nrunc = 'x'\n", 2, []string{"crio.runtime.runtimes.runc: want a table"}},
		{"list of tables", "[[crio]]\n", 1, []string{"crio: want a table, got a list"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, t.TempDir(), "crio.conf", tt.text)
			_, err := Load(Sources{File: file})
			if err == nil {
				t.Fatal("was accepted")
			}
			for _, want := range append(tt.want, file+":"+strconv.Itoa(tt.line)+": ") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want it to have %q", err, want)
				}
			}
		})
	}
}

func TestAllProblemsOfAFileAreTold(t *testing.T) {
	file := write(t, t.TempDir(), "crio.conf", "[crio]\nrot = '/a'\nroot = 1\n[crio.api]\nlistne = ''\n")
	_, err := Load(Sources{File: file})
	if err == nil {
		t.Fatal("was accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d problems, want 3 in the order of the file:\n%v", len(lines), err)
	}
	for i, line := range []string{":2: ", ":3: ", ":5: "} {
		if !strings.HasPrefix(lines[i], file+line) {
			t.Errorf("problem %d is %q, want it at %s", i, lines[i], line)
		}
	}
}

func TestUnservedKeysAreOneWarning(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "crio.conf", `
[crio]
internal_wipe = true
[crio.runtime]
hooks_dir = []
log_level = "warn"
[crio.runtime.runtimes.runc]
runtime_config_path = "a"
default_annotations = { "x.y/z" = "1" }
[crio.runtime.workloads.management]
activation_annotation = "a"
resources = { cpushares = 1 }
[crio.nri.default_validator]
nri_enable_default_validator = true
`)
	drop := write(t, dir, "x.conf", "[crio.metrics]\nenable_metrics = true\nmetrics_port = 'any type'\n")
	c, err := Load(Sources{File: file, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings()) != 1 {
		t.Fatalf("%d warnings, want one: %q", len(c.Warnings()), c.Warnings())
	}
	for _, want := range []string{
		"crio.internal_wipe (" + file + ":3)",
		"crio.runtime.hooks_dir (" + file + ":5)",
		"crio.runtime.runtimes.runc.runtime_config_path (" + file + ":8)",
		"crio.runtime.runtimes.runc.default_annotations (" + file + ":9)",
		"crio.runtime.workloads (" + file + ":10)",
		"crio.nri.default_validator (" + file + ":13)",
		"crio.metrics.enable_metrics (" + drop + ":2)",
		"crio.metrics.metrics_port (" + drop + ":3)",
	} {
		if !strings.Contains(c.Warnings()[0], want) {
			t.Errorf("warning %q, want it to have %q", c.Warnings()[0], want)
		}
	}
	if c.Runtime.LogLevel != "warn" {
		t.Error("a served key beside unserved ones has no effect")
	}
}

func TestBadOverridesNameTheFlag(t *testing.T) {
	for _, tt := range []struct {
		override Override
		want     string
	}{
		{Override{"crio.runtime.ctr_stop_timeout", "--ctr-stop-timeout", []string{"long"}}, `--ctr-stop-timeout: "long" is not an integer`},
		{Override{"crio.runtime.read_only", "CONTAINER_READ_ONLY", []string{"perhaps"}}, `CONTAINER_READ_ONLY: "perhaps" is neither`},
		{Override{"crio.image.pull_progress_timeout", "--x", []string{"9"}}, "is not a duration"},
		{Override{"crio.root", "--root", nil}, "--root: no value"},
		{Override{"crio.root", "--root", []string{"\xff"}}, "is not UTF-8"},
		{Override{"crio.root", "--root", []string{"here"}}, `--root: crio.root: "here" is no absolute path`},
		{Override{"crio.image.pause_image", "--pause-image", []string{"x"}}, "--pause-image: crio.image.pause_image is no key"},
	} {
		if _, err := Load(Sources{Overrides: []Override{tt.override}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v gives %v, want an error with %q", tt.override, err, tt.want)
		}
	}
}

func TestFieldsHaveUniqueFlagsAndDocs(t *testing.T) {
	var flags []string
	for _, f := range Fields() {
		flags = append(append(flags, f.Flag), f.Aliases...)
		if !strings.HasPrefix(f.Key, "crio.") || !strings.HasSuffix(f.Doc, ".") || f.Env != envPrefix+strings.ToUpper(strings.ReplaceAll(f.Flag, "-", "_")) {
			t.Errorf("field %+v lacks something", f)
		}
	}
	slices.Sort(flags)
	if unique := slices.Compact(slices.Clone(flags)); len(unique) != len(flags) || len(flags) < 40 {
		t.Errorf("%d flags, %d of them different", len(flags), len(unique))
	}
	for _, key := range knownKeys([]string{"crio"}) {
		if strings.Contains(key, "*") {
			t.Errorf("%q would be proposed as a key", key)
		}
	}
}

// TestNoKeyIsBothServedAndNot guards the moment at which an unserved key gets served.
func TestNoKeyIsBothServedAndNot(t *testing.T) {
	handler := newHandler()
	served := leaves("crio.runtime.runtimes.x", reflect.ValueOf(&handler).Elem())
	for _, l := range append(served, leaves(tableName, reflect.ValueOf(Default()).Elem())...) {
		for _, pattern := range unserved() {
			if matchPattern(pattern, strings.Split(l.key, ".")) == whole {
				t.Errorf("%s is served, and not served as %s", l.key, pattern)
			}
		}
	}
}
