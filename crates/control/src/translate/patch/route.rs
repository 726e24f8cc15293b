//! What patches do to route configurations, their virtual hosts and routes.

use super::run::{Run, Step};
use crate::model::envoy_filter::{ApplyTo, Operation};
use crate::translate::proto::route;

/// Whether there are patches of this sort.
pub(super) fn is_patched(run: &Run<'_>) -> bool {
    [ApplyTo::RouteConfiguration, ApplyTo::VirtualHost, ApplyTo::HttpRoute]
        .into_iter()
        .any(|apply_to| !run.steps(apply_to).is_empty())
}

/// Patches a route configuration, which is never removed.
pub(super) fn patch(run: &mut Run<'_>, message: &mut route::RouteConfiguration) -> bool {
    for step in run.steps(ApplyTo::RouteConfiguration) {
        if step.is_merge() && step.meets_routes(run.subject, message) {
            run.merge(&step, message);
        }
    }
    let mut hosts = run.steps(ApplyTo::VirtualHost);
    hosts.retain(|step| step.meets_routes(run.subject, message));
    let mut routes = run.steps(ApplyTo::HttpRoute);
    routes.retain(|step| step.meets_routes(run.subject, message));
    message.virtual_hosts.retain_mut(|host| patch_host(run, &hosts, &routes, host));
    for step in hosts.iter().filter(|step| adds(step)) {
        let Some(host) = run.value(step) else { continue };
        message.virtual_hosts.push(host);
        run.touch(step);
    }
    true
}

/// As in Istio, an insertion into what has no order is an addition.
fn adds(step: &Step<'_>) -> bool {
    matches!(
        step.change.operation,
        Operation::Add | Operation::InsertBefore | Operation::InsertAfter | Operation::InsertFirst
    )
}

/// Patches a virtual host; false if it is removed.
fn patch_host(
    run: &mut Run<'_>,
    steps: &[Step<'_>],
    routes: &[Step<'_>],
    host: &mut route::VirtualHost,
) -> bool {
    for step in steps {
        if !step.meets_host(host) {
            continue;
        }
        match step.change.operation {
            Operation::Remove => {
                run.touch(step);
                return false;
            }
            Operation::Replace => {
                let Some(value) = run.value(step) else { continue };
                *host = value;
                run.touch(step);
            }
            _ if step.is_merge() => run.merge(step, host),
            _ => {}
        }
    }
    let routes: Vec<Step<'_>> = routes.iter().filter(|step| step.meets_host(host)).copied().collect();
    patch_routes(run, &routes, &mut host.routes);
    true
}

fn patch_routes(run: &mut Run<'_>, steps: &[Step<'_>], routes: &mut Vec<route::Route>) {
    routes.retain_mut(|message| {
        for step in steps {
            if !step.meets_route(message) {
                continue;
            }
            if step.is_removal() {
                run.touch(step);
                return false;
            }
            if step.is_merge() {
                run.merge(step, message);
            }
        }
        true
    });
    for step in steps.iter().filter(|step| adds(step)) {
        let names = |message: &route::Route| step.meets_route(message);
        let names = step.names_route().then_some(&names as &dyn Fn(&route::Route) -> bool);
        // What comes first does so only where the route is that the patch names.
        let is_first = step.change.operation == Operation::InsertFirst;
        if is_first && names.is_some_and(|names| !routes.iter().any(names)) {
            continue;
        }
        let end = routes.len();
        run.arrange(step, routes, names, end);
    }
}
