//! What patches do to clusters.

use super::listener::merge_socket;
use super::run::{Run, Step};
use crate::model::envoy_filter::ApplyTo;
use crate::translate::proto::cluster;

/// Patches a cluster; false if it is removed.
pub(super) fn patch(run: &mut Run<'_>, message: &mut cluster::Cluster) -> bool {
    for step in run.steps(ApplyTo::Cluster) {
        if !step.meets_cluster(run.subject, message) {
            continue;
        }
        if step.is_removal() {
            run.touch(&step);
            return false;
        }
        if step.is_merge() {
            merge(run, &step, message);
        }
    }
    true
}

fn merge(run: &mut Run<'_>, step: &Step<'_>, message: &mut cluster::Cluster) {
    let Some(mut value) = run.value::<cluster::Cluster>(step) else { return };
    let Some(patch) = value.transport_socket.take() else { return run.merge(step, message) };
    if message.transport_socket_matches.is_empty() {
        if !merge_socket(run, step, &mut message.transport_socket, patch) {
            return;
        }
    } else {
        // Envoy takes only one of the two fields. As in Istio, the patch is for the first that has
        // its name, and without one for another cluster.
        let mut matches = message.transport_socket_matches.iter_mut();
        let found = matches
            .find(|found| found.transport_socket.as_ref().is_some_and(|socket| socket.name == patch.name));
        let Some(found) = found else { return };
        if !merge_socket(run, step, &mut found.transport_socket, patch) {
            return;
        }
    }
    run.merge_part(step, message, &value);
}
