package config

import (
	"reflect"
	"slices"
	"strings"
)

// nearest returns the known key that an unknown one was probably meant to be: the one
// of the same name in another table, else the one with the least edit distance.
func nearest(path []string) string {
	name := path[len(path)-1]
	best, bestCost := "", 0
	for _, key := range knownKeys(path) {
		cost := 2 * editDistance(joinKey("", path...), key)
		// A key in the wrong table is likelier than a key of a similar name: what the
		// name lacks counts more than what the table lacks.
		cost += 8 * editDistance(name, key[strings.LastIndexByte(key, '.')+1:])
		if best == "" || cost < bestCost {
			best, bestCost = key, cost
		}
	}
	return best
}

// knownKeys are all keys and tables, served or not. Those of handlers are written with
// the handler that the path names.
func knownKeys(path []string) []string {
	handler := defaultHandler
	if len(path) > 3 && path[2] == "runtimes" {
		handler = path[3]
	}
	keys := []string{tableName}
	tables := map[string]bool{}
	for _, l := range leaves(tableName, reflect.ValueOf(Default()).Elem()) {
		keys = append(keys, l.key)
		tables[l.key[:strings.LastIndexByte(l.key, '.')]] = true
	}
	sample := newHandler()
	for _, l := range leaves(handlerPrefix(handler), reflect.ValueOf(&sample).Elem()) {
		keys = append(keys, l.key)
	}
	for _, pattern := range unserved() {
		key := strings.TrimSuffix(strings.Replace(pattern, "*.", joinKey("", handler)+".", 1), ".**")
		keys = append(keys, key)
		tables[key[:strings.LastIndexByte(key, '.')]] = true
	}
	tables[joinKey(tableName, "runtime", "runtimes")] = true
	for table := range tables {
		keys = append(keys, table)
	}
	slices.Sort(keys) // among equals the first one is the nearest, in every run
	return keys
}

// editDistance is Levenshtein's: the least number of inserted, removed and changed
// bytes that makes one string the other.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
