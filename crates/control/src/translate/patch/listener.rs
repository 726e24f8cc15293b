//! What patches do to listeners and their filter chains.

use super::filters;
use super::run::{Run, Step};
use crate::model::envoy_filter::{ApplyTo, Operation};
use crate::translate::proto::{core, listener};

/// Patches a listener; false if it is removed.
pub(super) fn patch(run: &mut Run<'_>, message: &mut listener::Listener) -> bool {
    // Routes that a listener contains are finished before the listener is.
    filters::routes(run, message);
    for step in run.steps(ApplyTo::Listener) {
        if !step.meets_listener(message, true) {
            continue;
        }
        if step.is_removal() {
            run.touch(&step);
            return false;
        }
        if step.is_merge() {
            run.merge(&step, message);
        }
    }
    filters::listener_filters(run, message);
    chains(run, message);
    true
}

fn chains(run: &mut Run<'_>, message: &mut listener::Listener) {
    let steps = run.steps(ApplyTo::FilterChain);
    let mut chains = std::mem::take(&mut message.filter_chains);
    chains.retain_mut(|chain| chain.filters.is_empty() || patch_chain(run, &steps, message, chain));
    if let Some(mut chain) = message.default_filter_chain.take()
        && (chain.filters.is_empty() || patch_chain(run, &steps, message, &mut chain))
    {
        message.default_filter_chain = Some(chain);
    }
    for step in &steps {
        let adds = matches!(
            step.change.operation,
            Operation::Add | Operation::InsertBefore | Operation::InsertAfter | Operation::InsertFirst
        );
        if adds && step.meets_listener(message, false) {
            let Some(chain) = run.value(step) else { continue };
            chains.push(chain);
            run.touch(step);
        }
    }
    message.filter_chains = chains;
}

/// Patches a chain and its filters; false if it is removed.
fn patch_chain(
    run: &mut Run<'_>,
    steps: &[Step<'_>],
    message: &listener::Listener,
    chain: &mut listener::FilterChain,
) -> bool {
    for step in steps {
        if !step.meets_listener(message, false) || !step.meets_chain(message, chain) {
            continue;
        }
        if step.is_removal() {
            run.touch(step);
            return false;
        }
        if step.is_merge() {
            merge_chain(run, step, chain);
        }
    }
    filters::network_filters(run, message, chain);
    true
}

fn merge_chain(run: &mut Run<'_>, step: &Step<'_>, chain: &mut listener::FilterChain) {
    let Some(mut value) = run.value::<listener::FilterChain>(step) else { return };
    if let Some(socket) = value.transport_socket.take()
        && !merge_socket(run, step, &mut chain.transport_socket, socket)
    {
        return;
    }
    run.merge_part(step, chain, &value);
}

/// Merges transport sockets with one name; one with another name takes the place of what is there.
/// False if that cannot be done.
pub(super) fn merge_socket(
    run: &mut Run<'_>,
    step: &Step<'_>,
    target: &mut Option<core::TransportSocket>,
    patch: core::TransportSocket,
) -> bool {
    use core::transport_socket::ConfigType::TypedConfig;
    match target {
        Some(core::TransportSocket { name, config_type: Some(TypedConfig(config)) })
            if *name == patch.name =>
        {
            let Some(TypedConfig(more)) = patch.config_type else { return true };
            match leno_api::merge::merge_any(config, &more, step.lists()) {
                Ok(merged) => {
                    *config = merged;
                    run.touch(step);
                    true
                }
                Err(error) => {
                    run.fail(step, &error);
                    false
                }
            }
        }
        _ => {
            *target = Some(patch);
            run.touch(step);
            true
        }
    }
}
