//! Compiles the proto of the SPIFFE Workload API, which nobody but the agent speaks.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("proto");
    let files = protox::compile(["workload.proto"], [folder]).expect("it compiles");
    let mut config = prost_build::Config::new();
    config.out_dir(env::var_os("OUT_DIR").expect("cargo sets it")).include_file("protos.rs");
    config.bytes(["."]).btree_map(["."]).disable_comments(["."]);
    tonic_prost_build::configure()
        .compile_fds_with_config(files, config)
        .expect("the descriptors are consistent");
}
