# make demo [DURATION=20s] [DEMO_ARGS="--json --block-udp"]
# make test

# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# What the demo starts, and nothing else.
DEMO := -p meshctl -p federation -p edge-proxy -p vm-agent

.PHONY: demo test

# The dev profile: dependencies, cryptography above all, are optimized in it,
# and it builds several times faster than release.
demo:
	cargo build $(DEMO)
	@$(TARGET)/debug/meshctl demo $(if $(DURATION),--duration $(DURATION)) $(DEMO_ARGS)

# The demo's test runs the programs, so they are built first.
test:
	cargo build --workspace --bins
	cargo test --workspace
