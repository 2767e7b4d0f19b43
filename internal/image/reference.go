package image

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

const dockerTransport = "docker://"

// hexDigits is an image's ID or a prefix of one. With less than the 12 digits that
// tools print, a name that happens to be hexadecimal ("cafe") would be some image's ID.
var hexDigits = regexp.MustCompile(`^[0-9a-f]{12,64}$`)

func trimTransport(ref string) string {
	return strings.TrimPrefix(strings.TrimSpace(ref), dockerTransport)
}

// find resolves ref in ix; "" when it names nothing there.
func (s *Store) find(ix *index, ref string) (string, error) {
	name := trimTransport(ref)
	hex := strings.TrimPrefix(name, "sha256:")
	if len(hex) == 64 && hexDigits.MatchString(hex) {
		if _, ok := ix.byID[hex]; ok {
			return hex, nil
		}
		return "", nil
	}
	candidates, err := shortnames.ResolveLocally(s.system(), name)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %w: %w", name, ErrInvalid, err)
	}
	for _, c := range candidates {
		if id := ix.byName[withoutTagIfDigested(c).String()]; id != "" {
			return id, nil
		}
	}
	if hexDigits.MatchString(name) {
		return ix.byPrefix(name)
	}
	return "", nil
}

// withoutTagIfDigested makes "name:tag@digest" "name@digest": the digest decides.
func withoutTagIfDigested(n reference.Named) reference.Named {
	digested, ok := n.(reference.Digested)
	if !ok {
		return reference.TagNameOnly(n)
	}
	if c, err := reference.WithDigest(reference.TrimNamed(n), digested.Digest()); err == nil {
		return c
	}
	return n
}

// resolve returns the names to try, in order, for a reference to pull.
func resolve(sys *types.SystemContext, ref string) ([]reference.Named, error) {
	name := trimTransport(ref)
	if strings.Contains(name, "://") || name == "" {
		return nil, fmt.Errorf("image reference %q: %w: only registries are served", name, ErrInvalid)
	}
	resolved, err := shortnames.Resolve(sys, name)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", name, ErrInvalid, err)
	}
	var names []reference.Named
	for _, c := range resolved.PullCandidates {
		names = append(names, withoutTagIfDigested(c.Value))
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("image reference %q: %w: no registry to look in", name, ErrInvalid)
	}
	return names, nil
}

// apply adds the credential to sys if it is meant for the registry of name.
func (c Credential) apply(sys *types.SystemContext, name reference.Named) {
	if !c.isFor(reference.Domain(name)) {
		return
	}
	switch {
	case c.RegistryToken != "":
		sys.DockerBearerRegistryToken = c.RegistryToken
	case c.IdentityToken != "":
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: c.Username, IdentityToken: c.IdentityToken}
	case c.Username != "" || c.Password != "":
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: c.Username, Password: c.Password}
	}
}

// isFor compares hosts only: a server address may be a host or an URL with a path.
func (c Credential) isFor(registry string) bool {
	if c.ServerAddress == "" {
		return true
	}
	address := c.ServerAddress
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	return err == nil && canonicalHost(u.Host) == canonicalHost(registry)
}

// canonicalHost maps Docker Hub's historical hosts to the one of references.
func canonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return strings.ToLower(host)
}

// trustLoopback takes a registry on this host without TLS, or with any certificate,
// as docker and containerd do: who listens there is the node's owner. An entry for it
// in registries.conf decides instead.
func trustLoopback(sys *types.SystemContext, name reference.Named) error {
	domain := reference.Domain(name)
	host, _, err := net.SplitHostPort(domain)
	if err != nil {
		host = domain // without a port
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && !ip.IsLoopback() {
		return nil
	}
	entry, err := sysregistriesv2.FindRegistry(sys, name.Name())
	if err != nil {
		return fmt.Errorf("registries.conf: %w", err)
	}
	if entry == nil {
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return nil
}

// DigestFor returns the image's "name@digest" in the repository of name, else its first
// one, else its ID.
func (i Image) DigestFor(name string) string {
	if len(i.RepoDigests) == 0 {
		return i.ID
	}
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		for _, d := range i.RepoDigests {
			if strings.HasPrefix(d, named.Name()+"@") {
				return d
			}
		}
	}
	return i.RepoDigests[0]
}

// HasID tells whether ref is the image's ID, or the beginning of it, and so no name.
func (i Image) HasID(ref string) bool {
	hex := strings.TrimPrefix(trimTransport(ref), "sha256:")
	return hexDigits.MatchString(hex) && strings.HasPrefix(i.ID, hex)
}
