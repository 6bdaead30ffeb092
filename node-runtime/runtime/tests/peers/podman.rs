//! podman and its conmon.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::Place;
use crate::program::{call, gives, succeeds};

pub fn runs_containers(place: &Place) -> Result<()> {
    let podman = Podman { place };
    let tested = podman.short_ones().and_then(|()| podman.a_long_one());
    // Also when the test failed.
    let _ = call(&mut podman.command(&["rm", "--all", "--force", "--time", "0"]), place.dir.path());
    tested
}

struct Podman<'a> {
    place: &'a Place,
}

impl Podman<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.args(["--root", &self.place.text("storage"), "--runroot", &self.place.text("run")]);
        command.args(["--tmpdir", &self.place.text("tmp"), "--storage-driver", "vfs"]);
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command.args(["--runtime", &self.place.text(crate::RUNTIME)]);
        // Not --runtime-flag root=…: the clean-up that conmon starts does not hear of it.
        command.args(args);
        command
    }

    /// `podman run` with what this machine needs, of the root file system.
    fn run(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut command = self.command(&["run", "--network", "none", "--log-driver", "k8s-file"]);
        command.args(["--cgroup-parent", &format!("/{}", self.place.parent)]);
        // podman asks for more than root may have here.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        command.args(flags).arg("--rootfs").arg(self.place.path("rootfs")).args(words);
        command
    }

    fn succeeds(&self, args: &[&str]) -> Result<String> {
        succeeds(&mut self.command(args), self.place.dir.path())
    }

    fn short_ones(&self) -> Result<()> {
        let dir = self.place.dir.path();
        let output =
            gives(&mut self.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 3"]), dir, 3)?;
        ensure!(output.stdout == "out\n" && output.stderr == "err\n", "{output:?}");
        let limited =
            ["--rm", "--memory", "64m", "--pids-limit", "50", "--user", "7:8", "--hostname", "inside"];
        let output = succeeds(&mut self.run(&limited, &["sh", "-c", "id -u; id -g; hostname"]), dir)?;
        ensure!(output == "7\n8\ninside\n", "{output}");
        let output =
            succeeds(&mut self.run(&["--rm", "--tty"], &["sh", "-c", "tty; test -t 1 && echo yes"]), dir)?;
        ensure!(output.starts_with("/dev/") && output.trim_end().ends_with("yes"), "{output}");
        // Exit codes that people know from the shell.
        gives(&mut self.run(&["--rm"], &["missing"]), dir, 127)?;
        gives(&mut self.run(&["--rm"], &["/bin/broken"]), dir, 126)?;
        Ok(())
    }

    fn a_long_one(&self) -> Result<()> {
        let dir = self.place.dir.path();
        succeeds(&mut self.run(&["--detach", "--name", "long"], &["sleep", "1000"]), dir)?;
        ensure!(self.succeeds(&["exec", "--env", "A=b", "long", "sh", "-c", "echo $A"])? == "b\n");
        gives(&mut self.command(&["exec", "long", "sh", "-c", "exit 4"]), dir, 4)?;
        let output = self.succeeds(&["exec", "--tty", "--user", "7", "long", "sh", "-c", "tty; id -u"])?;
        ensure!(output.contains("/dev/pts/") && output.trim_end().ends_with('7'), "{output}");
        gives(&mut self.command(&["exec", "long", "missing"]), dir, 127)?;
        ensure!(self.succeeds(&["top", "long", "args"])?.contains("sleep 1000"));
        self.succeeds(&["pause", "long"])?;
        ensure!(self.status()? == "paused");
        self.succeeds(&["unpause", "long"])?;
        ensure!(self.status()? == "running");
        self.succeeds(&["kill", "--signal", "USR1", "long"])?;
        ensure!(self.status()? == "running", "init has no handler, so that the signal is not for it");
        self.succeeds(&["stop", "--time", "1", "long"])?;
        let code =
            self.succeeds(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "long"])?;
        ensure!(code == "exited 137\n", "{code}");
        self.succeeds(&["start", "long"])?;
        ensure!(self.status()? == "running");
        self.succeeds(&["rm", "--force", "--time", "0", "long"])?;
        ensure!(self.succeeds(&["ps", "--all", "--quiet"])?.is_empty());
        Ok(())
    }

    fn status(&self) -> Result<String> {
        let status = self.succeeds(&["inspect", "--format", "{{.State.Status}}", "long"])?;
        Ok(status.trim().to_owned())
    }
}
