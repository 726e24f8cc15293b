//! Leaf vocabulary of Leno: clock, backoff, CIDR, names, drain.
