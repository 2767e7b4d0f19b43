package test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a reader can take in at once.
const (
	maxFileLines     = 500
	maxFunctionLines = 80
	maxParameters    = 5
)

// sources yields every file of the repository with one of the endings.
func sources(t *testing.T, endings ...string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "build" || entry.Name() == ".git" || entry.Name() == "testdata"):
			return filepath.SkipDir
		case slices.Contains(endings, filepath.Ext(path)):
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 5 {
		t.Fatalf("found %d files with %q", len(files), endings)
	}
	return files
}

func TestFilesAreShort(t *testing.T) {
	for _, path := range sources(t, ".go", ".c", ".h") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: split it by subject", path, n, maxFileLines)
		}
	}
}

// TestGoShape holds the Go code, tests excepted, to the rules of the project that no
// other tool checks.
func TestGoShape(t *testing.T) {
	documented := map[string]bool{}
	for _, path := range sources(t, ".go") {
		if strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == ".." {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || file.Doc != nil
		if vague := []string{"utils", "util", "common", "lib", "helpers", "manager", "misc", "base"}; slices.Contains(vague, file.Name.Name) {
			t.Errorf("%s: %s says nothing about what the package is for", path, file.Name.Name)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				checkFunction(t, set, n)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && n.Sel.Name == "Sleep" {
					t.Errorf("%s: time.Sleep: wait for the event itself", set.Position(n.Pos()))
				}
			}
			return true
		})
		checkVariables(t, set, file)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func checkFunction(t *testing.T, set *token.FileSet, f *ast.FuncDecl) {
	t.Helper()
	where := set.Position(f.Pos())
	if lines := set.Position(f.End()).Line - where.Line + 1; lines > maxFunctionLines {
		t.Errorf("%s: %s has %d lines, more than %d", where, f.Name.Name, lines, maxFunctionLines)
	}
	// The signatures of these methods are other people's: interfaces of go.podman.io and k8s.io/cri-streaming.
	imposed := f.Recv != nil && slices.Contains([]string{"PutLayer", "CreateContainer", "ExecInContainer", "AttachContainer"}, f.Name.Name)
	if n := f.Type.Params.NumFields(); n > maxParameters && !imposed {
		t.Errorf("%s: %s has %d parameters, more than %d", where, f.Name.Name, n, maxParameters)
	}
	if f.Name.Name == "init" && f.Recv == nil {
		t.Errorf("%s: init: what must happen at start is called by main", where)
	}
}

// checkVariables finds package-level state. What cannot change once it is made may be
// a variable: errors, regular expressions, and assertions that a type has its methods.
func checkVariables(t *testing.T, set *token.FileSet, file *ast.File) {
	t.Helper()
	constant := []string{"errors.New", "fmt.Errorf", "fault.New", "regexp.MustCompile"}
	for _, declaration := range file.Decls {
		d, ok := declaration.(*ast.GenDecl)
		if !ok || d.Tok != token.VAR {
			continue
		}
		for _, spec := range d.Specs {
			v := spec.(*ast.ValueSpec)
			if v.Names[0].Name == "_" {
				continue
			}
			if len(v.Values) != len(v.Names) || slices.ContainsFunc(v.Values, func(e ast.Expr) bool { return !slices.Contains(constant, callee(e)) }) {
				t.Errorf("%s: %s is package-level state: make it a field or a function", set.Position(v.Pos()), v.Names[0].Name)
			}
		}
	}
}

// callee is the function that an expression calls, as "package.name".
func callee(e ast.Expr) string {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return ""
	}
	if s, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}
