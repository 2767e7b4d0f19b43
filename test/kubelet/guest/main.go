// Command guest serves what a kubelet probes: HTTP on the first address of its command
// line, gRPC's health service on the second. It ends with SIGTERM.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: guest HTTP-ADDRESS GRPC-ADDRESS")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// serve answers every HTTP request with the host name, until ctx ends.
func serve(ctx context.Context, httpAddress, grpcAddress string) error {
	var listen net.ListenConfig
	web, err := listen.Listen(ctx, "tcp", httpAddress)
	if err != nil {
		return err
	}
	rpc, err := listen.Listen(ctx, "tcp", grpcAddress)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	pages := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, name)
		fmt.Println(r.Method, r.URL.Path)
	})}
	calls := grpc.NewServer()
	healthpb.RegisterHealthServer(calls, health.NewServer())
	ended := make(chan error, 2)
	go func() { ended <- pages.Serve(web) }()
	go func() { ended <- calls.Serve(rpc) }()
	fmt.Println("serving")
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}
