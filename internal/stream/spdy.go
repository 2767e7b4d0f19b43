package stream

import (
	"errors"
	"net/http"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// spdyStream is a stream that a SPDY client has made. Whoever accepts it releases it.
type spdyStream struct {
	libraryStream
	conn httpstream.Connection
	// registered is closed when conn knows the stream.
	registered <-chan struct{}
}

// libraryStream is what the library's streams can do besides.
type libraryStream interface {
	httpstream.Stream
	SendReply(headers http.Header, fin bool) error
	IsFinished() bool
}

// errUpgrade ends a session that never began. The client has been told more.
var errUpgrade = errors.New("the request cannot be upgraded to SPDY")

// upgrade makes a request's connection one of SPDY, whose protocol is negotiated. Each
// stream of the client's is given to accept, several at a time. accept replies to those it
// takes, and refuses others by an error. It may wait for the socket and for nothing else:
// the library has no end for a connection with a stream that waits to be taken.
func upgrade(w http.ResponseWriter, r *http.Request, accept func(spdyStream) error) (conn httpstream.Connection, err error) {
	ready := make(chan struct{})
	defer close(ready)
	conn = spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, registered <-chan struct{}) error {
		<-ready
		stream, ok := s.(libraryStream)
		if !ok {
			return errors.New("not a stream of spdystream's")
		}
		return accept(spdyStream{stream, conn, registered})
	})
	if conn == nil {
		return nil, errUpgrade
	}
	return conn, nil
}

// reply lets the client use the stream. Without it nothing may be written: the library
// waits until a reply was sent, also when the connection is gone. It sends none twice.
func (s spdyStream) reply() error { return s.SendReply(http.Header{}, false) }

// release ends both directions, also for those who read or write, and forgets the stream.
// The client is told, unless the stream was closed.
func (s spdyStream) release() {
	_ = s.Reset()
	<-s.registered
	s.conn.RemoveStreams(s.libraryStream)
}
