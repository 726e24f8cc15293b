//! Compiles the Envoy v3, xDS and Istio protos into Rust types.
//!
//! The proto files are those that the `envoy-types` crate ships (it is a dependency that is
//! never compiled, see Cargo.toml) plus the few that it lacks, in `proto/`. No protoc is needed:
//! protox compiles them. Out come
//!   - `descriptors.bin`: every file with its options, as one FileDescriptorSet, for tests;
//!   - `schema.*`: the same, flattened into the tables that the codec reads (build/schema.rs);
//!   - `protos.rs` and one file per package: prost types for what `GENERATED` reaches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_reflect::DescriptorPool;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

#[allow(dead_code, reason = "shared with the library, which reads what is written here")]
#[path = "src/schema/layout.rs"]
mod layout;
#[path = "build/schema.rs"]
mod schema;

/// Include roots inside the `envoy-types` package.
const ROOTS: [&str; 8] = [
    "data-plane-api",
    "googleapis",
    "xds",
    "protoc-gen-validate",
    "client_model",
    "opentelemetry-proto",
    "cel-spec/proto",
    "ratelimit",
];

/// Files whose messages Rust code handles; everything they import is generated too. All other
/// files are known to the codec through their descriptors only.
const GENERATED: &[&str] = &[
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/admin/v3/server_info.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/metrics/v3/metrics_service.proto",
    "envoy/config/metrics/v3/stats.proto",
    "envoy/config/rbac/v3/rbac.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/config/trace/v3/datadog.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/skywalking.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/filters/cel/v3/cel.proto",
    "envoy/extensions/access_loggers/grpc/v3/als.proto",
    "envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/bootstrap/internal_listener/v3/internal_listener.proto",
    "envoy/extensions/clusters/aggregate/v3/cluster.proto",
    "envoy/extensions/clusters/dns/v3/dns_cluster.proto",
    "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto",
    "envoy/extensions/common/matching/v3/extension_matcher.proto",
    "envoy/extensions/compression/brotli/compressor/v3/brotli.proto",
    "envoy/extensions/compression/brotli/decompressor/v3/brotli.proto",
    "envoy/extensions/compression/gzip/compressor/v3/gzip.proto",
    "envoy/extensions/compression/gzip/decompressor/v3/gzip.proto",
    "envoy/extensions/compression/zstd/compressor/v3/zstd.proto",
    "envoy/extensions/compression/zstd/decompressor/v3/zstd.proto",
    "envoy/extensions/filters/common/set_filter_state/v3/value.proto",
    "envoy/extensions/filters/http/buffer/v3/buffer.proto",
    "envoy/extensions/filters/http/compressor/v3/compressor.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/csrf/v3/csrf.proto",
    "envoy/extensions/filters/http/decompressor/v3/decompressor.proto",
    "envoy/extensions/filters/http/dynamic_forward_proxy/v3/dynamic_forward_proxy.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/health_check/v3/health_check.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/http/set_metadata/v3/set_metadata.proto",
    "envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/local_ratelimit/v3/local_ratelimit.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/original_src/v3/original_src.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/direct_response/v3/config.proto",
    "envoy/extensions/filters/network/echo/v3/echo.proto",
    "envoy/extensions/filters/network/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.proto",
    "envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3/sni_dynamic_forward_proxy.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/formatter/cel/v3/cel.proto",
    "envoy/extensions/formatter/metadata/v3/metadata.proto",
    "envoy/extensions/formatter/req_without_query/v3/req_without_query.proto",
    "envoy/extensions/health_check/event_sinks/file/v3/file.proto",
    "envoy/extensions/http/early_header_mutation/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/preserve_case.proto",
    "envoy/extensions/http/original_ip_detection/custom_header/v3/custom_header.proto",
    "envoy/extensions/http/original_ip_detection/xff/v3/xff.proto",
    "envoy/extensions/http/stateful_session/cookie/v3/cookie.proto",
    "envoy/extensions/http/stateful_session/envelope/v3/envelope.proto",
    "envoy/extensions/http/stateful_session/header/v3/header.proto",
    "envoy/extensions/internal_redirect/allow_listed_routes/v3/allow_listed_routes_config.proto",
    "envoy/extensions/internal_redirect/previous_routes/v3/previous_routes_config.proto",
    "envoy/extensions/internal_redirect/safe_cross_scheme/v3/safe_cross_scheme_config.proto",
    "envoy/extensions/load_balancing_policies/client_side_weighted_round_robin/v3/client_side_weighted_round_robin.proto",
    "envoy/extensions/load_balancing_policies/cluster_provided/v3/cluster_provided.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/load_aware_locality/v3/load_aware_locality.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/override_host/v3/override_host.proto",
    "envoy/extensions/load_balancing_policies/peak_ewma/v3alpha/peak_ewma.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/subset/v3/subset.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/matching/common_inputs/environment_variable/v3/input.proto",
    "envoy/extensions/matching/common_inputs/network/v3/network_inputs.proto",
    "envoy/extensions/matching/common_inputs/ssl/v3/ssl_inputs.proto",
    "envoy/extensions/matching/input_matchers/consistent_hashing/v3/consistent_hashing.proto",
    "envoy/extensions/matching/input_matchers/ip/v3/ip.proto",
    "envoy/extensions/matching/input_matchers/metadata/v3/metadata.proto",
    "envoy/extensions/matching/input_matchers/runtime_fraction/v3/runtime_fraction.proto",
    "envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.proto",
    "envoy/extensions/network/dns_resolver/getaddrinfo/v3/getaddrinfo_dns_resolver.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/rbac/audit_loggers/stream/v3/stream.proto",
    "envoy/extensions/rbac/matchers/upstream_ip_port/v3/upstream_ip_port_matcher.proto",
    "envoy/extensions/rbac/principals/mtls_authenticated/v3/mtls_authenticated.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/resource_monitors/cgroup_memory/v3/cgroup_memory.proto",
    "envoy/extensions/resource_monitors/cpu_utilization/v3/cpu_utilization.proto",
    "envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections.proto",
    "envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap.proto",
    "envoy/extensions/resource_monitors/injected_resource/v3/injected_resource.proto",
    "envoy/extensions/retry/host/omit_canary_hosts/v3/omit_canary_hosts.proto",
    "envoy/extensions/retry/host/omit_host_metadata/v3/omit_host_metadata_config.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/stat_sinks/graphite_statsd/v3/graphite_statsd.proto",
    "envoy/extensions/stat_sinks/open_telemetry/v3/open_telemetry.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/dynatrace_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/environment_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/static_config_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/always_on_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/parent_based_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/trace_id_ratio_based_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/dynatrace_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/environment_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/dynatrace_sampler.proto",
    "envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/service/accesslog/v3/als.proto",
    "envoy/service/auth/v3/external_auth.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/service/extension/v3/config_discovery.proto",
    "envoy/service/load_stats/v3/lrs.proto",
    "envoy/service/metrics/v3/metrics_service.proto",
    "envoy/type/matcher/v3/http_inputs.proto",
    "envoy/type/matcher/v3/regex.proto",
    "envoy/type/matcher/v3/status_code_input.proto",
    "istio/alpn/config.proto",
    "istio/auth/ca.proto",
    "istio/dns/nds.proto",
    "istio/metadata_exchange/config.proto",
    "istio/peer_metadata/config.proto",
    "istio/stats/config.proto",
    "opentelemetry/proto/collector/logs/v1/logs_service.proto",
    "opentelemetry/proto/collector/metrics/v1/metrics_service.proto",
    "udpa/type/v1/typed_struct.proto",
    "xds/data/orca/v3/orca_load_report.proto",
    "xds/type/matcher/v3/domain.proto",
    "xds/type/matcher/v3/http_inputs.proto",
    "xds/type/matcher/v3/ip.proto",
    "xds/type/matcher/v3/matcher.proto",
    "xds/type/v3/typed_struct.proto",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=src/schema/layout.rs");
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("proto");
    let shipped = envoy_types_dir().join("proto");
    let mut roots: Vec<PathBuf> = ROOTS.iter().map(|root| shipped.join(root)).collect();
    roots.push(own);

    let files = compile(&roots, &out);
    let descriptors = descriptor_set(files.values().map(|file| file.bytes.as_slice()));
    schema::write(&DescriptorPool::decode(descriptors.as_slice()).expect("consistent descriptors"), &out);
    fs::write(out.join("descriptors.bin"), descriptors).expect("OUT_DIR is writable");
    generate(&files, &out);
}

/// Where cargo unpacked the `envoy-types` package.
fn envoy_types_dir() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(manifest)
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages is a list");
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("envoy-types is a dependency");
    Path::new(manifest).parent().expect("a manifest lies in a folder").to_owned()
}

/// A compiled proto file.
struct Compiled {
    /// As prost knows it: without the options that Envoy's protos add.
    descriptor: FileDescriptorProto,
    /// The FileDescriptorProto in wire form, with all options.
    bytes: Vec<u8>,
}

/// Joins files in wire form into a FileDescriptorSet in wire form.
fn descriptor_set<'f>(files: impl Iterator<Item = &'f [u8]>) -> Vec<u8> {
    const FILE_TAG: u8 = 1 << 3 | 2;
    let mut set = Vec::new();
    for file in files {
        set.push(FILE_TAG);
        prost::encode_length_delimiter(file.len(), &mut set).expect("a Vec takes all");
        set.extend_from_slice(file);
    }
    set
}

/// Compiles every proto file under `roots`, merged by file name.
///
/// Each file gets a compiler of its own: with a shared one, protox resolves relative names
/// against every loaded package, where protoc sees a file's own imports only, and
/// `config.core.v3.X` inside `envoy.extensions...` would find `envoy.extensions.config`.
fn compile(roots: &[PathBuf], out: &Path) -> BTreeMap<String, Compiled> {
    let patched = out.join("patched");
    patch_relative_names(roots, &patched);
    let mut includes = vec![patched];
    includes.extend(roots.iter().cloned());
    let mut merged = BTreeMap::new();
    // No file imports this one, but it may come in an `Any`; protox brings it.
    let extra = ["google/protobuf/field_mask.proto".to_owned()];
    for name in roots.iter().flat_map(|root| proto_files(root)).chain(extra) {
        if merged.contains_key(&name) {
            continue;
        }
        let mut compiler = protox::Compiler::new(&includes).expect("include roots exist");
        compiler.include_imports(true).include_source_info(false);
        if let Err(error) = compiler.open_file(&name) {
            panic!("{name}: {error}");
        }
        for file in compiler.file_descriptor_set().file {
            if !merged.contains_key(file.name()) {
                let pool = compiler.descriptor_pool();
                let bytes = pool.get_file_by_name(file.name()).expect("just compiled").encode_to_vec();
                merged.insert(file.name().to_owned(), Compiled { descriptor: file, bytes });
            }
        }
    }
    merged
}

/// One file fails for the reason above through a transitive import; it is compiled from a copy
/// in which the name is given in full.
fn patch_relative_names(roots: &[PathBuf], patched: &Path) {
    const FILE: &str = "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto";
    let source = roots.iter().map(|root| root.join(FILE)).find(|path| path.exists()).expect("shipped file");
    let text = fs::read_to_string(source).expect("readable");
    let text = text.replace(
        " common.dynamic_forward_proxy.v3.DnsCacheConfig",
        " .envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig",
    );
    let target = patched.join(FILE);
    fs::create_dir_all(target.parent().expect("has a folder")).expect("OUT_DIR is writable");
    fs::write(target, text).expect("OUT_DIR is writable");
}

/// Names of all proto files under a root, relative to it, sorted.
fn proto_files(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("include root is readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                let name = path.strip_prefix(root).expect("under the root");
                names.push(name.to_str().expect("proto names are ASCII").to_owned());
            }
        }
    }
    names.sort();
    names
}

/// Writes prost types (and gRPC stubs) for `GENERATED` and all that it imports.
fn generate(files: &BTreeMap<String, Compiled>, out: &Path) {
    let mut wanted = BTreeSet::new();
    let mut open: Vec<&str> = GENERATED.to_vec();
    while let Some(name) = open.pop() {
        if wanted.insert(name) {
            let file = files.get(name).unwrap_or_else(|| panic!("{name}: no such proto file"));
            open.extend(file.descriptor.dependency.iter().map(String::as_str));
        }
    }
    let set = FileDescriptorSet { file: wanted.iter().map(|name| files[*name].descriptor.clone()).collect() };
    let mut config = prost_build::Config::new();
    config.out_dir(out).include_file("protos.rs").bytes(["."]).enable_type_names();
    // What is configured has its maps in order: what is the same has the same bytes, which versions
    // and comparisons rely on.
    config.btree_map([".envoy.config", ".envoy.extensions", ".istio.networking.nds", ".stats"]);
    config.type_name_domain(["."], "type.googleapis.com").disable_comments(["."]);
    tonic_prost_build::configure()
        .compile_fds_with_config(set, config)
        .expect("the descriptors are consistent");
}
