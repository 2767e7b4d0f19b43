package stdio

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// gate is a writer that takes nothing before it is opened.
type gate struct {
	bytes.Buffer
	opened chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.opened
	return g.Buffer.Write(p)
}

// What a process wrote before its end arrives, however large it made its pipe.
func TestOutputOfALargePipeIsWhole(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, size); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	defer w.Close() // somebody whom the process left behind holds it
	g := &gate{opened: make(chan struct{})}
	o := CopyOutput(g, r)
	finished := make(chan error)
	go func() { finished <- o.Finish() }()
	close(g.opened)
	if err := <-finished; err != nil {
		t.Fatal(err)
	}
	if g.Len() != size {
		t.Errorf("%d bytes of %d", g.Len(), size)
	}
}
