//! Compiles the `.proto` files with protox: no protoc on the machine is needed.

const FILES: [&str; 8] = ["types", "store", "raft", "ca", "dispatcher", "control", "logs", "containers"];

/// The large ones among alternatives: a message with any of them is as large as the largest, and channels keep room for
/// 32 messages each, two channels for each agent.
const BOXED: [&str; 15] = [
    ".rswarm.v1.AgentMessage.message.hello",
    ".rswarm.v1.AgentMessage.message.description",
    ".rswarm.v1.ManagerMessage.message.welcome",
    ".rswarm.v1.ManagerMessage.message.node",
    ".rswarm.v1.AssignmentChange.change.task",
    ".rswarm.v1.AssignmentChange.change.network",
    ".rswarm.v1.AssignmentChange.change.secret",
    ".rswarm.v1.AssignmentChange.change.config",
    ".rswarm.v1.Object.object.cluster",
    ".rswarm.v1.Object.object.node",
    ".rswarm.v1.Object.object.service",
    ".rswarm.v1.Object.object.task",
    ".rswarm.v1.Object.object.network",
    ".rswarm.v1.Object.object.secret",
    ".rswarm.v1.Object.object.config",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=rswarm");
    let files = FILES.map(|name| format!("rswarm/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["."])?;
    let builder = BOXED.into_iter().fold(tonic_prost_build::configure(), tonic_prost_build::Builder::boxed);
    builder
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default, deny_unknown_fields)]")
        .bytes(".rswarm.v1.RaftMessage")
        .bytes(".rswarm.v1.SnapshotChunk")
        .bytes(".rswarm.v1.ContainerBytes")
        .btree_map(".")
        // Written by hand: without the data.
        .skip_debug([".rswarm.v1.ContentSpec"])
        .compile_fds(descriptors)?;
    Ok(())
}
