//! dockerd with this runtime registered, and its containerd.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Place;
use crate::program::{becomes, call, gives, succeeds};

pub fn runs_containers(place: &Place) -> Result<()> {
    let docker = Docker::start(place)?;
    let tested = docker.short_ones().and_then(|()| docker.a_long_one());
    let _ = call(&mut docker.command(&["rm", "--force", "long"]), place.dir.path());
    tested.with_context(|| docker.last_words())
}

struct Docker<'a> {
    place: &'a Place,
    process: Child,
}

impl Docker<'_> {
    fn start(place: &Place) -> Result<Docker<'_>> {
        let process = Command::new("dockerd")
            .args(["--data-root", &place.text("storage"), "--exec-root", &place.text("state")])
            .args(["--pidfile", &place.text("pid"), "--host", &Docker::address(place)])
            .args(["--bridge", "none", "--iptables=false", "--storage-driver", "vfs"])
            .args(["--cgroup-parent", &format!("/{}", place.parent)])
            .args(["--add-runtime", &format!("rswarm={}", place.text(crate::RUNTIME))])
            .args(["--default-runtime", "rswarm"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(place.path("dockerd.log"))?)
            .spawn()?;
        let docker = Docker { place, process };
        becomes("dockerd answers", || {
            Ok(call(&mut docker.command(&["version"]), place.dir.path())?.status.success())
        })?;
        let tar = place.text("image.tar");
        let mut pack = Command::new("tar");
        pack.args(["--create", "--file", &tar, "--directory", &place.text("rootfs"), "."]);
        succeeds(&mut pack, place.dir.path())?;
        docker.succeeds(&["import", &tar, "busybox"])?;
        Ok(docker)
    }

    fn address(place: &Place) -> String {
        format!("unix://{}", place.text("socket"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["--host", &Docker::address(self.place)]).args(args);
        command
    }

    /// `docker run` with what this machine needs.
    fn run(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut command = self.command(&["run", "--network", "none"]);
        // dockerd asks for more than root may have here.
        command.args(["--ulimit", "nofile=1024:1024"]).args(flags).arg("busybox").args(words);
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
        let confined = ["--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
        let script = "cat /proc/self/status; touch /x 2>&1; true";
        let output = succeeds(&mut self.run(&confined, &["sh", "-c", script]), dir)?;
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Read-only file system"] {
            ensure!(output.contains(line), "{line}: {output}");
        }
        let output = gives(&mut self.run(&["--rm"], &["missing"]), dir, 127)?;
        ensure!(output.stderr.contains("executable file not found in $PATH"), "{output:?}");
        gives(&mut self.run(&["--rm"], &["/bin/broken"]), dir, 126)?;
        Ok(())
    }

    fn a_long_one(&self) -> Result<()> {
        let dir = self.place.dir.path();
        let script = "echo started; while true; do sleep 0.1; done";
        let flags = ["--detach", "--name", "long", "--init", "--memory", "64m", "--pids-limit", "50"];
        succeeds(&mut self.run(&flags, &["sh", "-c", script]), dir)?;
        becomes("it is logged", || Ok(self.succeeds(&["logs", "long"])? == "started\n"))?;
        ensure!(self.succeeds(&["exec", "long", "cat", "/proc/1/cmdline"])?.contains("docker-init"));
        let exec = ["exec", "--env", "A=b", "--user", "7", "--workdir", "/etc", "long", "sh", "-c"];
        ensure!(self.succeeds(&[&exec[..], &["echo $A; id -u; pwd"]].concat())? == "b\n7\n/etc\n");
        gives(&mut self.command(&["exec", "long", "sh", "-c", "exit 4"]), dir, 4)?;
        ensure!(self.succeeds(&["exec", "--tty", "long", "tty"])?.starts_with("/dev/pts/"));
        let stats =
            self.succeeds(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "long"])?;
        ensure!(stats.contains("/ 64MiB"), "{stats}");
        ensure!(self.succeeds(&["top", "long"])?.contains(script));
        self.succeeds(&["pause", "long"])?;
        ensure!(self.state()? == "paused 0");
        self.succeeds(&["unpause", "long"])?;
        self.succeeds(&["update", "--memory", "32m", "--memory-swap", "64m", "--pids-limit", "40", "long"])?;
        ensure!(
            self.succeeds(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "long"])?
                .contains("/ 32MiB")
        );
        self.succeeds(&["restart", "--time", "1", "long"])?;
        ensure!(self.state()? == "running 0");
        self.succeeds(&["stop", "--time", "30", "long"])?;
        ensure!(self.state()? == "exited 143", "the init passes the signal on");
        self.succeeds(&["start", "long"])?;
        self.succeeds(&["kill", "long"])?;
        becomes("it is killed", || Ok(self.state()? == "exited 137"))?;
        self.succeeds(&["rm", "long"])?;
        ensure!(self.succeeds(&["ps", "--all", "--quiet"])?.is_empty());
        Ok(())
    }

    /// Status and exit code.
    fn state(&self) -> Result<String> {
        let format = "{{.State.Status}} {{.State.ExitCode}}";
        Ok(self.succeeds(&["inspect", "--format", format, "long"])?.trim().to_owned())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.place.path("dockerd.log")).unwrap_or_default();
        log.lines().rev().take(10).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Docker<'_> {
    /// dockerd ends its containerd.
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}
