# What developers do all day. `just --list` shows this.

# The sample mesh
up *ARGS='samples/bookinfo':
    cargo run --release -- up {{ARGS}}

# Everything that CI checks
check: fmt lint test

# All tests
test:
    cargo test --workspace

# Formatting
fmt:
    cargo fmt --all --check

# Lints, warnings denied
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Licences, bans, advisories (needs cargo-deny)
deny:
    cargo deny check

# Rewrite goldens and other expectations
bless:
    UPDATE_EXPECT=1 UPDATE_GOLDENS=1 cargo test --workspace

# Rewrite docs/deviations.md from the comments
deviations:
    cargo xtask deviations
