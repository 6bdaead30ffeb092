//! Plans as lists of files and values.

use super::v2::weight_of_shares;
use super::*;

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).expect("resources")
}

fn lines(json: &serde_json::Value, version: Version) -> Result<Vec<String>, String> {
    let writes = plan(&resources(json.clone()), &|_| Some(version)).map_err(|failure| failure.message)?;
    Ok(writes.into_iter().map(|write| format!("{} {}", write.file, write.value)).collect())
}

fn v1(json: serde_json::Value) -> Vec<String> {
    lines(&json, Version::V1).expect("plan")
}

fn v2(json: serde_json::Value) -> Vec<String> {
    lines(&json, Version::V2).expect("plan")
}

#[test]
fn common_limits_in_both_versions() {
    let asked = serde_json::json!({
        "memory": {"limit": 67_108_864, "swap": 134_217_728, "reservation": 1_048_576},
        "cpu": {"quota": 50_000, "period": 100_000, "burst": 1000, "shares": 1024, "idle": 0, "cpus": "0", "mems": "0"},
        "pids": {"limit": 10},
    });
    assert_eq!(
        v1(asked.clone()),
        [
            "memory.limit_in_bytes 67108864",
            "memory.memsw.limit_in_bytes 134217728",
            "memory.soft_limit_in_bytes 1048576",
            "cpu.shares 1024",
            "cpu.cfs_period_us 100000",
            "cpu.cfs_quota_us 50000",
            "cpu.cfs_burst_us 1000",
            "cpu.idle 0",
            "cpuset.mems 0",
            "cpuset.cpus 0",
            "pids.max 10"
        ]
    );
    assert_eq!(
        v2(asked),
        [
            "memory.swap.max 67108864",
            "memory.max 67108864",
            "memory.low 1048576",
            "cpu.weight 100",
            "cpu.max 50000 100000",
            "cpu.max.burst 1000",
            "cpu.idle 0",
            "cpuset.mems 0",
            "cpuset.cpus 0",
            "pids.max 10"
        ]
    );
}

#[test]
fn no_limit_is_written_as_the_kernel_says_it() {
    let asked = serde_json::json!({
        "memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}});
    assert_eq!(v2(asked.clone()), ["memory.swap.max max", "memory.max max", "cpu.max max", "pids.max max"]);
    assert_eq!(
        v1(asked),
        ["memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1", "cpu.cfs_quota_us -1", "pids.max max"]
    );
}

#[test]
fn swap_is_counted_with_memory_or_alone() {
    let memory = |json| v2(serde_json::json!({ "memory": json }));
    assert_eq!(memory(serde_json::json!({"limit": 10, "swap": 10})), ["memory.swap.max 0", "memory.max 10"]);
    assert_eq!(
        memory(serde_json::json!({"limit": 10, "swap": -1})),
        ["memory.swap.max max", "memory.max 10"]
    );
    assert_eq!(memory(serde_json::json!({"limit": -1})), ["memory.swap.max max", "memory.max max"]);
    assert_eq!(memory(serde_json::json!({"limit": 10})), ["memory.max 10"]);
    let refused = lines(&serde_json::json!({"memory": {"swap": 10}}), Version::V2).expect_err("refused");
    assert!(refused.starts_with("`linux.resources.memory.swap`: "), "{refused}");
}

#[test]
fn shares_become_a_weight_by_the_present_formula() {
    let known = [
        (0, 1),
        (2, 1),
        (3, 2),
        (32, 8),
        (128, 21),
        (512, 59),
        (1023, 100),
        (1024, 100),
        (1025, 101),
        (2048, 174),
    ];
    for (shares, weight) in known {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    assert_eq!([262_143, 262_144, u64::MAX].map(weight_of_shares), [10_000; 3]);
    let all: Vec<u64> = (0..262_145).map(weight_of_shares).collect();
    assert!(all.is_sorted(), "more shares never weigh less");
}

#[test]
fn a_period_alone_leaves_the_quota() {
    let writes = plan(&resources(serde_json::json!({"cpu": {"period": 5000}})), &|_| Some(Version::V2));
    let writes = writes.expect("plan");
    assert!(writes[0].keeps_first_word && writes[0].value == "5000", "{writes:?}");
}

#[test]
fn block_devices_in_both_versions() {
    let asked = serde_json::json!({"blockIO": {
        "weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 0}],
        "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 8}],
    }});
    assert_eq!(
        v1(asked.clone()),
        [
            "blkio.weight 500",
            "blkio.weight_device 8:0 1000",
            "blkio.throttle.read_bps_device 8:0 1024",
            "blkio.throttle.write_bps_device 8:0 0",
            "blkio.throttle.read_iops_device 8:16 7",
            "blkio.throttle.write_iops_device 8:16 8"
        ]
    );
    assert_eq!(
        v2(asked.clone()),
        [
            "io.bfq.weight 500",
            "io.bfq.weight 8:0 1000",
            "io.max 8:0 rbps=1024",
            "io.max 8:0 wbps=max",
            "io.max 8:16 riops=7",
            "io.max 8:16 wiops=8"
        ]
    );
    let writes = plan(&resources(asked), &|_| Some(Version::V2)).expect("plan");
    assert_eq!(writes[0].otherwise, Some(("io.weight".to_owned(), "4950".to_owned())));
    assert_eq!(writes[1].otherwise, Some(("io.weight".to_owned(), "8:0 10000".to_owned())));
}

#[test]
fn the_rarer_controllers() {
    let asked = serde_json::json!({
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
        "rdma": {"mlx5_0": {"hcaHandles": 2, "hcaObjects": 3}},
    });
    assert_eq!(
        v1(asked.clone()),
        [
            "hugetlb.2MB.limit_in_bytes 4194304",
            "hugetlb.2MB.rsvd.limit_in_bytes 4194304",
            "rdma.max mlx5_0 hca_handle=2 hca_object=3"
        ]
    );
    assert_eq!(
        v2(asked),
        [
            "hugetlb.2MB.max 4194304",
            "hugetlb.2MB.rsvd.max 4194304",
            "rdma.max mlx5_0 hca_handle=2 hca_object=3"
        ]
    );
    let network =
        serde_json::json!({"network": {"classID": 7, "priorities": [{"name": "eth0", "priority": 5}]}});
    assert_eq!(v1(network), ["net_cls.classid 7", "net_prio.ifpriomap eth0 5"]);
}

#[test]
fn old_knobs_of_memory() {
    let asked = serde_json::json!({"memory": {
        "swappiness": 30, "disableOOMKiller": true, "useHierarchy": true, "kernel": 1000, "kernelTCP": 1000}});
    assert_eq!(
        v1(asked),
        ["memory.use_hierarchy 1", "memory.swappiness 30", "memory.oom_control 1"],
        "kernel memory is ignored"
    );
    let unset = serde_json::json!({"memory": {"swappiness": u64::MAX, "disableOOMKiller": false}});
    assert_eq!(v2(unset), [] as [&str; 0]);
}

#[test]
fn what_a_version_cannot_do_is_refused_by_name() {
    use serde_json::json;
    let cases = [
        (Version::V2, json!({"memory": {"disableOOMKiller": true}}), "memory.disableOOMKiller"),
        (Version::V2, json!({"memory": {"swappiness": 10}}), "memory.swappiness"),
        (Version::V2, json!({"memory": {"useHierarchy": false}}), "memory.useHierarchy"),
        (Version::V2, json!({"cpu": {"realtimeRuntime": 1000}}), "cpu.realtimeRuntime"),
        (Version::V2, json!({"cpu": {"realtimePeriod": 1000}}), "cpu.realtimePeriod"),
        (Version::V2, json!({"blockIO": {"leafWeight": 100}}), "blockIO.leafWeight"),
        (Version::V1, json!({"unified": {"memory.high": "1"}}), "unified[\"memory.high\"]"),
        (Version::V1, json!({"cpu": {"shares": 1}}), "cpu.shares"),
    ];
    for (version, json, field) in cases {
        let refused = lines(&json, version).expect_err("refused");
        assert!(refused.starts_with(&format!("`linux.resources.{field}`: ")), "{refused}");
    }
}

#[test]
fn a_controller_that_is_missing_is_named() {
    let none = |json| plan(&resources(json), &|_| None).expect_err("refused").message;
    assert_eq!(
        none(serde_json::json!({"rdma": {"x": {"hcaHandles": 1}}})),
        "`linux.resources.rdma[\"x\"]`: this machine has no cgroup controller `rdma`"
    );
    assert!(none(serde_json::json!({"network": {"classID": 1}})).contains("`net_cls`"));
    assert!(none(serde_json::json!({"unified": {"memory.high": "1"}})).contains("`memory`"));
    let nothing = serde_json::json!({"network": {}, "rdma": {}, "memory": {"limit": 0}, "cpu": {"quota": 0}});
    assert_eq!(plan(&resources(nothing), &|_| None), Ok(Vec::new()), "nothing is asked for");
}

#[test]
fn on_a_hybrid_machine_each_controller_is_where_it_is() {
    let version = |name: &str| Some(if name == "hugetlb" { Version::V2 } else { Version::V1 });
    let asked = resources(serde_json::json!({
        "pids": {"limit": 3},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"hugetlb.1GB.max": "max", "cgroup.max.depth": "3"},
    }));
    let mut files: Vec<String> = plan(&asked, &version).expect("plan").into_iter().map(|w| w.file).collect();
    files.sort();
    assert_eq!(
        files,
        ["cgroup.max.depth", "hugetlb.1GB.max", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "pids.max"]
    );
}

#[test]
fn a_raw_file_takes_a_line_at_a_time() {
    assert_eq!(
        v2(serde_json::json!({"unified": {"io.max": "8:0 rbps=1\n8:16 rbps=2\n"}})),
        ["io.max 8:0 rbps=1", "io.max 8:16 rbps=2"]
    );
}
