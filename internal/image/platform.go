package image

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	containersimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/types"
)

// Platform chooses an image among those of an index. The zero value is the node's own.
type Platform struct{ OS, Architecture, Variant string }

var platformText = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+(/[a-z0-9.]+)?$`)

// ParsePlatform reads "os/arch" or "os/arch/variant", with the names that Go and the OCI
// image-spec use; "" is the zero value. Errors are ErrInvalid.
func ParsePlatform(text string) (Platform, error) {
	if text == "" {
		return Platform{}, nil
	}
	if !platformText.MatchString(text) {
		return Platform{}, fmt.Errorf("platform %q: %w: not of the form os/arch or os/arch/variant", text, ErrInvalid)
	}
	parts := append(strings.Split(text, "/"), "")
	return Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}, nil
}

func (p Platform) String() string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// Accepts tells whether an image of platform other is what p asks for. A variant counts
// only where both have one: most configs name none.
func (p Platform) Accepts(other Platform) bool {
	return p == Platform{} || p.OS == other.OS && p.Architecture == other.Architecture &&
		(p.Variant == "" || other.Variant == "" || p.Variant == other.Variant)
}

func (p Platform) apply(sys *types.SystemContext) {
	sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = p.OS, p.Architecture, p.Variant
}

// check asks the registry whether source has an image of the platform, before anything is
// copied: a name that is no index is one image, whatever was asked for.
func (p Platform) check(ctx context.Context, source types.ImageReference, sys *types.SystemContext) error {
	if (p == Platform{}) {
		return nil
	}
	// Not by NewImage, which leaves its connection open where the index has no such image.
	from, err := source.NewImageSource(ctx, sys)
	if err != nil {
		return err
	}
	defer from.Close()
	img, err := containersimage.FromUnparsedImage(ctx, sys, containersimage.UnparsedInstance(from, nil))
	if err != nil {
		return err
	}
	config, err := img.OCIConfig(ctx)
	if err != nil {
		return err
	}
	if is := (Platform{config.OS, config.Architecture, config.Variant}); !p.Accepts(is) {
		return fmt.Errorf("platform %s: %w: the image is for %s", p, ErrNotFound, is)
	}
	return nil
}
