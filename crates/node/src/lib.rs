//! The machine layer of `leno up`: one machine's node, made of Linux namespaces, in which pods with addresses
//! of their own run as local processes. It knows nothing of Kubernetes, xDS or meshes, and needs no external
//! program: everything is done by system calls and netlink.
//!
//! ```text
//!  host namespaces                 │ namespaces of the node (net, mount, pid, uts; user when not root)
//!                                  │
//!  Outer ── socketpair ────────────┼── Node (pid 1)      Publisher: "bind 127.0.0.1:8080 on the host"
//!    binds host ports, passes      │    │ 10.244.0.1, routes to the pods, services
//!    the listening sockets         │    ├── Pod 10.244.0.2   net + mount + uts namespace, /etc/hosts
//!                                  │    │     Process (app), Process (sidecar); Redirect in nf_tables
//!                                  │    └── Pod 10.244.0.3 ...
//! ```
//!
//! The order of use:
//!
//! 1. [`support()`] tries what the kernel allows and says why not.
//! 2. In the host's namespaces, [`Outer::start`] runs this executable again as the *inner* process.
//! 3. The inner process calls [`Node::enter`] first thing, then [`Pod::create`], [`Pod::redirect`], and
//!    [`Supervisor::start`] or [`Process::spawn`]. Host ports come from [`Node::publisher`].
//!
//! Nothing is ever left behind: the inner process is pid 1 of its pid namespace and dies with the outer one,
//! however that ends; all processes, addresses and rules die with the namespaces.
//!
//! Files, and so Unix sockets with a path, are the same inside and outside, but for /proc and what a pod gets of
//! its own in /etc; `/proc/self/exe` runs this executable in a pod, too. Where the node is owned by an ordinary
//! user ([`Mode::User`]) the proxy must set the mark 1337 on the sockets by which it connects to others
//! ([`Redirect::by_mark`]) and be started with [`Capabilities::NET_ADMIN`]; otherwise its connections come back
//! to itself.
//!
//! Pods reach each other, the node and its services, but not the world outside.
//!
//! IPv4 only for now: pods have no IPv6 address besides `::1` and a link-local one.
//!
//! On other systems than Linux the crate is empty.

#![cfg(target_os = "linux")]

mod control;
mod error;
mod forward;
pub mod intercept;
mod iptables;
mod link;
mod net;
mod netlink;
mod nft;
mod nft_check;
mod node;
mod outer;
mod pod;
mod process;
mod reaper;
mod redirect;
mod root;
pub mod rules;
mod services;
mod supervisor;
mod support;
mod sys;

pub use control::Publisher;
pub use error::NodeError;
pub use forward::Forward;
pub use net::{Ipv4Net, NotANet};
pub use node::{Network, Node};
pub use outer::{InnerSpec, Outer};
pub use pod::{Pod, PodSpec};
pub use process::{Capabilities, Exit, Line, Process, ProcessSpec, Stream};
pub use redirect::{Cidrs, Dns, Groups, InboundMode, Ports, Redirect, Step};
pub use root::{Bind, Root};
pub use rustix::process::Signal;
pub use services::Service;
pub use supervisor::{Backoff, Restart, State, Status, Supervisor};
pub use support::{Mode, Support, support};
pub use sys::die_with_thread;
