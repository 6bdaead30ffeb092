//! Which cgroup hierarchies this machine has, and where.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::failure::{Context, Failure};

/// Where everybody mounts them.
const USUAL: &str = "/sys/fs/cgroup";
/// `statfs` types of the two versions. linux/magic.h
const V1_MAGIC: u64 = 0x0027_e0eb;
const V2_MAGIC: u64 = 0x6367_7270;

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
    /// The controllers that version 2 has. On a hybrid machine those that version 1 does not.
    pub unified_controllers: Vec<String>,
}

/// Which version limits a resource on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Layout {
    /// What is mounted, looked up once for a process: nobody moves a machine's cgroups while it runs.
    ///
    /// # Errors
    /// When the mount table cannot be read or shows no cgroups.
    pub fn detect() -> Result<Arc<Layout>, Failure> {
        static FOUND: OnceLock<Arc<Layout>> = OnceLock::new();
        if let Some(layout) = FOUND.get() {
            return Ok(Arc::clone(layout));
        }
        let layout = Arc::new(Layout::look()?);
        Ok(Arc::clone(FOUND.get_or_init(|| layout)))
    }

    /// The usual mount points first: the kernel formats the whole mount table to let one read it, which takes
    /// longer than to make all cgroups of a container.
    pub(super) fn look() -> Result<Layout, Failure> {
        let usual = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| usual(&text));
        let mut layout = match usual {
            Some(layout) => layout,
            None => mounted()?,
        };
        if let Some(mount) = &layout.unified {
            let controllers = fs::read_to_string(mount.join("cgroup.controllers"));
            let controllers = controllers.context("read cgroup.controllers")?;
            layout.unified_controllers = controllers.split_whitespace().map(str::to_owned).collect();
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
        self.v1_index(controller).map(|index| self.v1[index].mount.as_path())
    }

    pub(super) fn v1_index(&self, controller: &str) -> Option<usize> {
        self.v1.iter().position(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// Who has the controller.
    pub(super) fn version_of(&self, controller: &str) -> Option<Version> {
        if self.v1_index(controller).is_some() {
            return Some(Version::V1);
        }
        self.unified_controllers.iter().any(|name| name == controller).then_some(Version::V2)
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

/// The layout when all that `/proc/self/cgroup` names is where it usually is; `None` to look closer.
fn usual(own_cgroups: &str) -> Option<Layout> {
    let root = Path::new(USUAL);
    if magic(root) == Some(V2_MAGIC) {
        return Some(Layout { unified: Some(root.to_owned()), ..Layout::default() });
    }
    let unified = root.join("unified");
    let mut layout = Layout::default();
    for line in own_cgroups.lines() {
        let (number, rest) = line.split_once(':')?;
        if number == "0" {
            layout.unified = Some(unified.clone()).filter(|mount| magic(mount) == Some(V2_MAGIC));
            layout.unified.as_ref()?;
            continue;
        }
        let words = rest.split_once(':')?.0;
        let hierarchy = named(words, |name| root.join(name));
        if magic(&hierarchy.mount) != Some(V1_MAGIC) {
            return None;
        }
        layout.v1.push(hierarchy);
    }
    layout.v1.sort_by(|a, b| a.name.cmp(&b.name));
    (!layout.v1.is_empty()).then_some(layout)
}

fn mounted() -> Result<Layout, Failure> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    // What is mounted over, or over whose parent something is mounted, is not there.
    let layout = parse(&table, &|point, version| {
        magic(point) == Some(if version == Version::V1 { V1_MAGIC } else { V2_MAGIC })
    });
    if layout.v1.is_empty() && layout.unified.is_none() {
        return Err(Failure::other("no cgroup file system is mounted"));
    }
    Ok(layout)
}

fn magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|found| found.f_type.cast_unsigned())
}

/// Fields as in proc_pid_mountinfo(5). Of two mounts of one hierarchy the one of its root counts; a bind
/// mount of a part of it is taken where that is all there is.
fn parse(table: &str, is_there: &dyn Fn(&Path, Version) -> bool) -> Layout {
    let mut layout = Layout::default();
    let mut lines: Vec<(&str, &str)> = table.lines().filter_map(|line| line.split_once(" - ")).collect();
    lines.sort_by_key(|(mount, _)| mount.split(' ').nth(3) != Some("/"));
    for (mount, filesystem) in lines {
        let Some(point) = mount.split(' ').nth(4).map(unescape) else { continue };
        let mut fields = filesystem.split(' ');
        let (typ, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        if typ == Some("cgroup2") && layout.unified.is_none() && is_there(&point, Version::V2) {
            layout.unified = Some(point);
        } else if typ == Some("cgroup") {
            let hierarchy = named(options, |_| point.clone());
            let known = layout.v1.iter().any(|known| known.name == hierarchy.name);
            if !known && is_there(&point, Version::V1) {
                layout.v1.push(hierarchy);
            }
        }
    }
    layout.v1.sort_by(|a, b| a.name.cmp(&b.name));
    layout
}

/// A hierarchy from its mount options, or from its words in `/proc/self/cgroup`.
fn named(words: &str, mount: impl FnOnce(&str) -> PathBuf) -> Hierarchy {
    const NOT_CONTROLLERS: &[&str] =
        &["rw", "ro", "xattr", "noprefix", "clone_children", "none", "cpuset_v2_mode", "favordynmods"];
    let words = words.split(',').filter(|word| !word.is_empty() && !NOT_CONTROLLERS.contains(word));
    let (named, controllers): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
    let given = named.iter().find_map(|word| word.strip_prefix("name="));
    let name = given.map_or_else(|| controllers.join(","), |name| (*name).to_owned());
    let mount = mount(&name);
    Hierarchy { name, controllers: controllers.into_iter().map(str::to_owned).collect(), mount }
}

/// Blanks, tabs, newlines and backslashes stand there as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        if text.contains('\\') {
            text = text.replace(escaped, plain);
        }
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(table: &str) -> Layout {
        parse(table, &|_, _| true)
    }

    #[test]
    fn a_hybrid_machine_has_both() {
        let layout = all("30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
             33 25 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
             34 25 0:30 / /proc rw - proc proc rw\n");
        let names: Vec<&str> = layout.v1.iter().map(|hierarchy| hierarchy.name.as_str()).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory", "systemd"]);
        assert_eq!(layout.v1_mount("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.v1_mount("pids"), None);
        assert_eq!(layout.unified, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert!(!layout.is_unified());
    }

    #[test]
    fn the_mount_of_the_root_counts() {
        let layout = all("30 25 0:26 /part /elsewhere rw - cgroup2 cgroup2 rw\n\
             31 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(layout.unified, Some(PathBuf::from("/sys/fs/cgroup")));
        assert!(layout.is_unified());
    }

    #[test]
    fn inside_a_container_a_part_is_all_there_is() {
        let layout = all("40 1 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
             41 1 0:27 /../../docker/abc /sys/fs/cgroup/unified ro - cgroup2 cgroup rw\n");
        assert_eq!(layout.v1_mount("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(layout.unified, Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn what_is_mounted_over_is_not_there() {
        let table = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let layout = parse(table, &|point, _| !point.ends_with("unified"));
        assert_eq!((layout.v1.len(), layout.unified), (1, None));
    }

    #[test]
    fn odd_mount_points_and_options_are_read() {
        let layout = all("30 25 0:26 / /my\\040cgroups/a\\134b rw - cgroup none rw,cpuset,noprefix\n\
             31 25 0:27 / /x rw - cgroup none rw,name=a=b,release_agent=/bin/agent\n");
        assert_eq!(layout.v1_mount("cpuset"), Some(Path::new("/my cgroups/a\\b")));
        assert_eq!(layout.v1.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["a=b", "cpuset"]);
    }

    #[test]
    fn the_quick_look_finds_what_the_mount_table_shows() {
        let Ok(long) = mounted() else { return };
        let own = fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
        if let Some(quick) = usual(&own) {
            assert_eq!(quick, long);
        }
    }
}
