//! Generates the gRPC messages and stubs from the two proto files, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../grpc/echo.proto");
    println!("cargo::rerun-if-changed=proto/health.proto");
    let files = protox::compile(["echo.proto", "health.proto"], ["../grpc", "proto"])?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).compile_fds(files)?;
    Ok(())
}
