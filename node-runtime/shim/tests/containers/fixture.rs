//! A container to test with: bundle, layers, directories; and a look at what is left of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rswarm_runtime::Rootfs;
use rswarm_shim::client::{AttachStream, Shim, launch};
use rswarm_shim::{Exit, Launch, LogFile};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// Nothing here takes that long.
pub const DEADLINE: Duration = Duration::from_secs(30);

const BUSYBOX: &str = "/bin/busybox";

/// Why these tests cannot run here.
pub fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    let help = Command::new(BUSYBOX).arg("ash").arg("-c").arg("true").status();
    if !help.is_ok_and(|status| status.success()) {
        return Some("no /bin/busybox; install busybox-static");
    }
    None
}

/// A layer with busybox under all its names, made once.
fn layer() -> &'static Path {
    static LAYER: OnceLock<TempDir> = OnceLock::new();
    let dir = LAYER.get_or_init(|| {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path();
        for name in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "home"] {
            fs::create_dir(root.join(name)).expect("mkdir");
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).expect("copy busybox");
        let names = Command::new(BUSYBOX).arg("--list").output().expect("list");
        for name in String::from_utf8(names.stdout).expect("text").lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(name)).expect("link");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/home:/bin/sh\n")
            .expect("passwd");
        fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\nextra:x:77:web\n").expect("group");
        fs::write(root.join("etc/plain"), "no program\n").expect("file");
        fs::write(root.join("bin/broken"), "not an executable format\u{1}\n").expect("file");
        fs::set_permissions(root.join("bin/broken"), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
        dir
    });
    dir.path()
}

/// A container before, in and after its life.
pub struct Container {
    pub dir: TempDir,
    pub spec: Value,
    pub launch: Launch,
}

/// What a container was, once it is over.
pub struct Outcome {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

impl Container {
    /// One that will run these arguments, configured as Docker would.
    pub fn new(args: &[&str]) -> Result<Container> {
        let dir = tempfile::tempdir()?;
        let id: String = rswarm_base::id::engine_id();
        for name in ["state", "bundle/rootfs", "upper", "work"] {
            fs::create_dir_all(dir.path().join(name))?;
        }
        let path = |name: &str| dir.path().join(name);
        let launch = Launch {
            id: id.clone(),
            state_dir: path("state"),
            exit_file: path("exit.json"),
            bundle: path("bundle"),
            rootfs: Rootfs::Overlay {
                lower: vec![layer().to_owned()],
                upper: path("upper"),
                work: path("work"),
            },
            user: None,
            groups: Vec::new(),
            log: Some(LogFile { path: path("log"), max_files: 1, ..LogFile::default() }),
            tty: false,
            open_stdin: false,
            stdin_once: false,
            console_size: None,
            detach_mounts: Vec::new(),
            runtime: None,
        };
        let spec = spec(args, &id);
        Ok(Container { dir, spec, launch })
    }

    /// Runs a shell script.
    pub fn sh(script: &str) -> Result<Container> {
        Container::new(&["sh", "-c", script])
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn create(&self) -> Result<Shim> {
        fs::write(self.launch.bundle.join("config.json"), serde_json::to_vec_pretty(&self.spec)?)?;
        let exe = std::env::current_exe()?;
        Ok(timeout(DEADLINE, launch(&exe, &self.launch)).await??)
    }

    /// Its whole life: create, attach, start, wait, shutdown; nothing is left.
    pub async fn run(&self) -> Result<Outcome> {
        let outcome = self.run_kept().await?;
        self.nothing_is_left().await?;
        Ok(outcome)
    }

    /// Its whole life, without the look at what is left.
    pub async fn run_kept(&self) -> Result<Outcome> {
        let shim = self.create().await?;
        let mut stream = shim.attach().await?;
        shim.start().await?;
        let (stdout, stderr) = read_frames(&mut stream).await?;
        let exit = timeout(DEADLINE, shim.wait()).await??;
        timeout(DEADLINE, shim.shutdown()).await??;
        Ok(Outcome { exit, stdout, stderr })
    }

    /// Runs and gives the output, which must be all there is to say.
    pub async fn output(&self) -> Result<String> {
        let outcome = self.run().await?;
        ensure!(
            outcome.exit.code == 0,
            "exit code {}: {}{}",
            outcome.exit.code,
            outcome.stdout,
            outcome.stderr
        );
        Ok(outcome.stdout)
    }

    /// Sends the shim home and checks that nothing is left.
    pub async fn finish(&self, shim: &Shim) -> Result<()> {
        timeout(DEADLINE, shim.shutdown()).await??;
        self.nothing_is_left().await
    }

    /// No process, no mount, no cgroup, no socket.
    pub async fn nothing_is_left(&self) -> Result<()> {
        eventually("the shim's process is gone", || self.processes().is_empty()).await?;
        ensure!(self.mounts()?.is_empty(), "mounts are left: {:?}", self.mounts()?);
        ensure!(self.cgroups().is_empty(), "cgroups are left: {:?}", self.cgroups());
        for name in ["shim.sock", "launch.json"] {
            ensure!(!self.launch.state_dir.join(name).exists(), "{name} is left");
        }
        Ok(())
    }

    /// The pids of its shim, by command line.
    pub fn processes(&self) -> Vec<i32> {
        let marker = self.launch.state_dir.display().to_string();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| *pid != std::process::id().cast_signed())
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&marker))
            })
            .collect()
    }

    /// What the machine's mount table says about it.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let marker = self.dir.path().display().to_string();
        Ok(table.lines().filter(|line| line.contains(&marker)).map(str::to_owned).collect())
    }

    /// The directories of its cgroups that exist.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let path =
            self.spec["linux"]["cgroupsPath"].as_str().expect("path").trim_start_matches('/').to_owned();
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        roots.map(|root| root.join(&path)).filter(|dir| dir.exists()).collect()
    }

    /// The directory of one controller.
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        let path = self.spec["linux"]["cgroupsPath"].as_str().expect("path").trim_start_matches('/');
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        if v1.is_dir() { v1.join(path) } else { Path::new("/sys/fs/cgroup").join(path) }
    }

    /// The messages in its log with their streams.
    pub fn log(&self) -> Result<Vec<(String, String)>> {
        let text = fs::read_to_string(self.path("log"))?;
        let line = |line: &str| {
            let json: Value = serde_json::from_str(line)?;
            let field = |name: &str| json[name].as_str().map(str::to_owned).context("field");
            ensure!(rswarm_base::Timestamp::parse(&field("time")?).is_some(), "time in {line}");
            Ok((field("stream")?, field("log")?))
        };
        text.lines().map(line).collect()
    }
}

impl Drop for Container {
    /// A failed test leaves nothing either: the container dies with its shim.
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for _ in 0..200 {
            let left = self.cgroups();
            if left.is_empty() {
                break;
            }
            for dir in left {
                let _ = fs::remove_dir(dir);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spec(args: &[&str], id: &str) -> Value {
    let caps = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(|name| format!("CAP_{name}"));
    let mount = |destination: &str, typ: &str, options: &[&str]| json!({"destination": destination, "type": typ, "source": typ, "options": options});
    let seccomp = rswarm_runtime::seccomp::docker_default(&std::collections::HashSet::new());
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
        ],
        "linux": {
            "cgroupsPath": format!("/rswarm-shimtest-{id}"),
            "namespaces": [
                {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "pid"}, {"type": "network"}, {"type": "cgroup"},
            ],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/none", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp,
        },
    })
}

/// Reads stdcopy frames to their end.
pub async fn read_frames(stream: &mut AttachStream) -> Result<(String, String)> {
    let mut bytes = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.context("the stream does not end")??;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut rest = bytes.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        ensure!(after.len() >= length, "a frame is cut");
        match header[0] {
            1 => stdout.extend_from_slice(&after[..length]),
            2 => stderr.extend_from_slice(&after[..length]),
            other => bail!("stream {other}"),
        }
        rest = &after[length..];
    }
    ensure!(rest.is_empty(), "a frame's header is cut");
    Ok((String::from_utf8(stdout)?, String::from_utf8(stderr)?))
}

/// Waits for something that the kernel has no event for.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let all = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, all).await.with_context(|| format!("never so: {what}"))
}
