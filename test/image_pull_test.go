package test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crio-minimal/crio/test/fixture"
)

// Any number of callers is one download, each with the deadline that it brought.
func TestConcurrentPullsAreOneDownload(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	img := fixture.BusyboxImage(t, "true")
	r.Push(t, "shared", "v1", img)
	forward := httputil.NewSingleHostReverseProxy(r.URL)
	forward.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	var mu sync.Mutex
	seen := map[string]int{}
	open := make(chan struct{})
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		seen[req.Method+" "+req.URL.Path]++
		mu.Unlock()
		if strings.Contains(req.URL.Path, "/blobs/") {
			<-open
		}
		forward.ServeHTTP(w, req)
	}))
	defer proxy.Close()
	n := newNode(t, options{bare: true})
	request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: strings.TrimPrefix(proxy.URL, "http://") + "/shared:v1"}}
	answers := make(chan error, 5)
	for range cap(answers) {
		go func() {
			a, err := n.images.PullImage(n.ctx(), request)
			if err == nil && a.GetImageRef() != img.ID {
				err = fmt.Errorf("image_ref %s, want %s", a.GetImageRef(), img.ID)
			}
			answers <- err
		}()
	}
	n.await("the download", func() error {
		mu.Lock()
		defer mu.Unlock()
		for path := range seen {
			if strings.Contains(path, "/blobs/") {
				return nil
			}
		}
		return fmt.Errorf("seen: %v", seen)
	})
	// One whose deadline ends waits no longer, and takes nothing from the others.
	ctx, cancel := context.WithTimeout(n.ctx(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := n.images.PullImage(ctx, request); status.Code(err) != codes.DeadlineExceeded || time.Since(begun) > 5*time.Second {
		t.Errorf("the impatient one: %v after %s", err, time.Since(begun))
	}
	close(open)
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	for path, count := range seen {
		if (strings.Contains(path, "/blobs/") || strings.Contains(path, "/manifests/")) && count != 1 {
			t.Errorf("%d requests of %s", count, path)
		}
	}
}

// Short names that registries.conf resolves, and the configuration's pinned images.
func TestNamesOfTheConfiguration(t *testing.T) {
	r := fixture.StartRegistry(t, fixture.RegistryOptions{})
	ref := r.Push(t, "team/app", "v1", fixture.BusyboxImage(t, "true"))
	conf, err := os.OpenFile(r.RegistriesConf, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conf, "[aliases]\n\"app\" = %q\n", r.Host+"/team/app"); err != nil {
		t.Fatal(err)
	}
	conf.Close()
	o := options{registry: r, bare: true}
	n := newNode(t, o)
	image := n.pull("app:v1")
	statusOf := func(name string) *cri.Image {
		t.Helper()
		a, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err != nil {
			t.Error(err)
		}
		return a.GetImage()
	}
	for _, name := range []string{"app:v1", ref, image} {
		if i := statusOf(name); i.GetId() != image || len(i.GetRepoTags()) != 1 || i.GetRepoTags()[0] != ref || i.GetPinned() {
			t.Errorf("%s is %v", name, i)
		}
	}
	if _, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "unknown:v1"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a short name that nothing resolves: %v", err)
	}
	for _, c := range []struct {
		pattern string
		pinned  bool
	}{{ref, true}, {r.Host + "/team/*", true}, {"*team*", true}, {r.Host + "/team", false}, {"*other*", false}} {
		n.write("crio.conf", strings.Replace(n.config(o), "[crio.image]", fmt.Sprintf("[crio.image]\npinned_images = [%q]", c.pattern), 1))
		n.stop()
		n.start()
		if got := statusOf(ref).GetPinned(); got != c.pinned {
			t.Errorf("pinned by %q: %t", c.pattern, got)
		}
	}
}

// What ImageFsInfo tells is what du and statfs tell.
func TestImageFsInfo(t *testing.T) {
	n, image := readyNode(t, options{})
	info := func() (images, containers *cri.FilesystemUsage) {
		t.Helper()
		a, err := n.images.ImageFsInfo(n.ctx(), &cri.ImageFsInfoRequest{})
		if err != nil || len(a.GetImageFilesystems()) != 1 || len(a.GetContainerFilesystems()) != 1 {
			t.Fatalf("%v, %v", a, err)
		}
		return a.GetImageFilesystems()[0], a.GetContainerFilesystems()[0]
	}
	near := func(what string, got, want, tolerance uint64) {
		t.Helper()
		if got+tolerance < want || got > want+tolerance {
			t.Errorf("%s: %d, the node says %d", what, got, want)
		}
	}
	images, containers := info()
	for _, u := range []*cri.FilesystemUsage{images, containers} {
		if u.GetFsId().GetMountpoint() != n.path("storage") || time.Since(time.Unix(0, u.GetTimestamp())).Abs() > time.Minute {
			t.Errorf("%v", u)
		}
	}
	out, err := exec.Command("sh", "-c", "du -sc -B1 '"+n.path("storage/overlay")+"'/*/diff '"+n.path("storage/overlay-images")+"' | tail -1").Output()
	if err != nil {
		t.Fatal(err)
	}
	used, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	near("bytes of images", images.GetUsedBytes().GetValue(), used, used/5)
	var st unix.Statfs_t
	if err := unix.Statfs(n.path("storage"), &st); err != nil {
		t.Fatal(err)
	}
	near("inodes of images", images.GetInodesUsed().GetValue(), st.Files-st.Ffree, (st.Files-st.Ffree)/20)

	pod := n.podConfig()
	id := n.runContainer(n.runPod(pod), pod, n.containerConfig(image, "sleep", "99"))
	n.exec(id, shell("dd if=/dev/zero of=/big bs=1M count=8 && touch /a /b /c && sync")...)
	n.await("the container's bytes", func() error {
		_, now := info()
		bytes := now.GetUsedBytes().GetValue() - containers.GetUsedBytes().GetValue()
		if inodes := now.GetInodesUsed().GetValue() - containers.GetInodesUsed().GetValue(); bytes < 8<<20 || bytes > 9<<20 || inodes < 5 || inodes > 30 {
			return fmt.Errorf("%d bytes, %d inodes more", bytes, inodes)
		}
		return nil
	})
}
