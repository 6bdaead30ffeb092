//! The bundle's `config.json`: read, and asked about.

mod forgive;
mod locate;
#[cfg(test)]
mod mutation;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::Failure;

/// Reads a bundle's configuration.
///
/// # Errors
/// With the path, and where in the file the mistake is.
pub fn load(bundle: &Path) -> Result<Spec, Failure> {
    let path = bundle.join("config.json");
    let bytes =
        std::fs::read(&path).map_err(|error| Failure::os(format!("read `{}`", path.display()), error))?;
    parse(&bytes)
        .map_err(|why| Failure::invalid(format!("`{}` is not a runtime spec: {why}", path.display())))
}

/// Reads a configuration; an error begins with the path of the value that is wrong.
pub(crate) fn parse(bytes: &[u8]) -> Result<Spec, String> {
    let mut config: Spec = read(bytes, |config| config.get_mut("process").is_some_and(forgive::process))?;
    let linux = config.linux_mut().as_mut();
    if let Some(resources) = linux.and_then(|linux| linux.resources_mut().as_mut()) {
        forget_unset(resources, bytes, "/linux/resources/pids/limit");
    }
    Ok(config)
}

/// Reads resources alone, as `update --resources` gets them.
pub(crate) fn parse_resources(bytes: &[u8]) -> Result<LinuxResources, String> {
    let mut resources = read(bytes, |_| false)?;
    forget_unset(&mut resources, bytes, "/pids/limit");
    Ok(resources)
}

/// The parser reads a limit of processes that is not there as zero, which is one.
fn forget_unset(resources: &mut LinuxResources, bytes: &[u8], limit: &str) {
    if resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0)
        && serde_json::from_slice::<Value>(bytes).is_ok_and(|config| config.pointer(limit).is_none())
    {
        resources.set_pids(None);
    }
}

/// Reads a process, as `exec --process` gets it.
pub(crate) fn parse_process(bytes: &[u8]) -> Result<Process, String> {
    read(bytes, forgive::process)
}

/// What is forgiven is looked for only when there is an error.
fn read<T: DeserializeOwned>(bytes: &[u8], forgive: impl FnOnce(&mut Value) -> bool) -> Result<T, String> {
    serde_json::from_slice(bytes).or_else(|error| {
        if let Ok(mut value) = serde_json::from_slice::<Value>(bytes)
            && forgive(&mut value)
            && let Ok(read) = serde_json::from_value(value)
        {
            return Ok(read);
        }
        let words = error.to_string();
        match locate::path_at(bytes, error.line(), error.column()) {
            path if path.is_empty() => Err(words),
            path => Err(format!("`{path}`: {words}")),
        }
    })
}

/// Where the root file system is, absolute.
///
/// # Errors
/// When the configuration has none.
pub fn root_path(spec: &Spec, bundle: &Path) -> Result<PathBuf, Failure> {
    let root = spec.root().as_ref().ok_or_else(|| Failure::invalid("config.json has no root"))?;
    Ok(bundle.join(root.path()))
}

/// The configured process.
pub(crate) fn process(spec: &Spec) -> Result<&Process, Failure> {
    spec.process().as_ref().ok_or_else(|| Failure::invalid("config.json has no process"))
}

/// The Linux part.
pub(crate) fn linux(spec: &Spec) -> Result<&Linux, Failure> {
    spec.linux().as_ref().ok_or_else(|| Failure::invalid("config.json has no linux part"))
}

/// Whether the container has a namespace of this type that is not simply the caller's.
pub(crate) fn has_namespace(linux: &Linux, typ: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == typ)
}

/// Whether that is a new one.
pub(crate) fn has_new_namespace(linux: &Linux, typ: LinuxNamespaceType) -> bool {
    let is_new = |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| path.as_os_str().is_empty());
    let mut all = linux.namespaces().iter().flatten();
    all.any(|namespace| namespace.typ() == typ && is_new(namespace.path()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate;

    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        let mut config = serde_json::to_value(Spec::default()).expect("json");
        change(&mut config);
        let bytes = serde_json::to_vec(&config).expect("json");
        let checked = parse(&bytes).map_err(Failure::invalid).and_then(|spec| validate::config(&spec));
        checked.expect_err("refused").message
    }

    #[test]
    fn the_default_spec_is_valid() {
        assert_eq!(validate::config(&Spec::default()), Ok(()));
    }

    #[test]
    fn a_wrong_type_is_told_by_its_path() {
        let says = refusal(|config| config["linux"]["resources"]["memory"] = json!({"limit": "x"}));
        assert!(says.starts_with("`linux.resources.memory.limit`: invalid type"), "{says}");
        let says = refusal(|config| config["process"]["capabilities"] = json!({"bounding": ["CAP_KILL", 7]}));
        assert!(says.starts_with("`process.capabilities.bounding[1]`: "), "{says}");
    }

    #[test]
    fn a_limit_of_zero_processes_is_one_and_none_is_not() {
        let limit = |pids: &str| {
            let read = parse_resources(format!("{{\"pids\": {pids}}}").as_bytes()).expect("resources");
            read.pids().map(|pids| pids.limit())
        };
        assert_eq!([limit("{\"limit\": 0}"), limit("{}"), limit("{\"limit\": 3}")], [Some(0), None, Some(3)]);
        let mut config = serde_json::to_value(Spec::default()).expect("json");
        config["linux"]["resources"]["pids"] = json!({});
        let read = parse(config.to_string().as_bytes()).expect("config");
        let linux = read.linux().as_ref().expect("linux");
        assert_eq!(linux.resources().as_ref().expect("resources").pids(), &None);
    }

    #[test]
    fn every_wrong_value_is_told_by_its_field() {
        type Row = (&'static str, Value, &'static str);
        let deep = json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]);
        let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]);
        let twice = json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "hard": 1}]);
        let table: &[Row] = &[
            ("/ociVersion", json!("2.0.0"), "`ociVersion` `2.0.0` is not supported"),
            ("/ociVersion", json!("one"), "`ociVersion` `one` is no version"),
            ("/process/args", json!([]), "`process.args` is empty"),
            ("/process/args", json!(["a", "b\u{0}"]), "`process.args[1]` contains a zero byte"),
            ("/process/env", json!(["A=b", "C"]), "`process.env[1]` is no variable"),
            ("/process/cwd", json!("tmp"), "`process.cwd` `tmp` is not an absolute path"),
            ("/process/oomScoreAdj", json!(1001), "`process.oomScoreAdj`"),
            ("/process/rlimits", limit, "`process.rlimits[0].soft`"),
            ("/process/rlimits", twice, "`process.rlimits[1].type`"),
            ("/process/user/umask", json!(4096), "`process.user.umask`"),
            ("/process/consoleSize", json!({"height": 70000, "width": 1}), "`process.consoleSize.height`"),
            ("/process/capabilities", json!({"effective": ["CAP_KILL"]}), "`process.capabilities.effective`"),
            (
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
                "ioPriority.priority",
            ),
            ("/hostname", json!("x".repeat(65)), "`hostname`"),
            ("/hooks", json!({"poststop": [{"path": "relative"}]}), "`hooks.poststop[0].path`"),
            ("/hooks", json!({"prestart": [{"path": "/x", "timeout": 0}]}), "`hooks.prestart[0].timeout`"),
            (
                "/linux/namespaces",
                json!([{"type": "uts"}]),
                "`mounts` is given, but there is no mount namespace",
            ),
            ("/linux/namespaces", deep, "`linux.namespaces[2].type` Pid is there already"),
            ("/linux/uidMappings", json!([{"size": 1}]), "`linux.uidMappings` is given, but"),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "`linux.timeOffsets` is given, but"),
            ("/linux/netDevices", json!({"a/b": {}}), "`linux.netDevices.a/b`"),
            ("/linux/intelRdt", json!({}), "`linux.intelRdt`"),
            ("/linux/personality", json!({"domain": "LINUX", "flags": ["X"]}), "`linux.personality.flags`"),
            ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "`linux.memoryPolicy.nodes`"),
            ("/linux/resources/memory", json!({"limit": -2}), "`linux.resources.memory.limit`"),
            ("/linux/resources/cpu", json!({"cpus": "1-x"}), "`linux.resources.cpu.cpus`"),
            ("/linux/resources/pids", json!({"limit": -5}), "`linux.resources.pids.limit`"),
        ];
        for (pointer, value, expected) in table {
            let says = refusal(|config| {
                let (parent, name) = pointer.rsplit_once('/').expect("a path");
                config.pointer_mut(parent).expect("a parent")[name] = value.clone();
            });
            assert!(says.contains(expected), "{pointer}: {says}");
        }
    }
}
