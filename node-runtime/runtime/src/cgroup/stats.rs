//! What the kernel counts for a cgroup, in one shape for both versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything that is counted. A part is `None` where the machine has no controller for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory; counted in bytes.
    pub memory: Option<MemoryStats>,
    /// Processes and threads.
    pub pids: Option<PidStats>,
    /// Block devices.
    pub io: Vec<IoStats>,
    /// Huge pages by page size, as the kernel writes it (`2MB`).
    pub hugetlb: BTreeMap<String, HugetlbStats>,
    /// RDMA devices by name.
    #[serde(default)]
    pub rdma: BTreeMap<String, RdmaStats>,
    /// How long processes waited for want of a resource: `cpu`, `memory`, `io`. Version 2 only.
    pub pressure: BTreeMap<String, Pressure>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Used, in user and kernel mode.
    pub usage: u64,
    /// Used in user mode.
    pub user: u64,
    /// Used in kernel mode.
    pub system: u64,
    /// Used on each processor. Version 1 only.
    pub per_cpu: Vec<u64>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// How long it was held back.
    pub throttled_time: u64,
    /// Used in user mode on each processor. Version 1 only.
    #[serde(default)]
    pub per_cpu_user: Vec<u64>,
    /// Used in kernel mode on each processor. Version 1 only.
    #[serde(default)]
    pub per_cpu_system: Vec<u64>,
    /// Periods in which more than the quota was used, saved up before.
    #[serde(default)]
    pub burst_periods: u64,
    /// How much more.
    #[serde(default)]
    pub burst_time: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, page cache included.
    pub usage: u64,
    /// The most that was ever in use, where the kernel keeps it.
    pub max_usage: Option<u64>,
    /// The limit; `None` is unlimited.
    pub limit: Option<u64>,
    /// Memory and swap in use, with the same meaning in both versions.
    pub swap_usage: Option<u64>,
    /// Limit of memory and swap together.
    pub swap_limit: Option<u64>,
    /// How often the limit was hit.
    pub failures: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// In use by the kernel for it; a part of `usage`.
    #[serde(default)]
    pub kernel_usage: Option<u64>,
    /// `memory.stat` as the kernel writes it, name by name.
    pub detail: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None` is unlimited.
    pub limit: Option<u64>,
}

/// One block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoStats {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub write_bytes: u64,
    /// Operations.
    pub read_operations: u64,
    /// Operations.
    pub write_operations: u64,
    /// Bytes.
    #[serde(default)]
    pub discard_bytes: u64,
    /// Operations.
    #[serde(default)]
    pub discard_operations: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugetlbStats {
    /// In use.
    pub usage: u64,
    /// The most that was ever in use, where the kernel keeps it.
    pub max_usage: Option<u64>,
    /// How often the limit was hit.
    pub failures: u64,
    /// The limit; `None` is unlimited.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Reserved, where the kernel counts it.
    #[serde(default)]
    pub reserved: Option<u64>,
}

/// Handles and objects of one RDMA device in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaStats {
    /// Open handles.
    pub handles: u64,
    /// Objects.
    pub objects: u64,
}

/// Pressure stall information of one resource.
// Documentation/accounting/psi.rst
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some process waited.
    pub some: Stall,
    /// All waited.
    pub full: Stall,
}

/// One line of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}
