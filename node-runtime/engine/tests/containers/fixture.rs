//! An engine to test with, and a look at what is left of it.

use std::ffi::OsStr;
use std::fs;
use std::future::Future;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rswarm_base::Scope;
use rswarm_engine::container::{Container, Status};
use rswarm_engine::engine::WaitCondition;
use rswarm_engine::logs::{LogOptions, LogSource};
use rswarm_engine::{ContainerConfig, Engine, EngineConfig, RemoveOptions};
use rswarm_image::{ImportOptions, Reference};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Runtime;

/// Nothing here takes that long.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const IMAGE: &str = "busy:latest";

const BUSYBOX: &str = "/bin/busybox";

pub type Test = (&'static str, fn() -> Result<()>);

/// Why these tests cannot run here.
pub fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    let works = |program: &str, arg: &str| Command::new(program).arg(arg).output().is_ok();
    if !works(BUSYBOX, "true") {
        return Some("no /bin/busybox; install busybox-static");
    }
    if !works("ip", "-V") {
        return Some("no ip; install iproute2");
    }
    None
}

/// Moves the process, which has one thread, into namespaces that end with it.
pub fn leave_the_machine() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    run("ip", &["link", "set", "lo", "up"])
}

pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status()?;
    ensure!(status.success(), "{program} {args:?}: {status}");
    Ok(())
}

/// The root file system's archive, made once.
fn archive() -> &'static Path {
    static ARCHIVE: OnceLock<TempDir> = OnceLock::new();
    let dir = ARCHIVE.get_or_init(|| make_archive().expect("archive"));
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| dir.path().join("rootfs.tar"))
}

fn make_archive() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("rootfs");
    for name in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "home", "srv/data"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    let names = Command::new(BUSYBOX).arg("--list").output()?;
    for name in String::from_utf8(names.stdout)?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/home:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\nextra:x:77:web\n")?;
    fs::write(root.join("srv/data/seed"), "from the image\n")?;
    std::os::unix::fs::chown(root.join("srv/data"), Some(33), Some(34))?;
    fs::set_permissions(root.join("srv/data"), fs::Permissions::from_mode(0o750))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let (tar, root) = (dir.path().join("rootfs.tar"), root.display().to_string());
    run("tar", &["-C", &root, "-cf", &tar.display().to_string(), "."])?;
    Ok(dir)
}

/// What a daemon does before it dies; what it knows then goes to the test.
pub type Life = (&'static str, fn(&Host, Engine) -> BoxFuture<'_, Result<Value>>);

/// One daemon's directories and identity. Engines come and go on it.
pub struct Host {
    dir: PathBuf,
    /// Removed with the value; a daemon that dies does not own it.
    _owned: Option<TempDir>,
    daemon_id: String,
    default_bridge: bool,
}

impl Host {
    pub fn new() -> Result<Host> {
        let daemon_id = rswarm_base::id::engine_id()[..8].to_owned();
        let owned = tempfile::Builder::new().prefix("rswarm-engine").tempdir()?;
        Ok(Host { dir: owned.path().to_owned(), _owned: Some(owned), daemon_id, default_bridge: false })
    }

    pub fn with_bridge() -> Result<Host> {
        Ok(Host { default_bridge: true, ..Host::new()? })
    }

    pub fn data_root(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn config(&self) -> Result<EngineConfig> {
        let exe = std::env::current_exe()?;
        let config = EngineConfig::new(self.data_root(), self.dir.join("run"), self.daemon_id.clone(), exe);
        Ok(EngineConfig { default_bridge: self.default_bridge, ..config })
    }

    /// Has a daemon live in a process of its own until it is killed, with SIGKILL.
    pub fn crash(&self, life: &str) -> Result<Value> {
        let bridge = self.default_bridge.to_string();
        let status = Command::new(std::env::current_exe()?)
            .arg("life")
            .arg(&self.dir)
            .args([self.daemon_id.as_str(), &bridge, life])
            .status()?;
        ensure!(status.signal() == Some(9), "life `{life}`: {status}");
        Ok(serde_json::from_slice(&fs::read(self.dir.join("result"))?)?)
    }

    fn daemon<T, F: Future<Output = Result<T>>>(&self, work: impl FnOnce(Engine) -> F) -> Result<T> {
        let runtime = Runtime::new()?;
        let scope = Scope::root("test");
        let result = runtime.block_on(async {
            let engine = Engine::open(self.config()?, scope).await.context("open")?;
            if engine.images().get(IMAGE).is_err() {
                import(&engine).await?;
            }
            let result = tokio::time::timeout(DEADLINE, work(engine.clone())).await.context("deadline")?;
            engine.close().await;
            result
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        result
    }

    /// One daemon's whole life: afterwards nothing of it may be left.
    pub fn test<F: Future<Output = Result<()>>>(&self, work: impl FnOnce(Engine) -> F) -> Result<()> {
        let result = self.daemon(async |engine| {
            let result = work(engine.clone()).await;
            let cleaned = remove_all(&engine).await;
            if result.is_ok() { cleaned.and(self.check_clean(&engine).await) } else { result }
        });
        self.sweep();
        result
    }

    /// No container's process, cgroup, directory, layer, interface or mount.
    async fn check_clean(&self, engine: &Engine) -> Result<()> {
        ensure!(engine.images().snapshot_keys().is_empty(), "layers are left");
        for dir in [self.data_root().join("containers"), self.dir.join("run/containers")] {
            let left: Vec<_> = fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name()).collect();
            ensure!(left.is_empty(), "left in {}: {left:?}", dir.display());
        }
        for cgroup in self.cgroups() {
            let left: Vec<_> =
                fs::read_dir(&cgroup)?.flatten().filter(|entry| entry.path().is_dir()).collect();
            ensure!(left.is_empty(), "cgroups are left: {left:?}");
        }
        let links = String::from_utf8(Command::new("ip").args(["-o", "link"]).output()?.stdout)?;
        ensure!(!links.contains("veth"), "interfaces are left: {links}");
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains("overlay") || !mounts.contains(&*self.dir.to_string_lossy()), "{mounts}");
        Ok(())
    }

    /// The daemon's own cgroup in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let point = words.next()?;
            words.next().filter(|kind| kind.starts_with("cgroup")).map(|_| PathBuf::from(point))
        });
        points
            .map(|point| point.join(format!("rswarm-{}", self.daemon_id)))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// Removes what the tests' own end does not: the daemon's cgroups.
    pub fn sweep(&self) {
        for cgroup in self.cgroups() {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// A daemon that dies: see [`Host::crash`].
pub fn live_and_die(dir: &Path, daemon_id: &OsStr, bridge: &OsStr, name: &OsStr) -> ExitCode {
    let host = Host {
        dir: dir.to_owned(),
        _owned: None,
        daemon_id: daemon_id.to_string_lossy().into_owned(),
        default_bridge: bridge == "true",
    };
    let lives = crate::restarts::LIVES.iter().chain(crate::networks::LIVES);
    let (_, life) = lives.into_iter().find(|(known, _)| name == *known).expect("a known life");
    let lived = host.daemon(async |engine| {
        let result = life(&host, engine).await?;
        fs::write(dir.join("result"), serde_json::to_vec(&result)?)?;
        let own = nix::unistd::Pid::this();
        nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL)?;
        Ok(())
    });
    eprintln!("life {name:?}: {lived:?}");
    ExitCode::FAILURE
}

async fn import(engine: &Engine) -> Result<()> {
    let tar = tokio::fs::File::open(archive()).await?;
    let options = ImportOptions {
        reference: Some(Reference::parse(IMAGE)?),
        changes: vec!["ENV FROM=image".to_owned(), "CMD [\"echo\", \"hello from the image\"]".to_owned()],
        ..ImportOptions::default()
    };
    engine.images().import(tar, options).await.context("import")?;
    Ok(())
}

async fn remove_all(engine: &Engine) -> Result<()> {
    for container in engine.list() {
        engine.remove(&container.id, RemoveOptions { force: true, volumes: true }).await.context("remove")?;
    }
    for network in engine.list_networks() {
        if !["bridge", "host", "none"].contains(&network.name.as_str()) {
            engine.remove_network(&network.id).await.context("remove network")?;
        }
    }
    for volume in engine.list_volumes() {
        engine.remove_volume(&volume.name, false).await.context("remove volume")?;
    }
    Ok(())
}

/// A container without a network that runs a shell script.
pub fn sh(script: &str) -> ContainerConfig {
    let mut config = ContainerConfig { network_mode: "none".into(), ..ContainerConfig::default() };
    config.spec.image = IMAGE.into();
    config.spec.args = ["sh", "-c", script].map(str::to_owned).to_vec();
    config
}

/// Creates and starts it.
pub async fn start(engine: &Engine, name: &str, config: ContainerConfig) -> Result<String> {
    let created = engine.create(Some(name), config).await.context("create")?;
    engine.start(&created.id).await.context("start")?;
    Ok(created.id)
}

/// Runs it to its end.
pub async fn run_to_end(engine: &Engine, name: &str, config: ContainerConfig) -> Result<(i32, String)> {
    let created = engine.create(Some(name), config).await.context("create")?;
    let ended = engine.wait(&created.id, WaitCondition::NextExit).await?;
    engine.start(&created.id).await.context("start")?;
    let waited = ended.await;
    Ok((waited.exit_code, logs(engine, &created.id).await?))
}

/// Standard output, then `err:` and standard error's lines where there are any.
pub async fn logs(engine: &Engine, reference: &str) -> Result<String> {
    let entries: Vec<_> = engine.logs(reference, LogOptions::default()).await?.collect().await;
    let mut text = String::new();
    for entry in entries {
        if entry.source == LogSource::Stderr {
            text.push_str("err:");
        }
        text.push_str(&String::from_utf8_lossy(&entry.line));
    }
    Ok(text)
}

/// Waits until the container's log has a line.
pub async fn wait_for_line(engine: &Engine, reference: &str, wanted: &str) -> Result<()> {
    let mut entries = engine.logs(reference, LogOptions { follow: true, ..LogOptions::default() }).await?;
    while let Some(entry) = entries.next().await {
        if String::from_utf8_lossy(&entry.line).trim_end() == wanted {
            return Ok(());
        }
    }
    bail!("{reference} ended without saying `{wanted}`")
}

/// Waits until the container is as wanted.
pub async fn wait_until(engine: &Engine, reference: &str, wanted: impl Fn(&Container) -> bool) -> Result<()> {
    for _ in 0..1000 {
        if engine.inspect(reference).is_ok_and(|container| wanted(&container)) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{reference} does not get there: {:?}", engine.inspect(reference).map(|c| c.state.clone()))
}

/// Waits for a status word.
pub async fn wait_for(engine: &Engine, reference: &str, status: Status) -> Result<()> {
    wait_until(engine, reference, |container| container.state.status == status).await
}

/// What a stream's frames carry, standard output and error as they come.
pub async fn read_frames(mut stream: impl AsyncRead + Unpin) -> Result<String> {
    let mut text = Vec::new();
    let mut header = [0; 8];
    while stream.read_exact(&mut header).await.is_ok() {
        let [.., a, b, c, d] = header;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        stream.read_exact(&mut payload).await?;
        text.extend(payload);
    }
    Ok(String::from_utf8(text)?)
}

/// The actions of the last events about one object.
pub fn actions(engine: &Engine, id: &str) -> Vec<String> {
    let backlog = engine.events().backlog;
    backlog.iter().filter(|event| event.id == id).map(|event| event.action.clone()).collect()
}

/// Waits for exactly these events about one object: they follow the change that they tell of.
pub async fn expect_actions(engine: &Engine, id: &str, wanted: &[&str]) -> Result<()> {
    for _ in 0..200 {
        if actions(engine, id) == wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{:?}, not {wanted:?}", actions(engine, id))
}

/// Waits for a process to be gone, and reaped.
pub async fn expect_gone(pid: i32) -> Result<()> {
    for _ in 0..500 {
        if !fs::exists(format!("/proc/{pid}"))? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("process {pid} is still there")
}

/// [`expect_gone`] while there is no engine.
pub fn await_end(pid: i32) -> Result<()> {
    for _ in 0..2000 {
        if !fs::exists(format!("/proc/{pid}"))? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("process {pid} is still there")
}

/// The process that a process was started by: a container's shim.
pub fn parent(pid: i32) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
    Ok(line.trim().parse()?)
}

/// Kills a process that a test started.
pub fn kill_process(pid: i32) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?)
}
