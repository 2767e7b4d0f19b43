package config

import "strings"

// unserved are the keys that CRI-O 1.37 knows and crio does not serve (yet). They are
// accepted, so that a node can change over with the file that it has, and the operator
// is told. A "*" stands for any one name; a table with ".**" for all that is in it.
func unserved() []string {
	var keys []string
	add := func(table, names string) {
		for name := range strings.FieldsSeq(names) {
			keys = append(keys, table+"."+name)
		}
	}
	add("crio", `imagestore log_dir version_file version_file_persist clean_shutdown_file internal_wipe internal_repair`)
	add("crio.api", `tls_min_version tls_cipher_suites`)
	add("crio.runtime", `no_pivot decryption_keys_path conmon_env add_inheritable_capabilities allowed_devices
		additional_devices device_ownership_from_security_context hooks_dir default_mounts_file
		default_mounts log_filter log_to_journald hostnetwork_disable_selinux privileged_seccomp_profile
		blockio_config_file blockio_reload rdt_config_file irqbalance_config_file
		irqbalance_config_restore_file infra_ctr_cpuset shared_cpuset min_injected_gomaxprocs
		container_exits_dir container_attach_socket_dir namespaces_dir pinns_path bind_mount_prefix
		uid_mappings gid_mappings minimum_mappable_uid minimum_mappable_gid drop_infra_ctr
		absent_mount_sources_to_reject enable_pod_events disable_hostport_mapping timezone
		enable_criu_support additional_artifact_stores workloads.**`)
	add("crio.runtime.runtimes.*", `runtime_config_path runtime_pull_image monitor_exec_cgroup
		default_annotations.** container_min_memory platform_runtime_paths.**
		inherit_default_runtime no_sync_log stream_websockets seccomp_profile exec_cpu_affinity`)
	add("crio.checkpoint_restore", `container_level_enabled`)
	add("crio.image", `namespaced_auth_dir pause_image pause_image_auth_file pause_command signature_policy_dir
		image_volumes insecure_registries separate_pull_cgroup auto_reload_registries oci_artifact_mount_support`)
	add("crio.network", `cni_status_grace_period plugin_dir`)
	add("crio.metrics", `enable_metrics metrics_collectors metrics_host metrics_port metrics_socket metrics_cert metrics_key`)
	add("crio.tracing", `enable_tracing tracing_endpoint tracing_sampling_rate_per_million`)
	add("crio.stats", `collection_period stats_collection_period`)
	add("crio.nri", `enable_nri nri_plugin_dir nri_plugin_config_dir nri_listen nri_disable_connections
		nri_plugin_registration_timeout nri_plugin_request_timeout default_validator.**`)
	return keys
}

// match is how far a path agrees with a pattern of unserved.
type match int

const (
	none   match = iota
	within       // the path is a table in which the pattern's key may be
	whole        // the path is the pattern's key, or in its table
)

func matchPattern(pattern string, path []string) match {
	names := strings.Split(pattern, ".")
	for i, name := range names {
		switch {
		case name == "**":
			return whole
		case i == len(path):
			return within
		case name != "*" && name != path[i]:
			return none
		}
	}
	if len(path) > len(names) {
		return none
	}
	return whole
}
