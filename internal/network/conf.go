package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
)

// loaded is the network in use, and what the directory looked like when it was read.
type loaded struct {
	fingerprint string
	list        *libcni.NetworkConfigList
	// config is list as one document, with the plugins that lay in files of their own.
	config json.RawMessage
	file   string
	err    error
}

func (l *loaded) attachment() Attachment {
	return Attachment{Network: l.list.Name, Config: l.config}
}

// current returns the configuration as it is on disk now. There is no watch that
// could be lost with a directory that is replaced: a look costs a few stats, and the
// files are read only when they differ.
func (n *Network) current() (*loaded, error) {
	print, err := n.fingerprint()
	if err != nil {
		return nil, err
	}
	if l := n.loaded.Load(); l != nil && l.fingerprint == print && l.err == nil {
		return l, n.pluginsExist(l)
	}
	n.loading.Lock()
	defer n.loading.Unlock()
	last := n.loaded.Load()
	l := n.load(print)
	if l.err == nil && (last == nil || last.fingerprint != print) {
		n.Log.Info("cni network", "name", l.list.Name, "file", l.file)
	}
	n.loaded.Store(l)
	if l.err != nil {
		return nil, l.err
	}
	return l, n.pluginsExist(l)
}

// fingerprint changes whenever a file of the directory does, or of one in it: a list
// may have its plugins in a directory of its name (CNI 1.1).
func (n *Network) fingerprint() (string, error) {
	entries, err := os.ReadDir(n.ConfDir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no CNI configuration: directory %s does not exist: install a network plugin's .conflist there", n.ConfDir)
	}
	if err != nil {
		return "", fmt.Errorf("CNI configuration: %w", err)
	}
	var b strings.Builder
	for _, dir := range describe(&b, n.ConfDir, entries) {
		if inside, err := os.ReadDir(dir); err == nil {
			describe(&b, dir, inside)
		}
	}
	return b.String(), nil
}

// describe writes down the entries of a directory and returns those that are
// directories. It goes by the time of change: tools that install files set the time
// of modification as they like.
func describe(b *strings.Builder, dir string, entries []fs.DirEntry) (dirs []string) {
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue // a link to nowhere, or gone since
		}
		fmt.Fprintf(b, "%s %d %d %d.%d\n", path, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			dirs = append(dirs, path)
		}
	}
	return dirs
}

// load takes the first file, by name, that is a valid network and has the name that
// is asked for. Broken files before it are logged; alone, they are the reason.
func (n *Network) load(print string) *loaded {
	files, err := libcni.ConfFiles(n.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return &loaded{fingerprint: print, err: fmt.Errorf("CNI configuration: %w", err)}
	}
	slices.Sort(files)
	var broken []error
	var names []string
	for _, file := range files {
		list, err := read(file)
		var config []byte
		if err == nil {
			config, err = inline(file, list)
		}
		if err != nil {
			broken = append(broken, err)
			continue
		}
		if n.DefaultNetwork == "" || list.Name == n.DefaultNetwork {
			for _, err := range broken {
				n.Log.Warn("a CNI configuration is passed over", "err", err)
			}
			return &loaded{fingerprint: print, list: list, config: config, file: file}
		}
		names = append(names, list.Name)
	}
	switch {
	case len(broken) > 0:
		err = fmt.Errorf("no usable CNI configuration in %s: %w", n.ConfDir, errors.Join(broken...))
	case len(names) > 0:
		err = fmt.Errorf("no CNI configuration in %s has the name %q of cni_default_network; there are: %s",
			n.ConfDir, n.DefaultNetwork, strings.Join(names, ", "))
	default:
		err = fmt.Errorf("no CNI configuration in %s: install a network plugin's .conflist there", n.ConfDir)
	}
	return &loaded{fingerprint: print, err: err}
}

// read takes a list, or the older form of one plugin alone.
func read(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return list, check(file, list)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var plugin struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
	}
	if err := json.Unmarshal(data, &plugin); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	asList, err := json.Marshal(map[string]any{
		"cniVersion": plugin.CNIVersion, "name": plugin.Name, "plugins": []json.RawMessage{data},
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	list, err := libcni.NetworkConfFromBytes(asList)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, check(file, list)
}

// inline puts the plugins into the list's own bytes: a list may have them in a
// directory beside it (CNI 1.1, loadOnlyInlinedPlugins), which can change before DEL.
func inline(file string, list *libcni.NetworkConfigList) ([]byte, error) {
	var document map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	var err error
	if document["plugins"], err = json.Marshal(plugins); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	document["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	return json.Marshal(document)
}

// check refuses a plugin name that would lead out of the plugin directories (CVE-2021-20206).
func check(file string, list *libcni.NetworkConfigList) error {
	if len(list.Plugins) == 0 {
		return fmt.Errorf("%s: it has no plugins", file)
	}
	for _, name := range binaries(list) {
		if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
			return fmt.Errorf("%s: plugin type %q is not a file name", file, name)
		}
	}
	return nil
}

// binaries are the plugins of the chain and those that they call for addresses.
func binaries(list *libcni.NetworkConfigList) []string {
	var names []string
	for _, p := range list.Plugins {
		names = append(names, p.Network.Type)
		if ipam := p.Network.IPAM.Type; ipam != "" {
			names = append(names, ipam)
		}
	}
	return names
}

// pluginsExist looks for the binaries, which a package may bring or take away at any time.
func (n *Network) pluginsExist(l *loaded) error {
	for _, name := range binaries(l.list) {
		found := slices.ContainsFunc(n.PluginDirs, func(dir string) bool {
			info, err := os.Stat(filepath.Join(dir, name))
			return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
		})
		if !found {
			return fmt.Errorf("network %s (%s): plugin %q is in none of %s: install it or set plugin_dirs",
				l.list.Name, l.file, name, strings.Join(n.PluginDirs, ", "))
		}
	}
	return nil
}
