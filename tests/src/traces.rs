//! What a daemon may leave behind, read from the kernel: processes, mounts, interfaces, cgroups.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;

/// Everything of the lab in `dir` that is still there, one line each. Daemons must have ended.
pub fn of(dir: &Path, hosts: &[Host]) -> Vec<String> {
    let mut left: Vec<String> =
        processes(dir).iter().map(|(pid, args)| format!("process {pid}: {args}")).collect();
    left.extend(mounts(dir).into_iter().map(|path| format!("mount {path}")));
    left.extend(hosts.iter().flat_map(|host| cgroups(host).into_iter().map(|path| format!("cgroup {path}"))));
    left.extend(hosts.iter().flat_map(interfaces));
    left
}

/// Removes all of it by force: for labs whose test failed.
pub fn remove(dir: &Path, hosts: &mut [Host]) {
    for host in hosts.iter_mut() {
        let _ = host.kill();
    }
    // A shim takes its container along when it dies.
    for (pid, _) in processes(dir) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for path in mounts(dir).iter().rev() {
        let _ = umount2(Path::new(path), MntFlags::MNT_DETACH);
    }
    // A killed process takes a moment to leave its cgroup.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left: Vec<String> = hosts.iter().flat_map(cgroups).collect();
        for path in left.iter().rev() {
            let _ = std::fs::remove_dir(path);
        }
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose command line names the lab's directory: daemons and shims.
fn processes(dir: &Path) -> Vec<(i32, String)> {
    let needle = format!("{}/", dir.display());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args = String::from_utf8_lossy(&raw).replace('\0', " ");
        (args.contains(&needle) && args.contains("rswarm")).then_some((pid, args))
    })
    .collect()
}

/// Mount points under the lab's directory, parents first.
fn mounts(dir: &Path) -> Vec<String> {
    let needle = format!("{}/", dir.display());
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(&needle))
        .map(str::to_owned)
        .collect()
}

/// Cgroups of a host's daemon, parents first, in every hierarchy.
pub fn cgroups(host: &Host) -> Vec<String> {
    let Ok(id) = std::fs::read_to_string(host.dir.join("data/daemon-id")) else { return Vec::new() };
    let name = format!("rswarm-{}", id.trim());
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", &format!("*{name}*")])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    found.lines().map(str::to_owned).collect()
}

/// Interfaces in the host's namespace beyond its own two.
fn interfaces(host: &Host) -> Vec<String> {
    let output = Command::new("ip").args(["-n", &host.netns, "-o", "link"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let names = text
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap_or(name));
    names
        .filter(|name| !matches!(*name, "lo" | "eth0"))
        .map(|name| format!("interface {name} on {}", host.name))
        .collect()
}
