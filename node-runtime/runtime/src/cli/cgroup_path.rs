//! Where a container's cgroup is: `linux.cgroupsPath` in both of its forms. Pure.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The path below each hierarchy's root.
pub(super) fn resolve(configured: Option<&Path>, id: &str, systemd: bool) -> Result<PathBuf, Failure> {
    let configured = configured.filter(|path| !path.as_os_str().is_empty());
    if systemd {
        return in_slice(configured, id);
    }
    // spec: oci-runtime config-linux.md#cgroups-path: without one it is the runtime's choice.
    Ok(configured.map_or_else(|| Path::new("/").join(id), Path::to_owned))
}

/// `slice:prefix:name` is the scope `prefix-name.scope` in a slice, at the place where systemd would make it.
/// systemd is not told: nobody asks it for the container's resources or its end.
fn in_slice(configured: Option<&Path>, id: &str) -> Result<PathBuf, Failure> {
    let text = match configured {
        None => format!("system.slice:rswarm:{id}"),
        Some(path) => path.to_str().unwrap_or_default().to_owned(),
    };
    let wrong = || {
        Failure::invalid(format!(
            "expected cgroupsPath to be of format \"slice:prefix:name\", got {text:?} instead"
        ))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts.as_slice() else { return Err(wrong()) };
    if text.contains('/') || name.is_empty() {
        return Err(wrong());
    }
    let slice = expand(if slice.is_empty() { "system.slice" } else { slice }).ok_or_else(wrong)?;
    // A name that is a slice itself is taken as it is.
    let unit = if name.ends_with(".slice") {
        (*name).to_owned()
    } else if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    };
    Ok(slice.join(unit))
}

/// `a-b.slice` is `/a.slice/a-b.slice`; `-.slice` is the root.
// systemd.slice(5)
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Some(path);
    }
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        path.push(format!("{so_far}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str, systemd: bool) -> Result<String, Failure> {
        let configured = (!text.is_empty()).then_some(Path::new(text));
        resolve(configured, "id", systemd).map(|path| path.display().to_string())
    }

    #[test]
    fn a_plain_path_stays_and_none_is_the_id() {
        assert_eq!(path("/a/b", false).as_deref(), Ok("/a/b"));
        assert_eq!(path("", false).as_deref(), Ok("/id"));
    }

    #[test]
    fn systemds_form_becomes_the_path_that_systemd_would_use() {
        for (text, wanted) in [
            ("", "/system.slice/rswarm-id.scope"),
            ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
            (":docker:abc", "/system.slice/docker-abc.scope"),
            ("user-1000-x.slice:p:n", "/user.slice/user-1000.slice/user-1000-x.slice/p-n.scope"),
            ("-.slice:p:n", "/p-n.scope"),
            ("a.slice::b.slice", "/a.slice/b.slice"),
            ("a.slice::b", "/a.slice/b.scope"),
        ] {
            assert_eq!(path(text, true).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_has_another_form_is_refused() {
        for text in
            ["/a/b", "a.slice:b", "a.slice:b:c:d", "a:b:c", "a--b.slice:c:d", "a.slice:b:../c", "a.slice:b:"]
        {
            let failure = path(text, true).expect_err(text);
            assert!(failure.message.contains("slice:prefix:name"), "{failure}");
        }
    }
}
