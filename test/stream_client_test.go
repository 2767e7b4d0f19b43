package test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	littleendian "encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/crio-minimal/crio/test/fixture"
)

// client is the kubelet's end of a session, whatever the protocol.
type client struct {
	t      *testing.T
	stdin  io.WriteCloser
	stdout io.Reader
	stderr io.Reader
	// ending has how the session ended, in the form of the protocol's version.
	ending <-chan string
	resize func(width, height int)
	// close ends the connection, drop without a word.
	close, drop func()
	local       net.Addr
}

// wants are the streams of a session.
type wants struct{ stdin, stdout, stderr, tty bool }

// protocols are all ways to have a session: those of SPDY by their versions, and those
// of WebSocket by their names.
var protocols = []string{
	"spdy v4.channel.k8s.io", "spdy v3.channel.k8s.io", "spdy v2.channel.k8s.io", "spdy channel.k8s.io",
	"ws v4.channel.k8s.io", "ws v4.base64.channel.k8s.io", "ws channel.k8s.io", "ws base64.channel.k8s.io", "ws ",
}

// open begins a session by one of the protocols.
func (n *node) open(protocol, address string, w wants) *client {
	n.t.Helper()
	kind, version, _ := strings.Cut(protocol, " ")
	if kind == "ws" {
		return openWebSocket(n.t, version, address, w)
	}
	plain, conn := dialSPDY(n.t, version, address)
	c := &client{t: n.t, close: func() { conn.Close() }, drop: func() { plain.Close() }, local: plain.LocalAddr()}
	stream := func(name string) httpstream.Stream {
		s, err := conn.CreateStream(http.Header{remotecommand.StreamType: {name}})
		if err != nil {
			n.t.Fatalf("stream %s: %v", name, err)
		}
		return s
	}
	ending := stream(remotecommand.StreamTypeError)
	ending.Close() // nothing is sent on it
	c.ending = inBackground(ending)
	if w.stdin {
		c.stdin = stream(remotecommand.StreamTypeStdin)
	}
	if w.stdout {
		c.stdout = stream(remotecommand.StreamTypeStdout)
	}
	if w.stderr {
		c.stderr = stream(remotecommand.StreamTypeStderr)
	}
	if w.tty && version != "channel.k8s.io" && version != "v2.channel.k8s.io" {
		sizes := json.NewEncoder(stream(remotecommand.StreamTypeResize))
		c.resize = func(width, height int) { _ = sizes.Encode(map[string]int{"Width": width, "Height": height}) }
	}
	return c
}

// taken tells that the daemon has read all that was sent (/proc/net/tcp of proc_net_tcp.rst:
// address:port in hexadecimal, of both ends, and the bytes that lie in tx_queue:rx_queue).
func (c *client) taken() error {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	port := fmt.Sprintf(":%04X", c.local.(*net.TCPAddr).Port)
	ends := 0
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if !strings.HasSuffix(f[1], port) && !strings.HasSuffix(f[2], port) {
			continue
		}
		if ends++; f[4] != "00000000:00000000" {
			return fmt.Errorf("on the way: %s", line)
		}
	}
	if ends != 2 {
		return fmt.Errorf("%d ends of connections have port %s", ends, port)
	}
	return nil
}

// dialSPDY makes the request, and the connection of what comes after it.
func dialSPDY(t *testing.T, version, address string) (net.Conn, httpstream.Connection) {
	t.Helper()
	conn := dialStream(t, address)
	u, _ := url.Parse(address)
	return conn, fixture.UpgradeSPDY(t, conn, u.Host, u.Path, version)
}

// dialStream connects to the host of a URL.
func dialStream(t *testing.T, address string) net.Conn {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	if u.Scheme == "https" {
		return tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	return conn
}

// dialWebSocket makes the request; version "" asks for no protocol.
func dialWebSocket(t *testing.T, version, address string) (net.Conn, *websocket.Conn) {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	if version != "" {
		config.Protocol = []string{version}
	}
	plain := dialStream(t, address)
	ws, err := websocket.NewClient(config, plain)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	return plain, ws
}

func openWebSocket(t *testing.T, version, address string, w wants) *client {
	plain, ws := dialWebSocket(t, version, address)
	coded := strings.Contains(version, "base64")
	c := &client{t: t, close: func() { ws.Close() }, drop: func() { plain.Close() }, local: plain.LocalAddr()}
	channels := demultiplex(ws, 4, coded)
	if w.stdin {
		c.stdin = channelWriter{ws, 0, coded}
	}
	if w.stdout {
		c.stdout = channels[1]
	}
	if w.stderr {
		c.stderr = channels[2]
	}
	c.ending = inBackground(channels[3])
	c.resize = func(width, height int) {
		_, _ = channelWriter{ws, 4, coded}.Write(fmt.Appendf(nil, `{"Width":%d,"Height":%d}`, width, height))
	}
	return c
}

// demultiplex returns a reader for each channel.
func demultiplex(ws *websocket.Conn, n int, coded bool) []io.Reader {
	readers, writers := make([]io.Reader, n), make([]*io.PipeWriter, n)
	for i := range readers {
		r, w := io.Pipe()
		readers[i], writers[i] = bufio.NewReaderSize(r, 1<<10), w
	}
	go func() {
		for {
			var frame []byte
			if err := websocket.Message.Receive(ws, &frame); err != nil {
				for _, w := range writers {
					w.Close()
				}
				return
			}
			channel, data := int(frame[0]), frame[1:]
			if coded {
				channel -= '0'
				data, _ = base64.StdEncoding.DecodeString(string(data))
			}
			if len(data) > 0 {
				_, _ = writers[channel].Write(data)
			}
		}
	}()
	return readers
}

// channelWriter has no half-close: WebSocket has none here.
type channelWriter struct {
	ws      *websocket.Conn
	channel byte
	coded   bool
}

func (w channelWriter) Write(p []byte) (int, error) {
	if w.coded {
		return len(p), websocket.Message.Send(w.ws, string('0'+rune(w.channel))+base64.StdEncoding.EncodeToString(p))
	}
	return len(p), websocket.Message.Send(w.ws, append([]byte{w.channel}, p...))
}

func (w channelWriter) Close() error { return nil }

// end reads how the session ended: the exit code, and the message of anything else.
func (c *client) end() (code int, message string) {
	c.t.Helper()
	select {
	case text := <-c.ending:
		return parseEnd(text)
	case <-time.After(waitTime):
		c.t.Fatal("the session does not end")
		return 0, ""
	}
}

// inBackground reads to the end: what nobody reads is in the way of the other streams.
func inBackground(r io.Reader) <-chan string {
	text := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(r)
		text <- string(all)
	}()
	return text
}

// parseEnd reads both forms: version 4's is JSON, the earlier ones' is a message alone.
func parseEnd(text string) (int, string) {
	var s struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if json.Unmarshal([]byte(text), &s) != nil {
		return 0, text
	}
	if s.Reason == remotecommand.NonZeroExitCodeReason && len(s.Details.Causes) == 1 {
		code, err := strconv.Atoi(s.Details.Causes[0].Message)
		if err == nil {
			return code, ""
		}
	}
	if s.Status == "Success" {
		return 0, ""
	}
	return 0, s.Message
}

// collect reads both outputs to their ends.
func (c *client) collect() (stdout, stderr string) {
	c.t.Helper()
	texts := make(chan [2]string, 2)
	for i, r := range []io.Reader{c.stdout, c.stderr} {
		go func() {
			var text []byte
			if r != nil {
				text, _ = io.ReadAll(r)
			}
			texts <- [2]string{strconv.Itoa(i), string(text)}
		}()
	}
	for range 2 {
		if text := <-texts; text[0] == "0" {
			stdout = text[1]
		} else {
			stderr = text[1]
		}
	}
	return stdout, stderr
}

// forward is one connection to a port of a pod.
type forward struct {
	io.ReadWriter
	// ending has the error, "" for none.
	ending <-chan string
	close  func()
	// half ends what we send.
	half func()
}

// openForward opens a port by "spdy" or "ws".
func (n *node) openForward(kind, address string, port int) *forward {
	n.t.Helper()
	if kind == "ws" {
		_, ws := dialWebSocket(n.t, "v4.channel.k8s.io", address)
		channels := demultiplex(ws, 2, false)
		for _, c := range channels {
			var said uint16
			if err := littleendian.Read(c, littleendian.LittleEndian, &said); err != nil || int(said) != port {
				n.t.Fatalf("port %d: %v", said, err)
			}
		}
		return &forward{readWriter{channels[0], channelWriter{ws, 0, false}}, inBackground(channels[1]), func() { ws.Close() }, nil}
	}
	_, conn := dialSPDY(n.t, portforward.ProtocolV1Name, address)
	return n.forwardOn(conn, port, 1)
}

// forwardOn opens one more on the same connection.
func (n *node) forwardOn(conn httpstream.Connection, port, request int) *forward {
	n.t.Helper()
	headers := http.Header{}
	headers.Set(portforward.PortHeader, strconv.Itoa(port))
	headers.Set(portforward.PortForwardRequestIDHeader, strconv.Itoa(request))
	headers.Set(portforward.StreamType, portforward.StreamTypeError)
	ending, err := conn.CreateStream(headers)
	if err != nil {
		n.t.Fatal(err)
	}
	ending.Close()
	headers = headers.Clone()
	headers.Set(portforward.StreamType, portforward.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		n.t.Fatal(err)
	}
	return &forward{data, inBackground(ending), func() { conn.Close() }, func() { data.Close() }}
}

type readWriter struct {
	io.Reader
	io.Writer
}

// readUntil reads until what was read has the text.
func readUntil(t *testing.T, r io.Reader, text string) string {
	t.Helper()
	type result struct {
		all string
		err error
	}
	done := make(chan result, 1)
	go func() {
		var all bytes.Buffer
		buffer := make([]byte, 4096)
		for !strings.Contains(all.String(), text) {
			n, err := r.Read(buffer)
			all.Write(buffer[:n])
			if err != nil {
				done <- result{all.String(), err}
				return
			}
		}
		done <- result{all.String(), nil}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			t.Fatalf("%q, and then %v", got.all, got.err)
		}
		return got.all
	case <-time.After(waitTime):
		t.Fatalf("%q does not come", text)
		return ""
	}
}
