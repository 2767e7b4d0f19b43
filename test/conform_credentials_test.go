package test

import (
	"encoding/base64"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// Each field of AuthConfig, against a registry that takes nothing else.
func conformCredentials(n *conform) {
	t := n.t
	const user, password, identity = "user", "s3cret-password", "identity-token-of-the-user"
	img := n.dataImage(t.Name())
	basic := fixture.StartRegistry(t, fixture.RegistryOptions{TLS: true, Username: user, Password: password})
	byPassword := fixture.StartRegistry(t, fixture.RegistryOptions{TLS: true, Token: true, Username: user, Password: password})
	byIdentity := fixture.StartRegistry(t, fixture.RegistryOptions{TLS: true, Token: true, Identity: identity})
	byBearer := fixture.StartRegistry(t, fixture.RegistryOptions{TLS: true, Token: true})
	auth := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

	refs := map[*fixture.Registry]string{}
	defer n.drop(img.ID)
	for _, r := range []*fixture.Registry{basic, byPassword, byIdentity, byBearer} {
		refs[r] = r.Push(t, "private", "v1", img)
	}
	for _, c := range []struct {
		name  string
		r     *fixture.Registry
		auth  *cri.AuthConfig
		code  codes.Code
		given string // what the token server gave a token for
	}{
		{"username and password", basic, &cri.AuthConfig{Username: user, Password: password}, codes.OK, ""},
		{"auth", basic, &cri.AuthConfig{Auth: auth(user + ":" + password)}, codes.OK, ""},
		{"auth padded with NUL", basic, &cri.AuthConfig{Auth: auth(user + ":" + password + "\x00\x00")}, codes.OK, ""},
		{"this server's address", basic, &cri.AuthConfig{Username: user, Password: password, ServerAddress: "https://" + basic.Host + "/v1/"}, codes.OK, ""},
		{"another server's address", basic, &cri.AuthConfig{Username: user, Password: password, ServerAddress: "registry.example"}, codes.PermissionDenied, ""},
		{"another port's address", basic, &cri.AuthConfig{Username: user, Password: password, ServerAddress: byBearer.Host}, codes.PermissionDenied, ""},
		{"wrong password", basic, &cri.AuthConfig{Username: user, Password: "wrong-" + password}, codes.PermissionDenied, ""},
		{"nothing", basic, nil, codes.PermissionDenied, ""},
		{"auth that is not base64", basic, &cri.AuthConfig{Auth: "%%%"}, codes.InvalidArgument, ""},
		{"auth without a colon", basic, &cri.AuthConfig{Auth: auth("user")}, codes.InvalidArgument, ""},
		{"password for a token", byPassword, &cri.AuthConfig{Username: user, Password: password}, codes.OK, "password of " + user},
		{"auth for a token", byPassword, &cri.AuthConfig{Auth: auth(user + ":" + password)}, codes.OK, "password of " + user},
		{"wrong password for a token", byPassword, &cri.AuthConfig{Username: user, Password: "wrong-" + password}, codes.PermissionDenied, ""},
		{"identity token", byIdentity, &cri.AuthConfig{IdentityToken: identity}, codes.OK, "identity token"},
		{"identity token with a name", byIdentity, &cri.AuthConfig{Username: user, IdentityToken: identity}, codes.OK, "identity token"},
		{"wrong identity token", byIdentity, &cri.AuthConfig{IdentityToken: "wrong-" + identity}, codes.PermissionDenied, ""},
		{"identity token for another server", byIdentity, &cri.AuthConfig{IdentityToken: identity, ServerAddress: "registry.example"}, codes.PermissionDenied, ""},
		{"registry token", byBearer, &cri.AuthConfig{RegistryToken: byBearer.Bearer("private", "pull")}, codes.OK, ""},
		{"registry token of another repository", byBearer, &cri.AuthConfig{RegistryToken: byBearer.Bearer("other", "pull")}, codes.PermissionDenied, ""},
		{"registry token for another server", byBearer, &cri.AuthConfig{RegistryToken: byBearer.Bearer("private", "pull"), ServerAddress: "registry.example"}, codes.PermissionDenied, ""},
	} {
		before := len(c.r.Given())
		a, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: refs[c.r]}, Auth: c.auth})
		if status.Code(err) != c.code || err == nil && a.GetImageRef() != img.ID {
			t.Errorf("%s: %v, %v, want %s", c.name, a, err, c.code)
		}
		got := c.r.Given()[before:]
		if c.given == "" && len(got) > 0 || c.given != "" && !slices.Contains(got, c.given) {
			t.Errorf("%s: the token server gave tokens for %q, want %q", c.name, got, c.given)
		}
		for _, secret := range []string{password, identity, auth(user + ":" + password), c.auth.GetRegistryToken()} {
			if secret != "" && (strings.Contains(n.output.String(), secret) || err != nil && strings.Contains(err.Error(), secret)) {
				t.Errorf("%s: %q is told", c.name, secret)
			}
		}
	}
}
