package network

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

func conf(name, plugin string) string {
	return `{"cniVersion": "1.0.0", "name": "` + name + `", "type": "` + plugin + `"}`
}

func conflist(name, plugins string) string {
	return `{"cniVersion": "1.0.0", "name": "` + name + `", "plugins": [` + plugins + `]}`
}

// newQuietSite has a plugin "script" that does nothing.
func newQuietSite(t *testing.T, files map[string]string) *site {
	t.Helper()
	s := newSite(t, files)
	s.write(t, "bin/script", "#!/bin/sh\necho '"+answer+"'\n")
	return s
}

func TestChoose(t *testing.T) {
	type files map[string]string
	good := conflist("good", `{"type": "script"}`)
	for name, c := range map[string]struct {
		files   files
		network string // cni_default_network
		want    string
		says    []string // of the error; {dir} is the configuration's directory
		logs    string
	}{
		"conflist":                      {files: files{"a.conflist": good}, want: "good"},
		"conf":                          {files: files{"a.conf": conf("single", "script")}, want: "single"},
		"json":                          {files: files{"a.json": conf("single", "script")}, want: "single"},
		"the first by name":             {files: files{"20-x.conf": conf("b", "script"), "10-y.conflist": good, "9.conf": conf("c", "script")}, want: "good"},
		"the default network":           {files: files{"10.conf": conf("a", "script"), "20.conf": conf("b", "script")}, network: "b", want: "b"},
		"no such default network":       {files: files{"10.conf": conf("a", "script"), "20.conf": conf("b", "script")}, network: "c", says: []string{"{dir}", `"c"`, "a, b"}},
		"broken before good":            {files: files{"10.conf": "{", "20.conflist": good}, want: "good", logs: "10.conf"},
		"broken alone":                  {files: files{"10.conflist": "{"}, says: []string{"{dir}/10.conflist", "unexpected end of JSON"}},
		"all that are broken are named": {files: files{"10.conf": "{", "20.conflist": "[]"}, says: []string{"10.conf", "20.conflist"}},
		"empty":                         {says: []string{"no CNI configuration in {dir}", "install"}},
		"half-written":                  {files: files{"10.conf": ""}, says: []string{"10.conf", "unexpected end"}},
		"other files only":              {files: files{"README": "x", "10.conflist.bak": good, ".conf.swp": good}, says: []string{"no CNI configuration in {dir}"}},
		"a directory of that name":      {files: files{"10.conflist/x": "y"}, says: []string{"no CNI configuration"}},
		"no name":                       {files: files{"10.conflist": `{"cniVersion": "1.0.0", "plugins": [{"type": "script"}]}`}, says: []string{"10.conflist", "no name"}},
		"no plugins":                    {files: files{"10.conflist": conflist("x", "")}, says: []string{"10.conflist", "no plugins"}},
		"no type":                       {files: files{"10.conf": `{"cniVersion": "1.0.0", "name": "x"}`}, says: []string{"10.conf", "missing 'type'"}},
		"a list that calls itself conf": {files: files{"10.conf": good}, says: []string{"10.conf", "missing 'type'"}},
		"not a plugin":                  {files: files{"10.conflist": conflist("x", "7")}, says: []string{"10.conflist"}},
		"plugin is not there":           {files: files{"10.conf": conf("x", "weave")}, says: []string{`"weave"`, "{dir}/10.conf", "/bin, /usr/lib/cni", "plugin_dirs"}},
		"CVE-2021-20206":                {files: files{"10.conf": conf("x", "../../sbin/reboot")}, says: []string{"10.conf", `"../../sbin/reboot" is not a file name`}},
		"CVE-2021-20206 by ipam":        {files: files{"10.conf": `{"cniVersion": "1.0.0", "name": "x", "type": "script", "ipam": {"type": "../reboot"}}`}, says: []string{`"../reboot" is not a file name`}},
		"a name that leads out":         {files: files{"10.conf": conf("x", "..")}, says: []string{`".." is not a file name`}},
		"ipam plugin is not there":      {files: files{"10.conf": `{"cniVersion": "1.0.0", "name": "x", "type": "script", "ipam": {"type": "whereabouts"}}`}, says: []string{`"whereabouts"`, "{dir}/10.conf"}},
		"ipam without a plugin":         {files: files{"10.conf": `{"cniVersion": "1.0.0", "name": "x", "type": "script", "ipam": {}}`}, want: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newQuietSite(t, c.files)
			s.DefaultNetwork = c.network
			a, err := s.unasked()
			if c.says == nil && (err != nil || a.Network != c.want) {
				t.Errorf("got %q, %v, want %q", a.Network, err, c.want)
			}
			for _, word := range c.says {
				if word = strings.ReplaceAll(word, "{dir}", s.ConfDir); err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("got %v, want one that says %q", err, word)
				}
			}
			if ready := s.Ready(); (ready == nil) != (err == nil) {
				t.Errorf("Choose says %v, Ready %v", err, ready)
			}
			if !strings.Contains(s.log.String(), c.logs) {
				t.Errorf("log is %s", s.log)
			}
		})
	}
}

// TestRecoversWithoutRestart walks one Network through what administrators do.
func TestRecoversWithoutRestart(t *testing.T) {
	s := newQuietSite(t, nil)
	remove := func(name string) func() {
		return func() {
			if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(name, text string) func() { return func() { s.write(t, name, text) } }
	script := s.read(t, "bin/script")
	for _, step := range []struct {
		what       string
		do         func()
		want, says string
	}{
		{"the directory is missing", remove("net.d"), "", "does not exist"},
		{"it appears, broken", write("net.d/10.conflist", "{"), "", "10.conflist"},
		{"a good file appears", write("net.d/20.conf", conf("net1", "script")), "net1", ""},
		{"the first is mended", write("net.d/10.conflist", conflist("net2", `{"type": "script"}`)), "net2", ""},
		{"the plugin goes", remove("bin/script"), "", `"script" is in none of`},
		{"the plugin is a directory", write("bin/script/x", ""), "", `"script" is in none of`},
		{"the plugin cannot be run", func() { remove("bin/script")(); write("bin/script", "")(); _ = os.Chmod(s.dir+"/bin/script", 0o644) }, "", `"script" is in none of`},
		{"the plugin is back", write("bin/script", script), "net2", ""},
		{"the first goes", remove("net.d/10.conflist"), "net1", ""},
		{"the last goes", remove("net.d/20.conf"), "", "no CNI configuration"},
		{"the directory is another", func() { remove("net.d")(); write("net.d/x.conf", conf("net3", "script"))() }, "net3", ""},
		{"a link to nowhere", func() { remove("net.d/x.conf")(); _ = os.Symlink(s.dir+"/target", s.dir+"/net.d/x.conf") }, "", "x.conf"},
		{"the link's target appears", write("target", conf("net4", "script")), "net4", ""},
		{"the target changes", write("target", conf("net5", "script")), "net5", ""},
	} {
		step.do()
		a, err := s.unasked()
		if a.Network != step.want || (err == nil) != (step.says == "") || (err != nil && !strings.Contains(err.Error(), step.says)) {
			t.Errorf("%s: got %q, %v, want %q, %q", step.what, a.Network, err, step.want, step.says)
		}
	}
}

// TestSeesAFileOfTheSameSizeAndTime: configuration management sets modification times,
// and two subnets may differ in one digit.
func TestSeesAFileOfTheSameSizeAndTime(t *testing.T) {
	s := newQuietSite(t, nil)
	for _, name := range []string{"net1", "net2"} {
		s.write(t, "net.d/10.conf", conf(name, "script"))
		if err := os.Chtimes(s.ConfDir+"/10.conf", time.Time{}, time.Unix(1700000000, 0)); err != nil {
			t.Fatal(err)
		}
		if a, err := s.unasked(); err != nil || a.Network != name {
			t.Errorf("got %q, %v, want %q", a.Network, err, name)
		}
	}
}

// TestPluginsInADirectory: CNI 1.1 lets other packages add plugins to a list. What was
// there at ADD is what DEL has to undo.
func TestPluginsInADirectory(t *testing.T) {
	s := newQuietSite(t, map[string]string{
		"10.conflist":    conflist("meshed", `{"type": "script", "id": "own"}`),
		"meshed/10.conf": `{"type": "script", "id": "first"}`,
	})
	ids := func(a Attachment) string {
		t.Helper()
		list, err := parse(a)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range list.Plugins {
			var v struct{ ID string }
			if err := json.Unmarshal(p.Bytes, &v); err != nil {
				t.Fatal(err)
			}
			all = append(all, v.ID)
		}
		return strings.Join(all, " ")
	}
	before := s.attach(t, pod())
	// In place: no entry of a directory changes.
	if err := os.WriteFile(s.ConfDir+"/meshed/10.conf", []byte(`{"type": "script", "id": "changed"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if now := ids(s.attach(t, pod())); now != "own changed" {
		t.Errorf("after the change it is %q", now)
	}
	if got := ids(before); got != "own first" {
		t.Errorf("what was attached is %q", got)
	}
}

func TestDelNeedsWhatWasRecorded(t *testing.T) {
	s := newQuietSite(t, map[string]string{"10.conf": conf("x", "script")})
	for config, says := range map[string]string{"": "network lost", "{": "network lost", `{"name": "x"}`: "no plugins", conf("x", "script"): "no plugins"} {
		err := s.Del(t.Context(), pod(), Attachment{Network: "lost", Config: json.RawMessage(config)})
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v", config, err)
		}
	}
}

// TestChooseWhileFilesChange gives the race detector something to look at, and no
// caller may see half a configuration.
func TestChooseWhileFilesChange(t *testing.T) {
	s := newQuietSite(t, map[string]string{"10.conf": conf("net0", "script")})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 200 {
				a, err := s.unasked()
				list, parseErr := libcni.NetworkConfFromBytes(a.Config)
				if err != nil || parseErr != nil || list.Name != a.Network {
					t.Errorf("got %+v, %v, %v", a, err, parseErr)
					return
				}
			}
		})
	}
	for i := range 200 {
		s.write(t, "net.d/10.conf", conf("net"+string(rune('0'+i%10)), "script"))
	}
	readers.Wait()
}
