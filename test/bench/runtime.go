package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// runtimeCounters are what crio tells of its Go runtime (GET /metrics), since its start.
type runtimeCounters struct {
	allocated   float64 // bytes
	allocations float64
	lockWait    float64 // seconds
}

// tellsRuntime: this is the crio that we have started, and no other's daemon of that name.
func (d *daemon) tellsRuntime() bool { return d.name == ours && d.process != nil }

func (d *daemon) runtimeCounters(ctx context.Context) (c runtimeCounters, err error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://crio/metrics", nil)
	if err != nil {
		return c, err
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return c, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return c, err
	}
	for name, value := range map[string]*float64{
		"go_gc_heap_allocs_bytes_total": &c.allocated, "go_gc_heap_allocs_objects_total": &c.allocations,
		"go_sync_mutex_wait_total_seconds_total": &c.lockWait,
	} {
		_, rest, _ := strings.Cut(string(text), "\n"+name+" ")
		number, _, _ := strings.Cut(rest, "\n")
		var bad error
		if *value, bad = strconv.ParseFloat(number, 64); bad != nil {
			err = errors.Join(err, fmt.Errorf("/metrics: %s: %w", name, bad))
		}
	}
	return c, err
}

// allocations is what the daemon allocates for one call.
func (b *bench) allocations(ctx context.Context, d *daemon, row string, call func() error) error {
	const calls = 10
	before, err := d.runtimeCounters(ctx)
	for i := 0; i < calls && err == nil; i++ {
		err = call()
	}
	if err != nil {
		return err
	}
	after, err := d.runtimeCounters(ctx)
	b.report.add(row+", allocated", "KiB", d.name, (after.allocated-before.allocated)/calls/1024)
	b.report.add(row+", allocations", "", d.name, (after.allocations-before.allocations)/calls)
	return err
}
