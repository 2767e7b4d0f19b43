package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"

	"github.com/crio-minimal/crio/internal/sys"
)

// Options configure a Store. Empty paths mean the libraries' defaults.
type Options struct {
	// Root and RunRoot are containers/storage's directories, Driver its graph driver.
	Root, RunRoot, Driver string
	// DriverOptions replace those of storage.conf, unless empty.
	DriverOptions []string
	// GlobalAuthFile is the auth.json used when the CRI gives no credential.
	GlobalAuthFile string
	// SignaturePolicy is the policy.json. When it is empty and the node has no
	// policy.json at all, every image is accepted, which is logged once.
	SignaturePolicy                   string
	RegistriesConf, RegistriesConfDir string
	// CertsDir replaces /etc/containers/certs.d.
	CertsDir string
	// TmpDir is where layers in flight are written, "" = /var/tmp.
	TmpDir string
	// ShortNameMode is "enforcing", "permissive", "disabled" or "" (registries.conf decides).
	ShortNameMode string
	// DefaultTransport is put before a name without transport; only "docker://" (or "") is served.
	DefaultTransport string
	// Pinned are exact names, "prefix*" globs and "*keyword*" patterns.
	Pinned []string
	// StallTimeout is how long a pull may move no byte, neither from the
	// network nor to the disk; 0 = 5 minutes.
	StallTimeout time.Duration
	Log          *slog.Logger
}

const (
	defaultStallTimeout = 5 * time.Minute
	defaultTmpDir       = "/var/tmp" // the library's
)

// Store is the node's image store. All methods may be called concurrently.
type Store struct {
	options Options
	place   storage.StoreOptions
	log     *slog.Logger
	policy  sync.Once // the log line about a missing policy.json

	// unopened is nil once store and damaged are set for good; nobody reads them before.
	unopened atomic.Pointer[Unopened]
	store    *guarded
	damaged  []Damage // as open found it

	index    atomic.Pointer[index]
	loading  sync.Mutex // one load at a time; never held by a reader
	flightMu sync.Mutex
	flight   chan struct{} // closed when the running refresh is done; nil: none runs

	base   context.Context // ends with Close; parent of every pull
	stop   context.CancelFunc
	mu     sync.Mutex // guards pulls, closed, works and each pull's waiters
	pulls  map[pullKey]*pull
	works  map[*work]struct{}
	closed bool
	wg     sync.WaitGroup
}

// Reexec must be called first in main (and in a TestMain): unpacking a layer
// re-executes the binary. It returns true in such a child, which must then exit.
func Reexec() bool { return reexec.Init() }

// Open opens (and creates when it is not there) the store. It never wipes: of a list that
// containers/storage can't load it keeps the records that can be read, and the file as it
// was (Damaged). Where it can't be opened now, that is tried until it can (Unopened): only
// bad options are an error.
func Open(o Options) (*Store, error) {
	if o.DefaultTransport != "" && o.DefaultTransport != dockerTransport {
		return nil, fmt.Errorf("open image store: default transport %q: only %q is served", o.DefaultTransport, dockerTransport)
	}
	if _, err := shortNameMode(o.ShortNameMode); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultStallTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	place, err := storeOptions(o)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{options: o, place: place, log: o.Log, pulls: make(map[pullKey]*pull), works: make(map[*work]struct{})}
	s.base, s.stop = context.WithCancel(context.Background())
	s.index.Store(&index{})
	s.beginOpening()
	return s, nil
}

// nameDamage adds the files that don't parse to an error of containers/storage,
// which mostly tells only at which byte the parser stopped.
func nameDamage(root, driver string, err error) error {
	if driver == "" {
		driver = "*"
	}
	found, _ := filepath.Glob(filepath.Join(root, driver+"-*", "*.json"))
	for _, path := range found {
		data, readErr := os.ReadFile(path)
		if readErr != nil || !json.Valid(data) {
			err = fmt.Errorf("%w (damaged: %s; nothing was changed)", err, path)
		}
	}
	return err
}

// Status finds an image by full ID, unique ID prefix of at least 12 digits, name
// (short names included) or name@digest. False without an error: it is not there.
func (s *Store) Status(ctx context.Context, ref string) (Image, bool, error) {
	if err := s.ready(); err != nil {
		return Image{}, false, err
	}
	ix := s.current(ctx)
	id, err := s.find(ix, ref)
	if err != nil || id == "" {
		return Image{}, false, err
	}
	return *ix.byID[id], true, nil
}

// List returns all images sorted by ID, or with a filter the one that Status finds.
func (s *Store) List(ctx context.Context, filter string) ([]Image, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if filter == "" {
		return s.current(ctx).list(), nil
	}
	img, ok, err := s.Status(ctx, filter)
	if err != nil || !ok {
		return nil, err
	}
	return []Image{img}, nil
}

// Remove deletes the image that ref names, with all its names. An image that
// is not there is success; one that a container uses is ErrInUse. The deletion
// goes on when ctx ends. release is asked before it, with the image's ID: whoever holds
// the image for containers of ours gives it up, or returns an error.
func (s *Store) Remove(ctx context.Context, ref string, release func(ctx context.Context, id string) error) error {
	if err := s.ready(); err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	ix := s.renewed(ctx, renewWait)
	id, err := s.find(ix, ref)
	if err != nil {
		return err
	}
	if id == "" {
		id = ix.brokenID(ref)
	}
	if id == "" {
		return nil
	}
	_, err = sys.Within(ctx, "remove image "+ref, func() (struct{}, error) {
		return struct{}{}, s.remove(context.WithoutCancel(ctx), id, release)
	})
	return err
}

func (s *Store) remove(ctx context.Context, id string, release func(ctx context.Context, id string) error) error {
	s.mu.Lock()
	w := s.begin("remove image", id, "begin")
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.end(w)
	}()
	w.stage("release")
	if err := release(ctx, id); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	w.stage("delete")
	_, err := s.store.DeleteImage(id, true)
	w.stage("index")
	switch {
	case errors.Is(err, storage.ErrImageUsedByContainer):
		return fmt.Errorf("remove image %s: %w: %w", id, ErrInUse, err)
	case errors.Is(err, storage.ErrNotAnImage), errors.Is(err, storage.ErrImageUnknown):
	case err != nil:
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return s.reload()
}

// Close ends running pulls and the opening, waits for them until ctx ends, and releases
// the store. Mounted layers stay mounted.
func (s *Store) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	if _, err := sys.Within(ctx, "wait for pulls and for the opening", func() (struct{}, error) {
		s.wg.Wait()
		return struct{}{}, nil
	}); err != nil {
		return fmt.Errorf("close image store: %w", err)
	}
	if s.store == nil {
		return nil // it could not be opened
	}
	// Another tool may have the lock.
	_, err := sys.Within(ctx, "wait for its lock", func() ([]string, error) {
		defer s.store.Free()
		return s.store.Shutdown(false)
	})
	if err != nil && !errors.Is(err, storage.ErrLayerUsedByContainer) {
		return fmt.Errorf("close image store: %w", err)
	}
	return nil
}

// system is the libraries' configuration for one operation.
func (s *Store) system() *types.SystemContext {
	mode, _ := shortNameMode(s.options.ShortNameMode) // checked by Open
	return &types.SystemContext{
		AuthFilePath:                s.options.GlobalAuthFile,
		SignaturePolicyPath:         s.options.SignaturePolicy,
		SystemRegistriesConfPath:    s.options.RegistriesConf,
		SystemRegistriesConfDirPath: s.options.RegistriesConfDir,
		DockerPerHostCertDirPath:    s.options.CertsDir,
		ShortNameMode:               mode,
		// Under the run root, so that a reboot deletes what it says about layers
		// that a power cut may have taken.
		BlobInfoCacheDir: filepath.Join(s.store.RunRoot(), "blob-info-cache"),
		// Aliases that a person's podman recorded in a home directory are not the node's.
		UserShortNameAliasConfPath: filepath.Join(s.store.RunRoot(), "short-name-aliases.conf"),
	}
}

func shortNameMode(name string) (*types.ShortNameMode, error) {
	var mode types.ShortNameMode
	switch strings.ToLower(name) {
	case "":
		return nil, nil
	case "enforcing":
		mode = types.ShortNameModeEnforcing
	case "permissive":
		mode = types.ShortNameModePermissive
	case "disabled":
		mode = types.ShortNameModeDisabled
	default:
		return nil, fmt.Errorf("short name mode %q: not one of enforcing, permissive, disabled", name)
	}
	return &mode, nil
}

// trust reads policy.json anew for each pull, so that a change counts at once.
func (s *Store) trust() (*signature.PolicyContext, error) {
	policy, err := signature.DefaultPolicy(s.system())
	if s.options.SignaturePolicy == "" && errors.Is(err, fs.ErrNotExist) {
		s.policy.Do(func() { s.log.Warn("no policy.json on this node: images of any origin are accepted") })
		policy, err = &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read signature policy: %w", err)
	}
	return signature.NewPolicyContext(policy)
}
