package pod

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as signal(7) numbers them for programs of the C library, which
// keeps 32 and 33 for itself.
const (
	sigrtmin = 34
	sigrtmax = 64
)

// StopSignal is the number of the container's own, or of the image's, or SIGTERM.
func StopSignal(config *cri.ContainerConfig, image string) (int, error) {
	name := strings.TrimPrefix(config.GetStopSignal().String(), "SIGNAL_")
	if config.GetStopSignal() == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		name = image
	}
	if name == "" {
		return int(unix.SIGTERM), nil
	}
	n, ok := signalNumber(name)
	if !ok {
		return 0, fmt.Errorf("stop_signal: %q is not a signal", name)
	}
	return n, nil
}

// signalNumber knows names with and without SIG, numbers, and real-time signals as
// CRI (SIGRTMINPLUS3) and as images (SIGRTMIN+3) write them.
func signalNumber(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, n > 0 && n <= sigrtmax
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
	for prefix, base := range map[string]int{"SIGRTMIN": sigrtmin, "SIGRTMAX": sigrtmax} {
		if offset, ok := strings.CutPrefix(name, prefix); ok {
			if offset == "" {
				return base, true
			}
			n, err := strconv.Atoi(offset)
			return base + n, err == nil && base+n >= sigrtmin && base+n <= sigrtmax
		}
	}
	switch name { // names that signal(7) gives to a number which has another
	case "SIGCLD":
		return int(unix.SIGCHLD), true
	case "SIGPOLL":
		return int(unix.SIGIO), true
	case "SIGIOT":
		return int(unix.SIGABRT), true
	}
	n := unix.SignalNum(name)
	return int(n), n != 0
}

// SignalValue is CRI's value for a signal number. CRI names the lower half of the
// real-time signals from SIGRTMIN up, the upper half from SIGRTMAX down.
func SignalValue(n int) cri.Signal {
	const lastFromBelow = sigrtmin + 15
	name := unix.SignalName(unix.Signal(n))
	switch {
	case n == sigrtmin:
		name = "SIGRTMIN"
	case n == sigrtmax:
		name = "SIGRTMAX"
	case n > sigrtmin && n <= lastFromBelow:
		name = fmt.Sprintf("SIGRTMINPLUS%d", n-sigrtmin)
	case n > lastFromBelow && n < sigrtmax:
		name = fmt.Sprintf("SIGRTMAXMINUS%d", sigrtmax-n)
	}
	return cri.Signal(cri.Signal_value["SIGNAL_"+name])
}
