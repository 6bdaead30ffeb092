//! Compiles the `.proto` files with protox: no protoc on the machine is needed.

const FILES: [&str; 7] = ["types", "store", "raft", "ca", "dispatcher", "control", "logs"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=rswarm");
    let files = FILES.map(|name| format!("rswarm/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default, deny_unknown_fields)]")
        .bytes(".rswarm.v1.RaftMessage")
        .bytes(".rswarm.v1.SnapshotChunk")
        .btree_map(".")
        // Written by hand: without the data.
        .skip_debug([".rswarm.v1.ContentSpec"])
        .compile_fds(descriptors)?;
    Ok(())
}
