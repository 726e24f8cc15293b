//! HTTP/1.1, both sides: heads (`head`), bodies (`body`) and the two ends of a connection
//! (`server`, `client`). Parsing is strict and works on byte buffers; RFC 9112 throughout.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod head;
pub(crate) mod server;

#[cfg(test)]
mod tests;
