package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	"go.podman.io/storage"

	"github.com/crio-minimal/crio/internal/fault"
)

// errAgain: the store changed under the pull; a new try starts from what is there.
var errAgain = errors.New("try again")

var errStalled = errors.New("no byte moved, neither from the network nor to the disk")

// verdict is what an error of a pull means: its sentinel (nil: none fits) and
// whether trying again may help.
type verdict struct {
	kind      error
	transient bool
}

// judge classifies an error of containers/image.
func judge(err error) verdict {
	var (
		policy   signature.PolicyRequirementError
		forged   signature.InvalidSignatureError
		refused  docker.ErrUnauthorizedForCredentials
		status   docker.UnexpectedHTTPStatusError
		coded    errcode.Error
		manyCode errcode.Errors
	)
	switch {
	case errors.Is(err, errStalled):
		return verdict{kind: ErrUnavailable}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return verdict{}
	case errors.Is(err, ErrInvalid):
		return verdict{kind: ErrInvalid}
	case errors.Is(err, ErrNotFound):
		return verdict{kind: ErrNotFound}
	case errors.As(err, &policy), errors.As(err, &forged):
		return verdict{kind: ErrPolicy}
	case errors.As(err, &refused):
		return verdict{kind: ErrUnauthorized}
	case errors.Is(err, docker.ErrTooManyRequests):
		return verdict{kind: ErrUnavailable, transient: true}
	case errors.As(err, &status):
		return judgeStatus(status.StatusCode)
	case errors.As(err, &coded):
		return judgeCode(coded.Code)
	case errors.As(err, &manyCode) && len(manyCode) > 0:
		return judge(manyCode[0])
	// A layer that was there when the pull began was removed with another image.
	case errors.Is(err, storage.ErrLayerUnknown), errors.Is(err, storage.ErrImageUnknown), errors.Is(err, errAgain):
		return verdict{transient: true}
	}
	if v, ok := judgeText(err.Error()); ok {
		return v
	}
	return judgeNetwork(err)
}

func judgeStatus(code int) verdict {
	switch {
	case code == http.StatusNotFound:
		return verdict{kind: ErrNotFound}
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return verdict{kind: ErrUnauthorized}
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		return verdict{kind: ErrUnavailable, transient: true}
	}
	return verdict{}
}

func judgeCode(code errcode.ErrorCode) verdict {
	switch code {
	case v2.ErrorCodeNameUnknown, v2.ErrorCodeManifestUnknown, v2.ErrorCodeBlobUnknown:
		return verdict{kind: ErrNotFound}
	case v2.ErrorCodeNameInvalid, v2.ErrorCodeTagInvalid, v2.ErrorCodeDigestInvalid:
		return verdict{kind: ErrInvalid}
	}
	return judgeStatus(code.Descriptor().HTTPStatusCode)
}

// noPlatform is what containers/image says of an index without the platform.
var noPlatform = regexp.MustCompile(`no image found in (image index|manifest list) for architecture`)

var statusInText = regexp.MustCompile(`StatusCode: (\d{3})`)

// judgeText reads the HTTP status out of the message where containers/image
// keeps the type of the error (an answer whose body is not JSON) to itself.
func judgeText(msg string) (verdict, bool) {
	if noPlatform.MatchString(msg) {
		return verdict{kind: ErrNotFound}, true
	}
	if group := statusInText.FindStringSubmatch(msg); group != nil {
		if code, err := strconv.Atoi(group[1]); err == nil {
			return judgeStatus(code), true
		}
	}
	return verdict{}, false
}

func judgeNetwork(err error) verdict {
	var (
		certificate *tls.CertificateVerificationError
		authority   x509.UnknownAuthorityError
		record      tls.RecordHeaderError
		dns         *net.DNSError
		network     net.Error
		request     *url.Error
	)
	switch {
	case errors.As(err, &certificate), errors.As(err, &authority), errors.As(err, &record):
		return verdict{kind: ErrUnavailable}
	case errors.As(err, &dns) && dns.IsNotFound:
		return verdict{kind: ErrUnavailable}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EIO):
		return verdict{}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE),
		errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return verdict{kind: ErrUnavailable, transient: true}
	case errors.As(err, &request), errors.As(err, &dns):
		return verdict{kind: ErrUnavailable}
	}
	return verdict{}
}

var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'?]*)\?[^\s"']*`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s"'/@]*@`)
)

// publish makes the error that leaves the package: its text is free of
// credentials and of URL queries (which hold signatures at storage services),
// and only sentinels, context errors and what the node is out of can be unwrapped from it.
func publish(stage string, err error, cred Credential) error {
	text := urlUserinfo.ReplaceAllString(urlQuery.ReplaceAllString(err.Error(), "$1"), "$1")
	for _, secret := range []string{cred.Password, cred.IdentityToken, cred.RegistryToken} {
		// Shorter ones would blank out ordinary words, and tell by it.
		if len(secret) >= 4 {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	out := &publicError{text: stage + ": " + text, is: fault.Exhausted(err)}
	for _, known := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			out.is = known
		}
	}
	if kind := judge(err).kind; kind != nil {
		out.is = kind
	}
	return out
}

type publicError struct {
	text string
	is   error
}

func (e *publicError) Error() string {
	if e.is == nil || strings.Contains(e.text, e.is.Error()) {
		return e.text
	}
	return e.text + " (" + e.is.Error() + ")"
}

func (e *publicError) Unwrap() error { return e.is }
