//! One host: a network namespace and a daemon in it, driven by the docker CLI and by rswarm's own.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::harness::{binary, eventually, run};
use crate::images::{self, Archive};

/// The demo image with a health check.
pub const CHECKED: &str = "checked:latest";

/// A host of a lab.
pub struct Host {
    /// `h1`, `h2`, …
    pub name: String,
    /// Its network namespace, under `/run/netns`.
    pub netns: String,
    /// Its address on the lab's network.
    pub address: Ipv4Addr,
    /// Its directory: `data`, `run` and `daemon.log`.
    pub dir: PathBuf,
    /// More flags for its daemon.
    pub flags: Vec<String>,
    /// The program that its daemon is started from.
    pub program: PathBuf,
    daemon: Option<Child>,
}

impl Host {
    /// A host whose daemon does not run yet.
    pub fn new(name: String, netns: String, address: Ipv4Addr, dir: PathBuf) -> Host {
        Host { name, netns, address, dir, flags: Vec::new(), program: binary(), daemon: None }
    }

    /// Where its API listens.
    pub fn socket(&self) -> String {
        format!("unix://{}", self.dir.join("rswarm.sock").display())
    }

    /// A command inside the host's network namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--").arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Starts the daemon.
    pub fn start(&mut self) -> Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let log = File::options().create(true).append(true).open(self.dir.join("daemon.log"))?;
        let child = self
            .command(&self.program)
            .args(["daemon", "--node-name", &self.name, "--log-level", "debug"])
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("run"))
            .args(["-H", &self.socket()])
            .args(&self.flags)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("nsenter is part of util-linux")?;
        self.daemon = Some(child);
        Ok(())
    }

    /// Waits until the API answers.
    pub fn ready(&self) -> Result<()> {
        eventually(Duration::from_secs(20), &format!("{} answers", self.name), || {
            self.docker(&["version", "--format", "{{.Server.Version}}"]).map(|_| true)
        })
    }

    /// Whether the daemon was started and not ended.
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// The daemon's process id. `nsenter` executes it in place, so it is the child's.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// `kill -9` of the daemon alone.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// SIGTERM, and wait for the end.
    pub fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = daemon.wait()?;
        ensure!(status.success(), "the daemon of {} ended with {status}", self.name);
        Ok(())
    }

    /// `kill -9`, then a new daemon on the same directories.
    pub fn restart_hard(&mut self) -> Result<()> {
        self.kill()?;
        self.start()?;
        self.ready()
    }

    /// The docker CLI against this host.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        run(&mut self.docker_command(args))
    }

    /// The same to be started otherwise: at a terminal, on pipes, or in order to fail.
    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.socket()]).args(args).stdin(Stdio::null());
        command
    }

    /// rswarm's own CLI against this host.
    pub fn rswarm(&self, args: &[&str]) -> Result<String> {
        run(Command::new(binary()).args(["-H", &self.socket()]).args(args).stdin(Stdio::null()))
    }

    /// What a CLI call that must fail says on standard error.
    pub fn refusal(&self, args: &[&str]) -> Result<String> {
        let output = self.docker_command(args).output()?;
        ensure!(!output.status.success(), "`docker {}` was accepted", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// A raw API call: the status code and the body.
    pub fn api(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let socket = self.dir.join("rswarm.sock");
        let text = run(Command::new("curl")
            .args(["-sS", "-X", method, "-H", "Content-Type: application/json", "-d", body])
            .args(["-w", "\n%{http_code}", "--unix-socket"])
            .arg(socket)
            .arg(format!("http://localhost{path}")))?;
        let (body, code) = text.rsplit_once('\n').context("no status code")?;
        Ok((code.parse()?, body.to_owned()))
    }

    /// Puts the demo image on this host: the binary itself, `FROM scratch`, tagged `demo:latest`.
    pub fn import_demo(&self) -> Result<()> {
        self.import_server("demo:latest", &[])
    }

    /// The same as [`CHECKED`], with a health check: its tasks are ready when they answer, not when they are started.
    pub fn import_checked_demo(&self) -> Result<()> {
        let fetch = r#"["/rswarm","whoami","--fetch","http://127.0.0.1/hostname"]"#;
        self.import_server(CHECKED, &[&format!("HEALTHCHECK --interval=1s --timeout=30s CMD {fetch}")])
    }

    fn import_server(&self, tag: &str, more: &[&str]) -> Result<()> {
        let changes = ["ENTRYPOINT [\"/rswarm\",\"whoami\"]", "EXPOSE 80"];
        self.import(&images::DEMO, tag, &[&changes[..], more].concat())
    }

    /// Puts a busybox image on this host, tagged `busybox:latest`.
    pub fn import_busybox(&self) -> Result<()> {
        self.import(&images::BUSYBOX, "busybox:latest", &["CMD [\"sh\"]"])
    }

    fn import(&self, archive: &'static Archive, tag: &str, changes: &[&str]) -> Result<()> {
        let path = archive.path()?;
        let mut args = vec!["import"];
        for change in changes {
            args.extend(["--change", change]);
        }
        args.extend([path.as_str(), tag]);
        self.docker(&args).map(drop)
    }

    /// Leaves the cluster, removes every container, stops the daemon: what a user does before uninstalling.
    pub fn retire(&mut self) -> Result<()> {
        if self.daemon.is_none() {
            self.start()?;
            self.ready()?;
        }
        if self.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?.trim() != "inactive" {
            self.docker(&["swarm", "leave", "--force"])?;
        }
        let containers = self.docker(&["ps", "-aq"])?;
        if !containers.trim().is_empty() {
            let mut args = vec!["rm", "-f"];
            args.extend(containers.split_whitespace());
            self.docker(&args)?;
        }
        self.stop()
    }

    /// The end of the daemon's log, for a failed test.
    pub fn print_log_tail(&self) {
        let log = std::fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        eprintln!("---- {} ({}) ----", self.name, self.dir.display());
        for line in tail.iter().rev() {
            eprintln!("{line}");
        }
    }
}
