// Package image keeps the node's container images: it pulls them from
// registries into containers/storage and answers what is there.
//
// Registries, mirrors, trust policy, certificates, credentials files and short
// names are the libraries' own (registries.conf, policy.json, certs.d,
// auth.json). The store is shared with podman, skopeo and buildah, so nothing
// here assumes to be its only writer, and nothing here ever wipes it.
package image

import (
	"errors"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors that callers map to the codes of their protocol; test with errors.Is.
// The message of a wrapping error never holds credentials or URL queries.
var (
	// ErrInvalid: the reference (or what the registry served for it) is malformed.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: the registry has no such repository, tag or digest.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the registry refused the credentials, or wants some.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrUnavailable: no registry could be reached, or it failed or stalled, after retries.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrPolicy: policy.json rejects the image.
	ErrPolicy = errors.New("rejected by signature policy")
	// ErrInUse: a container of this or of another tool uses the image.
	ErrInUse = errors.New("image in use")
)

// Credential is what CRI's AuthConfig carries. The zero value means "none":
// the auth files are consulted.
type Credential struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token; RegistryToken a bearer token
	// sent to the registry as it is.
	IdentityToken, RegistryToken string
	// ServerAddress, when set, limits the credential to that registry.
	ServerAddress string
}

// Image describes one image of the store. Values that share memory with the
// index (slices, maps, pointers) must not be modified by the caller.
type Image struct {
	// ID is 64 lower-case hex digits, as containers/storage names the image.
	ID string
	// RepoTags are "name:tag" and RepoDigests "name@digest", fully qualified and sorted.
	RepoTags, RepoDigests []string
	// Size is the sum of the image's layers and of its metadata in bytes.
	Size uint64
	// Pinned: the image matches a pinned pattern, the kubelet must not collect it.
	Pinned bool
	// UID and Username are the user part of Config.User: at most one is set
	// (CRI Image.uid and Image.username), and neither when the image names no user.
	UID      *int64
	Username string
	// Annotations are those of the manifest. They are data of whoever built
	// the image and must never steer the daemon.
	Annotations map[string]string
	Config      imgspec.ImageConfig
	// Platform is what the config says the image is for.
	Platform Platform
	// TopLayer is the ID of the uppermost layer, "" for an image without layers.
	TopLayer string
}

// Usage is the space that images or containers take (CRI ImageFsInfo).
type Usage struct {
	// Mountpoint is the store's root directory, on the filesystem that is measured.
	Mountpoint string
	// Bytes are those of image layers (each once) and metadata, or those that
	// containers wrote. Inodes are those in use on the whole filesystem for
	// images (as of statfs(2)), and those of the written files for containers.
	Bytes, Inodes uint64
}
