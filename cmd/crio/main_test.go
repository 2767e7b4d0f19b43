package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crio-minimal/crio/internal/version"
)

// crio runs a command line in this process.
func crio(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"crio"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

func TestConfigMergesFilesVariablesAndFlags(t *testing.T) {
	dir := t.TempDir()
	file, drops := filepath.Join(dir, "my.conf"), filepath.Join(dir, "drops")
	if err := os.Mkdir(drops, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		file:                              "[crio]\nroot = '/file'\nrunroot = '/file-run'\nrun_dir = '/file-run'\n",
		filepath.Join(drops, "10-a.conf"): "[crio]\nrunroot = '/drop-run'\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CONTAINER_CONFIG_DIR", drops)
	t.Setenv("CONTAINER_ROOT", "/variable")
	t.Setenv("CONTAINER_STATE_DIR", "/variable-state")
	t.Setenv("CONTAINER_PLUGIN_DIRS", "/a,/b")
	out, errs, code := crio(t, "-c", file, "--root", "/flag", "--storage-opt", "overlay.mountopt=nodev,metacopy=on", "--storage-opt", "x=1",
		"--read-only", "--ctr-stop-timeout=5", "--pull-progress-timeout", "1m", "config")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"# From: --root\nroot = \"/flag\"\n",
		"# From: " + filepath.Join(drops, "10-a.conf") + ":2\nrunroot = \"/drop-run\"\n",
		"# From: " + file + ":4\nrun_dir = \"/file-run\"\n",
		"# From: CONTAINER_STATE_DIR\nstate_dir = \"/variable-state\"\n",
		"# From: CONTAINER_PLUGIN_DIRS\nplugin_dirs = [\"/a\", \"/b\"]\n",
		"# From: --storage-option\nstorage_option = [\"overlay.mountopt=nodev,metacopy=on\", \"x=1\"]\n",
		"# From: --read-only\nread_only = true\n",
		"# From: --ctr-stop-timeout\nctr_stop_timeout = 5\n",
		"# From: --pull-progress-timeout\npull_progress_timeout = \"1m0s\"\n",
		"# From: default\n#listen = ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "crio.conf")
	if err := os.WriteFile(broken, []byte("[crio]\nrot = '/a'\nrunrot = '/b'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", filepath.Join(dir, "none"), "config"}, "no such file"},
		{[]string{"--config", filepath.Join(dir, "none")}, "no such file"},
		{[]string{"--config", broken, "--config-dir", dir + "/none", "config"}, broken + ":2: unknown key crio.rot: the nearest known one is crio.root; " + broken + ":3:"},
		{[]string{"--nonsense"}, "nonsense"},
		{[]string{"config", "--nonsense"}, "nonsense"},
		{[]string{"nonsense"}, `there is no command "nonsense"`},
		{[]string{"--ctr-stop-timeout", "x", "config"}, "ctr-stop-timeout"},
		{[]string{"completion", "tcsh"}, `"tcsh" is no shell`},
	} {
		out, errs, code := crio(t, tt.args...)
		if code != 1 || out != "" || !strings.HasPrefix(errs, "crio: ") || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, tt.want) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q, want one line with %q", tt.args, code, out, errs, tt.want)
		}
	}
}

func TestVersionNamesWhatItIsBuiltWith(t *testing.T) {
	out, _, code := crio(t, "version", "-j")
	var info map[string]string
	if err := json.Unmarshal([]byte(out), &info); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	if info["version"] != version.Version || info["kubernetes"] != version.KubernetesMinor || info["cri"] != "v1" || info["gitCommit"] == "" || info["goVersion"] == "" {
		t.Errorf("version -j: %v", info)
	}
	module, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(module), "k8s.io/cri-api "+info["criApi"]+"\n") {
		t.Errorf("criApi is %s, but go.mod has another version of k8s.io/cri-api", info["criApi"])
	}
	if !strings.HasPrefix(version.Version, version.KubernetesMinor+".") {
		t.Errorf("version %s is not one for Kubernetes %s", version.Version, version.KubernetesMinor)
	}
	if out, _, _ := crio(t, "version"); !strings.Contains(out, version.CRIAPI) {
		t.Errorf("version: %s", out)
	}
	if out, _, _ := crio(t, "--version"); !strings.Contains(out, version.Version) {
		t.Errorf("--version: %s", out)
	}
}

// TestGeneratedFilesAreUpToDate keeps what is committed equal to what the source says.
func TestGeneratedFilesAreUpToDate(t *testing.T) {
	for file, args := range map[string][]string{
		"crio.conf.example":     {"config", "--default"},
		"completions/crio.bash": {"completion", "bash"},
		"completions/_crio":     {"completion", "zsh"},
		"completions/crio.fish": {"completion", "fish"},
	} {
		want, errs, code := crio(t, args...)
		if code != 0 {
			t.Fatalf("%q: %s", args, errs)
		}
		got, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil || string(got) != want {
			t.Errorf("%s is not what crio %s prints (%v): run make generate", file, strings.Join(args, " "), err)
		}
	}
}

func TestBashCompletes(t *testing.T) {
	script, _, _ := crio(t, "completion", "bash")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ words, want string }{
		{"crio|co", "completion config"},
		{"crio|--log-l", "--log-level"},
		{"crio|--log-level|d", "debug"},
		{"crio|--log-level|=|w", "warn warning"},
		{"crio|--log-level|=", "debug error fatal info panic trace warn warning"},
		{"crio|--root|" + dir + "/", dir + "/a file"},
		{"crio|--default-ulimits|", ""},
		{"crio|--default-ulimits|config|vers", "version"},
		{"crio|--root|/x|config|--d", "--default"},
		{"crio|completion|", "--help -h bash fish zsh"},
		{"crio|version|--j", "--json"},
	} {
		words := strings.Split(tt.words, "|")
		command := exec.CommandContext(t.Context(), "bash", "-c", script+"\nCOMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)); _crio; printf '%s\\n' \"${COMPREPLY[@]}\" | LC_ALL=C sort | paste -sd' '", "bash")
		command.Args = append(command.Args, words...)
		out, err := command.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(out)); got != tt.want {
			t.Errorf("%q completes to %q, want %q", tt.words, got, tt.want)
		}
	}
}
