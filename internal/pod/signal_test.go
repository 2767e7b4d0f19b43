package pod

import (
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every signal that CRI can name has to come back as itself, or as its other name.
func TestSignalValuesRoundTrip(t *testing.T) {
	alias := map[cri.Signal]cri.Signal{
		cri.Signal_SIGNAL_SIGCLD: cri.Signal_SIGNAL_SIGCHLD, cri.Signal_SIGNAL_SIGIOT: cri.Signal_SIGNAL_SIGABRT,
		cri.Signal_SIGNAL_SIGPOLL: cri.Signal_SIGNAL_SIGIO,
	}
	for value := range cri.Signal_name {
		s := cri.Signal(value)
		if s == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
			continue
		}
		n, err := StopSignal(&cri.ContainerConfig{StopSignal: s}, "SIGQUIT")
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		want := s
		if other, ok := alias[s]; ok {
			want = other
		}
		if got := SignalValue(n); got != want {
			t.Errorf("%s is number %d, which is called %s", s, n, got)
		}
	}
}

func TestStopSignalOfImage(t *testing.T) {
	for name, want := range map[string]int{
		"": int(unix.SIGTERM), "SIGQUIT": 3, "quit": 3, "3": 3, "SIGRTMIN+3": 37, "RTMAX-2": 62, "SIGRTMIN": 34,
	} {
		if got, err := StopSignal(&cri.ContainerConfig{}, name); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"SIGNOPE", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMAX-31", "SIGRTMIN+x"} {
		if got, err := StopSignal(&cri.ContainerConfig{}, name); err == nil {
			t.Errorf("%q was taken as %d", name, got)
		}
	}
}
