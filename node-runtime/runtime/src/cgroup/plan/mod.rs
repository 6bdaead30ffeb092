//! Limits as files to write: pure. Each controller is planned for the version that has it.

mod v1;
mod v2;

use oci_spec::runtime::{LinuxResources, LinuxThrottleDevice};

use super::check::{self, refuse};
use super::layout::Version;
use crate::failure::Failure;

/// One write. The controller finds the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    /// The field that asks for it, below `linux.resources`.
    pub field: String,
    /// Whose directory the file is in.
    pub controller: String,
    pub file: String,
    pub value: String,
    /// The name and the value on kernels that have not this file.
    pub otherwise: Option<(String, String)>,
    /// A kernel that has not the file has nothing to limit.
    pub may_be_missing: bool,
    /// The file's first word stays as it is; the value is the second.
    pub keeps_first_word: bool,
}

/// Collects the writes of one resource.
struct Writes {
    controller: &'static str,
    list: Vec<Write>,
}

impl Writes {
    fn of(controller: &'static str) -> Writes {
        Writes { controller, list: Vec::new() }
    }

    fn add(&mut self, field: impl Into<String>, file: impl Into<String>, value: impl ToString) -> &mut Write {
        self.list.push(Write {
            field: field.into(),
            controller: self.controller.to_owned(),
            file: file.into(),
            value: value.to_string(),
            otherwise: None,
            may_be_missing: false,
            keeps_first_word: false,
        });
        self.list.last_mut().expect("it was just pushed")
    }

    fn maybe(&mut self, field: &str, file: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(field, file, value);
        }
    }
}

/// Who has a controller on the machine.
pub(super) type Versions<'a> = &'a dyn Fn(&str) -> Option<Version>;

/// The writes for all but devices. Nothing is asked of a controller that has no limit to set.
pub(super) fn plan(resources: &LinuxResources, versions: Versions<'_>) -> Result<Vec<Write>, Failure> {
    check::check(resources)?;
    let mut planned = Vec::new();
    let mut add = |controller: &str, v1: &dyn Fn() -> Planned, v2: &dyn Fn() -> Planned| {
        let version = versions(controller);
        // What is asked of a controller that is not there shows in the plan for version 1.
        let writes = if version == Some(Version::V2) { v2() } else { v1() }?.list;
        if let (None, Some(write)) = (version, writes.first()) {
            return Err(refuse(&write.field, missing(controller)));
        }
        planned.extend(writes);
        Ok(())
    };
    if let Some(memory) = resources.memory() {
        add("memory", &|| Ok(v1::memory(memory)), &|| v2::memory(memory))?;
    }
    if let Some(cpu) = resources.cpu() {
        add("cpu", &|| v1::cpu(cpu), &|| v2::cpu(cpu))?;
        add("cpuset", &|| Ok(cpuset(cpu)), &|| Ok(cpuset(cpu)))?;
    }
    if let Some(pids) = resources.pids() {
        let writes = || {
            let mut writes = Writes::of("pids");
            writes.add("pids.limit", "pids.max", processes(pids.limit()));
            Ok(writes)
        };
        add("pids", &writes, &writes)?;
    }
    if let Some(block) = resources.block_io() {
        let controller = if versions("io") == Some(Version::V2) { "io" } else { "blkio" };
        add(controller, &|| Ok(v1::block(block)), &|| v2::block(block))?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        add("hugetlb", &|| Ok(v1::hugetlb(limits)), &|| Ok(v2::hugetlb(limits)))?;
    }
    if let Some(rdma) = resources.rdma() {
        let writes = || Ok(rdma_limits(rdma));
        add("rdma", &writes, &writes)?;
    }
    if let Some(network) = resources.network() {
        // Version 2 has nothing of the kind, so the controllers are never there.
        add("net_cls", &|| Ok(v1::network_class(network)), &|| Ok(v1::network_class(network)))?;
        add("net_prio", &|| Ok(v1::network_priority(network)), &|| Ok(v1::network_priority(network)))?;
    }
    planned.extend(unified(resources, versions)?);
    Ok(planned)
}

type Planned = Result<Writes, Failure>;

fn missing(controller: &str) -> String {
    format!("this machine has no cgroup controller `{controller}`")
}

/// The files are the same in both versions.
fn cpuset(cpu: &oci_spec::runtime::LinuxCpu) -> Writes {
    let mut writes = Writes::of("cpuset");
    // Memory nodes first: processors are only taken by a cpuset that has some.
    writes.maybe("cpu.mems", "cpuset.mems", cpu.mems().as_ref().filter(|mems| !mems.is_empty()));
    writes.maybe("cpu.cpus", "cpuset.cpus", cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()));
    writes
}

fn rdma_limits(rdma: &std::collections::HashMap<String, oci_spec::runtime::LinuxRdma>) -> Writes {
    let mut writes = Writes::of("rdma");
    for (device, limits) in rdma {
        let parts = [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())];
        let parts = parts.iter().filter_map(|(name, limit)| limit.map(|limit| format!(" {name}={limit}")));
        let parts: String = parts.collect();
        if !parts.is_empty() {
            writes.add(format!("rdma[{device:?}]"), "rdma.max", format!("{device}{parts}"));
        }
    }
    writes
}

/// Raw files of version 2, on a hybrid machine those of the controllers that version 2 has there. A file
/// with several lines takes one at a time.
fn unified(resources: &LinuxResources, versions: Versions<'_>) -> Result<Vec<Write>, Failure> {
    let mut writes = Vec::new();
    for (file, value) in resources.unified().iter().flatten() {
        let controller = file.split('.').next().unwrap_or_default();
        let field = format!("unified[{file:?}]");
        if controller != "cgroup" && versions(controller) != Some(Version::V2) {
            let why = match versions(controller) {
                Some(_) => format!(
                    "invalid configuration: it needs cgroup version 2, and `{controller}` is of version 1 here"
                ),
                None => missing(controller),
            };
            return Err(refuse(&field, why));
        }
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            writes.push(Write {
                field: field.clone(),
                controller: if controller == "cgroup" { "" } else { controller }.to_owned(),
                file: file.clone(),
                value: line.to_owned(),
                otherwise: None,
                may_be_missing: false,
                keeps_first_word: false,
            });
        }
    }
    Ok(writes)
}

fn max_or(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

/// None is written as one, as by runc: systemd knows no zero, and whoever is asked about is there already, and
/// can make no other.
// spec: oci-runtime config-linux.md#pids "`0` is a valid limit value"
fn processes(limit: i64) -> String {
    if limit == 0 { "1".to_owned() } else { max_or(limit) }
}

/// An amount that is asked for; zero asks for nothing.
fn some(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

/// The four throttles with their names in both versions.
type Throttles<'a> = [(&'static str, &'static str, &'static str, &'a Option<Vec<LinuxThrottleDevice>>); 4];

fn throttles(block: &oci_spec::runtime::LinuxBlockIo) -> Throttles<'_> {
    [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps", block.throttle_read_bps_device()),
        (
            "throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            block.throttle_write_bps_device(),
        ),
        (
            "throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            block.throttle_read_iops_device(),
        ),
        (
            "throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            block.throttle_write_iops_device(),
        ),
    ]
}

#[cfg(test)]
mod tests;
