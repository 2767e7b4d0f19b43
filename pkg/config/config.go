// Package config turns crio.conf, its drop-ins and the command line into one checked Config.
//
// The struct below is the only source of what can be configured. Its tags are read by
// the decoder, the printer, the flag generator and the shell completions:
//
//	toml:   the key, inside the table that the struct stands for
//	doc:    what the key means, printed above it by "crio config"
//	rule:   how Validate checks the value (see rules in validate.go)
//	alias:  a further flag name, where CRI-O's flag is not called like its key
//
// The table, key and flag names are CRI-O's; the ones that CRI-O does not have say so.
package config

import (
	"log/slog"
	"slices"
	"time"
)

// Config is the table [crio]. A Config that Load returned is valid and must not be
// changed; it may be read by any number of goroutines.
type Config struct {
	Root           string   `toml:"root" rule:"abs" doc:"Directory of images and container layers (containers/storage graph root), shared with podman, skopeo and buildah. Empty: as /etc/containers/storage.conf says."`
	RunRoot        string   `toml:"runroot" rule:"abs" doc:"Directory of the storage library's volatile state. Must be lost at a reboot. Empty: as /etc/containers/storage.conf says."`
	StorageDriver  string   `toml:"storage_driver" doc:"Storage driver for images and layers. Empty: as /etc/containers/storage.conf says."`
	StorageOptions []string `toml:"storage_option" alias:"storage-opt" doc:"Options of the storage driver, each driver.name=value. Empty: as /etc/containers/storage.conf says."`
	StateDir       string   `toml:"state_dir" rule:"abs,required" doc:"Directory of the records of pods and containers. Must survive a reboot. Not in CRI-O."`
	RunDir         string   `toml:"run_dir" rule:"abs,required" doc:"Directory of bundles, namespaces, monitor sockets and exit records. Must be lost at a reboot, so a tmpfs. Not in CRI-O."`

	API     API     `toml:"api" doc:"The socket."`
	Runtime Runtime `toml:"runtime" doc:"How containers run."`
	Image   Image   `toml:"image" doc:"Where images come from. What concerns single registries stays in registries.conf(5), containers-policy.json(5) and certs.d."`
	Network Network `toml:"network" doc:"How pods get their network: CNI."`
	Stats   Stats   `toml:"stats" doc:"What is told of what pods use."`

	origins  map[string]string
	warnings []string
}

// API is the table [crio.api].
type API struct {
	Listen             string `toml:"listen" rule:"abs,required" doc:"Path of the unix socket that serves CRI."`
	StreamAddress      string `toml:"stream_address" doc:"Address on which the sessions of exec, attach and port-forward are served to the kubelet."`
	StreamPort         string `toml:"stream_port" rule:"port" doc:"Port of stream_address; 0 takes a free one."`
	StreamIdleTimeout  string `toml:"stream_idle_timeout" rule:"duration" doc:"How long a session may be open without a byte moving, such as 4h. Empty: forever."`
	StreamEnableTLS    bool   `toml:"stream_enable_tls" doc:"Serve sessions over TLS."`
	StreamTLSCert      string `toml:"stream_tls_cert" rule:"abs" doc:"Certificate (PEM) for stream_enable_tls. A file that has changed is read anew."`
	StreamTLSKey       string `toml:"stream_tls_key" rule:"abs" doc:"Key (PEM) of stream_tls_cert."`
	StreamTLSCA        string `toml:"stream_tls_ca" rule:"abs" doc:"Authorities (PEM) of which clients must have a certificate. Empty: clients need none."`
	GRPCMaxSendMsgSize int    `toml:"grpc_max_send_msg_size" rule:"positive" doc:"Largest gRPC message that is sent, in bytes."`
	GRPCMaxRecvMsgSize int    `toml:"grpc_max_recv_msg_size" rule:"positive" doc:"Largest gRPC message that is accepted, in bytes."`
}

// Runtime is the table [crio.runtime].
type Runtime struct {
	DefaultRuntime      string                    `toml:"default_runtime" rule:"required" doc:"The runtime handler of pods that name none. It must have a table [crio.runtime.runtimes.NAME]."`
	Conmon              string                    `toml:"conmon" rule:"abs" doc:"Path of crio's container monitor. It is not CRI-O's conmon. Empty: conmon beside the crio executable, else in /usr/libexec/crio."`
	PausePath           string                    `toml:"pause_path" rule:"abs" doc:"Path of the static pause program for pods that share their PID namespace. Empty: pause beside the monitor, else beside the crio executable, else in /usr/libexec/crio. Not in CRI-O."`
	ConmonCgroup        string                    `toml:"conmon_cgroup" doc:"Parent cgroup of the monitors: a slice or a path. Each monitor has a cgroup of its own in it. Empty: chosen by the cgroup manager."`
	DefaultEnv          []string                  `toml:"default_env" rule:"env" doc:"Environment of every container, each NAME=value; the image and the pod override it."`
	DefaultUlimits      []string                  `toml:"default_ulimits" rule:"ulimit" doc:"Resource limits of every container, each name=soft:hard, such as nofile=1024:2048; -1 is unlimited. Empty: the daemon's own."`
	DefaultCapabilities []string                  `toml:"default_capabilities" rule:"capability" doc:"Capabilities of containers that are not privileged, before the pod adds and drops some."`
	DefaultSysctls      []string                  `toml:"default_sysctls" rule:"sysctl" doc:"Sysctls of every pod, each name=value; the pod's own override them."`
	SeccompProfile      string                    `toml:"seccomp_profile" rule:"abs" doc:"Seccomp profile (JSON) for RuntimeDefault. Empty: the built-in one."`
	ApparmorProfile     string                    `toml:"apparmor_profile" rule:"required" doc:"AppArmor profile for RuntimeDefault, on a kernel that has AppArmor. The default one is made and loaded by crio, if the kernel has none of its name; any other one has to be loaded. The word unconfined stands for none."`
	CDISpecDirs         []string                  `toml:"cdi_spec_dirs" rule:"abs" doc:"Directories of CDI files, which describe the devices that a pod may ask for by name. They are read whenever one does. Of two files in different directories that describe the same device, the one in the later directory counts."`
	SELinux             bool                      `toml:"selinux" doc:"Give pods SELinux labels, and relabel their volumes, where the kernel has SELinux (enforcing or permissive). Each pod has categories of its own, unless it brings a level. Without it, or on a kernel that has none, what pods say of SELinux has no effect, and a warning tells of the first that does. Containers that are privileged run without a label, and so do those of pods in the network, PID or IPC namespace of the node, unless they bring selinux_options."`
	CgroupManager       string                    `toml:"cgroup_manager" rule:"required,oneof=systemd cgroupfs" doc:"Who makes cgroups: systemd or cgroupfs. The kubelet learns it over CRI."`
	LogLevel            string                    `toml:"log_level" rule:"required,oneof=fatal panic error warn warning info debug trace" doc:"Least severe message that is logged: error, warn, info or debug. CRI-O's fatal and panic count as error, trace as debug."`
	LogSizeMax          int64                     `toml:"log_size_max" rule:"logsize" doc:"Size in bytes at which a container's log starts over; at least 8192, or -1 for no limit. The kubelet rotates logs on its own."`
	ReadOnly            bool                      `toml:"read_only" doc:"Make the root file system of every container read-only."`
	CtrStopTimeout      int64                     `toml:"ctr_stop_timeout" rule:"nonnegative" doc:"Seconds that a stop waits for a container to be gone once it is killed. The grace period before is the kubelet's."`
	PidsLimit           int64                     `toml:"pids_limit" rule:"limit" doc:"Largest number of processes in one container, or -1 for no limit. The kubelet limits the pod."`
	Runtimes            map[string]RuntimeHandler `toml:"runtimes" doc:"The runtime handlers: what a RuntimeClass names."`
}

// RuntimeHandler is a table [crio.runtime.runtimes.NAME].
type RuntimeHandler struct {
	RuntimePath                  string   `toml:"runtime_path" rule:"abs" doc:"Path of the OCI runtime. Empty: the handler's name, looked up in PATH."`
	RuntimeType                  string   `toml:"runtime_type" rule:"oneof=oci sandbox" doc:"Kind of runtime: oci, or sandbox for one that runs all containers of a pod in a sandbox of its own, made by the pod's first container, as runsc does. Empty means oci. sandbox is not in CRI-O."`
	RuntimeArgs                  []string `toml:"runtime_args" doc:"Options of the OCI runtime that come before each of its sub-commands, such as --platform=systrap for runsc. Not in CRI-O."`
	RuntimeRoot                  string   `toml:"runtime_root" rule:"abs" doc:"Directory of the OCI runtime's state. Must be lost at a reboot. Empty: <run_dir>/oci/<handler>."`
	MonitorPath                  string   `toml:"monitor_path" rule:"abs" doc:"Path of the container monitor for this handler. Empty: crio.runtime.conmon."`
	MonitorCgroup                string   `toml:"monitor_cgroup" doc:"Cgroup of this handler's monitors. Empty: crio.runtime.conmon_cgroup."`
	MonitorEnv                   []string `toml:"monitor_env" rule:"env" doc:"Environment of the monitor and of the OCI runtime under it, each NAME=value, added to the daemon's PATH."`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices" doc:"Keep the node's devices from this handler's privileged containers: they get those that the pod asks for, and access to no others."`
	AllowedAnnotations           []string `toml:"allowed_annotations" doc:"Annotations of pods and containers that the OCI runtime is given: exact names, or name* for all that begin so. Empty: none. A container's own override those of its pod."`
	ContainerCreateTimeout       int64    `toml:"container_create_timeout" rule:"createtimeout" doc:"Seconds that the OCI runtime may take to create a container; at least 30."`
}

// Image is the table [crio.image]. Empty paths mean the system's own files, as the
// containers/image library finds them.
type Image struct {
	DefaultTransport     string        `toml:"default_transport" rule:"required,oneof=docker://" doc:"Transport of image names that have none. Only docker:// is served."`
	GlobalAuthFile       string        `toml:"global_auth_file" rule:"abs" doc:"Registry credentials (docker's config.json) for pulls without any of their own. Empty: none."`
	PinnedImages         []string      `toml:"pinned_images" doc:"Images that the kubelet must not collect: exact names, name* or *part*."`
	SignaturePolicy      string        `toml:"signature_policy" rule:"abs" doc:"Which images may be pulled: containers-policy.json(5). Empty: the system's."`
	BigFilesTemporaryDir string        `toml:"big_files_temporary_dir" rule:"abs" doc:"Directory for layers while they are pulled. Empty: the library's, /var/tmp."`
	PullProgressTimeout  time.Duration `toml:"pull_progress_timeout" rule:"nonnegative" doc:"How long a pull may make no progress until it is cancelled, such as 30s or 5m; 0s leaves it to the library."`
	ShortNameMode        string        `toml:"short_name_mode" rule:"required,oneof=enforcing permissive disabled" doc:"What happens to image names without a registry: enforcing, permissive or disabled, see containers-registries.conf(5)."`
	RegistriesConf       string        `toml:"registries_conf" rule:"abs" doc:"File of registries, mirrors and short names. Empty: the system's registries.conf. Not in CRI-O."`
	RegistriesConfDir    string        `toml:"registries_conf_dir" rule:"abs" doc:"Directory of drop-ins to registries_conf. Empty: the system's. Not in CRI-O."`
	CertsDir             string        `toml:"certs_dir" rule:"abs" doc:"Directory of the registries' certificates, see containers-certs.d(5). Empty: the system's. Not in CRI-O."`
}

// Network is the table [crio.network].
type Network struct {
	CNIDefaultNetwork string   `toml:"cni_default_network" doc:"Name of the CNI network for pods. Empty: the first configuration in network_dir, in lexical order of the files."`
	NetworkDir        string   `toml:"network_dir" alias:"cni-config-dir" rule:"abs,required" doc:"Directory of CNI configurations. Changes in it take effect without a restart."`
	PluginDirs        []string `toml:"plugin_dirs" alias:"cni-plugin-dir" rule:"abs,required" doc:"Directories of CNI plugins, searched in this order."`
	ConfTemplate      string   `toml:"conf_template" rule:"abs" doc:"Template (Go text/template) of a network list, which is written into network_dir when the kubelet tells the addresses of the node's pods: {{.PodCIDR}}, or {{range .PodCIDRs}}. Empty: the network plugin has addresses of its own. Not in CRI-O."`
	CacheDir          string   `toml:"cache_dir" alias:"cni-cache-dir" rule:"abs,required" doc:"Directory in which libcni keeps what each ADD returned, for the DEL. Not in CRI-O."`
}

// Stats is the table [crio.stats].
type Stats struct {
	IncludedPodMetrics []string `toml:"included_pod_metrics" rule:"oneof=all cpu disk diskIO hugetlb memory network oom pressure process spec" doc:"Groups of the metrics that the kubelet can take from crio: all, or any of cpu, disk, diskIO, hugetlb, memory, network, oom, pressure, process, spec. CRI-O's default is none."`
}

// maxMsgSize is CRI-O's limit of a gRPC message, in bytes: lists of a full node
// exceed gRPC's own 4 MiB.
const maxMsgSize = 80 << 20

// defaultHandler is the handler that is there without any configuration.
const defaultHandler = "runc"

// Default returns what holds where nothing is configured. The caller owns it.
func Default() *Config {
	return &Config{
		Root:     "/var/lib/containers/storage",
		RunRoot:  "/run/containers/storage",
		StateDir: "/var/lib/crio",
		RunDir:   "/run/crio",
		API: API{
			Listen:             "/var/run/crio/crio.sock",
			StreamAddress:      "127.0.0.1",
			StreamPort:         "0",
			GRPCMaxSendMsgSize: maxMsgSize,
			GRPCMaxRecvMsgSize: maxMsgSize,
		},
		Runtime: Runtime{
			DefaultRuntime: defaultHandler,
			DefaultCapabilities: []string{
				"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID",
				"SETPCAP", "NET_BIND_SERVICE", "KILL",
			},
			ApparmorProfile: "crio-default",
			CDISpecDirs:     []string{"/etc/cdi", "/var/run/cdi"},
			CgroupManager:   "systemd",
			LogLevel:        "info",
			LogSizeMax:      -1,
			CtrStopTimeout:  30,
			PidsLimit:       -1,
			Runtimes:        map[string]RuntimeHandler{defaultHandler: newHandler()},
		},
		Image: Image{
			DefaultTransport: "docker://",
			ShortNameMode:    "enforcing",
		},
		Network: Network{
			NetworkDir: "/etc/cni/net.d/",
			PluginDirs: []string{"/opt/cni/bin/", "/usr/lib/cni/"},
			CacheDir:   "/var/lib/cni",
		},
		Stats: Stats{IncludedPodMetrics: []string{"all"}},
	}
}

// RuntimeSandbox is the runtime_type of runtimes with a sandbox of their own.
const RuntimeSandbox = "sandbox"

// newHandler is a handler of which only the name is known.
func newHandler() RuntimeHandler {
	return RuntimeHandler{RuntimeType: "oci", ContainerCreateTimeout: 240}
}

// Origin tells where the value of a key comes from: "default", "FILE:LINE" or the
// name of the flag or environment variable. Keys are written with their table, as
// in "crio.runtime.log_level".
func (c *Config) Origin(key string) string {
	if o, ok := c.origins[key]; ok {
		return o
	}
	return originDefault
}

const originDefault = "default"

// Warnings returns what the operator should be told once, at start: for each file,
// the keys that CRI-O knows and crio does not serve.
func (c *Config) Warnings() []string { return slices.Clone(c.warnings) }

// SlogLevel is LogLevel for log/slog.
func (r Runtime) SlogLevel() slog.Level {
	switch r.LogLevel {
	case "debug", "trace":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "fatal", "panic":
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}
