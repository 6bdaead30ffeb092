//! Which cgroup a container gets: paths from configurations and command lines. Pure.

use std::path::{Component, Path, PathBuf};

use crate::failure::Failure;

/// The cgroup of a container whose configuration names `configured`, or none.
///
/// A path is below the root of every hierarchy, whether it begins with a slash or not. `with_systemd` reads
/// `slice:prefix:name` as runc's `--systemd-cgroup` does; the scope is then a plain cgroup in the slice's
/// directory, made without asking systemd.
///
/// # Errors
/// When it names no cgroup.
// spec: oci-runtime config-linux.md#cgroups-path
pub fn container_path(configured: Option<&Path>, id: &str, with_systemd: bool) -> Result<PathBuf, Failure> {
    let configured = configured.filter(|path| !path.as_os_str().is_empty());
    let Some(path) = configured else {
        let parent = if with_systemd { slice_path("system.slice")? } else { PathBuf::from("/") };
        let name = if with_systemd { format!("rswarm-{id}.scope") } else { id.to_owned() };
        return absolute(&parent.join(name));
    };
    if !with_systemd {
        return absolute(path);
    }
    let text = path.to_str().unwrap_or_default();
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts.as_slice() else {
        return Err(Failure::invalid(format!(
            "linux.cgroupsPath: `{}` is not of the form `slice:prefix:name`",
            path.display()
        )));
    };
    let slice = slice_path(if slice.is_empty() { "system.slice" } else { slice })?;
    if name.ends_with(".slice") {
        return Ok(slice.join(name));
    }
    let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    absolute(&slice.join(unit))
}

/// The directory of a `--cgroup-parent`: a path, or a systemd slice's name, which stands for a path.
///
/// # Errors
/// When it leads elsewhere, or is no valid slice.
pub fn parent_path(parent: &str) -> Result<PathBuf, Failure> {
    if parent.ends_with(".slice") && !parent.contains('/') {
        return slice_path(parent);
    }
    if parent == "/" { Ok(PathBuf::from("/")) } else { absolute(Path::new(parent)) }
}

/// `foo-bar.slice` is `/foo.slice/foo-bar.slice`. systemd.slice(5)
fn slice_path(name: &str) -> Result<PathBuf, Failure> {
    let invalid = || Failure::invalid(format!("`{name}` is not the name of a systemd slice"));
    let stem = name.strip_suffix(".slice").ok_or_else(invalid)?;
    if stem == "-" {
        return Ok(PathBuf::from("/"));
    }
    let mut path = PathBuf::from("/");
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() || part.contains('/') {
            return Err(invalid());
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Ok(path)
}

/// The path from the root, when it stays below it and is not the root itself.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let mut absolute = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => absolute.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(not_a_cgroup(path)),
        }
    }
    if absolute == Path::new("/") { Err(not_a_cgroup(path)) } else { Ok(absolute) }
}

fn not_a_cgroup(path: &Path) -> Failure {
    Failure::invalid(format!("cgroup path `{}` does not name a cgroup", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(configured: &str, with_systemd: bool) -> Result<String, String> {
        let path = Some(Path::new(configured)).filter(|path| !path.as_os_str().is_empty());
        let made = container_path(path, "id1", with_systemd);
        made.map(|path| path.display().to_string()).map_err(|failure| failure.message)
    }

    #[test]
    fn a_path_is_below_every_root() {
        assert_eq!(container("/a/b", false).as_deref(), Ok("/a/b"));
        assert_eq!(container("a/./b", false).as_deref(), Ok("/a/b"));
        assert_eq!(container("", false).as_deref(), Ok("/id1"));
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["/", "/../x", "a/../../b", "."] {
            assert!(container(path, false).expect_err(path).contains("does not name a cgroup"));
        }
    }

    #[test]
    fn a_systemd_triple_is_a_scope_in_a_slice() {
        assert_eq!(
            container("machine-a.slice:libpod:c1", true).as_deref(),
            Ok("/machine.slice/machine-a.slice/libpod-c1.scope")
        );
        assert_eq!(container(":docker:c1", true).as_deref(), Ok("/system.slice/docker-c1.scope"));
        assert_eq!(container("", true).as_deref(), Ok("/system.slice/rswarm-id1.scope"));
        assert!(container("/plain", true).expect_err("refused").contains("slice:prefix:name"));
        assert!(container("a:b:../../c", true).is_err());
    }

    #[test]
    fn a_slice_stands_for_its_path() {
        let parent = |text| parent_path(text).map(|path| path.display().to_string()).map_err(drop);
        assert_eq!(parent("foo-bar-baz.slice").as_deref(), Ok("/foo.slice/foo-bar.slice/foo-bar-baz.slice"));
        assert_eq!(parent("-.slice").as_deref(), Ok("/"));
        assert_eq!(parent("/my/parent").as_deref(), Ok("/my/parent"));
        assert_eq!(parent("/my.slice/x").as_deref(), Ok("/my.slice/x"));
        for wrong in ["-a.slice", "a--b.slice", "a-.slice", ".slice", "../x", ""] {
            assert_eq!(parent(wrong), Err(()), "{wrong}");
        }
    }
}
