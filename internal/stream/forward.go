package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// PortForward returns the URL at which a client finds the ports of a pod, whose whole ID
// it is. The ports are those of WebSocket clients, SPDY's name theirs later. The session
// ends when over is closed.
func (s *Server) PortForward(pod string, ports []int32, over <-chan struct{}) (string, error) {
	return s.url(offer{kind: "portforward", object: pod, over: over, run: func(x *session, w http.ResponseWriter, r *http.Request) {
		if !wsstream.IsWebSocketRequest(r) {
			f := &forwards{forwarder: forwarder{x}, waiting: map[string]*pair{}}
			f.serveSPDY(w, r)
			return
		}
		portforward.ServePortForward(w, r, forwarder{x}, pod, "", &portforward.V4Options{Ports: ports}, 0, createTimeout, portforward.SupportedProtocols)
	}})
}

// forwarder makes the connections to a pod's ports.
type forwarder struct {
	*session
}

// errReset ends a connection whose client wants nothing more from it.
var errReset = errors.New("the client has reset the stream")

// PortForward is portforward.PortForwarder's, for each port of a WebSocket client. The
// library closes the stream once it has returned.
func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, client io.ReadWriteCloser) error {
	return f.forward(uint16(port), client, false)
}

// forward connects the client to a port until the pod has sent all. Where the protocol can
// end one direction alone, halves, the client may go on to send. The caller then releases
// the client's stream, so that nobody reads from it any more.
func (f forwarder) forward(port uint16, client io.ReadWriteCloser, halves bool) error {
	conn, err := f.server.runtime.DialPod(f.ctx, f.object, port)
	if err != nil {
		return f.why(err)
	}
	defer conn.Close()
	defer context.AfterFunc(f.ctx, func() { conn.Close() })()
	sent := make(chan struct{})
	f.group.Go(func() { defer close(sent); f.toPod(conn, client) })
	if _, err := io.Copy(resettable{client}, conn); err != nil {
		return f.why(fmt.Errorf("port %d: %w", port, err))
	}
	if !halves {
		return nil
	}
	if err := client.Close(); err != nil {
		return nil // it has gone
	}
	select {
	case <-sent:
	case <-f.ctx.Done():
	}
	return nil
}

// toPod copies until the client has sent all, and tells the pod so. What the pod does not
// take any more is taken nevertheless: it would be in the way of other streams.
func (f forwarder) toPod(conn *net.TCPConn, client io.Reader) {
	if _, err := io.Copy(conn, client); err != nil {
		_, _ = io.Copy(io.Discard, client)
	}
	if wasReset(client) {
		conn.Close()
		return
	}
	_ = conn.CloseWrite() // one that is closed has had its end
}

// resettable does not write to a SPDY stream that the client has reset, which itself
// says nothing and drops what it is given.
type resettable struct{ io.Writer }

func (r resettable) Write(p []byte) (int, error) {
	if wasReset(r.Writer) {
		return 0, errReset
	}
	return r.Writer.Write(p)
}

func wasReset(stream any) bool {
	s, ok := stream.(interface{ IsFinished() bool })
	return ok && s.IsFinished()
}
