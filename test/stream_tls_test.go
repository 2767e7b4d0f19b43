package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Sessions over TLS are for clients that the authority knows, and a certificate that was
// replaced is the one of the next session.
func TestStreamsOverTLS(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	writeCertificate(t, at("cert.pem"), at("key.pem"), 1)
	writeCertificate(t, at("ca.pem"), at("client.pem"), 2)
	n, image := readyNode(t, options{env: []string{
		"CONTAINER_STREAM_ENABLE_TLS=true", "CONTAINER_STREAM_TLS_CERT=" + at("cert.pem"), "CONTAINER_STREAM_TLS_KEY=" + at("key.pem"),
		"CONTAINER_STREAM_TLS_CA=" + at("ca.pem"), "CONTAINER_STREAM_IDLE_TIMEOUT=1s",
	}})
	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	known, err := tls.LoadX509KeyPair(at("ca.pem"), at("client.pem"))
	if err != nil {
		t.Fatal(err)
	}
	w := wants{stdout: true}
	serial := func(certificates ...tls.Certificate) int64 {
		u, err := url.Parse(n.execURL(id, w, "true"))
		if err != nil || u.Scheme != "https" {
			t.Fatalf("%s, %v", u, err)
		}
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: certificates})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		// Until it is idle for too long, or, refused after the handshake, at once.
		begun := time.Now()
		_ = conn.SetDeadline(begun.Add(waitTime))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a server that speaks first")
		}
		if took := time.Since(begun); (took < 500*time.Millisecond) != (len(certificates) == 0) {
			t.Errorf("with %d certificates the connection ended after %s", len(certificates), took)
		}
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	// What is served over TLS is what is served without.
	for _, protocol := range []string{"spdy v4.channel.k8s.io", "ws v4.channel.k8s.io"} {
		both := wants{stdin: true, stdout: true}
		c := n.open(protocol, withoutTLS(t, n.execURL(id, both, shell("head -c 5; exit 3")...), known), both)
		fmt.Fprint(c.stdin, "words")
		readUntil(t, c.stdout, "words")
		if code, message := c.end(); code != 3 {
			t.Errorf("%s: code %d, %s", protocol, code, message)
		}
		c.close()
	}
	if got := serial(known); got != 1 {
		t.Errorf("serial %d", got)
	}
	serial()
	writeCertificate(t, at("cert.pem"), at("key.pem"), 3)
	if got := serial(known); got != 3 {
		t.Errorf("serial %d after the files were replaced", got)
	}
}

// withoutTLS is an address at which one client finds what is at another over TLS.
func withoutTLS(t *testing.T, address string, certificate tls.Certificate) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		client, err := listener.Accept()
		listener.Close()
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = io.Copy(server, client); server.Close() }()
		_, _ = io.Copy(client, server)
		client.Close()
	}()
	u.Scheme, u.Host = "http", listener.Addr().String()
	return u.String()
}

// writeCertificate makes one that signs itself.
func writeCertificate(t *testing.T, certificate, key string, serial int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "crio"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: text}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
