package sys

import (
	"net"
	"testing"
	"time"
)

// The end of a peer is told although what it sent is not read, and its data is not an end.
func TestHangupIsToldBehindUnreadData(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	h, err := WatchHangup(server.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() { told <- h.Wait() }()
	if _, err := client.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-told:
		t.Fatalf("data is told as the end: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	client.Close()
	select {
	case err := <-told:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the end is not told")
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestHangupCloseEndsWait(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h, err := WatchHangup(listener.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() { told <- h.Wait() }()
	h.Close()
	select {
	case err := <-told:
		if err == nil {
			t.Error("an end is told that did not come")
		}
	case <-time.After(10 * time.Second):
		t.Error("Wait does not end")
	}
}
