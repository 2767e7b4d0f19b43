package test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The marks in the README between which the table is.
const (
	tableBegin = "<!-- made by make generate: what of api.proto is served -->\n"
	tableEnd   = "<!-- end of what make generate makes -->\n"
)

// TestFieldTable holds the table in the README to the proto on the one side and to the
// conformance suite on the other: a call or a field without a row, and a row without a
// case, is an error. With CRIO_GENERATE set it writes the table.
func TestFieldTable(t *testing.T) {
	table := fieldTable(t)
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), tableBegin)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	switch {
	case !ok1 || !ok2:
		t.Fatalf("README.md has not both of %q and %q", tableBegin, tableEnd)
	case old == table:
	case os.Getenv("CRIO_GENERATE") != "":
		if err := os.WriteFile("../README.md", []byte(before+tableBegin+table+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("the table in README.md is not what the conformance suite proves: run make generate")
	}
}

// fieldTable writes a row for each call, and one for each field of the messages of
// those that are served.
func fieldTable(t *testing.T) string {
	t.Helper()
	proven, refused := claims(t)
	lines := protoLines(t)
	var out bytes.Buffer
	row := func(name string) {
		state := "works" + kernelFor(name)
		switch cases := proven[name]; {
		case slices.Contains(later, name):
			state = "not yet: Unimplemented"
		case len(cases) == 0 && len(refused[name]) > 0:
			state = "refused"
		case len(cases) == 0:
			t.Errorf("no case of the conformance suite proves %s (api.proto:%d)", name, lines[name])
		}
		cases := slices.Concat(proven[name], refused[name])
		slices.Sort(cases)
		fmt.Fprintf(&out, "| %s | %d | %s | %s |\n", name, lines[name], state, strings.Join(slices.Compact(cases), "; "))
		delete(proven, name)
		delete(refused, name)
	}
	out.WriteString("| call or field | line of api.proto | state | cases |\n|---|---|---|---|\n")
	var messages []protoreflect.MessageDescriptor
	for i := range cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().Len() {
		methods := cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			row(string(m.Name()))
			if !slices.Contains(later, string(m.Name())) {
				messages = append(messages, m.Input(), m.Output())
			}
		}
	}
	for _, m := range reachable(messages) {
		fields := m.Fields()
		for i := range fields.Len() {
			row(string(m.Name()) + "." + string(fields.Get(i).Name()))
		}
	}
	for name := range proven {
		t.Errorf("a case proves %s, which api.proto does not have", name)
	}
	for name := range refused {
		t.Errorf("a case sees %s refused, which api.proto does not have", name)
	}
	return out.String()
}

// kernelFor names what a field needs of the kernel. Without it the case sees that the
// container runs and that the log tells what has no effect.
func kernelFor(name string) string {
	lower := strings.ToLower(name)
	switch {
	case strings.Contains(lower, "selinux"):
		return ", with SELinux"
	case strings.Contains(lower, "apparmor"):
		return ", with AppArmor"
	case strings.HasPrefix(name, "Psi"), strings.HasPrefix(name, "IoUsage."), strings.HasSuffix(name, ".psi"), strings.HasSuffix(name, "Stats.io"):
		return ", with PSI"
	}
	return ""
}

// claims are the names of the cases by what they prove, and by what they see refused.
func claims(t *testing.T) (proven, refused map[string][]string) {
	t.Helper()
	proven, refused = map[string][]string{}, map[string][]string{}
	seen := map[string]bool{}
	for _, c := range conformCases() {
		if seen[c.name] {
			t.Errorf("two cases are called %q", c.name)
		}
		seen[c.name] = true
		for _, name := range c.proves {
			proven[name] = append(proven[name], c.name)
		}
		for _, name := range c.refuses {
			refused[name] = append(refused[name], c.name)
		}
	}
	return proven, refused
}

// reachable are the messages and those of their fields, in the order of the file. The
// messages of Windows are left out: the fields that hold one have a row.
func reachable(from []protoreflect.MessageDescriptor) []protoreflect.MessageDescriptor {
	seen := map[protoreflect.FullName]protoreflect.MessageDescriptor{}
	for len(from) > 0 {
		m := from[0]
		from = from[1:]
		if seen[m.FullName()] != nil || m.IsMapEntry() || strings.HasPrefix(string(m.Name()), "Windows") {
			continue
		}
		seen[m.FullName()] = m
		for i := range m.Fields().Len() {
			if inner := m.Fields().Get(i).Message(); inner != nil {
				from = append(from, inner)
			}
		}
	}
	var all []protoreflect.MessageDescriptor
	for _, m := range seen {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b protoreflect.MessageDescriptor) int { return a.Index() - b.Index() })
	return all
}

// protoLines finds where api.proto defines each call and field.
func protoLines(t *testing.T) map[string]int {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/cri-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "pkg/apis/runtime/v1/api.proto"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := map[string]int{}
	message := ""
	scanner := bufio.NewScanner(f)
	for n := 1; scanner.Scan(); n++ {
		words := strings.Fields(scanner.Text())
		switch {
		case len(words) > 1 && words[0] == "rpc":
			name, _, _ := strings.Cut(words[1], "(")
			lines[name] = n
		case len(words) > 1 && words[0] == "message":
			message = strings.TrimSuffix(words[1], "{")
		case len(words) > 3 && words[0] != "//":
			if at := slices.Index(words, "="); at > 0 {
				lines[message+"."+words[at-1]] = n
			}
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}
