package kubelet

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// Channels of a session by WebSocket, k8s.io/streaming/pkg/wsstream and remotecommand.
const (
	stdin, stdout, stderr, ending = 0, 1, 2, 3
	closing                       = 255 // of version 5: the next byte is the channel that ends
)

// session is a WebSocket through the kubelet to the daemon. Version 4 goes through as it
// is; the kubelet turns version 5 into SPDY.
type session struct {
	t  *testing.T
	ws *websocket.Conn
}

func (n *node) open(t *testing.T, version, path string) session {
	t.Helper()
	config, err := websocket.NewConfig("wss://127.0.0.1:10250"+path, "https://127.0.0.1:10250")
	check(t, err)
	config.Protocol = []string{version + ".channel.k8s.io"}
	config.TlsConfig = &tls.Config{InsecureSkipVerify: true}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { ws.Close() })
	check(t, ws.SetDeadline(time.Now().Add(waitTime)))
	return session{t, ws}
}

func (s session) send(channel byte, text string) {
	s.t.Helper()
	check(s.t, websocket.Message.Send(s.ws, append([]byte{channel}, text...)))
}

// receive returns the next message.
func (s session) receive() (channel byte, text string, err error) {
	var frame []byte
	if err := websocket.Message.Receive(s.ws, &frame); err != nil {
		return 0, "", err
	}
	if len(frame) == 0 {
		return 0, "", errors.New("an empty message")
	}
	return frame[0], string(frame[1:]), nil
}

// all reads to the end, by channels.
func (s session) all() map[byte]string {
	s.t.Helper()
	texts := map[byte]string{}
	for {
		channel, text, err := s.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.t.Errorf("after %v: %v", texts, err)
			}
			return texts
		}
		texts[channel] += text
	}
}

func streams(t *testing.T, n *node) {
	n.awaitContainer(t, "volumes", "reader", ready)
	n.awaitContainer(t, "probes", "web", ready)
	t.Run("exec", func(t *testing.T) {
		command := url.Values{"command": {"sh", "-c", "cat; echo err >&2; exit 7"}, "input": {"1"}, "output": {"1"}, "error": {"1"}}
		s := n.open(t, "v5", "/exec/default/volumes-"+nodeName+"/reader?"+command.Encode())
		s.send(stdin, "through SPDY")
		s.send(closing, string([]byte{stdin}))
		s.ended(map[byte]string{stdout: "through SPDY", stderr: "err\n"}, "7")
		command["command"] = []string{"sh", "-c", "head -c 7; echo err >&2; exit 7"}
		s = n.open(t, "v4", "/exec/default/volumes-"+nodeName+"/reader?"+command.Encode())
		s.send(stdin, "through")
		s.ended(map[byte]string{stdout: "through", stderr: "err\n"}, "7")
	})
	t.Run("attach", func(t *testing.T) {
		s := n.open(t, "v4", "/attach/default/probes-"+nodeName+"/web?output=1")
		for text := ""; !strings.Contains(text, "GET /ready\n"); {
			channel, more, err := s.receive()
			if err != nil || channel != stdout && more != "" {
				t.Fatalf("channel %d has %q after %q: %v", channel, more, text, err)
			}
			text += more
		}
	})
	t.Run("attach with stdin by SPDY", func(t *testing.T) { attachSPDY(t, n) })
	t.Run("port-forward by SPDY", func(t *testing.T) { portForwardSPDY(t, n) })
	t.Run("port-forward", func(t *testing.T) {
		// Both channels, data and errors, begin with the port.
		s := n.open(t, "v4", "/portForward/default/hostport-"+nodeName+"?port=8080")
		for range 2 {
			_, text, err := s.receive()
			check(t, err)
			same(t, "the port", text, string([]byte{8080 % 256, 8080 / 256}))
		}
		s.send(0, "GET / HTTP/1.0\r\n\r\n")
		if texts := s.all(); !strings.HasSuffix(texts[0], "\r\n\r\nhostport-"+nodeName+"\n") || texts[1] != "" {
			t.Errorf("the answer is %q", texts)
		}
	})
}

// ended compares all that comes with what should, and the exit code in the status.
func (s session) ended(want map[byte]string, code string) {
	s.t.Helper()
	texts := s.all()
	for channel, text := range want {
		same(s.t, fmt.Sprintf("channel %d", channel), texts[channel], text)
	}
	var status struct {
		Details struct{ Causes []struct{ Message string } }
	}
	if err := json.Unmarshal([]byte(texts[ending]), &status); err != nil || len(status.Details.Causes) != 1 {
		s.t.Errorf("the end is %q", texts[ending])
		return
	}
	same(s.t, "the exit code", status.Details.Causes[0].Message, code)
}
