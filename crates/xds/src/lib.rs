//! xDS as a protocol: client and server stream state machines, SotW and delta.
