package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Kind is the type of a key's value.
type Kind int

// The kinds of values.
const (
	String Kind = iota
	Int
	Bool
	Duration
	List
)

// Field describes one key for generators: flags, completions, documentation.
type Field struct {
	// Key is written with its table, as in "crio.runtime.log_level".
	Key string
	// Flag is the key's name with dashes, unique over all tables; Aliases are further flags.
	Flag    string
	Aliases []string
	// Env is the environment variable that stands for the flag.
	Env  string
	Doc  string
	Kind Kind
	// Default is the text of the default value, "" when there is none.
	Default string
	// Choices are the values of an enumeration; Path tells that the value is a file name.
	Choices []string
	Path    bool
}

// envPrefix starts every environment variable, as in CRI-O.
const envPrefix = "CONTAINER_"

// Fields returns every served key in the order of the file, except for those of the
// runtime handlers, whose tables have names of their own.
func Fields() []Field {
	var fields []Field
	for _, l := range leaves(tableName, reflect.ValueOf(Default()).Elem()) {
		f := Field{
			Key: l.key, Flag: strings.ReplaceAll(l.name, "_", "-"), Doc: l.tag.Get("doc"),
			Kind: kindOf(l.value.Type()), Default: valueText(l.value), Env: envPrefix + strings.ToUpper(l.name),
		}
		if alias, ok := l.tag.Lookup("alias"); ok {
			f.Aliases = []string{alias}
		}
		for rule := range strings.SplitSeq(l.tag.Get("rule"), ",") {
			f.Path = f.Path || rule == "abs"
			if choices, ok := strings.CutPrefix(rule, "oneof="); ok {
				f.Choices = strings.Fields(choices)
			}
		}
		fields = append(fields, f)
	}
	return fields
}

// tableName is the table that holds everything.
const tableName = "crio"

// leaf is a key with its value in some Config.
type leaf struct {
	key, name string
	tag       reflect.StructTag
	value     reflect.Value
}

// leaves returns the keys under a struct in the order of its fields: first those of
// the table itself, as TOML wants them, then those of its tables. Handlers are not among them.
func leaves(prefix string, table reflect.Value) []leaf {
	var own, below []leaf
	for i := range table.NumField() {
		name, ok := table.Type().Field(i).Tag.Lookup("toml")
		if !ok {
			continue
		}
		value, key := table.Field(i), joinKey(prefix, name)
		switch value.Kind() {
		case reflect.Struct:
			below = append(below, leaves(key, value)...)
		case reflect.Map:
		default:
			own = append(own, leaf{key: key, name: name, tag: table.Type().Field(i).Tag, value: value})
		}
	}
	return append(own, below...)
}

// handlerPrefix is the table of a handler, as it appears in keys.
func handlerPrefix(name string) string { return joinKey(tableName, "runtime", "runtimes", name) }

// joinKey writes a path as a dotted key. What is no bare key is quoted (TOML 1.0, Keys).
func joinKey(prefix string, names ...string) string {
	var b strings.Builder
	b.WriteString(prefix)
	for _, name := range names {
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		if name != "" && strings.IndexFunc(name, notBare) < 0 {
			b.WriteString(name)
		} else {
			b.WriteString(quote(name))
		}
	}
	return b.String()
}

func notBare(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
}

// quote writes a TOML basic string, which is not quite a Go string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func kindOf(t reflect.Type) Kind {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return Duration
	case t.Kind() == reflect.Int64, t.Kind() == reflect.Int:
		return Int
	case t.Kind() == reflect.Bool:
		return Bool
	case t.Kind() == reflect.Slice:
		return List
	default:
		return String
	}
}

// valueText is a value for people: the entries of a list are separated by commas.
func valueText(v reflect.Value) string {
	switch v := v.Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	default:
		return fmt.Sprint(v)
	}
}

// setText sets a value from the texts of a flag or variable. All but lists take the last one.
func setText(dst reflect.Value, texts []string) error {
	if kindOf(dst.Type()) == List {
		dst.Set(reflect.ValueOf(append([]string{}, texts...)))
		return nil
	}
	if len(texts) == 0 {
		return fmt.Errorf("no value")
	}
	text := texts[len(texts)-1]
	switch kindOf(dst.Type()) {
	case Int:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not an integer", text)
		}
		dst.SetInt(n)
	case Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		dst.SetBool(b)
	case Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 30s", text)
		}
		dst.SetInt(int64(d))
	default:
		dst.SetString(text)
	}
	return nil
}
