package image

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.podman.io/storage"
)

// Every method that is called on a storage.Store, by us or by the libraries that we give
// it to, is guarded or takes no lock. A method is known by its name alone.
func TestGuardedCalls(t *testing.T) {
	store := map[string]bool{}
	for m := range reflect.TypeFor[storage.Store]().Methods() {
		store[m.Name] = true
	}
	guarded := map[string]bool{}
	ast.Inspect(parse(t, "guard.go"), func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok && f.Recv != nil {
			guarded[f.Name.Name] = true
		}
		return true
	})
	lockless := []string{
		"GraphDriverName", "GraphOptions", "GraphRoot", "ImageStore", "PullOptions", "RunRoot", "Free",
		// Of other types: a layer's differ, a graph driver, a server.
		"ApplyDiff", "Metadata", "Status",
	}
	for _, pkg := range []string{"go.podman.io/image/v5/storage", "go.podman.io/storage/pkg/chunked", ".", "../rootfs"} {
		seen := false
		for name, place := range calls(t, pkg) {
			switch {
			case !store[name]:
			case guarded[name]:
				seen = true
			case !slices.Contains(lockless, name):
				t.Errorf("%s: %s is called on a store and is not guarded", place, name)
			}
		}
		if !seen {
			t.Errorf("%s calls no store", pkg)
		}
	}
}

// calls are the names of the methods that a package calls, each with a place of it.
func calls(t *testing.T, pkg string) map[string]string {
	t.Helper()
	dir := pkg
	if !strings.HasPrefix(pkg, ".") {
		found, err := build.Import(pkg, ".", build.FindOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir = found.Dir
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source of %s in %s: %v", pkg, dir, err)
	}
	found := map[string]string{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		ast.Inspect(parse(t, file), func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if method, ok := call.Fun.(*ast.SelectorExpr); ok {
					found[method.Sel.Name] = file
				}
			}
			return true
		})
	}
	return found
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), file, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
