package config

import (
	"strconv"
	"strings"
)

// keyLines finds the line of every key and table of a TOML document that is known to
// be valid; the TOML library tells positions of syntax errors only. Paths are joined
// by pathSeparator. Text that is not valid gives wrong lines, never an endless loop.
func keyLines(text string) map[string]int {
	s := scanner{text: text, line: 1, lines: map[string]int{}}
	var table []string
	for {
		s.skip(" \t\r\n,")
		switch {
		case s.end():
			return s.lines
		case s.peek() == '[':
			s.skip("[")
			table = s.key(nil)
			s.skip("] \t")
		default:
			s.keyValue(table)
		}
	}
}

const pathSeparator = "\x00"

// scanner walks over TOML text and notes where keys are.
type scanner struct {
	text  string
	pos   int
	line  int
	lines map[string]int
}

func (s *scanner) end() bool  { return s.pos >= len(s.text) }
func (s *scanner) peek() byte { return s.text[s.pos] }

func (s *scanner) next() {
	if s.text[s.pos] == '\n' {
		s.line++
	}
	s.pos++
}

// skip goes over characters of the set, and over comments when the set has newlines.
func (s *scanner) skip(set string) {
	for !s.end() {
		switch c := s.peek(); {
		case strings.IndexByte(set, c) >= 0:
			s.next()
		case c == '#' && strings.Contains(set, "\n"):
			s.until("\n")
		default:
			return
		}
	}
}

// until goes to the next character of the set, or to the end.
func (s *scanner) until(set string) {
	for !s.end() && strings.IndexByte(set, s.peek()) < 0 {
		s.next()
	}
}

// keyValue goes over "key = value" in the table. It always moves on.
func (s *scanner) keyValue(table []string) {
	start := s.pos
	path := s.key(table)
	s.skip(" \t=")
	s.value(path)
	if s.pos == start {
		s.next()
	}
}

// key goes over a dotted key, notes its line for each of its tables that has none yet,
// and returns its path.
func (s *scanner) key(table []string) []string {
	path := append([]string{}, table...)
	for !s.end() {
		s.skip(" \t")
		path = append(path, s.keyPart())
		if id := strings.Join(path, pathSeparator); s.lines[id] == 0 {
			s.lines[id] = s.line
		}
		s.skip(" \t")
		if s.end() || s.peek() != '.' {
			break
		}
		s.next()
	}
	return path
}

func (s *scanner) keyPart() string {
	start := s.pos
	if s.end() {
		return ""
	}
	if c := s.peek(); c != '"' && c != '\'' {
		s.until(" \t\r\n.=]#,}")
		return s.text[start:s.pos]
	}
	s.quoted()
	raw := s.text[start:s.pos]
	if part, err := strconv.Unquote(raw); err == nil && raw[0] == '"' {
		return part
	}
	return strings.Trim(raw, raw[:1])
}

// value goes over any value and notes the keys of inline tables.
func (s *scanner) value(path []string) {
	if s.end() {
		return
	}
	switch s.peek() {
	case '"', '\'':
		s.quoted()
	case '[':
		s.next()
		for s.skip(" \t\r\n,"); !s.end() && s.peek() != ']'; s.skip(" \t\r\n,") {
			start := s.pos
			s.value(path)
			if s.pos == start {
				s.next()
			}
		}
		s.close()
	case '{':
		s.next()
		for s.skip(" \t\r\n,"); !s.end() && s.peek() != '}'; s.skip(" \t\r\n,") {
			s.keyValue(path)
		}
		s.close()
	default:
		s.until(",]}#\r\n")
	}
}

// quoted goes over a string of one of the four kinds.
func (s *scanner) quoted() {
	mark := s.text[s.pos : s.pos+1]
	if strings.HasPrefix(s.text[s.pos:], strings.Repeat(mark, 3)) {
		mark = strings.Repeat(mark, 3)
	}
	s.pos += len(mark)
	for !s.end() && !strings.HasPrefix(s.text[s.pos:], mark) {
		if mark[0] == '"' && s.peek() == '\\' && s.pos+1 < len(s.text) {
			s.next()
		}
		s.next()
	}
	for !s.end() && s.peek() == mark[0] {
		s.pos++ // a multi-line string may end with up to two quotes of its own
		if len(mark) == 1 {
			break
		}
	}
}

// close goes over the one character that ends an array or inline table.
func (s *scanner) close() {
	if !s.end() {
		s.next()
	}
}
