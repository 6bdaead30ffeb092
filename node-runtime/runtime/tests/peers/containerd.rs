//! containerd, its runc shim and `ctr`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Place;
use crate::program::{becomes, call, gives, succeeds};

pub fn runs_containers(place: &Place) -> Result<()> {
    let containerd = Containerd::start(place)?;
    let tested = containerd.short_ones().and_then(|()| containerd.a_long_one());
    let _ = call(&mut containerd.command(&["task", "delete", "--force", "long"]), place.dir.path());
    tested.with_context(|| containerd.last_words())
}

struct Containerd<'a> {
    place: &'a Place,
    process: Child,
}

impl Containerd<'_> {
    fn start(place: &Place) -> Result<Containerd<'_>> {
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            place.path("storage"),
            place.path("state"),
            place.path("socket"),
        );
        fs::write(place.path("config.toml"), config)?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(place.path("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(place.path("containerd.log"))?)
            .spawn()?;
        let containerd = Containerd { place, process };
        becomes("containerd answers", || {
            Ok(call(&mut containerd.command(&["version"]), place.dir.path())?.status.success())
        })?;
        Ok(containerd)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["--address", &self.place.text("socket"), "--namespace", &self.place.parent]).args(args);
        command
    }

    fn run(&self, flags: &[&str], id: &str, words: &[&str]) -> Command {
        let mut command = self.command(&["run", "--runc-binary", &self.place.text(crate::RUNTIME)]);
        command.args(["--runc-root", &self.place.text("runtime")]);
        command
            .args(flags)
            .args(["--env", "PATH=/bin"])
            .arg("--rootfs")
            .arg(self.place.path("rootfs"))
            .arg(id)
            .args(words);
        command
    }

    fn succeeds(&self, args: &[&str]) -> Result<String> {
        succeeds(&mut self.command(args), self.place.dir.path())
    }

    /// Runs a container that speaks until it is heard, and then ends with this code. ctr opens a container's
    /// output when it gets to it, and not at all once the container has ended: short words may be lost.
    fn heard(&self, command: &mut Command, words: &str, code: i32) -> Result<()> {
        let (said, heard) = (self.place.path("said"), self.place.path("rootfs/heard"));
        let mut child = command.stdin(Stdio::null()).stdout(File::create(&said)?).spawn()?;
        let listened = becomes("it speaks", || {
            Ok(fs::read_to_string(&said)?.starts_with(words) || has_ended(&mut child)?)
        });
        File::create(&heard)?;
        let status = child.wait()?;
        fs::remove_file(heard)?;
        listened?;
        let said = fs::read_to_string(said)?;
        ensure!(said.starts_with(words) && status.code() == Some(code), "{status}: {said}");
        Ok(())
    }

    fn short_ones(&self) -> Result<()> {
        let dir = self.place.dir.path();
        let script = "until [ -e /heard ]; do echo out; sleep 0.1; done; exit 3";
        self.heard(&mut self.run(&["--rm"], "short", &["sh", "-c", script]), "out\n", 3)?;
        let output = gives(&mut self.run(&["--rm"], "none", &["missing"]), dir, 1)?;
        ensure!(output.stderr.contains("executable file not found in $PATH"), "{output:?}");
        Ok(())
    }

    fn a_long_one(&self) -> Result<()> {
        let dir = self.place.dir.path();
        succeeds(&mut self.run(&["--detach", "--null-io"], "long", &["sleep", "1000"]), dir)?;
        ensure!(self.status()? == "RUNNING");
        let script = "until [ -e /heard ]; do echo in; pwd; sleep 0.1; done; exit 4";
        let exec = ["task", "exec", "--exec-id", "one", "long", "sh", "-c", script];
        self.heard(&mut self.command(&exec), "in\n/\n", 4)?;
        let output =
            gives(&mut self.command(&["task", "exec", "--exec-id", "three", "long", "missing"]), dir, 1)?;
        ensure!(output.stderr.contains("executable file not found in $PATH"), "{output:?}");
        ensure!(self.succeeds(&["task", "ps", "long"])?.lines().count() == 2);
        self.succeeds(&["task", "pause", "long"])?;
        ensure!(self.status()? == "PAUSED");
        self.succeeds(&["task", "resume", "long"])?;
        ensure!(self.status()? == "RUNNING");
        self.succeeds(&["task", "kill", "--signal", "KILL", "long"])?;
        becomes("the task is stopped", || Ok(self.status()? == "STOPPED"))?;
        let output = gives(&mut self.command(&["task", "delete", "long"]), dir, 0)?;
        ensure!(output.stderr.contains("exit code 137"), "{output:?}");
        self.succeeds(&["container", "delete", "long"])?;
        ensure!(self.succeeds(&["container", "list", "--quiet"])?.is_empty());
        Ok(())
    }

    fn status(&self) -> Result<String> {
        let list = self.succeeds(&["task", "list"])?;
        let line = list.lines().find(|line| line.starts_with("long")).context("no task")?;
        Ok(line.split_whitespace().nth(2).context("no status")?.to_owned())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.place.path("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.join("\n")
    }
}

impl Drop for Containerd<'_> {
    /// Shims outlive containerd, and end when their container is deleted.
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM);
        let _ = self.process.wait();
        debug_assert!(!Path::new("/proc").join(self.process.id().to_string()).exists());
    }
}

fn has_ended(child: &mut Child) -> Result<bool> {
    Ok(child.try_wait()?.is_some())
}
