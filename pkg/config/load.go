package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"unicode/utf8"
)

// Sources say where Load reads from. Later layers win: defaults, File, the files of
// Dir, Overrides.
type Sources struct {
	// File is the main file, "" for none. When it does not exist that is an error only
	// with FileRequired.
	File         string
	FileRequired bool
	// Dir holds drop-ins: its *.conf files, in lexical order. "" or a missing directory
	// means none.
	Dir string
	// Overrides come from flags and environment variables, the last one wins.
	Overrides []Override
}

// Override is a value from outside of the files.
type Override struct {
	// Key is a Field's Key. Origin is what Config.Origin shall answer: "--root", "CONTAINER_ROOT".
	Key, Origin string
	// Values are a list's entries; of another kind the last one counts.
	Values []string
}

// Load reads and merges all sources and validates the result. Lists are replaced as a
// whole; the tables of runtime handlers merge key by key. The error holds every problem
// of one stage, each naming its file and line, or flag.
func Load(src Sources) (*Config, error) {
	c := Default()
	c.origins = map[string]string{}
	files, err := src.files()
	if err != nil {
		return nil, err
	}
	var ignored []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		unknown, err := decode(c, file, string(text))
		if err != nil {
			return nil, err
		}
		ignored = append(ignored, unknown...)
	}
	if len(ignored) > 0 {
		c.warnings = append(c.warnings, "configuration keys of CRI-O that crio does not serve have no effect: "+strings.Join(ignored, ", "))
	}
	if err := c.override(src.Overrides); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// files lists what is to be read, in order.
func (src Sources) files() ([]string, error) {
	var files []string
	if src.File != "" {
		_, err := os.Stat(src.File)
		switch {
		case err == nil:
			files = append(files, src.File)
		case src.FileRequired || !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	if src.Dir == "" {
		return files, nil
	}
	entries, err := os.ReadDir(src.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for _, entry := range entries { // os.ReadDir sorts them
		// Editors leave hidden files beside the one they write.
		if name := entry.Name(); strings.HasSuffix(name, ".conf") && !strings.HasPrefix(name, ".") && !entry.IsDir() {
			files = append(files, filepath.Join(src.Dir, name))
		}
	}
	return files, nil
}

func (c *Config) override(overrides []Override) error {
	byKey := map[string]reflect.Value{}
	for _, l := range leaves(tableName, reflect.ValueOf(c).Elem()) {
		byKey[l.key] = l.value
	}
	var problems []error
	for _, o := range overrides {
		dst, ok := byKey[o.Key]
		if !ok {
			problems = append(problems, fmt.Errorf("%s: %s is no key that can be set like this", o.Origin, o.Key))
			continue
		}
		if !utf8.ValidString(strings.Join(o.Values, "")) {
			problems = append(problems, fmt.Errorf("%s: %q is not UTF-8", o.Origin, o.Values))
			continue
		}
		if err := setText(dst, o.Values); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", o.Origin, err))
			continue
		}
		c.origins[o.Key] = o.Origin
	}
	return errors.Join(problems...)
}
