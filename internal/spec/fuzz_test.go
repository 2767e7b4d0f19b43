package spec

import (
	"encoding/json"
	"slices"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzImageConfig feeds what an image says of its containers: it becomes a specification
// that a runtime reads as it was meant, or is refused.
func FuzzImageConfig(f *testing.F) {
	for _, seed := range []string{
		`{"Env":["PATH=/bin","HOME=/a"],"Cmd":["sh"],"Entrypoint":["/x"],"WorkingDir":"/w","User":"1:2","Volumes":{"/v":{}}}`,
		`{"Env":["=","A","A=\u0000","A=1","A=2"],"Cmd":[""],"WorkingDir":"../..","Volumes":{"":{},"/proc":{},"/../x":{}}}`,
		`{"Cmd":["a\u0000b"],"Labels":{"x":"y"},"StopSignal":"SIG","ExposedPorts":{"0/":{}}}`,
		`{"Env":["\ud800=x"],"Cmd":["\ufffd"],"WorkingDir":"/\u0000"}`,
		`null`, `{"Env":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var image imagespec.ImageConfig
		if json.Unmarshal(data, &image) != nil {
			return
		}
		in := podInput()
		in.Image = image
		result, err := Container(in)
		if err != nil {
			return
		}
		text, err := json.Marshal(result.Spec)
		if err != nil {
			t.Fatal(err)
		}
		var read specs.Spec
		if err := json.Unmarshal(text, &read); err != nil {
			t.Fatal(err)
		}
		was, is := result.Spec.Process, read.Process
		if !slices.Equal(was.Args, is.Args) || !slices.Equal(was.Env, is.Env) || was.Cwd != is.Cwd || len(is.Args) == 0 {
			t.Errorf("the process %+v is read as %+v", was, is)
		}
	})
}
