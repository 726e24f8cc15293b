//! HTTP/1.1, both sides: heads (`head`, its `target` and `fields`, `write`), bodies (`body`) and the two ends of a connection
//! (`server`, `client`). Parsing is strict and works on byte buffers; RFC 9112 throughout.
//!
//! Deviation: interim answers such as 103 are forwarded (RFC 8297), where Envoy drops them.
//!
//! Deviation: any number of pipelined requests is served in order, where Envoy closes after some.
//!
//! Deviation: an upstream status below 100 is an error (502), where Envoy forwards it.
//!
//! Deviation: after an upgrade one direction may end before the other, where Envoy ends both.
//!
//! Deviation: `http://host?query` as a target means the path `/`, where Envoy answers 404.
//!
//! Deviation: headers in several lines stay so, where Envoy joins some of them with commas.

pub(crate) mod body;
pub(crate) mod client;
mod fields;
pub(crate) mod head;
mod scan;
pub(crate) mod server;
pub(crate) mod target;
pub(crate) mod write;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
