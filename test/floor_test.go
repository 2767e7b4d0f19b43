package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idleSocket, in the environment, has this program be the server of floor.
const idleSocket = "CRIO_TEST_IDLE"

// serveIdle answers every call at once, with Unimplemented, until stdin ends.
func serveIdle(socket string) int {
	l, err := net.Listen("unix", socket)
	if err == nil {
		s := grpc.NewServer()
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			s.Stop()
		}()
		err = s.Serve(l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test: the idle server:", err)
		return 1
	}
	return 0
}

// idleServer is a process like the daemon that has nothing to do, and a client of it.
type idleServer struct {
	stdin io.Closer // whose end is the server's; the run's end closes it
	conn  *grpc.ClientConn
	err   error
}

// idle is started by the first test that measures.
var idle = sync.OnceValue(func() (s idleServer) {
	name := fmt.Sprintf("crio-test-idle-%d", os.Getpid())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), idleSocket+"=@"+name), os.Stderr
	if s.stdin, s.err = cmd.StdinPipe(); s.err == nil {
		s.err = cmd.Start()
	}
	if s.err == nil {
		s.conn, s.err = grpc.NewClient("unix-abstract:"+name, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if s.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), waitTime)
		defer cancel()
		s.err = s.answer(ctx, grpc.WaitForReady(true))
	}
	return s
})

func (s idleServer) answer(ctx context.Context, o ...grpc.CallOption) error {
	err := s.conn.Invoke(ctx, "/idle/Any", &cri.VersionRequest{}, &cri.VersionResponse{}, o...)
	if status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("the idle server: %w", err)
	}
	return nil
}

// floor is what a call to a server takes that has nothing to do, at this moment: what
// other processes on the machine, and the test itself, add to every call.
func floor(t *testing.T) time.Duration {
	t.Helper()
	s := idle()
	begun := time.Now()
	if s.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), waitTime)
		defer cancel()
		s.err = s.answer(ctx)
	}
	if s.err != nil {
		t.Fatal(s.err)
	}
	return time.Since(begun)
}

// late counts those calls that took longer than most above the floor, of which the slowest
// tenth is left out, as it may be of the calls.
func late(calls, floors []time.Duration, most time.Duration) (count int) {
	above := most + slices.Sorted(slices.Values(floors))[len(floors)-len(floors)/10-1]
	for _, took := range calls {
		if took >= above {
			count++
		}
	}
	return count
}
