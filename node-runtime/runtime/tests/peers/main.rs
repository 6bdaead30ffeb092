//! Debian's podman, containerd and dockerd with this runtime in the place of theirs: containers run, are looked into,
//! paused, stopped and removed. Needs root, a static busybox, podman, containerd and docker.io; it says which of them it
//! misses, and fails for it where `CI=true`.
//!
//! Everything happens in mount and network namespaces of the test's own, on temporary roots. The program is
//! the runtime too, under the name that it is linked to.

mod containerd;
mod dockerd;
mod podman;
mod program;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

const BUSYBOX: &str = "/bin/busybox";
const RUNTIME: &str = "rswarm-runtime";

/// A test's name, the programs that it needs, and the test.
type Case = (&'static str, &'static [&'static str], fn(&Place) -> Result<()>);

const CASES: &[Case] = &[
    ("podman", &["podman", "conmon"], podman::runs_containers),
    ("containerd", &["containerd", "ctr", "containerd-shim-runc-v2"], containerd::runs_containers),
    ("dockerd", &["dockerd", "docker", "docker-init", "containerd-shim-runc-v2"], dockerd::runs_containers),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if Path::new(&args[0]).file_name().is_some_and(|name| name == RUNTIME) {
        let code = rswarm_runtime::cli::main(args[1..].to_vec());
        return ExitCode::from(u8::try_from(code).unwrap_or(255));
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&str> =
        args[1..].iter().filter_map(|arg| arg.to_str()).filter(|arg| !arg.starts_with('-')).collect();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, needs, test) in CASES {
        if !wanted.is_empty() && !wanted.contains(name) {
            continue;
        }
        if let Some(missing) = missing(needs) {
            println!("test {name} ... skipped: needs {missing}");
            skipped += 1;
            continue;
        }
        let result = Place::make().and_then(|place| test(&place).and_then(|()| place.nothing_is_left()));
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        if let Err(error) = &result {
            println!("    {error:#}");
        }
        *(if result.is_ok() { &mut passed } else { &mut failed }) += 1;
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if failed == 0 && !(ci && skipped > 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn missing(needs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root".to_owned());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some(format!("{BUSYBOX} (busybox-static)"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    needs.iter().find(|program| !is_there(program)).map(|program| (*program).to_owned())
}

/// A root file system, the runtime, and a machine on which nothing else can be touched.
struct Place {
    dir: TempDir,
    /// Of the containers' cgroups.
    parent: String,
}

impl Place {
    fn make() -> Result<Place> {
        isolate()?;
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("rootfs");
        for name in ["bin", "proc", "dev", "sys", "etc", "tmp", "run"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(BUSYBOX, root.join("bin/busybox"))?;
        for name in ["sh", "sleep", "cat", "echo", "id", "ls", "tty", "touch", "true", "pwd", "hostname"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        fs::write(root.join("bin/broken"), "no program")?;
        symlink(std::env::current_exe()?, dir.path().join(RUNTIME))?;
        let parent = format!("rswarm-peers-{}", std::process::id());
        Ok(Place { dir, parent })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The parents of the containers' cgroups, whom nobody removes.
    fn parents(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").context("look at cgroups")? {
            found.push(hierarchy?.path().join(&self.parent));
        }
        found.push(Path::new("/sys/fs/cgroup").join(&self.parent));
        Ok(found.into_iter().filter(|dir| dir.is_dir()).collect())
    }

    fn nothing_is_left(&self) -> Result<()> {
        for dir in self.parents()? {
            // podman's own, of which it leaves the removal to others.
            let _ = fs::remove_dir(dir.join("conmon"));
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                ensure!(!entry.file_type()?.is_dir(), "cgroup {} is left", entry.path().display());
            }
            fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        // containerd's and dockerd's roots for the runtime, with directories for their namespaces; and its own.
        let dockerds = self.path("state").join("runtime-rswarm/moby");
        for state in [self.path("runtime").join(&self.parent), dockerds, PathBuf::from("/run/rswarm/runtime")]
        {
            let remembered = fs::read_dir(&state).map(Iterator::count).unwrap_or(0);
            ensure!(remembered == 0, "{remembered} containers are remembered in {}", state.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.text("rootfs")), "a mount is left");
        Ok(())
    }
}

impl Drop for Place {
    /// A failed test leaves nothing either.
    fn drop(&mut self) {
        for parent in self.parents().unwrap_or_default() {
            for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::write(entry.path().join("cgroup.kill"), "1");
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&parent);
        }
    }
}

/// What engines write outside of their roots goes with the test.
fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    for dir in ["/run", "/var/lib/containers", "/var/lib/cni", "/var/lib/containerd"] {
        if Path::new(dir).exists() {
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).context(dir)?;
        }
    }
    Ok(())
}
