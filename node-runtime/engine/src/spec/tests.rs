//! The spec of whole containers.

use std::sync::Arc;

use rswarm_base::Timestamp;
use rswarm_proto::model::container::{Mount, mount};

use super::*;
use crate::config::ContainerConfig;
use crate::container::{MountKind, MountPoint, Recursion, State};

/// A container that runs `/bin/web`.
pub(crate) fn container(config: ContainerConfig, mounts: Vec<MountPoint>) -> Container {
    Container {
        id: "ab".repeat(32),
        name: "web".into(),
        created: Timestamp(1),
        image_id: "sha256:00".into(),
        path: "/bin/web".into(),
        args: vec!["--port=80".into()],
        config: Arc::new(config),
        state: State::default(),
        restart_count: 0,
        mounts: Arc::new(mounts),
        endpoints: Arc::default(),
        exposed: Arc::default(),
        links: Arc::default(),
        dir: "/data/containers/x".into(),
        log_path: None,
        exits: 0,
        last_exit_code: 0,
        removed: false,
    }
}

fn host() -> Host {
    Host {
        capabilities: bounding_set(u64::MAX),
        hard_limits: [("nofile".to_owned(), 20_000)].into(),
        may_raise_limits: false,
        cpus: 2,
        cgroup_v2: true,
        support: Support::default(),
        mqueue: true,
    }
}

fn spec_of(config: ContainerConfig, mounts: Vec<MountPoint>, network: Namespace) -> Result<Spec, String> {
    let container = container(config, mounts);
    let security = Security::parse(&container.config.spec, Security::default())?;
    generate(&Input {
        container: &container,
        host: &host(),
        rootfs: Path::new("/run/x/rootfs"),
        etc: Path::new("/data/containers/x"),
        cgroup: "/rswarm-1/x",
        network,
        pid: Namespace::Own,
        ipc: Namespace::Own,
        volumes: &[("data".to_owned(), VolumeSource::Directory("/volumes/data/_data".to_owned()))].into(),
        devices: &[],
        numbers: &|path| Err(format!("stat {path}")),
        shm: None,
        security: &security,
        init: None,
        linked: &["DB_NAME=/web/db".to_owned()],
        ulimits: &[Ulimit { name: "nofile".into(), soft: 1 << 20, hard: 1 << 20 }],
    })
}

fn point(kind: MountKind, name: &str, source: &str, destination: &str) -> MountPoint {
    MountPoint {
        kind,
        name: name.into(),
        source: source.into(),
        destination: destination.into(),
        driver: String::new(),
        writable: false,
        propagation: String::new(),
        anonymous: false,
        recursion: Recursion::default(),
    }
}

fn destinations(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().as_ref().expect("mounts");
    mounts.iter().map(|mount| mount.destination().display().to_string()).collect()
}

#[test]
fn a_plain_container_is_confined() {
    let spec = spec_of(ContainerConfig::default(), Vec::new(), Namespace::Own).expect("spec");
    let linux = spec.linux().as_ref().expect("linux");
    assert!(linux.seccomp().is_some());
    assert!(linux.masked_paths().as_ref().expect("paths").contains(&"/proc/kcore".to_owned()));
    assert_eq!(linux.namespaces().as_ref().expect("namespaces").len(), 6);
    assert_eq!(linux.sysctl().as_ref().expect("sysctls")["net.ipv4.ip_unprivileged_port_start"], "0");
    assert_eq!(spec.hostname().as_deref(), Some("abababababab"));
    let process = spec.process().as_ref().expect("process");
    assert_eq!(process.args().as_deref(), Some(&["/bin/web".to_owned(), "--port=80".to_owned()][..]));
    assert_eq!(process.cwd(), Path::new("/"));
}

#[test]
fn hidden_paths_can_be_the_users() {
    let config = ContainerConfig {
        masked_paths: Some(vec!["/proc/keys".to_owned()]),
        readonly_paths: Some(Vec::new()),
        ..ContainerConfig::default()
    };
    let spec = spec_of(config, Vec::new(), Namespace::Own).expect("spec");
    let linux = spec.linux().as_ref().expect("linux");
    assert_eq!(linux.masked_paths().as_deref(), Some(&["/proc/keys".to_owned()][..]));
    assert_eq!(linux.readonly_paths().as_deref(), Some(&[][..]));
}

#[test]
fn a_default_limit_is_clamped_and_an_explicit_one_beyond_is_an_error() {
    let spec = spec_of(ContainerConfig::default(), Vec::new(), Namespace::Own).expect("spec");
    let limit = &spec.process().as_ref().expect("process").rlimits().as_ref().expect("limits")[0];
    assert_eq!((limit.soft(), limit.hard()), (20_000, 20_000));
    let mut config = ContainerConfig::default();
    config.spec.ulimits.push(Ulimit { name: "nofile".into(), soft: 1 << 20, hard: 1 << 20 });
    assert!(spec_of(config, Vec::new(), Namespace::Own).expect_err("beyond").contains("20000"));
}

#[test]
fn privileged_opens_everything() {
    let mut config = ContainerConfig::default();
    config.spec.privileged = true;
    let spec = spec_of(config, Vec::new(), Namespace::Own).expect("spec");
    let linux = spec.linux().as_ref().expect("linux");
    assert!(linux.seccomp().is_none());
    assert!(linux.masked_paths().as_ref().expect("paths").is_empty());
    let capabilities =
        spec.process().as_ref().expect("process").capabilities().as_ref().expect("sets").clone();
    assert_eq!(capabilities.bounding().as_ref().expect("bounding").len(), 41);
}

#[test]
fn the_hosts_network_has_no_namespace_and_no_sysctls() {
    let mut config = ContainerConfig { network_mode: "host".into(), ..ContainerConfig::default() };
    let spec = spec_of(config.clone(), Vec::new(), Namespace::Host).expect("spec");
    let linux = spec.linux().as_ref().expect("linux");
    let namespaces = linux.namespaces().as_ref().expect("namespaces");
    assert!(namespaces.iter().all(|namespace| namespace.typ() != LinuxNamespaceType::Network));
    assert!(linux.sysctl().as_ref().expect("sysctls").is_empty());
    config.spec.sysctls.insert("net.core.somaxconn".into(), "1".into());
    assert!(spec_of(config, Vec::new(), Namespace::Host).is_err());
}

#[test]
fn users_mounts_come_last_parents_first_and_replace_ours() {
    let mut config = ContainerConfig::default();
    config.spec.mounts.push(Mount {
        r#type: mount::Type::Tmpfs.into(),
        target: "/dev/shm".into(),
        tmpfs_options: "exec,size=1m".into(),
        ..Mount::default()
    });
    let points = vec![
        point(MountKind::Bind, "", "/host/deep", "/a/b/c"),
        point(MountKind::Volume, "data", "", "/a"),
        point(MountKind::Bind, "", "/host/hosts", "/etc/hosts"),
    ];
    let spec = spec_of(config, points, Namespace::Own).expect("spec");
    let destinations = destinations(&spec);
    assert_eq!(destinations[destinations.len() - 4..], ["/a", "/dev/shm", "/etc/hosts", "/a/b/c"]);
    assert_eq!(destinations.iter().filter(|destination| *destination == "/etc/hosts").count(), 1);
    let mounts = spec.mounts().as_ref().expect("mounts");
    let shm = mounts.iter().find(|mount| mount.destination() == Path::new("/dev/shm")).expect("shm");
    assert_eq!(shm.options().as_ref().expect("options"), &["nosuid", "nodev", "exec", "size=1m"]);
    let volume = mounts.iter().find(|mount| mount.destination() == Path::new("/a")).expect("volume");
    assert_eq!(volume.source().as_deref(), Some(Path::new("/volumes/data/_data")));
    assert_eq!(volume.options().as_ref().expect("options"), &["rbind", "rro", "rprivate"]);
}

#[test]
fn an_unknown_volume_is_an_error() {
    let points = vec![point(MountKind::Volume, "gone", "", "/a")];
    assert_eq!(
        spec_of(ContainerConfig::default(), points, Namespace::Own).expect_err("unknown"),
        "get gone: no such volume"
    );
}
