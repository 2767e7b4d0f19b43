package rootfs

import (
	"fmt"
	"path/filepath"
	"strings"
)

// layerDirs are the directories of a layer that the graph driver tells.
type layerDirs struct {
	upper, work, merged string
	lower               []string // the topmost first
}

// mapped is where the lower layers are mounted for other users.
func (d layerDirs) mapped() string { return filepath.Join(filepath.Dir(d.merged), "mapped") }

func (s *Store) dirs(layer string) (layerDirs, error) {
	driver, err := s.store.GraphDriver()
	if err != nil {
		return layerDirs{}, err
	}
	told, err := driver.Metadata(layer)
	if err != nil {
		return layerDirs{}, err
	}
	d := layerDirs{upper: told["UpperDir"], work: told["WorkDir"], merged: told["MergedDir"]}
	if d.upper == "" || d.work == "" || d.merged == "" {
		return layerDirs{}, fmt.Errorf("storage driver %s has no UpperDir, WorkDir and MergedDir", s.store.GraphDriverName())
	}
	if lower := told["LowerDir"]; lower != "" {
		d.lower = strings.Split(lower, ":")
	}
	return d, nil
}
