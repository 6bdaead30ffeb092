//! The bundle's `config.json`, and what of it this runtime does not do: an error, never silence.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use crate::failure::Failure;

/// Reads a bundle's configuration.
///
/// # Errors
/// With the path, and where in the file the mistake is.
pub fn load(bundle: &Path) -> Result<Spec, Failure> {
    let path = bundle.join("config.json");
    let bytes =
        std::fs::read(&path).map_err(|error| Failure::os(format!("read `{}`", path.display()), error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::invalid(format!("`{}` is not a runtime spec: {error}", path.display())))
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

/// Whether the container has a namespace of its own of this type.
pub(crate) fn has_new_namespace(linux: &Linux, typ: LinuxNamespaceType) -> bool {
    let all = linux.namespaces().iter().flatten();
    all.into_iter().any(|namespace| namespace.typ() == typ && namespace.path().is_none())
}

/// Refuses by name what would otherwise be left out.
pub(crate) fn check(spec: &Spec) -> Result<(), Failure> {
    let process = process(spec)?;
    let linux = linux(spec)?;
    let unsupported = linux_gaps(linux);
    let mut names: Vec<&str> = unsupported.collect();
    if spec.hooks().as_ref().is_some_and(|hooks| {
        [hooks.prestart(), hooks.create_runtime(), hooks.create_container(), hooks.start_container()]
            .iter()
            .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
    }) {
        names.push("hooks");
    }
    if !names.is_empty() {
        return Err(Failure::invalid(format!("not supported by this runtime: {}", names.join(", "))));
    }
    if !has_new_namespace(linux, LinuxNamespaceType::Mount) {
        return Err(Failure::invalid("a container needs a mount namespace of its own"));
    }
    check_process(process)
}

/// The same for a process that is to be added to a container.
pub(crate) fn check_process(process: &Process) -> Result<(), Failure> {
    let names: Vec<&str> = process_gaps(process).collect();
    if !names.is_empty() {
        return Err(Failure::invalid(format!("not supported by this runtime: {}", names.join(", "))));
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Failure::invalid("process.args is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Failure::invalid(format!("cwd `{}` is not an absolute path", process.cwd().display())));
    }
    Ok(())
}

fn process_gaps(process: &Process) -> impl Iterator<Item = &'static str> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    gaps([
        (given(process.apparmor_profile()), "process.apparmorProfile"),
        (given(process.selinux_label()), "process.selinuxLabel"),
        (process.io_priority().is_some(), "process.ioPriority"),
        (process.scheduler().is_some(), "process.scheduler"),
        (process.exec_cpu_affinity().is_some(), "process.execCPUAffinity"),
    ])
}

fn linux_gaps(linux: &Linux) -> impl Iterator<Item = &'static str> {
    let has = |typ| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == typ);
    gaps([
        (has(LinuxNamespaceType::User), "user namespaces"),
        (has(LinuxNamespaceType::Time), "time namespaces"),
        (linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()), "linux.netDevices"),
        (linux.intel_rdt().is_some(), "linux.intelRdt"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy"),
        (linux.personality().is_some(), "linux.personality"),
    ])
}

fn gaps<const N: usize>(all: [(bool, &'static str); N]) -> impl Iterator<Item = &'static str> {
    all.into_iter().filter_map(|(missing, name)| missing.then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let mut json = serde_json::to_value(Spec::default()).expect("json");
        change(&mut json);
        serde_json::from_value(json).expect("spec")
    }

    #[test]
    fn the_default_spec_is_supported() {
        assert_eq!(check(&spec(|_| ())), Ok(()));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let asked = spec(|json| {
            json["linux"]["memoryPolicy"] = serde_json::json!({"mode": "MPOL_BIND", "nodes": "0"});
        });
        let failure = check(&asked).expect_err("refused");
        assert!(failure.message.contains("linux.memoryPolicy"), "{failure}");
    }

    #[test]
    fn a_relative_working_directory_is_refused() {
        let failure = check(&spec(|json| json["process"]["cwd"] = "tmp".into())).expect_err("refused");
        assert!(failure.message.contains("`tmp` is not an absolute path"));
    }
}
