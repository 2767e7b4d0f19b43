package engine

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Ready tells whether the parts that every pod needs are in their places: the image store
// is open, the directories can be written and the binaries are there. CRI's RuntimeReady
// is "ready to accept basic containers", and without the store none can be made.
func (e *Engine) Ready() error {
	if u := e.Images.Unopened(); u != nil {
		return u.Err
	}
	for _, dir := range []string{e.Layout.SandboxRecords(), e.Layout.ContainerRecords(), e.Layout.ContainerDirs()} {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			return fmt.Errorf("directory %s: %w", dir, err)
		}
	}
	h := e.Handlers[e.DefaultHandler]
	for _, binary := range []string{h.Runtime.Path, h.Monitor} {
		if _, err := os.Stat(binary); err != nil {
			return fmt.Errorf("binary: %w", err)
		}
	}
	return nil
}
