# bash completion for crio, made by: crio completion bash

_crio() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= words= i
    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        config|version|completion|status|selftest) command=${COMP_WORDS[i]}; break ;;
        --config|-c|--config-dir|-d|--root|--runroot|--storage-driver|--storage-option|--storage-opt|--state-dir|--run-dir|--listen|--stream-address|--stream-port|--stream-idle-timeout|--stream-tls-cert|--stream-tls-key|--stream-tls-ca|--grpc-max-send-msg-size|--grpc-max-recv-msg-size|--default-runtime|--conmon|--pause-path|--conmon-cgroup|--default-env|--default-ulimits|--default-capabilities|--default-sysctls|--seccomp-profile|--apparmor-profile|--cdi-spec-dirs|--cgroup-manager|--log-level|--log-size-max|--ctr-stop-timeout|--pids-limit|--default-transport|--global-auth-file|--pinned-images|--signature-policy|--big-files-temporary-dir|--pull-progress-timeout|--short-name-mode|--registries-conf|--registries-conf-dir|--certs-dir|--cni-default-network|--network-dir|--cni-config-dir|--plugin-dirs|--cni-plugin-dir|--conf-template|--cache-dir|--cni-cache-dir|--included-pod-metrics) ((i++)) ;;
        esac
    done
    COMPREPLY=()
    case $command:$prev in
    :--config|:-c) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--config-dir|:-d) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--root) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--runroot) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--storage-driver) return ;;
    :--storage-option|:--storage-opt) return ;;
    :--state-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--run-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--listen) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--stream-address) return ;;
    :--stream-port) return ;;
    :--stream-idle-timeout) return ;;
    :--stream-tls-cert) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--stream-tls-key) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--stream-tls-ca) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--grpc-max-send-msg-size) return ;;
    :--grpc-max-recv-msg-size) return ;;
    :--default-runtime) return ;;
    :--conmon) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--pause-path) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--conmon-cgroup) return ;;
    :--default-env) return ;;
    :--default-ulimits) return ;;
    :--default-capabilities) return ;;
    :--default-sysctls) return ;;
    :--seccomp-profile) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--apparmor-profile) return ;;
    :--cdi-spec-dirs) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--cgroup-manager) mapfile -t COMPREPLY < <(compgen -W "systemd cgroupfs" -- "$cur"); return ;;
    :--log-level) mapfile -t COMPREPLY < <(compgen -W "fatal panic error warn warning info debug trace" -- "$cur"); return ;;
    :--log-size-max) return ;;
    :--ctr-stop-timeout) return ;;
    :--pids-limit) return ;;
    :--default-transport) mapfile -t COMPREPLY < <(compgen -W "docker://" -- "$cur"); return ;;
    :--global-auth-file) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--pinned-images) return ;;
    :--signature-policy) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--big-files-temporary-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--pull-progress-timeout) return ;;
    :--short-name-mode) mapfile -t COMPREPLY < <(compgen -W "enforcing permissive disabled" -- "$cur"); return ;;
    :--registries-conf) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--registries-conf-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--certs-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--cni-default-network) return ;;
    :--network-dir|:--cni-config-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--plugin-dirs|:--cni-plugin-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--conf-template) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--cache-dir|:--cni-cache-dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    :--included-pod-metrics) mapfile -t COMPREPLY < <(compgen -W "all cpu disk diskIO hugetlb memory network oom pressure process spec" -- "$cur"); return ;;
    status:--output|status:-o) return ;;
    selftest:--output|selftest:-o) return ;;
    selftest:--image) return ;;
    esac
    case $command in
    "") words="config version completion status selftest --config -c --config-dir -d --root --runroot --storage-driver --storage-option --storage-opt --state-dir --run-dir --listen --stream-address --stream-port --stream-idle-timeout --stream-enable-tls --stream-tls-cert --stream-tls-key --stream-tls-ca --grpc-max-send-msg-size --grpc-max-recv-msg-size --default-runtime --conmon --pause-path --conmon-cgroup --default-env --default-ulimits --default-capabilities --default-sysctls --seccomp-profile --apparmor-profile --cdi-spec-dirs --selinux --cgroup-manager --log-level --log-size-max --read-only --ctr-stop-timeout --pids-limit --default-transport --global-auth-file --pinned-images --signature-policy --big-files-temporary-dir --pull-progress-timeout --short-name-mode --registries-conf --registries-conf-dir --certs-dir --cni-default-network --network-dir --cni-config-dir --plugin-dirs --cni-plugin-dir --conf-template --cache-dir --cni-cache-dir --included-pod-metrics --help -h --version -v" ;;
    "config") words="--default --help -h" ;;
    "version") words="--json -j --help -h" ;;
    "completion") words="bash zsh fish --help -h" ;;
    "status") words="--output -o --help -h" ;;
    "selftest") words="--output -o --image --standalone --help -h" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -F _crio crio
