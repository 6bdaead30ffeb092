//! A bundle of a static busybox, and the runtime run on it as its callers run it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Debian's busybox-static.
pub const BUSYBOX: &str = "/bin/busybox";

/// A bundle, and a root for the runtime to remember containers in.
pub struct Bundle {
    dir: TempDir,
    pub id: String,
    pub spec: Value,
}

impl Bundle {
    /// One whose command is a shell script; its tools are busybox's.
    pub fn sh(script: &str) -> Result<Bundle> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("bundle/rootfs");
        for name in ["bin", "proc", "dev", "etc"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(BUSYBOX, root.join("bin/busybox"))?;
        for name in ["sh", "sleep", "cat", "echo", "hostname", "id", "ls", "mount", "stat", "touch", "true"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        let id = format!("clitest-{}", &rswarm_base::id::engine_id()[..16]);
        let mut spec = serde_json::to_value(oci_spec::runtime::Spec::default())?;
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["root"]["readonly"] = false.into();
        spec["hostname"] = "cli".into();
        spec["linux"]["cgroupsPath"] = format!("/rswarm-{id}").into();
        Ok(Bundle { dir, id, spec })
    }

    /// A path beside the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The runtime, about to run a command in the bundle's directory.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        fs::write(self.path("bundle/config.json"), serde_json::to_vec(&self.spec)?)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["runtime", "--root"]).arg(self.path("root")).args(args);
        command.current_dir(self.path("bundle")).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command; output goes through files, since a detached container keeps them open.
    pub fn call(&self, args: &[&str]) -> Result<Output> {
        let (out, err) = (self.path("out"), self.path("err"));
        let status =
            self.command(args)?.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?).status()?;
        Ok(Output { status, stdout: fs::read(out)?, stderr: fs::read(err)? })
    }

    pub fn succeeds(&self, args: &[&str]) -> Result<String> {
        let output = self.call(args)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn fails(&self, args: &[&str]) -> Result<String> {
        let output = self.call(args)?;
        ensure!(output.status.code() == Some(1), "{args:?} gave {:?}", output.status);
        Ok(String::from_utf8(output.stderr)?.trim().to_owned())
    }

    pub fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.succeeds(&["state", &self.id])?)?)
    }

    pub fn status_becomes(&self, wanted: &str) -> Result<()> {
        for _ in 0..1000 {
            if self.state()?["status"] == wanted {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        anyhow::bail!("the status never became {wanted}")
    }

    /// Waits for a file that the container makes.
    pub fn appears(&self, name: &str) -> Result<()> {
        for _ in 0..2000 {
            if self.path(name).exists() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        anyhow::bail!("{name} never appeared")
    }

    /// Waits until the words in the container's file `/said` are these.
    pub fn says(&self, wanted: &str) -> Result<()> {
        let mut said = String::new();
        for _ in 0..2000 {
            said = fs::read_to_string(self.path("bundle/rootfs/said")).unwrap_or_default();
            if said.split_whitespace().collect::<Vec<_>>().join(" ") == wanted {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        anyhow::bail!("it said `{said}`")
    }

    pub fn nothing_is_left(&self) -> Result<()> {
        ensure!(!self.path("root").join(&self.id).exists(), "it is remembered");
        let hierarchies = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
        for dir in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let dir = dir.join(format!("rswarm-{}", self.id));
            ensure!(!dir.exists(), "{} is left", dir.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.dir.path().display().to_string()), "a mount is left");
        Ok(())
    }
}

impl Drop for Bundle {
    /// A failed test leaves nothing either.
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", &self.id.clone()]);
    }
}
