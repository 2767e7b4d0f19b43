// Package fault gives an error its kind: what the caller can do about it. The
// kinds are CRI's view of gRPC's codes, without importing gRPC everywhere.
package fault

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Kind of an error.
type Kind uint8

const (
	// Internal is everything that nobody gave a kind.
	Internal Kind = iota
	// NotFound: the object that the request names does not exist.
	NotFound
	// AlreadyExists: another object holds the identity that the request wants.
	AlreadyExists
	// InvalidArgument: the request can never succeed as it is.
	InvalidArgument
	// FailedPrecondition: the object's state does not allow it; another call has to come first.
	FailedPrecondition
	// Unavailable: something outside (network plugin, registry) is not ready; trying again may help.
	Unavailable
	// ResourceExhausted: the node is out of something (disk, descriptors, places).
	ResourceExhausted
	// Unimplemented: the request asks for what this version does not do.
	Unimplemented
)

type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

// New makes an error of a kind; the rest is as for fmt.Errorf, %w included.
func New(kind Kind, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}

// As gives err a kind, unless it is nil or has one.
func As(kind Kind, err error) error {
	if err == nil || Of(err) != Internal {
		return err
	}
	return &kindError{kind: kind, err: err}
}

// Exhausted returns what the kernel says the node is out of: the errno in err's chain, or
// nil. No caller can do anything else about it than about ResourceExhausted.
func Exhausted(err error) error {
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, full) {
			return full
		}
	}
	return nil
}

// Of returns the kind of the outermost error in the chain that has one.
func Of(err error) Kind {
	var e *kindError
	if errors.As(err, &e) {
		return e.kind
	}
	return Internal
}
