//! What services and nodes use: an extension, `GET /swarm/usage`.

use serde::{Deserialize, Serialize};

/// What all services and nodes use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClusterUsage {
    /// By service, in order of their names; those without a running task as well.
    pub services: Vec<ServiceUsage>,
    /// By node, in order of their hostnames.
    pub nodes: Vec<NodeUsage>,
}

/// What the tasks of one service use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceUsage {
    /// The service.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// The sum.
    #[serde(flatten)]
    pub usage: UsageSum,
}

/// What the tasks on one node use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeUsage {
    /// The node.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub hostname: String,
    /// Its memory in bytes, as it told.
    pub memory_total: u64,
    /// The sum.
    #[serde(flatten)]
    pub usage: UsageSum,
}

/// A sum over tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UsageSum {
    /// Tasks that run.
    pub running: u64,
    /// Those of them that are in the sum.
    pub reporting: u64,
    /// Nanoseconds of processor time in a second; 1e9 is one processor.
    #[serde(rename = "CPURate")]
    pub cpu_rate: u64,
    /// Bytes, without the page cache that can be dropped.
    pub memory: u64,
    /// Processes and threads.
    #[serde(rename = "PIDs")]
    pub pids: u64,
    /// Bytes that came in and went out, over all interfaces.
    pub net_received: u64,
    /// See above.
    pub net_sent: u64,
    /// Bytes read from and written to disks.
    pub block_read: u64,
    /// See above.
    pub block_written: u64,
}
