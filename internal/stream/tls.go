package stream

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Credentials are files in PEM. They may be replaced at any time: each handshake uses
// what is there, and the last that could be read where that is nothing usable.
type Credentials struct {
	Cert, Key string
	// CA, unless it is "", has the authorities of which clients must have a certificate.
	CA string

	mu     sync.Mutex
	seen   [3]version
	loaded *tls.Config
}

// version tells one content of a file from the next.
type version struct {
	modified time.Time
	size     int64
}

// config is what a listener needs.
func (c *Credentials) config(log *slog.Logger) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			current, err := c.load()
			if err != nil {
				log.Warn("the certificates of streams cannot be read anew; the last ones stay in use", "err", err)
			}
			return current, nil
		},
	}
}

// load reads the files if they have changed. With an error comes the last good
// configuration, nil if there never was one.
func (c *Credentials) load() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now [3]version
	for i, path := range []string{c.Cert, c.Key, c.CA} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return c.loaded, err
		}
		now[i] = version{info.ModTime(), info.Size()}
	}
	if c.loaded != nil && now == c.seen {
		return c.loaded, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return c.loaded, err
	}
	next := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if c.CA != "" {
		text, err := os.ReadFile(c.CA)
		if err != nil {
			return c.loaded, err
		}
		next.ClientCAs = x509.NewCertPool()
		if !next.ClientCAs.AppendCertsFromPEM(text) {
			return c.loaded, fmt.Errorf("%s: no certificate in it", c.CA)
		}
		next.ClientAuth = tls.RequireAndVerifyClientCert
	}
	c.loaded, c.seen = next, now
	return next, nil
}
