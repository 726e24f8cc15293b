//! Fakes and harness for Leno's tests: upstreams, clients, xDS peers.
