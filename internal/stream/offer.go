package stream

import (
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"github.com/crio-minimal/crio/internal/fault"
)

const (
	// offerTime is how long a URL waits for its client.
	offerTime = time.Minute
	// offersMost bounds the URLs that wait.
	offersMost = 1000
)

// offer is what a URL stands for.
type offer struct {
	kind, object string
	run          func(*session, http.ResponseWriter, *http.Request)
	// over, where it is not nil, ends the session when it is closed; exited does once the
	// client takes nothing any more.
	over, exited <-chan struct{}
	expires      time.Time
}

// offers are the URLs that nobody has used yet. Those that have expired go when the next
// one is made.
type offers struct {
	mu      sync.Mutex
	byToken map[string]offer
}

func (o *offers) add(of offer) (token string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for token, other := range o.byToken {
		if now.After(other.expires) {
			delete(o.byToken, token)
		}
	}
	if len(o.byToken) >= offersMost {
		return "", fault.New(fault.ResourceExhausted, "%d sessions were asked for and not begun: try again within %s", offersMost, offerTime)
	}
	if o.byToken == nil {
		o.byToken = map[string]offer{}
	}
	of.expires = now.Add(offerTime)
	token = rand.Text() // 130 bits
	o.byToken[token] = of
	return token, nil
}

// take returns an offer once.
func (o *offers) take(kind, token string) (offer, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of, ok := o.byToken[token]
	if !ok || of.kind != kind {
		return offer{}, false
	}
	delete(o.byToken, token)
	return of, time.Now().Before(of.expires)
}

// url makes the address of a session that has been asked for.
func (s *Server) url(of offer) (string, error) {
	token, err := s.offers.add(of)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(of.kind, token).String(), nil
}
