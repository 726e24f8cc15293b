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

# The benchmark beside Envoy, e.g. `just bench h1,h2 --rounds 3`
bench *arguments:
    cargo run --release -p leno-bench -- {{arguments}}

# One fuzz target under libFuzzer, e.g. `just fuzz h1_request 600`
fuzz target seconds="600":
    fuzz/long {{target}} {{seconds}}
