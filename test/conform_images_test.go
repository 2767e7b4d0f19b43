package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/crio-minimal/crio/test/fixture"
)

func conformImageCases() []conformCase {
	return []conformCase{
		{
			name: "images as mounts", run: conformImageMount,
			proves: []string{"Mount.image", "Mount.image_sub_path", "Mount.mount_options", "ImageSpec.image_ref", "ContainerStatus.mounts"},
		},
		{
			name: "images that cannot be mounts", run: conformImageMountRefused,
			refuses: []string{"Mount.image", "Mount.image_sub_path", "Mount.host_path", "Mount.readonly", "Mount.propagation", "Mount.mount_options"},
		},
		{name: "sub path of a volume that is no image", run: conformVolumeSubPath, proves: []string{"Mount.image_sub_path"}},
		{
			name: "volumes of an image", run: conformImageVolumes,
			proves: []string{"LinuxContainerSecurityContext.readonly_rootfs"},
		},
		{
			name: "names of an image", run: conformImageNames,
			proves: []string{
				"PullImage", "PullImageRequest.image", "PullImageRequest.sandbox_config", "PullImageResponse.image_ref",
				"ImageStatus", "ImageStatusRequest.image", "ImageStatusRequest.verbose", "ImageStatusResponse.info", "ImageStatusResponse.image",
				"ListImages", "ListImagesRequest.filter", "ImageFilter.image", "ListImagesResponse.images",
				"RemoveImage", "RemoveImageRequest.image", "ImageSpec.image", "ImageSpec.user_specified_image",
				"Image.id", "Image.repo_tags", "Image.repo_digests", "Image.size", "Image.spec",
				"ContainerStatus.image", "ContainerStatus.image_id", "ContainerStatus.image_ref", "Container.image_id",
			},
		},
		{name: "user of an image", run: conformImageUser, proves: []string{"Image.uid", "Image.username"}},
		{
			name: "credentials", run: conformCredentials,
			proves: []string{
				"PullImageRequest.auth", "AuthConfig.username", "AuthConfig.password", "AuthConfig.auth", "AuthConfig.server_address",
				"AuthConfig.identity_token", "AuthConfig.registry_token",
			},
			refuses: []string{"AuthConfig.auth"},
		},
		{name: "pinned images", run: conformPinned, proves: []string{"Image.pinned"}},
		{
			name: "image file systems", run: conformImageFsInfo,
			proves: []string{
				"ImageFsInfo", "ImageFsInfoResponse.image_filesystems", "ImageFsInfoResponse.container_filesystems", "FilesystemUsage.timestamp",
				"FilesystemUsage.fs_id", "FilesystemIdentifier.mountpoint", "FilesystemUsage.used_bytes", "FilesystemUsage.inodes_used", "UInt64Value.value",
			},
		},
		{
			name: "platform of an image", run: conformImagePlatform,
			proves: []string{"ImageSpec.annotations"}, refuses: []string{"ImageSpec.annotations"},
		},
		{
			name: "runtime handler of an image", run: conformImageHandler,
			proves: []string{"ImageSpec.runtime_handler"}, refuses: []string{"ImageSpec.runtime_handler"},
		},
	}
}

// registry is one of the case's own, on loopback, which needs no configuration.
func (c *conform) registry() *fixture.Registry {
	c.t.Helper()
	return fixture.StartRegistry(c.t, fixture.RegistryOptions{})
}

// The suite's own image is pinned by the configuration, and no other one.
func conformPinned(c *conform) {
	ref := c.registry().Push(c.t, "loose", "v1", c.dataImage(c.t.Name()))
	c.pull(ref)
	defer c.drop(ref)
	for name, want := range map[string]bool{c.image: true, ref: false} {
		if i := c.imageStatus(&cri.ImageSpec{Image: name}); i.GetPinned() != want {
			c.t.Errorf("%v, want pinned %t", i, want)
		}
	}
}

// drop removes what the case has run, and then its images.
func (c *conform) drop(refs ...string) {
	c.t.Helper()
	c.removeMade()
	for _, ref := range refs {
		if _, err := c.images.RemoveImage(c.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
			c.t.Errorf("remove image: %v", err)
		}
	}
}

func (c *conform) imageStatus(spec *cri.ImageSpec) *cri.Image {
	c.t.Helper()
	a, err := c.images.ImageStatus(c.ctx(), &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		c.t.Errorf("image status of %s: %v", spec.GetImage(), err)
	}
	return a.GetImage()
}

// dataImage has no program: two layers, the upper hiding a file of the lower, and links
// that would lead out if the node followed them. It differs with the mark.
func (n *node) dataImage(mark string) *fixture.Image {
	n.t.Helper()
	return fixture.BuildImage(n.t, fixture.ImageSpec{Layers: [][]fixture.File{
		{
			{Path: "models", Dir: true}, {Path: "models/weights", Data: []byte("v1")}, {Path: "mark", Data: []byte(mark)},
			{Path: "bin", Dir: true}, {Path: "bin/tool", Mode: 0o4755, Data: []byte("#!/bin/sh\necho ran\n")},
		},
		{
			{Path: "models/weights", Data: []byte("v2")}, {Path: "latest", Link: "/models"}, {Path: "mark2", Data: []byte(mark)},
			{Path: "out", Link: "../../../../../../../../etc"}, {Path: "host", Link: "/etc/hostname"},
		},
	}})
}

func imageMount(image, target, subPath string) *cri.Mount {
	return &cri.Mount{ContainerPath: target, Readonly: true, Image: &cri.ImageSpec{Image: image}, ImageSubPath: subPath}
}

func conformImageMount(c *conform) {
	ref := c.registry().Push(c.t, "data", "v1", c.dataImage(c.t.Name()))
	data := c.pull(ref)
	defer c.drop(ref)
	asked := imageMount(data, "/by-id", "")
	asked.Image.UserSpecifiedImage = ref
	noexec := imageMount(ref, "/noexec", "bin")
	noexec.MountOptions = []string{"noexec", "nodev"}
	propagated := imageMount(ref, "/propagated", "")
	propagated.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	deep := imageMount(data, "/deep", "")
	deep.RecursiveReadOnly = true
	mounts := []*cri.Mount{
		{ContainerPath: "/host", HostPath: c.t.TempDir()}, asked, imageMount(ref, "/dir", "models"), imageMount(ref, "/file", "models/weights"),
		imageMount(ref, "/linked/weights", "latest/weights"), noexec, propagated, deep,
	}
	id := c.sleeper(func(config *cri.ContainerConfig) { config.Mounts = mounts })
	c.sees(id, "cat /by-id/models/weights /dir/weights /file /linked/weights /propagated/models/weights /deep/models/weights", "v2v2v2v2v2v2")
	c.sees(id, "touch /by-id/x /dir/x /file /deep/x 2>&1 | grep -c 'Read-only'", "4\n")
	c.sees(id, "sh /by-id/bin/tool; /by-id/bin/tool; /noexec/tool 2>&1 | grep -o denied", "ran\nran\ndenied\n")
	c.sees(id, "for m in by-id dir file noexec; do grep \" /$m ro\" /proc/self/mountinfo | grep nosuid | grep -c nodev; done", "1\n1\n1\n1\n")
	digest := c.imageStatus(&cri.ImageSpec{Image: ref}).GetRepoDigests()[0]
	told := c.container(id).GetMounts()
	for i, m := range mounts {
		if i > 0 && told[i].GetImage().GetImageRef() != digest {
			c.t.Errorf("image_ref of %s is %q, want %s", m.GetContainerPath(), told[i].GetImage().GetImageRef(), digest)
		}
		if told[i].GetImageSubPath() != m.GetImageSubPath() || told[i].GetImage().GetImage() != m.GetImage().GetImage() {
			c.t.Errorf("mount %d is told as %v", i, told[i])
		}
	}
	// A place that is not there, in a root that cannot be written to, for nobody.
	id = c.sleeper(func(config *cri.ContainerConfig) {
		config.Linux.SecurityContext.ReadonlyRootfs = true
		config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		config.Mounts = []*cri.Mount{imageMount(data, "/made/for/it", "")}
	})
	c.sees(id, "cat /made/for/it/models/weights", "v2")
}

// The kubelet (1.36, makeMounts) has resolved the sub path of a volume already, in
// host_path, and hands it on all the same.
func conformVolumeSubPath(c *conform) {
	dir := c.t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("found"), 0o644); err != nil {
		c.t.Fatal(err)
	}
	id := c.sleeper(func(config *cri.ContainerConfig) {
		config.Mounts = []*cri.Mount{{ContainerPath: "/vol", HostPath: dir, ImageSubPath: "below"}}
	})
	c.sees(id, "cat /vol/file", "found")
}

func conformImageMountRefused(c *conform) {
	ref := c.registry().Push(c.t, "data", "v1", c.dataImage(c.t.Name()))
	data := c.pull(ref)
	defer c.drop(ref)
	box, pod := c.pod(nil)
	with := func(change func(*cri.Mount)) *cri.Mount {
		m := imageMount(data, "/vol", "")
		change(m)
		return m
	}
	failed := crierrors.ErrImageVolumeMountFailed.Error()
	for _, r := range []struct {
		mount *cri.Mount
		code  codes.Code
		says  string
	}{
		{with(func(m *cri.Mount) { m.HostPath = c.dir }), codes.InvalidArgument, "host_path"},
		{with(func(m *cri.Mount) { m.Readonly = false }), codes.InvalidArgument, "readonly"},
		{with(func(m *cri.Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL }), codes.InvalidArgument, "propagation"},
		{with(func(m *cri.Mount) { m.Image = &cri.ImageSpec{} }), codes.InvalidArgument, "image is set"},
		{imageMount("localhost/absent:v1", "/vol", ""), codes.NotFound, "pull it first"},
		{imageMount("UPPER", "/vol", ""), codes.InvalidArgument, "UPPER"},
		{with(func(m *cri.Mount) { m.Image.RuntimeHandler = "absent" }), codes.InvalidArgument, "runtime_handler"},
		{with(func(m *cri.Mount) { m.MountOptions = []string{"suid"} }), codes.InvalidArgument, "mount_options"},
		{imageMount(ref, "/vol", "../../etc"), codes.InvalidArgument, "image_sub_path"},
		{imageMount(ref, "/vol", "/etc"), codes.InvalidArgument, "image_sub_path"},
		{imageMount(ref, "/vol", "no/such"), codes.InvalidArgument, failed},
		// To the node's /etc and /etc/hostname, which are there.
		{imageMount(ref, "/vol", "out"), codes.InvalidArgument, failed},
		{imageMount(ref, "/vol", "host"), codes.InvalidArgument, failed},
	} {
		config := c.containerConfig(c.image, "true")
		config.Mounts = []*cri.Mount{r.mount}
		_, err := c.CreateContainer(c.ctx(), &cri.CreateContainerRequest{PodSandboxId: box, Config: config, SandboxConfig: pod})
		c.refused(err, r.code, r.says)
		if r.says == failed && !strings.HasPrefix(status.Convert(err).Message(), failed) {
			c.t.Errorf("the kubelet looks for %s at the beginning: %v", failed, err)
		}
	}
}

// Directories that an image declares as volumes exist, with what the image has there,
// and can be written to, also where the root cannot. Nothing of them is on the node, not
// even where the image has links to it.
func conformImageVolumes(c *conform) {
	outside := c.t.TempDir()
	files := append(fixture.Busybox(c.t),
		fixture.File{Path: "seeded", Dir: true, Mode: 0o750, UID: 1000}, fixture.File{Path: "seeded/file", Data: []byte("seed")},
		fixture.File{Path: "mark", Data: []byte(c.t.Name())}, fixture.File{Path: "loop", Link: "../../../../../../../seeded"})
	ref := c.registry().Push(c.t, "volumes", "v1", fixture.BuildImage(c.t, fixture.ImageSpec{
		Layers: [][]fixture.File{files},
		Config: imgspec.ImageConfig{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{
			"/fresh/below": {}, "/seeded": {}, "/seeded/": {}, "/": {}, "/proc/sys": {}, "relative": {}, "/loop/more": {},
			"/etc/hosts": {}, "/pods/own": {},
		}},
	}))
	image := c.pull(ref)
	defer c.drop(ref)
	for _, readonly := range []bool{false, true} {
		id := c.sleeper(func(config *cri.ContainerConfig) {
			config.Image.Image = image
			config.Linux.SecurityContext.ReadonlyRootfs = readonly
			config.Mounts = []*cri.Mount{{ContainerPath: "/pods", HostPath: outside}}
		})
		c.sees(id, "for d in /fresh/below /seeded /relative /seeded/more; do touch $d/x && test -f $d/x && echo $d; done",
			"/fresh/below\n/seeded\n/relative\n/seeded/more\n")
		c.sees(id, "cat /seeded/file; stat -c %u:%a /seeded; stat -c %u:%a /fresh/below", "seed1000:750\n0:755\n")
		c.sees(id, "touch /etc/x 2>/dev/null && echo writable", map[bool]string{false: "writable\n", true: ""}[readonly])
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
			c.t.Errorf("made in the pod's own mount: %v, %v", entries, err)
		}
		if _, err := os.Stat("/seeded"); err == nil {
			c.t.Error("/seeded was made on the node")
		}
	}
}

// However an image is named, it is one, and goes at once.
func conformImageNames(c *conform) {
	r := c.registry()
	img := fixture.BuildImage(c.t, fixture.ImageSpec{
		Layers:      [][]fixture.File{fixture.Busybox(c.t), {{Path: "mark", Data: []byte(c.t.Name())}}},
		Config:      imgspec.ImageConfig{Env: []string{"PATH=/bin"}},
		Annotations: map[string]string{"org.example.note": "of the manifest"},
	})
	tag, other := r.Push(c.t, "a/b", "v1", img), r.Push(c.t, "c", "v2", img)
	byDigest := r.Host + "/a/b@" + img.Digest
	for _, names := range [][]string{{byDigest}, {tag, byDigest, tag + "@" + img.Digest}, {other, tag}} {
		for _, name := range names {
			box := c.podConfig()
			a, err := c.images.PullImage(c.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name, UserSpecifiedImage: name}, SandboxConfig: box})
			if err != nil || a.GetImageRef() != img.ID {
				c.t.Errorf("pull of %s: %v, %v, want %s", name, a, err, img.ID)
			}
		}
		for _, name := range append(names, byDigest, img.ID, "sha256:"+img.ID, img.ID[:12]) {
			i := c.imageStatus(&cri.ImageSpec{Image: name})
			if i.GetId() != img.ID || !slices.Contains(i.GetRepoDigests(), byDigest) || i.GetSize() == 0 ||
				i.GetSpec().GetImage() != img.ID || i.GetSpec().GetAnnotations()["org.example.note"] != "of the manifest" {
				c.t.Errorf("status of %s: %v", name, i)
			}
			l, err := c.images.ListImages(c.ctx(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: name}}})
			if err != nil || len(l.GetImages()) != 1 || l.GetImages()[0].GetId() != img.ID {
				c.t.Errorf("list of %s: %v, %v", name, l, err)
			}
		}
		v, err := c.images.ImageStatus(c.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: img.ID}, Verbose: true})
		if err != nil || !strings.Contains(v.GetInfo()["info"], "PATH=/bin") {
			c.t.Errorf("verbose status: %v, %v", v, err)
		}
		// As the kubelet does: by ID, with the name of the pod.
		id := c.sleeper(func(config *cri.ContainerConfig) {
			config.Image = &cri.ImageSpec{Image: img.ID, UserSpecifiedImage: names[0]}
		})
		s := c.container(id)
		if s.GetImageId() != img.ID || s.GetImage().GetImage() != names[0] || s.GetImage().GetUserSpecifiedImage() != names[0] ||
			!strings.HasSuffix(s.GetImageRef(), "@"+img.Digest) {
			c.t.Errorf("container: image_id %s, image_ref %s, image %v", s.GetImageId(), s.GetImageRef(), s.GetImage())
		}
		l, err := c.ListContainers(c.ctx(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
		if err != nil || len(l.GetContainers()) != 1 || l.GetContainers()[0].GetImageId() != img.ID {
			c.t.Errorf("list: %v, %v", l, err)
		}
		c.drop(names[0], names[0])
		for _, name := range append(names, img.ID, byDigest) {
			if i := c.imageStatus(&cri.ImageSpec{Image: name}); i != nil {
				c.t.Errorf("%s after the removal of %s: %v", name, names[0], i)
			}
		}
	}
}

func conformImageUser(c *conform) {
	r := c.registry()
	for _, u := range []struct {
		user, name string
		uid        *cri.Int64Value
	}{
		{"", "", nil}, {"0", "", &cri.Int64Value{}}, {"1000:1000", "", &cri.Int64Value{Value: 1000}}, {"nobody:nogroup", "nobody", nil},
	} {
		ref := r.Push(c.t, "user", "v1", fixture.BuildImage(c.t, fixture.ImageSpec{
			Layers: [][]fixture.File{{{Path: "mark", Data: []byte(c.t.Name())}}}, Config: imgspec.ImageConfig{User: u.user},
		}))
		c.pull(ref)
		i := c.imageStatus(&cri.ImageSpec{Image: ref})
		if i.GetUsername() != u.name || (i.GetUid() == nil) != (u.uid == nil) || i.GetUid().GetValue() != u.uid.GetValue() {
			c.t.Errorf("USER %q is told as %v and %q", u.user, i.GetUid(), i.GetUsername())
		}
		c.drop(ref)
	}
}

// index pushes an index of images, by "os/arch" or "os/arch/variant".
func (c *conform) index(r *fixture.Registry, name, tag string, images map[string]*fixture.Image) string {
	c.t.Helper()
	list := imgspec.Index{MediaType: imgspec.MediaTypeImageIndex}
	list.SchemaVersion = 2
	for _, platform := range slices.Sorted(maps.Keys(images)) {
		img := images[platform]
		r.Push(c.t, name, strings.ReplaceAll(platform, "/", "-"), img)
		p := append(strings.Split(platform, "/"), "")
		list.Manifests = append(list.Manifests, imgspec.Descriptor{
			MediaType: imgspec.MediaTypeImageManifest, Digest: digest.FromBytes(img.Manifest), Size: int64(len(img.Manifest)),
			Platform: &imgspec.Platform{OS: p[0], Architecture: p[1], Variant: p[2]},
		})
	}
	data, err := json.Marshal(list)
	if err != nil {
		c.t.Fatal(err)
	}
	r.PushManifest(c.t, name, tag, imgspec.MediaTypeImageIndex, data)
	return r.Host + "/" + name + ":" + tag
}

func conformImagePlatform(c *conform) {
	r := c.registry()
	built := func(platform string) *fixture.Image {
		p := append(strings.Split(platform, "/"), "")
		return fixture.BuildImage(c.t, fixture.ImageSpec{
			Layers:   [][]fixture.File{{{Path: "mark", Data: []byte(c.t.Name() + platform)}}},
			Platform: imgspec.Platform{OS: p[0], Architecture: p[1], Variant: p[2]},
		})
	}
	images := map[string]*fixture.Image{}
	for _, p := range []string{"linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"} {
		images[p] = built(p)
	}
	ref := c.index(r, "multi", "v1", images)
	asking := func(ref, platform string) *cri.ImageSpec {
		return &cri.ImageSpec{Image: ref, Annotations: map[string]string{"io.kubernetes.cri-o.platform": platform, "other": "x"}}
	}
	for _, p := range []string{"linux/arm64", "linux/amd64", "linux/arm/v6", "linux/arm/v7"} {
		a, err := c.images.PullImage(c.ctx(), &cri.PullImageRequest{Image: asking(ref, p)})
		if err != nil || a.GetImageRef() != images[p].ID {
			c.t.Fatalf("pull for %s: %v, %v, want %s", p, a, err, images[p].ID)
		}
		// The last one pulled has the tag; asked for another, it is not there.
		if got := c.imageStatus(&cri.ImageSpec{Image: ref}).GetId(); got != images[p].ID {
			c.t.Errorf("after the pull for %s the tag is of %s", p, got)
		}
		if got := c.imageStatus(asking(ref, p)).GetId(); got != images[p].ID {
			c.t.Errorf("status for %s: %s", p, got)
		}
		if got := c.imageStatus(asking(ref, "linux/s390x")); got != nil {
			c.t.Errorf("status for another platform: %v", got)
		}
		if got := c.imageStatus(asking(images[p].ID, "linux/s390x")).GetId(); got != images[p].ID {
			c.t.Errorf("an ID is an ID for every platform: %s", got)
		}
	}
	single := r.Push(c.t, "single", "v1", images["linux/amd64"])
	for _, name := range []string{ref, single} {
		_, err := c.images.PullImage(c.ctx(), &cri.PullImageRequest{Image: asking(name, "linux/s390x")})
		c.refused(err, codes.NotFound, "s390x")
	}
	for _, bad := range []string{"linux", "linux/", "/arm64", "linux/arm64/v8/x", "linux arm64", "Linux/arm64", "../arm64"} {
		_, err := c.images.PullImage(c.ctx(), &cri.PullImageRequest{Image: asking(ref, bad)})
		c.refused(err, codes.InvalidArgument, "annotations", fmt.Sprintf("%q", bad))
	}
	for _, img := range images {
		c.drop(img.ID)
	}
}

func conformImageHandler(c *conform) {
	bad := &cri.ImageSpec{Image: c.image, RuntimeHandler: "absent"}
	for call, ask := range map[string]func() error{
		"PullImage": func() error {
			_, err := c.images.PullImage(c.ctx(), &cri.PullImageRequest{Image: bad})
			return err
		},
		"ImageStatus": func() error {
			_, err := c.images.ImageStatus(c.ctx(), &cri.ImageStatusRequest{Image: bad})
			return err
		},
		"ListImages": func() error {
			_, err := c.images.ListImages(c.ctx(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: bad}})
			return err
		},
		"RemoveImage": func() error {
			_, err := c.images.RemoveImage(c.ctx(), &cri.RemoveImageRequest{Image: bad})
			return err
		},
	} {
		if err := ask(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "runtime_handler") {
			c.t.Errorf("%s: %v", call, err)
		}
	}
	c.refusedContainer(func(config *cri.ContainerConfig) { config.Image = bad }, "runtime_handler", "absent")
	// One that is configured is as good as none.
	id := c.sleeper(func(config *cri.ContainerConfig) {
		config.Image = &cri.ImageSpec{Image: c.image, RuntimeHandler: c.handler}
	})
	if got := c.container(id).GetImage().GetRuntimeHandler(); got != c.handler {
		c.t.Errorf("runtime_handler is told as %q", got)
	}
}

// TestImageFsInfo compares the values, on a node where nobody else works.
func conformImageFsInfo(c *conform) {
	const written, files = 8 << 20, 20
	id := c.sleeper(nil)
	c.exec(id, shell("dd if=/dev/zero of=/big bs=1M count=8 && for i in $(seq 20); do touch /$i; done && sync")...)
	size := c.imageStatus(&cri.ImageSpec{Image: c.image}).GetSize()
	c.await("what the container has written", func() error {
		a, err := c.images.ImageFsInfo(c.ctx(), &cri.ImageFsInfoRequest{})
		if err != nil || len(a.GetImageFilesystems()) != 1 || len(a.GetContainerFilesystems()) != 1 {
			return fmt.Errorf("%v, %w", a, err)
		}
		images, containers := a.GetImageFilesystems()[0], a.GetContainerFilesystems()[0]
		for _, u := range []*cri.FilesystemUsage{images, containers} {
			if u.GetFsId().GetMountpoint() != c.path("storage") || time.Since(time.Unix(0, u.GetTimestamp())).Abs() > time.Minute {
				return fmt.Errorf("%v", u)
			}
		}
		if images.GetUsedBytes().GetValue() < size || images.GetInodesUsed().GetValue() == 0 ||
			containers.GetUsedBytes().GetValue() < written || containers.GetInodesUsed().GetValue() < files {
			return fmt.Errorf("images %v, containers %v", images, containers)
		}
		return nil
	})
}
