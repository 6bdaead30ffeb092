//! Bind propagation: a source must hang together with the machine's mounts as its mode asks, and the container's
//! root must let it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rswarm_base::{Classify, Kind};

use super::{MountKind, MountPoint};

/// Why a mount cannot have the propagation that it asks for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PropagationError {
    /// Its source is on a mount that does not propagate.
    #[error("path {path} is mounted on {} but it is not a {wanted} mount", place.display())]
    Unrelated { path: String, place: PathBuf, wanted: &'static str },
    /// The source or the machine's mounts cannot be looked at.
    #[error("look at the mount of `{path}`")]
    Look {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl Classify for PropagationError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

/// What `linux.rootfsPropagation` has to be for these mounts; `None` where the runtime's own will do.
///
/// # Errors
/// A source that is on no such mount, in moby's words.
// moby: daemon/oci_linux.go, withMounts
pub(crate) fn of_root(
    mounts: &[MountPoint],
    own_files: &Path,
) -> Result<Option<&'static str>, PropagationError> {
    let asks = |mount: &&MountPoint| {
        mount.kind == MountKind::Bind && !mount.propagation.trim_start_matches('r').starts_with("private")
    };
    let asking: Vec<&MountPoint> = mounts.iter().filter(asks).collect();
    let mut root = None;
    for mount in asking {
        let look = |source| PropagationError::Look { path: mount.source.clone(), source };
        let source = fs::canonicalize(&mount.source).map_err(look)?;
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(look)?;
        let (place, how) = mount_of(&table, &source);
        let wrong = |wanted| Err(PropagationError::Unrelated { path: mount.source.clone(), place, wanted });
        if mount.propagation.ends_with("shared") {
            if !how.shared {
                return wrong("shared");
            }
            root = Some("shared");
        } else if !how.shared && !how.slave && !source.starts_with(own_files) {
            return wrong("shared or slave");
        }
    }
    Ok(root)
}

/// How a mount hangs together with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Relations {
    shared: bool,
    slave: bool,
}

/// The mount that a path is on, of a table as in proc_pid_mountinfo(5). Of several at one place the last counts.
fn mount_of(table: &str, path: &Path) -> (PathBuf, Relations) {
    let mut found = (PathBuf::from("/"), Relations { shared: false, slave: false });
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(place) = fields.get(4) else { continue };
        let place = PathBuf::from(place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"));
        if path.starts_with(&place) && place.starts_with(&found.0) {
            let has = |tag: &str| fields[6..].iter().take_while(|f| **f != "-").any(|f| f.starts_with(tag));
            found = (place, Relations { shared: has("shared:"), slave: has("master:") });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "20 1 8:1 / / rw,relatime - ext4 /dev/sda rw\n\
                         21 20 0:5 / /data rw shared:7 - tmpfs tmpfs rw\n\
                         22 21 0:6 / /data/sla\\040ve rw master:7 - tmpfs tmpfs rw\n\
                         23 20 0:7 / /database rw shared:8 master:2 - tmpfs tmpfs rw\n";

    #[test]
    fn a_path_is_on_the_nearest_mount() {
        let of = |path: &str| {
            let (place, how) = mount_of(TABLE, Path::new(path));
            (place.display().to_string(), how.shared, how.slave)
        };
        assert_eq!(of("/etc"), ("/".to_owned(), false, false));
        assert_eq!(of("/data/x"), ("/data".to_owned(), true, false));
        assert_eq!(of("/data/sla ve/x"), ("/data/sla ve".to_owned(), false, true));
        assert_eq!(of("/database"), ("/database".to_owned(), true, true));
        assert_eq!(of("/databases"), ("/".to_owned(), false, false));
    }
}
