# crio: "make demo" shows it, "make test" tests it, "make install" installs it.
PREFIX ?= /usr
BUILD := $(CURDIR)/build
TAGS := containers_image_openpgp exclude_graphdriver_btrfs
PATH := $(PATH):/usr/local/go/bin
export PATH
GO := go
GOPACKAGES := ./cmd/... ./internal/... ./pkg/... ./server/... ./test/...
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What a node needs, and what building and testing need besides. A program or file
# that is there already is not installed again: PATH-OR-FILE:PACKAGE.
NODE := runc:runc /usr/lib/cni/bridge:containernetworking-plugins iptables:iptables
TOOLS := gcc:gcc /usr/include/stdio.h:libc6-dev make:make musl-gcc:musl-tools git:git /etc/ssl/certs/ca-certificates.crt:ca-certificates
TESTS := crun:crun docker-registry:docker-registry skopeo:skopeo /bin/busybox:busybox-static ip:iproute2 umount:mount runsc:runsc \
	strace:strace valgrind:valgrind clang-format:clang-format conmon:conmon curl:curl pkg-config:pkg-config \
	/usr/include/seccomp.h:libseccomp-dev /usr/include/sys/capability.h:libcap-dev /usr/include/yajl/yajl_version.h:libyajl-dev
HASH := \#
MISSING = $(shell for w in $(NODE) $(TOOLS) $(WANTED); do command -v $${w%%:*} >/dev/null || [ -e $${w%%:*} ] || echo $${w$(HASH)$(HASH)*:}; done)

all: $(BUILD)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -tags '$(TAGS)' -o $(BUILD)/crio ./cmd/crio
	$(MAKE) -C conmon BUILD=$(BUILD)

$(BUILD):
	mkdir -p $@

# Debian, as root. Nothing is done where nothing is missing.
deps:
	@command -v $(GO) >/dev/null || { echo "there is no go: install Go 1.26 or newer, https://go.dev/dl"; exit 1; }
	@missing='$(MISSING)'; [ -z "$$missing" ] || { echo "installing: $$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }

demo: deps
	$(MAKE) all
	$(BUILD)/crio selftest --standalone

test: WANTED = $(TESTS)
test: deps
	$(MAKE) all runtimes lint unit integration

# Current OCI runtimes for the conformance suite; Debian 12's lack much of what CRI 1.37 asks for.
RUNC := github.com/opencontainers/runc@v1.5.2
CRUN := crun_1.21.orig.tar.gz
CRUN_SHA256 := 4bfb700e764a4804a4de3ecf07753f4c391005356d60356df65d80ae0914c486
runtimes: $(BUILD)/runtimes/runc $(BUILD)/runtimes/crun

$(BUILD)/runtimes/runc:
	mkdir -p $(@D)
	GOBIN=$(@D) $(GO) install -tags seccomp $(RUNC)

$(BUILD)/runtimes/crun:
	rm -rf $(BUILD)/source/crun && mkdir -p $(@D) $(BUILD)/source/crun
	curl -sSfo $(BUILD)/source/$(CRUN) http://deb.debian.org/debian/pool/main/c/crun/$(CRUN)
	echo '$(CRUN_SHA256)  $(BUILD)/source/$(CRUN)' | sha256sum --check --quiet
	tar -xzf $(BUILD)/source/$(CRUN) -C $(BUILD)/source/crun --strip-components=1
	cd $(BUILD)/source/crun && ./configure --quiet --disable-systemd --disable-criu --disable-dl --disable-dependency-tracking
	$(MAKE) -s -C $(BUILD)/source/crun git-version.h crun
	mv $(BUILD)/source/crun/crun $@
	rm -rf $(BUILD)/source

# Another runtime, to be measured beside ours.
CONTAINERD := github.com/containerd/containerd/v2
peer: $(BUILD)/peer/containerd
$(BUILD)/peer/containerd:
	mkdir -p $(@D)
	GOBIN=$(@D) $(GO) install $(CONTAINERD)/cmd/containerd@v2.4.2 $(CONTAINERD)/cmd/containerd-shim-runc-v2@v2.4.2

# Against the floor, on a machine that does nothing else. BENCH has options: build/bench -h
# tells them. bench-check fails where a ratio is worse than the one committed, bench-ratios
# makes those of the last run the committed ones.
BENCH =
RATIOS := test/bench/ratios.json
bench bench-check: WANTED = $(TESTS)
bench bench-check: deps
	$(MAKE) all runtimes peer
	$(GO) build -tags '$(TAGS)' -o $(BUILD)/bench ./test/bench
	$(BUILD)/bench -build $(BUILD) -runtimes $(BUILD)/runtimes -peer $(BUILD)/peer/containerd -json $(BUILD)/bench.json $(if $(filter bench-check,$@),-check $(RATIOS)) $(BENCH)

bench-ratios:
	$(BUILD)/bench -from $(BUILD)/bench.json -write $(RATIOS)

# One package at a time: some measure.
unit:
	CRIO_BUILD=$(BUILD) $(GO) test -p 1 -race -count=1 -timeout 20m -tags '$(TAGS)' ./pkg/... ./internal/... ./cmd/... ./server/...

# The daemon under test has the race detector too, or failpoints at which it can be killed.
# Two halves at a time, each in namespaces of its own: most of a test is waiting.
HALF := TestConformance|TestCVE|TestKilled
INTEGRATION = cd test && CRIO_BUILD=$(BUILD) $(BUILD)/race/integration -test.timeout 50m
HALVES := --jobs=2 --output-sync=line
integration: integration-program
	CRIO_BUILD=$(BUILD) $(GO) test -race -count=1 -tags '$(TAGS)' ./test/*/
	$(MAKE) $(HALVES) integration-half integration-rest

integration-program: daemons
	$(GO) test -race -c -tags '$(TAGS)' -o $(BUILD)/race/integration ./test

integration-half:
	$(INTEGRATION) -test.run '$(HALF)'

integration-rest:
	$(INTEGRATION) -test.skip '$(HALF)'

# What integration has of kills and faults, by itself: the matrix, and beside it the list.
FAULTS := damaged_store disks faults load parts powercut reboot recovery restart status stop sweep
faults: WANTED = $(TESTS)
faults: deps
	$(MAKE) all runtimes integration-program
	$(MAKE) $(HALVES) faults-matrix faults-list

faults-matrix:
	$(INTEGRATION) -test.run '^TestKilled'

faults-list:
	$(INTEGRATION) -test.run "^($$(sed -n 's/^func \(Test[^(]*\)(.*/\1/p' $(FAULTS:%=%_test.go) | paste -sd '|'))$$"

race:
	$(GO) build -race -tags '$(TAGS)' -o $(BUILD)/race/crio ./cmd/crio

daemons: race
	CGO_ENABLED=0 $(GO) build -trimpath -tags '$(TAGS) failpoints' -o $(BUILD)/failpoints/crio ./cmd/crio

# The long forms of those tests that have one, one package at a time as in unit, and a
# minute of each fuzz target.
FUZZTIME := 1m
torture: WANTED = $(TESTS)
torture: deps
	$(MAKE) all runtimes daemons
	CRIO_TORTURE=1 CRIO_STREAM_BYTES=4294967296 CRIO_BUILD=$(BUILD) $(GO) test -p 1 -race -count=1 -timeout 5h -tags '$(TAGS)' ./internal/monitor ./test
	@grep -rl --include='*_test.go' '^func Fuzz' cmd internal pkg server | while read -r file; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' "$$file"); do \
			$(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" || exit 1; \
		done; \
	done

# The real kubelet on the real daemon, on a disk: of a tmpfs, as /tmp may be, it does not see
# that images and containers share it. It is the newest one whose source can be had; for
# another one: make test-kubelet-module KUBELET=v1.37.0, and that version here.
KUBELET := v1.36.3
KUBELET_PROGRAM = $(BUILD)/kubelet/kubelet-$(KUBELET)
test-kubelet: WANTED = $(TESTS)
test-kubelet: deps
	$(MAKE) all runtimes race $(KUBELET_PROGRAM)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -tags '$(TAGS)' -o $(BUILD)/kubelet/guest ./test/kubelet/guest
	TMPDIR=/var/tmp CRIO_BUILD=$(BUILD) CRIO_KUBELET=$(KUBELET_PROGRAM) $(GO) test -race -count=1 -timeout 15m -tags '$(TAGS)' ./test/kubelet

# Six minutes on two cores, once.
kubelet: $(KUBELET_PROGRAM)
$(KUBELET_PROGRAM):
	mkdir -p $(@D)
	grep -q 'k8s.io/kubernetes $(KUBELET) ' test/kubelet/module/go.mod # or run make test-kubelet-module
	cd test/kubelet/module && $(GO) build -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBELET)' -o $@ k8s.io/kubernetes/cmd/kubelet

test-kubelet-module:
	test/kubelet/module/renew $(KUBELET)

lint:
	@unformatted=$$(gofmt -l cmd internal pkg server test); [ -z "$$unformatted" ] || { echo "run gofmt -w $$unformatted"; exit 1; }
	$(GO) vet -tags '$(TAGS)' $(GOPACKAGES)
	$(GO) run $(STATICCHECK) -tags '$(TAGS)' $(GOPACKAGES)
	clang-format --dry-run --Werror conmon/*.c conmon/*.h

# What is committed, but made from the source.
generate: all
	mkdir -p completions
	$(BUILD)/crio config --default > crio.conf.example
	$(BUILD)/crio completion bash > completions/crio.bash
	$(BUILD)/crio completion zsh > completions/_crio
	$(BUILD)/crio completion fish > completions/crio.fish
	CRIO_GENERATE=1 $(GO) test -count=1 -tags '$(TAGS)' -run '^TestFieldTable$$' ./test

LIBEXEC = $(DESTDIR)$(PREFIX)/libexec/crio
install: all
	install -d $(DESTDIR)/etc/crio/crio.conf.d
	install -D -m 755 $(BUILD)/crio $(DESTDIR)$(PREFIX)/bin/crio
	install -D -m 755 -t $(LIBEXEC) $(BUILD)/conmon $(BUILD)/pause $(BUILD)/guest
	install -D -m 644 completions/crio.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/crio
	install -D -m 644 completions/_crio $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_crio
	install -D -m 644 completions/crio.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/crio.fish
	install -D -m 644 contrib/systemd/crio.service $(DESTDIR)$(PREFIX)/lib/systemd/system/crio.service
	sed -i 's|^ExecStart=/usr/|ExecStart=$(PREFIX)/|' $(DESTDIR)$(PREFIX)/lib/systemd/system/crio.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/crio crio.conf.example contrib/crictl.yaml contrib/cni/10-crio-bridge.conflist

clean:
	rm -rf $(BUILD)

.PHONY: all deps demo test runtimes peer bench bench-check bench-ratios unit integration integration-program integration-half integration-rest faults faults-matrix faults-list race daemons torture kubelet test-kubelet test-kubelet-module lint generate install clean
