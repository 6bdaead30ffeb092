//! Makes a container: checks what is asked for, fills it up from the image, and makes it durable. Nothing of a
//! container that could not be created stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rswarm_base::{Chain, IdGen, Timestamp};
use rswarm_image::Layers;
use rswarm_proto::model::container::{Mount, mount};
use rswarm_runtime::cgroup::parent_path;

use crate::blocking::blocking;
use crate::config::{ContainerConfig, RestartName};
use crate::container::actor::Actor;
use crate::container::ports;
use crate::container::record::Record;
use crate::container::wiring::{self, Mode};
use crate::container::{Container, Endpoint, Link, MountKind, MountPoint, Recursion, State, launch, logfile};
use crate::engine::Created;
use crate::error::{Cause, CreateError, FileError, NameError};
use crate::files::{self, ResolvConf};
use crate::merge::{self, clean_path};
use crate::network::{is_bare, is_default};
use crate::registry::Reservation;
use crate::shared::Shared;
use crate::spec::{self, Security, VolumeSource};
use crate::volume::{self, VolumeCreate};
use crate::{links, names, signal};

/// [`crate::Engine::create`].
pub(crate) async fn create(
    shared: &Arc<Shared>,
    name: Option<&str>,
    mut config: ContainerConfig,
) -> Result<Created, CreateError> {
    let name = name.map(names::parse).transpose()?;
    let image = shared.images.get(&config.spec.image).map_err(Cause::new)?;
    let id = rswarm_base::id::engine_id();
    let reservation = reserve(shared, name, &id)?;
    let exposed = merge::with_image(&mut config, &image.config);
    complete(&mut config, shared);
    let command = merge::command(&config.spec);
    let Some((path, args)) = command.split_first() else {
        return Err(CreateError::Invalid("no command specified".to_owned()));
    };
    check(shared, &config)?;
    let inherited = inherited(shared, &config)?;
    // What another container has there is better than a new, empty volume.
    config.spec.mounts.retain(|mount| {
        let target = clean_path(&mount.target);
        !is_anonymous(mount) || inherited.iter().all(|point| point.destination != target)
    });
    let mut warnings = warnings(&config);
    warnings.extend(spec::discard_unsupported(&mut config.resources, &shared.host.support));
    let mut endpoints = wiring::endpoints(shared, &id, &reservation.name, &config)?;
    let links = links(shared, &config, &mut endpoints)?;
    let container = Container {
        dir: shared.containers_dir().join(&id),
        name: reservation.name.clone(),
        created: Timestamp::now(),
        image_id: image.id.to_string(),
        path: path.clone(),
        args: args.to_vec(),
        config: Arc::new(config),
        state: State::default(),
        restart_count: 0,
        mounts: Arc::default(),
        endpoints: Arc::new(endpoints),
        exposed: Arc::new(exposed),
        links: Arc::new(links),
        log_path: None,
        exits: 0,
        last_exit_code: 0,
        removed: false,
        id,
    };
    let id = container.id.clone();
    let record = make(shared, container, inherited).await?;
    reservation.keep();
    let (actor, handle) = Actor::new(shared.clone(), record);
    shared.event(&handle.container(), "create", &[]);
    shared.registry.insert(handle);
    shared.scope.spawn(actor.run());
    Ok(Created { id, warnings })
}

/// The links on the default bridge. What was asked for without a network holds there, or on the network that is the
/// container's first: clients say it either way.
fn links(
    shared: &Shared,
    config: &ContainerConfig,
    endpoints: &mut [Endpoint],
) -> Result<Vec<Link>, CreateError> {
    let mut asked = config.links.clone();
    let is_users = |name: &str| !is_default(name) && !is_bare(name);
    if let Some(first) = endpoints.first_mut().filter(|first| is_users(&first.network_name)) {
        let known = &mut first.config.links;
        asked.retain(|link| !known.contains(link));
        known.append(&mut asked);
    }
    for endpoint in endpoints.iter().filter(|endpoint| is_default(&endpoint.network_name)) {
        asked.extend(endpoint.config.links.iter().cloned());
    }
    links::resolve(&shared.registry, &asked)
}

fn reserve(shared: &Shared, name: Option<String>, id: &str) -> Result<Reservation, NameError> {
    if let Some(name) = name {
        return shared.registry.reserve(&name, id);
    }
    let mut last = None;
    for name in names::candidates(&mut IdGen::from_system(), id) {
        match shared.registry.reserve(&name, id) {
            Ok(reservation) => return Ok(reservation),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| NameError::Invalid(String::new())))
}

/// Fills in what follows from the rest.
fn complete(config: &mut ContainerConfig, shared: &Shared) {
    if config.spec.cgroupns_mode.is_empty() {
        // moby: private where cgroups are version 2, the host's where they are not; there privileged ones have it
        // whatever the daemon's default is.
        let private = match shared.config.cgroupns_mode.as_str() {
            _ if config.spec.privileged && !shared.host.cgroup_v2 => false,
            "" => shared.host.cgroup_v2,
            mode => mode == "private",
        };
        config.spec.cgroupns_mode = if private { "private" } else { "host" }.to_owned();
    }
    if config.spec.ipc_mode.is_empty() {
        config.spec.ipc_mode.clone_from(&shared.config.ipc_mode);
    }
    if config.spec.shm_size == 0 {
        config.spec.shm_size = shared.config.shm_size;
    }
    logfile::complete(&mut config.log, &shared.config.log);
    if Mode::of(&config.network_mode) == Mode::Host && config.spec.hostname.is_empty() {
        let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        config.spec.hostname = name.unwrap_or_default();
    }
    if let Some(task) = &config.task {
        let labels = [
            ("com.docker.swarm.node.id", &task.node_id),
            ("com.docker.swarm.service.id", &task.service_id),
            ("com.docker.swarm.service.name", &task.service_name),
            ("com.docker.swarm.task.id", &task.task_id),
            ("com.docker.swarm.task.name", &task.task_name),
        ];
        config.spec.labels.insert("com.docker.swarm.task".to_owned(), String::new());
        config.spec.labels.extend(labels.map(|(key, value)| (key.to_owned(), value.clone())));
    }
}

fn warnings(config: &ContainerConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if Mode::of(&config.network_mode) == Mode::Host && (!config.ports.is_empty() || config.publish_all) {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    warnings
}

/// Everything that can be known to be wrong before the start.
fn check(shared: &Shared, config: &ContainerConfig) -> Result<(), CreateError> {
    let spec = &config.spec;
    check_policy(config)?;
    check_modes(config)?;
    links::check(config).map_err(CreateError::Invalid)?;
    check_mounts(&spec.mounts)?;
    check_binds_of_root(&spec.mounts, &shared.config.data_root)?;
    spec::check(spec, &shared.host).map_err(CreateError::Invalid)?;
    spec::check_resources(&config.resources, &shared.host).map_err(CreateError::Invalid)?;
    Security::parse(spec, Security::of_daemon(&shared.config)).map_err(CreateError::Invalid)?;
    files::check_hosts(spec).map_err(CreateError::Invalid)?;
    ResolvConf::for_container(spec, &shared.config.dns, &ResolvConf::default())
        .map_err(CreateError::Invalid)?;
    ports::check_ports(config).map_err(CreateError::Invalid)?;
    logfile::parse(&config.log, Path::new("")).map_err(CreateError::Invalid)?;
    if !config.cgroup_parent.is_empty() {
        parent_path(&config.cgroup_parent)
            .map_err(|error| CreateError::Invalid(format!("invalid cgroup parent: {error}")))?;
    }
    launch::runtime(&shared.config, &spec.runtime).map_err(CreateError::Invalid)?;
    launch::check_init(shared, spec).map_err(CreateError::Invalid)?;
    if !spec.stop_signal.is_empty() && signal::parse(&spec.stop_signal).is_none() {
        return Err(CreateError::Invalid(format!("invalid signal: {}", spec.stop_signal)));
    }
    if !spec.workdir.is_empty() && !spec.workdir.starts_with('/') {
        return Err(CreateError::Invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            spec.workdir
        )));
    }
    Ok(())
}

fn check_policy(config: &ContainerConfig) -> Result<(), CreateError> {
    if config.auto_remove && config.restart.name != RestartName::No {
        return Err(CreateError::Invalid(
            "can't create 'AutoRemove' container with restart policy".to_owned(),
        ));
    }
    if config.restart.max > 0 && config.restart.name != RestartName::OnFailure {
        return Err(CreateError::Invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned(),
        ));
    }
    Ok(())
}

/// Modes that exclude each other, and those that there are not.
fn check_modes(config: &ContainerConfig) -> Result<(), CreateError> {
    let spec = &config.spec;
    let conflict = |what: &str| Err(CreateError::Invalid(format!("conflicting options: {what}")));
    let invalid = |what: &str, mode: &str| Err(CreateError::Invalid(format!("invalid {what} mode: {mode}")));
    if matches!(Mode::of(&config.network_mode), Mode::Container(_)) {
        match () {
            () if !spec.hostname.is_empty() => return conflict("hostname and the network mode"),
            () if !config.ports.is_empty() || config.publish_all => {
                return conflict("port publishing and the container type network mode");
            }
            () if !spec.dns.is_empty() => return conflict("dns and the network mode"),
            () if !spec.hosts.is_empty() => {
                return conflict("custom host-to-IP mapping and the network mode");
            }
            () => {}
        }
    }
    if spec.uts_mode == "host" && !spec.hostname.is_empty() && Mode::of(&config.network_mode) != Mode::Host {
        return conflict("hostname and the UTS mode");
    }
    match spec.ipc_mode.as_str() {
        "" | "private" | "shareable" | "host" | "none" => {}
        mode if mode.strip_prefix("container:").is_some_and(|name| !name.is_empty()) => {}
        mode => return invalid("IPC", mode),
    }
    if !matches!(spec.pid_mode.as_str(), "" | "private" | "host") && !spec.pid_mode.starts_with("container:")
    {
        return invalid("PID", &spec.pid_mode);
    }
    if !matches!(spec.uts_mode.as_str(), "" | "private" | "host") {
        return invalid("UTS", &spec.uts_mode);
    }
    if !matches!(spec.cgroupns_mode.as_str(), "" | "private" | "host") {
        return invalid("cgroup namespace", &spec.cgroupns_mode);
    }
    // There are no user namespaces to opt out of.
    if !matches!(spec.userns_mode.as_str(), "" | "host") {
        return invalid("USER", &spec.userns_mode);
    }
    Ok(())
}

fn check_mounts(mounts: &[Mount]) -> Result<(), CreateError> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        let kind = match mount.r#type() {
            mount::Type::Bind => "bind",
            mount::Type::Volume => "volume",
            mount::Type::Tmpfs => "tmpfs",
        };
        let wrong = |why: String| {
            Err(CreateError::Invalid(format!("invalid mount config for type \"{kind}\": {why}")))
        };
        if !mount.target.starts_with('/') {
            return wrong(format!("invalid mount path: '{}' mount path must be absolute", mount.target));
        }
        let target = clean_path(&mount.target);
        if target == "/" {
            return wrong("invalid specification: destination can't be '/'".to_owned());
        }
        if mount.r#type() == mount::Type::Bind && !mount.source.starts_with('/') {
            return wrong(format!("invalid mount path: '{}' mount path must be absolute", mount.source));
        }
        if !PROPAGATIONS.contains(&mount.propagation.as_str()) {
            return wrong(format!("invalid propagation mode: {}", mount.propagation));
        }
        if !targets.insert(target.clone()) {
            return Err(CreateError::Invalid(format!("Duplicate mount point: {target}")));
        }
    }
    Ok(())
}

/// Whether a bind shows what the daemon keeps: its directory, something in it, or what it is in.
fn shows_root(source: &str, root: &Path) -> bool {
    let source = Path::new(source);
    source.starts_with(root) || root.starts_with(source)
}

/// Such a bind must not hold on to what the daemon unmounts.
// moby: daemon/volumes_linux.go, validateBindDaemonRoot
fn check_binds_of_root(mounts: &[Mount], root: &Path) -> Result<(), CreateError> {
    for mount in mounts.iter().filter(|mount| mount.r#type() == mount::Type::Bind) {
        let source = clean_path(&mount.source);
        let propagation = mount.propagation.as_str();
        if shows_root(&source, root) && !matches!(propagation, "" | "rslave" | "rshared") {
            return Err(CreateError::Invalid(format!(
                "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount \
                 source is within the daemon root, daemon root: \"{}\", bind mount source: \"{source}\", \
                 propagation: \"{propagation}\"",
                root.display()
            )));
        }
    }
    Ok(())
}

const PROPAGATIONS: [&str; 7] = ["", "private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// Volumes, layers, directory and record; undone when one of them fails.
async fn make(
    shared: &Arc<Shared>,
    mut container: Container,
    inherited: Vec<MountPoint>,
) -> Result<Record, CreateError> {
    let made = make_parts(shared, &mut container, inherited).await;
    if made.is_err() {
        undo(shared, container).await;
    }
    made
}

async fn make_parts(
    shared: &Arc<Shared>,
    container: &mut Container,
    inherited: Vec<MountPoint>,
) -> Result<Record, CreateError> {
    // Blocking work owns what it works on; a claim on a volume is known to `undo` by the container's id.
    let (own, asked) = (shared.clone(), container.clone());
    let resolved = blocking(move || resolve_mounts(&own, &asked, inherited));
    let (mounts, result) = resolved.await;
    container.mounts = Arc::new(mounts);
    result?;
    let layers = shared.images.prepare(&container.id, &container.image_id).await.map_err(Cause::new)?;
    if logfile::parse(&container.config.log, Path::new("")).is_ok_and(|log| log.is_some()) {
        container.log_path = Some(launch::log_path(container));
    }
    let record = Record::new(container.clone());
    let (own, stored) = (shared.clone(), record.clone());
    let store = move || {
        mark(&layers)?;
        fill_volumes(&own, &stored.container, &layers)?;
        Record::make_dir(&stored.container.dir)?;
        stored.store()
    };
    blocking(store).await?;
    Ok(record)
}

async fn undo(shared: &Arc<Shared>, container: Container) {
    if let Err(error) = shared.images.release(&container.id).await {
        tracing::warn!(container.id = container.id, error = %Chain(&error), "a writable layer stays behind");
    }
    let own = shared.clone();
    let erase = move || {
        for mount in container.mounts.iter().filter(|mount| !mount.name.is_empty()) {
            own.volumes.release(&mount.name, &container.id);
            if mount.anonymous {
                // One that somebody uses by now stays.
                let _ = own.volumes.remove(&mount.name);
            }
        }
        if let Err(error) = Record::erase(&container.dir) {
            tracing::warn!(container.id = container.id, error = %Chain(&error), "a directory stays behind");
        }
    };
    blocking(erase).await;
}

/// Puts `/.dockerenv` there if no layer has it: programs tell by it that they are in a container.
fn mark(layers: &Layers) -> Result<(), FileError> {
    const MARK: &str = ".dockerenv";
    if layers.lower.iter().any(|layer| layer.join(MARK).exists()) {
        return Ok(());
    }
    let path = layers.upper.join(MARK);
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(FileError::write(&path)(error))
        }
        _ => Ok(()),
    }
}

/// A volume without a name.
fn is_anonymous(mount: &Mount) -> bool {
    mount.r#type() == mount::Type::Volume && mount.source.is_empty()
}

/// The mounts of the containers named in `volumes_from`, except where the container is given another.
fn inherited(shared: &Shared, config: &ContainerConfig) -> Result<Vec<MountPoint>, CreateError> {
    let own = config.spec.mounts.iter().filter(|mount| !is_anonymous(mount));
    let own: BTreeSet<String> = own.map(|mount| clean_path(&mount.target)).collect();
    let mut mounts: Vec<MountPoint> = Vec::new();
    for from in &config.volumes_from {
        let (name, mode) = from.split_once(':').unwrap_or((from, "rw"));
        // SELinux labels are nobody's here.
        if !mode.split(',').all(|mode| matches!(mode, "ro" | "rw" | "z" | "Z")) {
            return Err(CreateError::Invalid(format!("invalid mode: {mode}")));
        }
        let writable = !mode.split(',').any(|mode| mode == "ro");
        let other = shared.registry.find(name)?.container();
        for mount in other.mounts.iter().filter(|mount| mount.kind != MountKind::Tmpfs) {
            if own.contains(&mount.destination) || mounts.iter().any(|m| m.destination == mount.destination) {
                continue;
            }
            mounts.push(MountPoint {
                writable: mount.writable && writable,
                anonymous: false,
                ..mount.clone()
            });
        }
    }
    Ok(mounts)
}

/// All mounts, with volumes made and claimed. Those found before a failure are given back with it.
fn resolve_mounts(
    shared: &Shared,
    container: &Container,
    inherited: Vec<MountPoint>,
) -> (Vec<MountPoint>, Result<(), CreateError>) {
    for mount in inherited.iter().filter(|mount| mount.kind == MountKind::Volume) {
        shared.volumes.claim(&mount.name, &container.id);
    }
    let mut mounts = inherited;
    for asked in container.config.spec.mounts.iter().filter(|mount| !mount.tmpfs_map) {
        match resolve(shared, container, asked) {
            Ok(mount) => mounts.push(mount),
            Err(error) => return (mounts, Err(error)),
        }
    }
    (mounts, Ok(()))
}

fn resolve(shared: &Shared, container: &Container, asked: &Mount) -> Result<MountPoint, CreateError> {
    let mut point = MountPoint {
        kind: MountKind::Tmpfs,
        name: String::new(),
        source: String::new(),
        destination: clean_path(&asked.target),
        driver: String::new(),
        writable: !asked.read_only,
        propagation: String::new(),
        anonymous: false,
        recursion: recursion(asked),
    };
    match asked.r#type() {
        mount::Type::Tmpfs => {}
        mount::Type::Bind => {
            point.kind = MountKind::Bind;
            point.source = bind_source(asked)?;
            let propagation = match asked.propagation.as_str() {
                "" if shows_root(&point.source, &shared.config.data_root) => "rslave",
                "" => "rprivate",
                asked => asked,
            };
            propagation.clone_into(&mut point.propagation);
        }
        mount::Type::Volume => {
            let (volume, made) = shared.volumes.ensure(volume_of(asked), Some(&container.id))?;
            if made {
                let attributes = [("driver".to_owned(), volume.driver.clone())];
                shared.events.local("volume", "create", &volume.name, attributes.into());
            }
            point.kind = MountKind::Volume;
            point.name.clone_from(&volume.name);
            point.source = volume.mountpoint.display().to_string();
            point.driver.clone_from(&volume.driver);
            point.anonymous = asked.source.is_empty();
        }
    }
    Ok(point)
}

fn recursion(asked: &Mount) -> Recursion {
    match asked.recursion() {
        mount::Recursion::Enabled => Recursion::Enabled,
        mount::Recursion::Disabled => Recursion::Disabled,
        mount::Recursion::Writable => Recursion::Writable,
        mount::Recursion::Readonly => Recursion::Readonly,
    }
}

fn volume_of(asked: &Mount) -> VolumeCreate {
    VolumeCreate {
        name: asked.source.clone(),
        driver: asked.volume_driver.clone(),
        options: asked.volume_options.clone(),
        labels: asked.volume_labels.clone(),
    }
}

fn bind_source(asked: &Mount) -> Result<String, CreateError> {
    let source = clean_path(&asked.source);
    if !Path::new(&source).exists() {
        if !asked.create_source {
            return Err(CreateError::Invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {source}"
            )));
        }
        let path = Path::new(&source);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(FileError::write(path))?;
    }
    Ok(source)
}

/// Fills empty volumes with what the image has at their places.
fn fill_volumes(shared: &Shared, container: &Container, layers: &Layers) -> Result<(), FileError> {
    let copied = |mount: &&Mount| mount.r#type() == mount::Type::Volume && !mount.no_copy;
    for asked in container.config.spec.mounts.iter().filter(copied) {
        let destination = clean_path(&asked.target);
        let Some(mount) = container.mounts.iter().find(|mount| mount.destination == destination) else {
            continue;
        };
        let Ok(volume) = shared.volumes.get(&mount.name) else { continue };
        if matches!(volume.source(), VolumeSource::Directory(_)) {
            volume::copy_up(&layers.lower, &destination, &volume.mountpoint)
                .map_err(FileError::write(&volume.mountpoint))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_of_the_daemons_root_follow_the_hosts_mounts() {
        let check = |source: &str, propagation: &str| {
            let mount =
                Mount { source: source.to_owned(), propagation: propagation.to_owned(), ..Mount::default() };
            check_binds_of_root(&[mount], Path::new("/var/lib/rswarm")).map_err(|error| error.to_string())
        };
        for source in ["/", "/var/lib", "/var/lib/rswarm/", "/var/lib/rswarm/volumes"] {
            assert!(shows_root(source, Path::new("/var/lib/rswarm")), "{source}");
            assert_eq!(check(source, ""), Ok(()));
            assert_eq!(check(source, "rslave"), Ok(()));
        }
        assert_eq!(
            check("/var", "private"),
            Err("invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount source \
                 is within the daemon root, daemon root: \"/var/lib/rswarm\", bind mount source: \"/var\", \
                 propagation: \"private\""
                .to_owned())
        );
        assert!(!shows_root("/var/lib/rswarm2", Path::new("/var/lib/rswarm")));
        assert_eq!(check("/srv", "private"), Ok(()));
    }
}
