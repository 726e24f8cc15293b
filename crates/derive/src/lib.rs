//! The incremental derivation engine: inputs, indexes, queries, revisions.
