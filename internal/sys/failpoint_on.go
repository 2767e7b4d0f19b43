//go:build failpoints

package sys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Failpoint tells a test that the daemon has come to this moment, and waits there as long
// as the test wants. The directory is CRIO_FAILPOINTS of the environment:
//
//   - "trace" gets one line each time: "part: moment", a tab, and the place in the source;
//   - a FIFO that is called "part: moment#n" holds the daemon at that moment, when it
//     comes to it for the nth time, until somebody has opened the FIFO and closed it.
func Failpoint(part, moment string) {
	dir := os.Getenv("CRIO_FAILPOINTS")
	if dir == "" {
		return
	}
	name := part + ": " + moment
	count, err := trace(filepath.Join(dir, "trace"), name)
	if err != nil {
		panic(fmt.Errorf("failpoint %s: %w", name, err))
	}
	fifo, err := os.Open(filepath.Join(dir, fmt.Sprintf("%s#%d", name, count)))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		_, err = io.Copy(io.Discard, fifo)
	}
	if err != nil {
		panic(fmt.Errorf("failpoint %s: %w", name, err))
	}
	fifo.Close()
}

// Budget is CRIO_BUDGET of the environment where that is set, for tests that wait for the
// end of what hangs; else d.
func Budget(d time.Duration) time.Duration {
	text := os.Getenv("CRIO_BUDGET")
	if text == "" {
		return d
	}
	short, err := time.ParseDuration(text)
	if err != nil {
		panic(fmt.Errorf("CRIO_BUDGET: %w", err))
	}
	return short
}

// trace notes that name was reached and returns how often it was.
func trace(path, name string) (count int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close() // and with it the lock
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(f, "%s\t%s\n", name, place()); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(path)
	return strings.Count("\n"+string(text), "\n"+name+"\t"), err
}

// place is where in the source Failpoint, or the stage of an operation, was called, from
// the root of the module on.
func place() string {
	pcs := make([]uintptr, 8)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs)])
	frame, _ := frames.Next()
	if strings.HasSuffix(frame.Function, ".stage") {
		frame, _ = frames.Next()
	}
	_, file, _ := strings.Cut(frame.File, "/internal/")
	return fmt.Sprintf("internal/%s:%d", file, frame.Line)
}
