package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func seedID() string { return strings.Repeat("a", 64) }

func seedBodies(f *testing.F) [][]byte {
	f.Helper()
	sandbox, container := fullSandbox(), fullContainer()
	sandbox.ID, container.ID = seedID(), seedID()
	var bodies [][]byte
	for _, body := range []any{
		sandboxBody{Sandbox: sandbox, Config: json.RawMessage(`{"hostname":"web"}`)},
		containerBody{Container: container, Config: json.RawMessage(`{}`), User: json.RawMessage(`{"uid":"1"}`)},
		containerBody{Container: container, Config: json.RawMessage(`{}`), User: json.RawMessage(`null`)},
		map[string]any{"ID": sandbox.ID, "Later": 1}, nil, []int{}, "text",
	} {
		data, err := json.Marshal(body)
		if err != nil {
			f.Fatal(err)
		}
		bodies = append(bodies, data)
	}
	return bodies
}

// FuzzDecode: no file makes the decoder panic, and what it accepts has its own
// checksum in it, as another reader of the file finds it.
func FuzzDecode(f *testing.F) {
	for _, body := range seedBodies(f) {
		data, err := encode(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
		f.Add(bytes.Replace(data, []byte("body"), []byte("Body"), 1))
		f.Add(append(data[:len(data)-2:len(data)-2], `,"body":{},"sha256":"0"}`...))
	}
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := Decode(data)
		if err != nil {
			return
		}
		var fields map[string]any
		if err := json.Unmarshal(data, &fields); err != nil {
			t.Fatalf("accepted what is no JSON object: %v", err)
		}
		sum, found := sha256.Sum256(body), false
		for _, value := range fields {
			found = found || value == hex.EncodeToString(sum[:])
		}
		if !found || !bytes.Contains(data, body) {
			t.Errorf("accepted %q, whose checksum is not in %q", body, data)
		}
	})
}

// FuzzBody goes on where the checksum is right: what a newer or a broken daemon wrote.
func FuzzBody(f *testing.F) {
	for _, body := range seedBodies(f) {
		f.Add(body)
	}
	id := seedID()
	f.Fuzz(func(t *testing.T, body []byte) {
		data, err := encode(body)
		if err != nil {
			return
		}
		stored, err := Decode(data)
		if err != nil {
			t.Fatalf("%q was written, but is not read: %v", data, err)
		}
		d := &Dir{unknown: map[string]json.RawMessage{}}
		if s, err := decodeSandbox(id, stored); err == nil {
			wantSavable(t, d, id, stored, s)
		}
		if c, err := decodeContainer(id, stored); err == nil {
			wantSavable(t, d, id, stored, c)
		}
	})
}

// wantSavable: what was loaded can be saved, with all that it had.
func wantSavable(t *testing.T, d *Dir, id string, body []byte, known any) {
	t.Helper()
	if err := d.keepUnknown(id, body, known); err != nil {
		t.Fatalf("%q was decoded, but is not kept: %v", body, err)
	}
	raw, err := json.Marshal(known)
	if err == nil {
		raw, err = d.addUnknown(id, raw)
	}
	var before, after map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(body, &before)
	}
	if err == nil {
		err = json.Unmarshal(raw, &after)
	}
	if err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			t.Errorf("%q lost its field %q", body, key)
		}
	}
}

// FuzzLast: whatever the lines are, the body is that of the last one, or of an earlier one
// where nothing runs.
func FuzzLast(f *testing.F) {
	for _, body := range seedBodies(f) {
		line, err := encode(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(append(bytes.Clone(line), '\n'), line...), false)
		f.Add(append(append(bytes.Clone(line), '\n'), line[:len(line)/2]...), true)
		f.Add(append(append(bytes.Clone(line), make([]byte, 40)...), "\n{}\n"...), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, dead bool) {
		body, err := last(data, func() bool { return dead })
		if err != nil {
			return
		}
		lines := bytes.Split(data, []byte("\n"))
		for i, line := range lines {
			if decoded, err := Decode(line); err == nil && bytes.Equal(decoded, body) && (dead || len(bytes.Join(lines[i+1:], nil)) == 0) {
				return
			}
		}
		t.Errorf("%q gave %q", data, body)
	})
}
