package kubelet

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/crio-minimal/crio/test/fixture"
)

// openSPDY begins a session through the kubelet as kubectl does with a server that has no
// WebSockets.
func (n *node) openSPDY(t *testing.T, version, path string) httpstream.Connection {
	t.Helper()
	const address = "127.0.0.1:10250"
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	check(t, err)
	check(t, conn.SetDeadline(time.Now().Add(waitTime)))
	s := fixture.UpgradeSPDY(t, conn, address, path, version)
	t.Cleanup(func() { s.Close() })
	return s
}

// stream opens a stream with pairs of header and value.
func stream(t *testing.T, conn httpstream.Connection, headers ...string) httpstream.Stream {
	t.Helper()
	values := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		values.Set(headers[i], headers[i+1])
	}
	s, err := conn.CreateStream(values)
	check(t, err)
	return s
}

// attachSPDY: what goes into a container's stdin comes out of its stdout.
func attachSPDY(t *testing.T, n *node) {
	n.awaitContainer(t, "volumes", "echo", ready)
	conn := n.openSPDY(t, remotecommand.StreamProtocolV4Name, "/attach/default/volumes-"+nodeName+"/echo?input=1&output=1")
	stream(t, conn, remotecommand.StreamType, remotecommand.StreamTypeError).Close()
	in := stream(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdin)
	out := bufio.NewReader(stream(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdout))
	for i := range 3 {
		line := fmt.Sprintf("line %d through attach\n", i)
		_, err := io.WriteString(in, line)
		check(t, err)
		got, err := out.ReadString('\n')
		check(t, err)
		same(t, "what comes back", got, line)
	}
}

func portForwardSPDY(t *testing.T, n *node) {
	conn := n.openSPDY(t, portforward.ProtocolV1Name, "/portForward/default/hostport-"+nodeName)
	port := []string{portforward.PortHeader, "8080", portforward.PortForwardRequestIDHeader, "0", portforward.StreamType}
	failed := stream(t, conn, append(port, portforward.StreamTypeError)...)
	failed.Close() // for what this end has to say
	data := stream(t, conn, append(port, portforward.StreamTypeData)...)
	begun := time.Now()
	_, err := io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
	check(t, err)
	answer, err := io.ReadAll(data) // to the server's end
	check(t, err)
	data.Close()
	complaint, err := io.ReadAll(failed)
	check(t, err)
	if !strings.HasSuffix(string(answer), "\r\n\r\nhostport-"+nodeName+"\n") || len(complaint) > 0 {
		t.Errorf("the answer is %q, the error %q", answer, complaint)
	}
	if took := time.Since(begun); took > waitTime/2 {
		t.Errorf("the streams have ended with the connection only, after %s", took)
	}
}
