//! Finds what a playground left on the machine: processes, mounts, cgroups, interfaces, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::process::{self, Process};
use super::record::Record;

/// By what our things are known.
#[derive(Debug, Clone)]
pub struct Marks {
    /// Paths that only ours mention.
    dirs: Vec<PathBuf>,
    /// Identifiers of the daemons; kernel objects are named after them.
    daemon_ids: BTreeSet<String>,
    /// Inodes of the hosts' network namespaces.
    namespaces: Vec<u64>,
}

impl Marks {
    /// Reads the daemons' identifiers while their files are there.
    pub fn of(plan: &Plan, record: &Record) -> Marks {
        let id = |data_root: &PathBuf| fs::read_to_string(data_root.join("daemon-id")).ok();
        let ids = plan.hosts.iter().filter_map(|host| id(&host.data_root));
        let ids = ids.map(|id| id.trim().to_owned()).filter(|id| id.len() >= 8);
        Marks {
            dirs: vec![plan.dir.clone(), plan.data_dir.clone()],
            daemon_ids: ids.collect(),
            namespaces: record.namespaces.clone(),
        }
    }

    /// Processes that are daemons, shims or containers of ours.
    pub fn processes(&self) -> Vec<Process> {
        process::find(|proc| self.owns(proc))
    }

    fn owns(&self, proc: &Path) -> bool {
        let cgroups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        if self.daemon_ids.iter().any(|id| cgroups.contains(&format!("rswarm-{id}"))) {
            return true;
        }
        let namespace = fs::read_link(proc.join("ns/net")).unwrap_or_default();
        let namespace = namespace.to_string_lossy().into_owned();
        if self.namespaces.iter().any(|inode| namespace == format!("net:[{inode}]")) {
            return true;
        }
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        let is_shim = words.get(1).is_some_and(|word| *word == b"shim");
        is_shim
            && words
                .iter()
                .any(|word| self.dirs.iter().any(|dir| word.starts_with(dir.as_os_str().as_encoded_bytes())))
    }

    /// Cgroups named after our daemons, the deepest first.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for hierarchy in cgroup_hierarchies() {
            for entry in fs::read_dir(&hierarchy).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if self.daemon_ids.iter().any(|id| name.contains(id)) {
                    collect(&entry.path(), &mut found);
                }
            }
        }
        found
    }

    /// Mount points below our directories.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mount_points(&table).filter(|point| self.dirs.iter().any(|dir| point.starts_with(dir))).collect()
    }

    /// Interfaces in the machine's own network that are named after our daemons.
    fn interfaces(&self) -> Vec<String> {
        let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| self.daemon_ids.iter().any(|id| name.contains(id.as_str()))).collect()
    }

    /// Everything that is left, in words.
    pub fn all(&self) -> Vec<String> {
        let mut left = Vec::new();
        left.extend(self.processes().iter().map(|process| format!("process {}", described(*process))));
        left.extend(self.mounts().iter().map(|mount| format!("mount `{}`", mount.display())));
        left.extend(self.cgroups().iter().map(|cgroup| format!("cgroup `{}`", cgroup.display())));
        left.extend(self.interfaces().iter().map(|name| format!("interface `{name}`")));
        left.extend(
            self.dirs.iter().filter(|dir| dir.exists()).map(|dir| format!("directory `{}`", dir.display())),
        );
        left
    }
}

fn described(process: Process) -> String {
    let command = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    format!("{} ({})", process.pid, crate::units::ellipsis(command.trim(), 60))
}

/// Roots of every cgroup hierarchy that is mounted.
fn cgroup_hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_cgroup = |line: &&str| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup"));
    table.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_the_fifth_field() {
        let table = "25 1 254:0 / / rw - ext4 /dev/vda rw\n30 25 0:4 net:[40] /run/p/netns/n\\0401 rw - nsfs nsfs rw\n";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/"), PathBuf::from("/run/p/netns/n 1")]);
    }

    #[test]
    fn a_process_of_another_is_not_ours() {
        let marks = Marks { dirs: vec!["/nowhere".into()], daemon_ids: BTreeSet::new(), namespaces: vec![1] };
        assert!(!marks.owns(Path::new("/proc/self")));
        assert!(marks.processes().is_empty());
    }
}
