//! Labels of the security modules: what the command will run as. They take hold at exec.
//!
//! A label that is given and that this kernel cannot apply is an error ([`check`], before anything is made),
//! never silence.

use oci_spec::runtime::Process;
use rustix::fs::OFlags;

use crate::failure::{Context, Failure};
use crate::procfs::Proc;

/// Refuses labels of modules that this kernel runs without.
pub(crate) fn check(process: &Process) -> Result<(), Failure> {
    if given(process.apparmor_profile().as_deref()).is_some() && !apparmor_is_enabled() {
        return Err(without("process.apparmorProfile", "AppArmor"));
    }
    if given(process.selinux_label().as_deref()).is_some() && !selinux_is_enabled() {
        return Err(without("process.selinuxLabel", "SELinux"));
    }
    Ok(())
}

/// Labels what the caller executes next.
pub(crate) fn label_command(proc: &Proc, process: &Process) -> Result<(), Failure> {
    if let Some(profile) = given(process.apparmor_profile().as_deref()) {
        apparmor(proc, profile)?;
    }
    if let Some(label) = given(process.selinux_label().as_deref()) {
        selinux(proc, "exec", label)?;
    }
    Ok(())
}

/// Keyrings that the caller makes from here on have the label.
pub(crate) fn label_keys(proc: &Proc, process: &Process) -> Result<(), Failure> {
    match given(process.selinux_label().as_deref()) {
        Some(label) => selinux(proc, "keycreate", label),
        None => Ok(()),
    }
}

/// Empty is not given, as with runc.
pub(crate) fn given(label: Option<&str>) -> Option<&str> {
    label.filter(|label| !label.is_empty())
}

/// The module's own directory first: in the common one, the first module that was loaded answers.
fn apparmor(proc: &Proc, profile: &str) -> Result<(), Failure> {
    let open = |path| proc.file(path, OFlags::WRONLY);
    let file = open("thread-self/attr/apparmor/exec").or_else(|_| open("thread-self/attr/exec"));
    file.and_then(|file| Ok(rustix::io::write(file, format!("exec {profile}").as_bytes())?))
        .with_context(|| format!("apply `process.apparmorProfile` `{profile}`"))?;
    Ok(())
}

fn selinux(proc: &Proc, attribute: &str, label: &str) -> Result<(), Failure> {
    proc.write(&format!("thread-self/attr/{attribute}"), label.as_bytes())
        .with_context(|| format!("apply `process.selinuxLabel` `{label}` to {attribute}"))
}

pub(crate) fn without(field: &str, module: &str) -> Failure {
    Failure::invalid(format!("`{field}` is given, and this kernel runs without {module}"))
}

/// Whether the kernel runs with it, as it says itself.
pub(crate) fn apparmor_is_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
}

/// Whether the kernel runs with a policy: exactly then selinuxfs is mounted.
pub(crate) fn selinux_is_enabled() -> bool {
    const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
    ["/sys/fs/selinux", "/selinux"]
        .iter()
        .any(|path| rustix::fs::statfs(*path).is_ok_and(|fs| fs.f_type == SELINUX_MAGIC))
}
