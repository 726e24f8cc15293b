//! RANDOM: every host with the same probability, whatever its weight (as in Envoy).

use std::rc::Rc;

use super::LoadBalancer;
use crate::cluster::worker_cluster::Host;

/// Uniform choice.
#[derive(Debug)]
pub(crate) struct Random;

impl LoadBalancer for Random {
    fn choose(&mut self, hosts: &[Rc<Host>], random: &mut dyn FnMut() -> u64) -> Option<usize> {
        let count = hosts.len() as u64;
        (count > 0).then(|| (random() % count.max(1)) as usize)
    }
}
