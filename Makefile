# make demo [DURATION=20s] [DEMO_ARGS="--json --block-udp"]
# make test                    everything that needs no root
# make test-netns              two sites on a real kernel, in namespaces of their own
# make test-interop [INTEROP_ARGS=…]  peers nobody here wrote: tests/interop/setup installs them
# make test-observe            observers nobody here wrote: tests/observe/setup installs them
# make test-migrate            imported configurations beside the real HAProxy, nginx, Envoy and Finagle; needs root, and what tests/{interop,migrate}/setup install
# make test-consul             a real Consul beside the bridge: tests/consul/setup installs it
# make test-fleet              eight hosts moved under load, and back; needs root, and what tests/interop/setup and tests/migrate/setup install
# make test-vm [THEMES=…] [PROFILE=debug]  our packages on booted systemd, in containers; needs root
# make test-k8s [THEMES=…]     real clusters and nodes that run our images: tests/k8s/setup installs them; needs root
# make packages [PROFILE=debug]  .deb and .rpm of the four programs, in $(TARGET)/packages
# make repo                    a signed apt and a signed yum repository of them: packaging/README.md
# make fuzz [FUZZ_SECONDS=15]  every fuzz target, so many seconds each
# make soak                    the long forms, by hand
# make bench [BENCH_ARGS=…]    CPU per request beside other proxies: benches/README.md

# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Of the programs that are packed: `debug` packs those that `make test` has built,
# which takes a minute instead of ten.
PROFILE ?= release
# What the demo starts, and nothing else.
DEMO := -p meshctl -p federation -p edge-proxy -p vm-agent

# Decoders of what a network or a person sends.
FUZZ_TARGETS := client_hello tunnel_header control_message token snapshot jwt_svid message_codec http1_request http1_response http1_chunked trace_context \
	frames request_fields certificates manifest handover tap link registration dns_question unix_authority first_packet legacy_configuration consul
FUZZ_SECONDS ?= 15

.PHONY: demo test test-netns test-interop test-observe test-migrate test-fleet test-consul test-vm test-k8s packages pages repo fuzz soak bench

# The dev profile: dependencies, cryptography above all, are optimized in it,
# and it builds several times faster than release.
demo:
	cargo build $(DEMO)
	@$(TARGET)/debug/meshctl demo $(if $(DURATION),--duration $(DURATION)) $(DEMO_ARGS)

# The demo's test runs the programs, so they are built first.
test:
	cargo build --workspace --bins
	cargo test --workspace
	cd benches/peers && python3 -B -m unittest -q bench.tests
	cd tests/interop && PYTHONPATH=../../benches/peers python3 -B -m unittest -q interop.tests

test-netns:
	tests/tests/netns/run

test-interop:
	$(if $(EDGE_PROXY),,cargo build -p edge-proxy)
	tests/interop/run $(INTEROP_ARGS)

# The programs as `make test` builds them.
test-observe:
	cargo build --workspace --bins
	tests/observe/run $(OBSERVE_ARGS)

# The examples tell what is expected of the real ones.
test-migrate:
	cargo build --workspace --bins --example haproxy --example nginx_oracle --example envoy --example linkerd1
	tests/migrate/run

# The programs as `make test` builds them.
test-consul:
	cargo build --workspace --bins
	tests/consul/run

test-fleet:
	cargo build --workspace --bins
	tests/migrate/fleet.py

# ISTHMUS_PACKAGES names packages that are built already. What they replace is
# built by tests/vm/older, once.
test-vm: $(if $(ISTHMUS_PACKAGES),pages,packages)
	cargo build --workspace --bins --example load
	cd tests/vm/spiffe && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(abspath $(TARGET))/spiffe-peer .
	tests/vm/run $(THEMES)

# The programs as `make test` builds them are in its images.
test-k8s:
	cargo build --workspace --bins --example load --example churn
	tests/k8s/run $(THEMES)

# What packages bring beside programs; the dev profile says the same, and is
# built anyway.
pages:
	cargo build --workspace --bins
	rm -rf $(TARGET)/pages
	$(TARGET)/debug/isthmus-pages $(TARGET)/pages

packages: pages
	$(if $(filter release,$(PROFILE)),cargo build --release -p edge-proxy -p federation -p vm-agent -p meshctl)
	rm -rf $(TARGET)/packages
	packaging/build --programs $(TARGET)/$(PROFILE) --pages $(TARGET)/pages --out $(TARGET)/packages

repo: packages
	packaging/repo $(TARGET)/packages $(TARGET)/repo

# libFuzzer on the stable compiler, a target for each processor at a time; the
# corpus that is committed is replayed first. Without AddressSanitizer: no unsafe
# code of ours is reached.
fuzz:
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz"; exit 1; }
	RUSTC_BOOTSTRAP=1 cargo fuzz build --dev -s none
	@printf '%s\n' $(FUZZ_TARGETS) | RUSTC_BOOTSTRAP=1 xargs -P $$(nproc) -I {} sh -c \
		'log=$$(mktemp) && trap "rm -f $$log" EXIT && \
		if cargo fuzz run --dev -s none {} -- -max_total_time=$(FUZZ_SECONDS) -max_len=65535 \
			-rss_limit_mb=2048 -print_final_stats=0 >$$log 2>&1; \
		then echo "fuzz {}: $$(tail -n 1 $$log)"; else cat $$log; exit 255; fi'

soak:
	cargo build --workspace --bins
	ISTHMUS_CRASH_POINTS=50 cargo test --workspace
	cargo build --release -p edge-proxy
	EDGE_PROXY=$(abspath $(TARGET))/release/edge-proxy ISTHMUS_FLOOD_SECONDS=20 \
		cargo test -p edge-proxy --test floods -- --nocapture --test-threads 1
	ISTHMUS_CRASH_POINTS=200 cargo test -p isthmus-tests --test hostile kills
	for seed in $$(seq 1 40); do ISTHMUS_SIM_SEED=$$seed cargo test -q -p isthmus-tests --test simulation || exit 1; done
	cargo test -p isthmus-tests --test simulation -- --ignored
	for seed in $$(seq 1 40); do PROPTEST_RNG_SEED=$$seed cargo test -q -p mesh-migrate || exit 1; done
	MIGRATE_COUNT=1000 $(MAKE) test-migrate
	$(MAKE) test-fleet
	$(MAKE) test-vm
	ISTHMUS_CHURN_SECONDS=300 $(MAKE) test-k8s THEMES=churn
	$(TARGET)/debug/meshctl demo --duration 10m
	$(TARGET)/debug/meshctl demo --duration 10m --block-udp
	$(MAKE) fuzz FUZZ_SECONDS=3600

# EDGE_PROXY names a proxy that is built already.
bench:
	$(if $(EDGE_PROXY),,cargo build --release -p edge-proxy)
	@benches/peers/run $(BENCH_ARGS)
