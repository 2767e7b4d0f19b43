package config

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Print writes the configuration as a file that Load reads again, with the doc of each
// key above it. Values that nobody set are comments, so that the file does not freeze
// today's defaults. For a Config from Load each value's origin is told.
func Print(w io.Writer, c *Config) error {
	p := printer{w: bufio.NewWriter(w), config: c}
	p.comment("", "Configuration of crio. It is read from /etc/crio/crio.conf and then from /etc/crio/crio.conf.d/*.conf "+
		"in lexical order; later files win, and flags win over files. A list replaces an earlier one as a whole. "+
		"Values that are commented out are the defaults.")
	p.table(tableName, "", reflect.ValueOf(c).Elem())
	return p.w.Flush()
}

// printer writes tables; bufio.Writer keeps the first error until Flush.
type printer struct {
	w      *bufio.Writer
	config *Config
}

// docWidth is where comments wrap.
const docWidth = 100

func (p *printer) table(key, doc string, table reflect.Value) {
	fmt.Fprintln(p.w)
	p.comment("", doc)
	fmt.Fprintf(p.w, "[%s]\n", key)
	for i := range table.NumField() {
		field, value := table.Type().Field(i), table.Field(i)
		name, ok := field.Tag.Lookup("toml")
		if !ok || value.Kind() == reflect.Struct || value.Kind() == reflect.Map {
			continue
		}
		p.key(joinKey(key, name), name, leaf{tag: field.Tag, value: value})
	}
	for i := range table.NumField() {
		field, value := table.Type().Field(i), table.Field(i)
		name, ok := field.Tag.Lookup("toml")
		switch {
		case !ok:
		case value.Kind() == reflect.Struct:
			p.table(joinKey(key, name), field.Tag.Get("doc"), value)
		case value.Kind() == reflect.Map:
			doc := field.Tag.Get("doc")
			for handler, settings := range sortedHandlers(p.config) {
				p.table(handlerPrefix(handler), doc, reflect.ValueOf(settings).Elem())
				doc = ""
			}
		}
	}
}

func (p *printer) key(key, name string, l leaf) {
	origin := p.config.Origin(key)
	fmt.Fprintln(p.w)
	p.comment("", l.tag.Get("doc"))
	if p.config.origins != nil {
		p.comment("From: ", origin)
	}
	if origin == originDefault {
		fmt.Fprint(p.w, "#")
	}
	fmt.Fprintf(p.w, "%s = %s\n", joinKey("", name), tomlValue(l.value))
}

// comment wraps text at spaces. Whatever a file's name is made of, the result stays a
// TOML comment: no line break, no control character, UTF-8.
func (p *printer) comment(prefix, text string) {
	line := "#"
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(prefix+text, "?"))
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > docWidth && line != "#" {
			fmt.Fprintln(p.w, line)
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		fmt.Fprintln(p.w, line)
	}
}

func tomlValue(v reflect.Value) string {
	switch v := v.Interface().(type) {
	case time.Duration:
		return quote(v.String())
	case string:
		return quote(v)
	case []string:
		if len(v) == 0 {
			return "[]"
		}
		quoted := make([]string, len(v))
		for i := range v {
			quoted[i] = quote(v[i])
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	default:
		return fmt.Sprint(v)
	}
}

// sortedHandlers yields a copy of each runtime handler in the order of their names.
func sortedHandlers(c *Config) iter.Seq2[string, *RuntimeHandler] {
	return func(yield func(string, *RuntimeHandler) bool) {
		for _, name := range slices.Sorted(maps.Keys(c.Runtime.Runtimes)) {
			handler := c.Runtime.Runtimes[name]
			if !yield(name, &handler) {
				return
			}
		}
	}
}
