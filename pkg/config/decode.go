package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// decode puts one file over the Config and notes where each value comes from. It
// returns the keys that are known but not served, each with file and line. After an
// error the Config is of no use.
func decode(c *Config, file, text string) (ignored []string, err error) {
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("%s:%d: %s", file, syntax.Position.Line, syntax.Message)
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	d := decoder{config: c, file: file, lines: keyLines(text)}
	document := struct {
		Crio *Config `toml:"crio"`
	}{c}
	d.table(nil, tree, reflect.ValueOf(document))
	// The library's tables are Go maps, so everything was found in random order.
	byLine := func(a, b finding) int { return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.text, b.text)) }
	slices.SortFunc(d.problems, byLine)
	slices.SortFunc(d.ignored, byLine)
	var problems []error
	for _, p := range d.problems {
		problems = append(problems, fmt.Errorf("%s:%d: %s", file, p.line, p.text))
	}
	for _, i := range d.ignored {
		ignored = append(ignored, fmt.Sprintf("%s (%s:%d)", i.text, file, i.line))
	}
	return ignored, errors.Join(problems...)
}

// decoder walks over a document and the struct that it configures, side by side.
type decoder struct {
	config            *Config
	file              string
	lines             map[string]int
	problems, ignored []finding
}

type finding struct {
	line int
	text string
}

func (d *decoder) table(path []string, tree map[string]any, dst reflect.Value) {
	fields := map[string]int{}
	for i := range dst.NumField() {
		if name, ok := dst.Type().Field(i).Tag.Lookup("toml"); ok {
			fields[name] = i
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		below := append(slices.Clone(path), name)
		if i, ok := fields[name]; ok {
			d.value(below, tree[name], dst.Field(i))
		} else {
			d.notServed(below, tree[name])
		}
	}
}

func (d *decoder) value(path []string, value any, dst reflect.Value) {
	switch dst.Kind() {
	case reflect.Pointer:
		d.value(path, value, dst.Elem())
	case reflect.Struct:
		tree, ok := value.(map[string]any)
		if !ok {
			d.wrongType(path, "a table", value)
			return
		}
		d.table(path, tree, dst)
	case reflect.Map:
		tree, ok := value.(map[string]any)
		if !ok {
			d.wrongType(path, "a table", value)
			return
		}
		for name, below := range tree {
			handler := newHandler()
			if known, ok := d.config.Runtime.Runtimes[name]; ok {
				handler = known
			}
			d.value(append(slices.Clone(path), name), below, reflect.ValueOf(&handler))
			d.config.Runtime.Runtimes[name] = handler
		}
	default:
		if wanted := set(dst, value); wanted != "" {
			d.wrongType(path, wanted, value)
			return
		}
		d.config.origins[joinKey("", path...)] = fmt.Sprintf("%s:%d", d.file, d.line(path))
	}
}

// set puts a TOML value into a field, or returns what the field wants instead.
func set(dst reflect.Value, value any) (wanted string) {
	switch kindOf(dst.Type()) {
	case Duration:
		text, _ := value.(string)
		duration, err := time.ParseDuration(text)
		if err != nil {
			return `a duration such as "30s"`
		}
		dst.SetInt(int64(duration))
	case Int:
		n, ok := value.(int64)
		if !ok {
			return "an integer"
		}
		dst.SetInt(n)
	case Bool:
		b, ok := value.(bool)
		if !ok {
			return "true or false"
		}
		dst.SetBool(b)
	case List:
		entries, ok := value.([]any)
		list := make([]string, len(entries))
		for i := range entries {
			if list[i], ok = entries[i].(string); !ok {
				break
			}
		}
		if !ok {
			return "a list of strings"
		}
		dst.Set(reflect.ValueOf(list))
	default:
		s, ok := value.(string)
		if !ok {
			return "a string"
		}
		dst.SetString(s)
	}
	return ""
}

func (d *decoder) wrongType(path []string, wanted string, value any) {
	got := "a table"
	switch v := value.(type) {
	case string:
		got = "the string " + quote(v)
	case int64:
		got = fmt.Sprintf("the integer %d", v)
	case float64:
		got = fmt.Sprintf("the number %v", v)
	case bool:
		got = fmt.Sprintf("%t", v)
	case []any:
		got = "a list"
	case []map[string]any:
		got = "a list of tables"
	case time.Time:
		got = "a date or time"
	}
	d.problems = append(d.problems, finding{d.line(path), fmt.Sprintf("%s: want %s, got %s", joinKey("", path...), wanted, got)})
}

// notServed sorts a key that is not in the struct: CRI-O's are ignored, others are errors.
func (d *decoder) notServed(path []string, value any) {
	key := joinKey("", path...)
	best := none
	for _, pattern := range unserved() {
		best = max(best, matchPattern(pattern, path))
	}
	tree, isTable := value.(map[string]any)
	switch {
	case best == whole:
		d.ignored = append(d.ignored, finding{d.line(path), key})
	case best == within && isTable:
		for name, below := range tree {
			d.notServed(append(slices.Clone(path), name), below)
		}
	default:
		d.problems = append(d.problems, finding{d.line(path), fmt.Sprintf("unknown key %s: the nearest known one is %s", key, nearest(path))})
	}
}

// line is where the key is, or the innermost table around it whose line is known.
func (d *decoder) line(path []string) int {
	for n := len(path); n > 0; n-- {
		if line, ok := d.lines[strings.Join(path[:n], pathSeparator)]; ok {
			return line
		}
	}
	return 1
}
