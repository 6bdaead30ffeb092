//! Which cgroup hierarchies this machine has, from `/proc/self/mountinfo`.

use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};

/// A hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The directory's name as people know it: `memory`, `cpu,cpuacct`, `systemd`.
    pub name: String,
    /// Its controllers; none for a named one.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// All hierarchies: version 1, version 2, or both (hybrid).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Hierarchies of version 1.
    pub v1: Vec<Hierarchy>,
    /// Where version 2 is mounted.
    pub unified: Option<PathBuf>,
}

impl Layout {
    /// Reads what is mounted now.
    ///
    /// # Errors
    /// When the mount table cannot be read or shows no cgroups.
    pub fn detect() -> Result<Layout, Failure> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let layout = parse(&table);
        if layout.v1.is_empty() && layout.unified.is_none() {
            return Err(Failure::other("no cgroup file system is mounted"));
        }
        Ok(layout)
    }

    /// Whether version 2 is all there is.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// The mount point of the version 1 hierarchy with this controller.
    #[must_use]
    pub fn v1_mount(&self, controller: &str) -> Option<&Path> {
        let found = self.v1.iter().find(|h| h.controllers.iter().any(|name| name == controller));
        found.map(|hierarchy| hierarchy.mount.as_path())
    }

    /// Whether memory limits can include swap.
    #[must_use]
    pub fn limits_swap(&self) -> bool {
        match self.v1_mount("memory") {
            Some(mount) => mount.join("memory.memsw.limit_in_bytes").exists(),
            None => Path::new("/proc/swaps").exists(),
        }
    }
}

/// Fields as in proc_pid_mountinfo(5). Of two mounts of one hierarchy the one of its root counts.
fn parse(table: &str) -> Layout {
    let mut layout = Layout::default();
    let mut lines: Vec<(&str, &str)> = table.lines().filter_map(|line| line.split_once(" - ")).collect();
    lines.sort_by_key(|(mount, _)| mount.split(' ').nth(3) != Some("/"));
    for (mount, filesystem) in lines {
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let mut fields = filesystem.split(' ');
        let (typ, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        if typ == Some("cgroup2") && layout.unified.is_none() {
            layout.unified = Some(PathBuf::from(point));
        } else if typ == Some("cgroup") {
            let hierarchy = hierarchy(point, options);
            if layout.v1.iter().all(|known| known.name != hierarchy.name) {
                layout.v1.push(hierarchy);
            }
        }
    }
    layout.v1.sort_by(|a, b| a.name.cmp(&b.name));
    layout
}

fn hierarchy(point: &str, options: &str) -> Hierarchy {
    const NOT_CONTROLLERS: &[&str] = &["rw", "ro", "xattr", "noprefix", "clone_children", "none"];
    let words = options.split(',').filter(|word| !NOT_CONTROLLERS.contains(word));
    let (named, controllers): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
    let given = named.iter().find_map(|word| word.strip_prefix("name="));
    let name = given.map_or_else(|| controllers.join(","), str::to_owned);
    Hierarchy {
        name,
        controllers: controllers.into_iter().map(str::to_owned).collect(),
        mount: PathBuf::from(point),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_both() {
        let layout = parse(
            "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
             33 25 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
             34 25 0:30 / /proc rw - proc proc rw\n",
        );
        let names: Vec<&str> = layout.v1.iter().map(|hierarchy| hierarchy.name.as_str()).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory", "systemd"]);
        assert_eq!(layout.v1_mount("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.v1_mount("pids"), None);
        assert_eq!(layout.unified, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert!(!layout.is_unified());
    }

    #[test]
    fn the_mount_of_the_root_counts() {
        let layout = parse(
            "30 25 0:26 /part /elsewhere rw - cgroup2 cgroup2 rw\n\
             31 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(layout.unified, Some(PathBuf::from("/sys/fs/cgroup")));
        assert!(layout.is_unified());
    }
}
