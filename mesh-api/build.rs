//! Compiles the .proto files with `protox`, so that no `protoc` is needed.

const FILES: [&str; 10] = [
    "isthmus/v1/mesh.proto",
    "isthmus/v1/tunnel.proto",
    "isthmus/v1/identity.proto",
    "isthmus/v1/control.proto",
    "isthmus/v1/cluster.proto",
    "isthmus/v1/admin.proto",
    "isthmus/v1/authority.proto",
    "isthmus/v1/inner.proto",
    "isthmus/v1/proxy.proto",
    "spiffe/workload.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
