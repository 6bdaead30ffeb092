//! A new user namespace's maps: which of the machine's users and groups the container's are.

use std::fmt::Write;

use oci_spec::runtime::{Linux, LinuxIdMapping};

use crate::failure::{Context, Failure};
use crate::procfs::Proc;

/// The kernel's limit on entries of a map.
const ENTRIES_MAX: usize = 340;

/// Both maps, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Maps {
    uid: Vec<LinuxIdMapping>,
    gid: Vec<LinuxIdMapping>,
}

impl Maps {
    /// The configuration's.
    // spec: oci-runtime config-linux.md#user-namespace-mappings
    pub(crate) fn of(linux: &Linux) -> Result<Maps, Failure> {
        Ok(Maps {
            uid: checked(linux.uid_mappings().as_deref(), "linux.uidMappings")?,
            gid: checked(linux.gid_mappings().as_deref(), "linux.gidMappings")?,
        })
    }

    /// The machine's user and group that are root in the namespace.
    pub(crate) fn root(&self) -> (u32, u32) {
        let of = |map: &[LinuxIdMapping]| on_host(map, 0).expect("root was checked to be mapped");
        (of(&self.uid), of(&self.gid))
    }

    /// Writes them for a process in the namespace. Somebody who may not set groups at all may map a group
    /// only after the namespace has given that up too: false then.
    // user_namespaces(7)
    pub(crate) fn write(&self, proc: &Proc, pid: i32) -> Result<bool, Failure> {
        let may_set_groups = rustix::process::geteuid().is_root();
        if !may_set_groups {
            proc.write(&format!("{pid}/setgroups"), b"deny").context("write setgroups")?;
        }
        for (file, map) in [("uid_map", &self.uid), ("gid_map", &self.gid)] {
            proc.write(&format!("{pid}/{file}"), text(map).as_bytes())
                .with_context(|| format!("write {file} `{}`", text(map).trim().replace('\n', ", ")))?;
        }
        Ok(may_set_groups)
    }
}

/// Refuses maps that are not those of the existing user namespace that a process is in: callers may give both, as
/// podman does for containers that share one.
pub(crate) fn check_joined(linux: &Linux, proc: &Proc, pid: i32) -> Result<(), Failure> {
    let maps = [
        ("linux.uidMappings", linux.uid_mappings(), "uid_map"),
        ("linux.gidMappings", linux.gid_mappings(), "gid_map"),
    ];
    for (field, map, file) in maps {
        let map = map.as_deref().unwrap_or_default();
        let there = proc.read(&format!("{pid}/{file}")).context("look at the user namespace")?;
        if !map.is_empty() && entries(&text(map)) != entries(&there) {
            return Err(Failure::invalid(format!(
                "`{field}` is not that of the user namespace that is joined, which has its own"
            )));
        }
    }
    Ok(())
}

/// A map's text without regard to the order of its entries and the width of its columns.
fn entries(text: &str) -> Vec<Vec<&str>> {
    let mut entries: Vec<_> = text.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    entries.sort_unstable();
    entries
}

fn checked(map: Option<&[LinuxIdMapping]>, field: &str) -> Result<Vec<LinuxIdMapping>, Failure> {
    let wrong = |why: &str| Err(Failure::invalid(format!("`{field}` {why}")));
    let map = map.unwrap_or_default();
    if map.is_empty() {
        return wrong("is empty: a new user namespace needs maps");
    }
    if map.len() > ENTRIES_MAX || text(map).len() >= 4096 {
        return wrong("has more entries than the kernel takes");
    }
    for (index, entry) in map.iter().enumerate() {
        let ends = |first: u32| first.checked_add(entry.size());
        if entry.size() == 0 {
            return Err(Failure::invalid(format!("`{field}[{index}].size` is zero")));
        }
        if ends(entry.container_id()).is_none() || ends(entry.host_id()).is_none() {
            return Err(Failure::invalid(format!("`{field}[{index}]` ends beyond the highest number")));
        }
    }
    if on_host(map, 0).is_none() {
        return wrong("does not map 0: a container needs a root");
    }
    Ok(map.to_vec())
}

fn on_host(map: &[LinuxIdMapping], inside: u32) -> Option<u32> {
    map.iter().find_map(|entry| {
        let offset = inside.checked_sub(entry.container_id())?;
        (offset < entry.size()).then(|| entry.host_id() + offset)
    })
}

fn text(map: &[LinuxIdMapping]) -> String {
    let mut text = String::new();
    for entry in map {
        let _ = writeln!(text, "{} {} {}", entry.container_id(), entry.host_id(), entry.size());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn maps(uid: Value) -> Result<Maps, String> {
        let gid = json!([{"containerID": 0, "hostID": 7, "size": 1}]);
        let linux = json!({"uidMappings": uid, "gidMappings": gid});
        Maps::of(&serde_json::from_value(linux).expect("linux")).map_err(|failure| failure.message)
    }

    #[test]
    fn root_is_somebody_on_the_machine() {
        let found = maps(json!([
            {"containerID": 5, "hostID": 1, "size": 2}, {"containerID": 0, "hostID": 1000, "size": 5}
        ]));
        let found = found.expect("maps");
        assert_eq!(found.root(), (1000, 7));
        assert_eq!(text(&found.uid), "5 1 2\n0 1000 5\n");
        assert_eq!(on_host(&found.uid, 6), Some(2));
        assert_eq!(on_host(&found.uid, 7), None);
    }

    #[test]
    fn a_map_is_the_same_in_any_order_and_width() {
        assert_eq!(entries("5 1 2\n0 1000 5\n"), entries("         0       1000          5\n   5  1  2\n"));
        assert_ne!(entries("0 1000 5\n"), entries("0 1000 6\n"));
    }

    #[test]
    fn mistakes_are_named() {
        let says = |uid| maps(uid).expect_err("refused");
        assert!(says(json!([])).contains("`linux.uidMappings` is empty"));
        let zero = json!([{"containerID": 0, "hostID": 1, "size": 0}]);
        assert!(says(zero).contains("`linux.uidMappings[0].size` is zero"));
        let long = json!([{"containerID": 0, "hostID": 2, "size": 4_294_967_295_u32}]);
        assert!(says(long).contains("`linux.uidMappings[0]` ends beyond"));
        assert!(says(json!([{"containerID": 1, "hostID": 1, "size": 1}])).contains("does not map 0"));
    }
}
