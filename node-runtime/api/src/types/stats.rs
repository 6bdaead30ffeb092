//! The reply to `GET /containers/{id}/stats`.

use std::collections::BTreeMap;

docker! {
    pub struct Stats {
        #[serde(rename = "name", skip_serializing_if = "crate::types::omit")]
        pub name: String,
        #[serde(rename = "id", skip_serializing_if = "crate::types::omit")]
        pub id: String,
        #[serde(rename = "read")]
        pub read: String,
        #[serde(rename = "preread")]
        pub preread: String,
        #[serde(rename = "pids_stats")]
        pub pids_stats: PidsStats,
        #[serde(rename = "blkio_stats")]
        pub blkio_stats: BlkioStats,
        #[serde(rename = "num_procs")]
        pub num_procs: u32,
        #[serde(rename = "storage_stats")]
        pub storage_stats: super::Empty,
        #[serde(rename = "cpu_stats")]
        pub cpu_stats: CpuStats,
        #[serde(rename = "precpu_stats")]
        pub precpu_stats: CpuStats,
        #[serde(rename = "memory_stats")]
        pub memory_stats: MemoryStats,
        #[serde(rename = "networks", skip_serializing_if = "crate::types::omit")]
        pub networks: BTreeMap<String, NetworkStats>,
    }

    pub struct PidsStats {
        #[serde(rename = "current", skip_serializing_if = "crate::types::omit")]
        pub current: u64,
        #[serde(rename = "limit", skip_serializing_if = "crate::types::omit")]
        pub limit: u64,
    }

    pub struct BlkioStats {
        #[serde(rename = "io_service_bytes_recursive")]
        pub io_service_bytes_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "io_serviced_recursive")]
        pub io_serviced_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "io_queue_recursive")]
        pub io_queue_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "io_service_time_recursive")]
        pub io_service_time_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "io_wait_time_recursive")]
        pub io_wait_time_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "io_merged_recursive")]
        pub io_merged_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "io_time_recursive")]
        pub io_time_recursive: Option<Vec<BlkioStatEntry>>,
        #[serde(rename = "sectors_recursive")]
        pub sectors_recursive: Option<Vec<BlkioStatEntry>>,
    }

    pub struct BlkioStatEntry {
        #[serde(rename = "major")]
        pub major: u64,
        #[serde(rename = "minor")]
        pub minor: u64,
        #[serde(rename = "op")]
        pub op: String,
        #[serde(rename = "value")]
        pub value: u64,
    }

    pub struct CpuStats {
        #[serde(rename = "cpu_usage")]
        pub cpu_usage: CpuUsage,
        #[serde(rename = "system_cpu_usage", skip_serializing_if = "crate::types::omit")]
        pub system_cpu_usage: u64,
        #[serde(rename = "online_cpus", skip_serializing_if = "crate::types::omit")]
        pub online_cpus: u32,
        #[serde(rename = "throttling_data")]
        pub throttling_data: ThrottlingData,
    }

    pub struct CpuUsage {
        #[serde(rename = "total_usage")]
        pub total_usage: u64,
        #[serde(rename = "percpu_usage", skip_serializing_if = "crate::types::omit")]
        pub percpu_usage: Vec<u64>,
        #[serde(rename = "usage_in_kernelmode")]
        pub usage_in_kernelmode: u64,
        #[serde(rename = "usage_in_usermode")]
        pub usage_in_usermode: u64,
    }

    pub struct ThrottlingData {
        #[serde(rename = "periods")]
        pub periods: u64,
        #[serde(rename = "throttled_periods")]
        pub throttled_periods: u64,
        #[serde(rename = "throttled_time")]
        pub throttled_time: u64,
    }

    pub struct MemoryStats {
        #[serde(rename = "usage", skip_serializing_if = "crate::types::omit")]
        pub usage: u64,
        #[serde(rename = "max_usage", skip_serializing_if = "crate::types::omit")]
        pub max_usage: u64,
        #[serde(rename = "stats", skip_serializing_if = "crate::types::omit")]
        pub stats: BTreeMap<String, u64>,
        #[serde(rename = "failcnt", skip_serializing_if = "crate::types::omit")]
        pub failcnt: u64,
        #[serde(rename = "limit", skip_serializing_if = "crate::types::omit")]
        pub limit: u64,
    }

    pub struct NetworkStats {
        #[serde(rename = "rx_bytes")]
        pub rx_bytes: u64,
        #[serde(rename = "rx_packets")]
        pub rx_packets: u64,
        #[serde(rename = "rx_errors")]
        pub rx_errors: u64,
        #[serde(rename = "rx_dropped")]
        pub rx_dropped: u64,
        #[serde(rename = "tx_bytes")]
        pub tx_bytes: u64,
        #[serde(rename = "tx_packets")]
        pub tx_packets: u64,
        #[serde(rename = "tx_errors")]
        pub tx_errors: u64,
        #[serde(rename = "tx_dropped")]
        pub tx_dropped: u64,
    }
}
