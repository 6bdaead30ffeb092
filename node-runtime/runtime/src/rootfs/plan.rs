//! What init will do to the tree, checked by the parent, with what only the parent can open.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount, Root, Spec};

use super::mount::{Kind, Planned, clone_tree};
use super::root::Propagation;
use super::{idmap, options, sysctl};
use crate::failure::{Context, Failure};
use crate::spec;
use crate::sys::{self, MountAttributes};

/// The whole tree, before there is a container.
pub(crate) struct Plan<'a> {
    pub(super) spec: &'a Spec,
    pub(super) linux: &'a Linux,
    pub(super) bundle: &'a Path,
    pub(super) root_path: PathBuf,
    /// The root, where a user namespace may not be able to reach it.
    pub(super) root: Option<OwnedFd>,
    pub(super) propagation: Propagation,
    pub(super) mounts: Vec<Planned<'a>>,
    /// It has a mount namespace that is not simply the machine's.
    pub(super) mount_namespace: bool,
    pub(super) cgroup_namespace: bool,
    pub(super) host_pids: bool,
    pub(super) user_namespace: bool,
}

impl<'a> Plan<'a> {
    /// Checks a configuration, in the parent; a relative root or bind source starts at the bundle.
    pub(crate) fn of(spec: &'a Spec, bundle: &'a Path) -> Result<Plan<'a>, Failure> {
        let linux = spec::linux(spec)?;
        let has = |typ| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == typ);
        sysctl::check(spec, linux)?;
        let mut plan = Plan {
            spec,
            linux,
            bundle,
            root_path: spec::root_path(spec, bundle)?,
            root: None,
            propagation: Propagation::of(linux.rootfs_propagation().as_deref())?,
            mounts: Vec::new(),
            mount_namespace: has(LinuxNamespaceType::Mount),
            cgroup_namespace: has(LinuxNamespaceType::Cgroup),
            host_pids: !has(LinuxNamespaceType::Pid),
            user_namespace: has(LinuxNamespaceType::User),
        };
        for mount in spec.mounts().iter().flatten() {
            let planned = understand(mount).map_err(|failure| invalid(mount, &failure))?;
            plan.mounts.push(planned);
        }
        plan.open()?;
        Ok(plan)
    }

    /// Writes `linux.sysctl`; the caller is in the container's namespaces, and the machine's `/proc` there.
    pub(crate) fn write_sysctls(&self) -> Result<(), Failure> {
        sysctl::write(self.linux)
    }

    pub(super) fn label(&self) -> Option<&'a str> {
        self.linux.mount_label().as_deref().filter(|label| !label.is_empty())
    }

    pub(super) fn readonly_root(&self) -> bool {
        self.spec.root().as_ref().and_then(Root::readonly).unwrap_or(false)
    }

    /// Opens what a user namespace may not reach, and maps ids, which needs power over the file system. What
    /// init has the power for it does itself: it sees what was mounted before.
    fn open(&mut self) -> Result<(), Failure> {
        if self.user_namespace {
            let what = || format!("open root `{}`", self.root_path.display());
            self.root = Some(detached(&self.root_path, true).with_context(what)?);
        }
        let (mut known, mut covered) = (Vec::new(), Vec::new());
        for planned in &mut self.mounts {
            if let Kind::Bind(source) = planned.kind {
                let source = self.bundle.join(source);
                let is_mounted_before = covered.iter().any(|place: &PathBuf| source.starts_with(place));
                let by_init = !self.user_namespace || is_mounted_before;
                prepare(planned, self.linux, &source, by_init, &mut known)
                    .map_err(|failure| invalid(planned.mount, &failure))?;
            }
            covered.push(on_machine(&self.root_path, planned.mount.destination()));
        }
        Ok(())
    }
}

/// Opens a bind mount's source, or what init needs to map its ids; mounts with the same maps share one user
/// namespace.
fn prepare<'a>(
    planned: &mut Planned<'a>,
    linux: &'a Linux,
    source: &Path,
    by_init: bool,
    known: &mut Vec<(Maps<'a>, Rc<OwnedFd>)>,
) -> Result<(), Failure> {
    let Some(below) = planned.options.id_map else {
        if !by_init {
            planned.source = detached(source, is_recursive(planned)).ok();
        }
        return Ok(());
    };
    let maps = maps(planned.mount, linux)?;
    let namespace = match known.iter().find(|(known, _)| *known == maps) {
        Some((_, namespace)) => namespace.clone(),
        None => {
            let namespace = Rc::new(maps.namespace()?);
            known.push((maps, namespace.clone()));
            namespace
        }
    };
    if by_init {
        planned.id_namespace = Some(namespace);
    } else {
        planned.source = Some(idmap::clone_mapped(source, is_recursive(planned), below, &namespace)?);
    }
    Ok(())
}

/// Where a destination is while the root is not entered. Some callers give it so.
fn on_machine(root: &Path, destination: &Path) -> PathBuf {
    if destination.starts_with(root) {
        return destination.to_owned();
    }
    root.join(destination.strip_prefix("/").unwrap_or(destination))
}

fn invalid(mount: &Mount, failure: &Failure) -> Failure {
    Failure {
        message: format!("invalid mount at \"{}\": {failure}", mount.destination().display()),
        ..failure.clone()
    }
}

fn is_recursive(planned: &Planned<'_>) -> bool {
    planned.options.bind == Some(true)
}

/// A copy that gets the machine's mounts and gives none back, as a new mount namespace would have it.
fn detached(path: &Path, recursive: bool) -> std::io::Result<OwnedFd> {
    let tree = clone_tree(path, recursive)?;
    let slave = MountAttributes { propagation: libc::MS_SLAVE, ..MountAttributes::default() };
    sys::mount_setattr(&tree, true, slave)?;
    Ok(tree)
}

fn understand(mount: &Mount) -> Result<Planned<'_>, Failure> {
    let mut options = options::parse(mount.options().as_deref().unwrap_or_default());
    let typ = mount.typ().as_deref().unwrap_or("none");
    if maps_given(mount) {
        options.id_map = options.id_map.or(Some(false));
    }
    let is_bind = options.bind.is_some() || typ == "bind";
    if options.id_map.is_some() && (!is_bind || options.remount) {
        return Err(Failure::invalid("id-mapped mounts are only supported for bind-mounts"));
    }
    if options.copy_up && (is_bind || typ != "tmpfs") {
        return Err(Failure::invalid("tmpcopyup is an option of tmpfs only"));
    }
    if is_bind && let Some(word) = options.not_for_binds() {
        let why = "bind mounts cannot have any filesystem-specific options applied";
        return Err(Failure::invalid(format!("{why}: `{word}`")));
    }
    let kind = if options.remount {
        Kind::Remount
    } else if is_bind {
        let source = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty());
        Kind::Bind(source.ok_or_else(|| Failure::invalid("a bind mount needs a source"))?)
    } else {
        match typ {
            "cgroup" | "cgroup2" => Kind::Cgroups { version2: typ == "cgroup2" },
            typ => Kind::Filesystem(typ),
        }
    };
    Ok(Planned { mount, options, kind, source: None, id_namespace: None })
}

/// Where a mount's ids come from.
#[derive(PartialEq)]
enum Maps<'a> {
    Given(&'a [LinuxIdMapping], &'a [LinuxIdMapping]),
    /// Those of the user namespace that the container joins.
    Joined(&'a Path),
}

impl Maps<'_> {
    fn namespace(&self) -> Result<OwnedFd, Failure> {
        match self {
            Maps::Given(uids, gids) => idmap::namespace(uids, gids),
            Maps::Joined(path) => {
                let file = std::fs::File::open(path);
                Ok(file.with_context(|| format!("open namespace `{}`", path.display()))?.into())
            }
        }
    }
}

fn maps_given(mount: &Mount) -> bool {
    let given = |maps: &Option<Vec<LinuxIdMapping>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
    given(mount.uid_mappings()) || given(mount.gid_mappings())
}

/// The mount's own, or else the container's.
fn maps<'a>(mount: &'a Mount, linux: &'a Linux) -> Result<Maps<'a>, Failure> {
    let mut namespaces = linux.namespaces().iter().flatten();
    let user = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let (uids, gids) = if maps_given(mount) {
        (mount.uid_mappings(), mount.gid_mappings())
    } else if let Some(path) = user.and_then(|user| user.path().as_ref()) {
        return Ok(Maps::Joined(path));
    } else {
        (linux.uid_mappings(), linux.gid_mappings())
    };
    let (uids, gids) = (uids.as_deref().unwrap_or_default(), gids.as_deref().unwrap_or_default());
    if uids.is_empty() || gids.is_empty() {
        return Err(Failure::invalid("id-mapped mounts must have both uid and gid mappings specified"));
    }
    Ok(Maps::Given(uids, gids))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(mount: serde_json::Value) -> String {
        let mount: Mount = serde_json::from_value(mount).expect("mount");
        understand(&mount).err().map_or_else(String::new, |failure| failure.message)
    }

    #[test]
    fn what_the_kernel_would_ignore_is_refused() {
        let bind = |option: &str| json!({"destination": "/x", "source": "/y", "options": ["bind", option]});
        assert_eq!(refused(bind("ro")), "");
        let why = "bind mounts cannot have any filesystem-specific options applied: `size`";
        assert_eq!(refused(bind("size=1m")), why);
        assert_eq!(refused(bind("tmpcopyup")), "tmpcopyup is an option of tmpfs only");
        let tmpfs = json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]});
        assert_eq!(refused(tmpfs), "id-mapped mounts are only supported for bind-mounts");
        let nothing = json!({"destination": "/x", "options": ["bind"]});
        assert_eq!(refused(nothing), "a bind mount needs a source");
    }

    #[test]
    fn a_bind_is_known_by_its_option_or_its_type() {
        let kind = |typ: &str, options: &[&str]| {
            let json = json!({"destination": "/x", "source": "s", "type": typ, "options": options});
            let mount: Mount = serde_json::from_value(json).expect("mount");
            understand(&mount).map(|planned| match planned.kind {
                Kind::Bind(_) => "bind",
                Kind::Remount => "remount",
                Kind::Cgroups { .. } => "cgroups",
                Kind::Filesystem(_) => "filesystem",
            })
        };
        assert_eq!(kind("none", &["rbind"]), Ok("bind"));
        assert_eq!(kind("bind", &[]), Ok("bind"));
        assert_eq!(kind("tmpfs", &["bind"]), Ok("bind"));
        assert_eq!(kind("tmpfs", &["ro"]), Ok("filesystem"));
        assert_eq!(kind("bind", &["bind", "remount", "ro"]), Ok("remount"));
        assert_eq!(kind("cgroup2", &[]), Ok("cgroups"));
    }

    #[test]
    fn half_a_map_is_refused() {
        let json = json!({
            "destination": "/x", "source": "/y", "options": ["bind"],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
        });
        let mount: Mount = serde_json::from_value(json).expect("mount");
        assert_eq!(understand(&mount).expect("mount").options.id_map, Some(false));
        let failure = maps(&mount, &Linux::default()).err().expect("refused");
        assert!(failure.message.contains("both uid and gid mappings"), "{failure}");
    }
}
