//! `/memory`: as the system accounts for it; the allocator is not asked.

use serde_json::json;

use crate::admin::respond::Response;
use crate::admin::{Answer, Endpoint};
use crate::telemetry::server_stats::Memory;

/// `/memory`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/memory",
    help: "print current allocation/heap usage",
    parameters: &[],
    mutates: false,
    // Deviation: without what only TCMalloc knows (pageheap and thread caches).
    answer: Answer::Now(|_, _| {
        let memory = Memory::sample();
        Response::json(&json!({
            "allocated": memory.allocated.to_string(),
            "heap_size": memory.heap.to_string(),
            "total_physical_bytes": memory.resident.to_string(),
        }))
    }),
};
