//! Debian's dockerd beside ours: what it does with the same request is what a client expects.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::harness::{eventually, run};

/// A dockerd with everything of its own; ended and forgotten when dropped.
pub struct Dockerd {
    /// Where its API listens.
    pub socket: PathBuf,
    child: Child,
    dir: PathBuf,
    /// The parent cgroup's name, which dockerd leaves behind in every hierarchy.
    cgroup: String,
}

impl Dockerd {
    /// Starts it in a network namespace, with a mount namespace, directories and a cgroup of its own, and waits until
    /// it answers.
    ///
    /// # Errors
    /// When it is not installed, or does not answer.
    pub fn start(dir: &Path, netns: &str, flags: &[&str]) -> Result<Dockerd> {
        std::fs::create_dir_all(dir)?;
        let socket = dir.join("docker.sock");
        let log = std::fs::File::create(dir.join("log"))?;
        let cgroup = format!("{netns}-dockerd");
        let config = dir.join("daemon.json");
        std::fs::write(&config, "{}")?;
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .args(["unshare", "--mount", "dockerd"])
            .args(flags)
            .args(["--cgroup-parent", &format!("/{cgroup}"), "--storage-driver=overlay2"])
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("--config-file")
            .arg(&config)
            .arg("-H")
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut dockerd = Dockerd { socket, child, dir: dir.to_owned(), cgroup };
        let mut ended = None;
        eventually(Duration::from_secs(60), "dockerd answers or ends", || {
            ended = dockerd.child.try_wait()?;
            Ok(ended.is_some() || dockerd.docker(&["version", "--format", "{{.Server.Version}}"]).is_ok())
        })?;
        if let Some(status) = ended {
            bail!("dockerd ended with {status}: {}", std::fs::read_to_string(dockerd.dir.join("log"))?);
        }
        Ok(dockerd)
    }

    /// The docker CLI against it.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.socket.display());
        run(Command::new("docker").args(["-H", &host]).args(args).stdin(Stdio::null()))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join(&self.cgroup));
        }
    }
}
