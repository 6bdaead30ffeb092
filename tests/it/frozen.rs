//! Containers whose cgroups somebody else has frozen: they are ended all the same.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::Lab;
use rswarm_tests::host::Host;

/// Far below what a time-out in the way would take.
const AT_ONCE: Duration = Duration::from_secs(60);

/// A cgroup's switch, and the words that freeze and thaw it.
struct Freezer {
    file: PathBuf,
    words: [&'static str; 2],
}

impl Freezer {
    /// Those of a process's cgroup and of the one around it, of whichever versions this machine has.
    fn of(pid: &str) -> Result<Vec<[Freezer; 2]>> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mut found = Vec::new();
        for line in cgroups.lines() {
            let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
            let (mounts, file, words) = match controllers {
                "freezer" => (&["/sys/fs/cgroup/freezer"][..], "freezer.state", ["FROZEN", "THAWED"]),
                "" => (&["/sys/fs/cgroup/unified", "/sys/fs/cgroup"][..], "cgroup.freeze", ["1", "0"]),
                _ => continue,
            };
            let dirs = mounts.iter().map(|mount| PathBuf::from(format!("{mount}{path}")));
            let Some(own) = dirs.into_iter().find(|dir| dir.join(file).exists()) else { continue };
            let around = own.parent().context("a parent")?.to_owned();
            found.push([own, around].map(|dir| Freezer { file: dir.join(file), words }));
        }
        Ok(found)
    }

    fn freeze(&self) -> Result<()> {
        std::fs::write(&self.file, self.words[0]).with_context(|| self.file.display().to_string())
    }
}

/// What a test has frozen does not stay so.
impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.file, self.words[1]);
    }
}

fn sleeper(host: &Host) -> Result<(String, String)> {
    let id = host.docker(&["run", "-d", "busybox", "sh", "-c", "sleep 1000 & sleep 1000"])?.trim().to_owned();
    let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", &id])?.trim().to_owned();
    Ok((id, pid))
}

#[test]
fn frozen_containers_are_killed_and_removed() -> Result<()> {
    let lab = Lab::start(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let (id, pid) = sleeper(host)?;
    let versions = Freezer::of(&pid)?.len();
    ensure!(versions > 0, "this machine has no freezer");
    host.docker(&["rm", "-f", &id])?;
    for version in 0..versions {
        for around in [false, true] {
            for paused in [false, true] {
                for command in [&["rm", "-f"][..], &["kill"]] {
                    let (id, pid) = sleeper(host)?;
                    if paused {
                        host.docker(&["pause", &id])?;
                    }
                    let [own, outer] = Freezer::of(&pid)?.swap_remove(version);
                    let freezer = if around { &outer } else { &own };
                    freezer.freeze()?;
                    let began = Instant::now();
                    host.docker(&[command, &[&id]].concat())?;
                    let what = format!("{} paused={paused} {command:?}", freezer.file.display());
                    ensure!(began.elapsed() < AT_ONCE, "{what}: {:?}", began.elapsed());
                    if command == ["kill"] {
                        let format = "{{.State.Status}} {{.State.ExitCode}}";
                        let state = host.docker(&["inspect", "--format", format, &id])?;
                        ensure!(state.trim() == "exited 137", "{what}: {state}");
                        host.docker(&["rm", &id])?;
                    }
                    ensure!(!PathBuf::from(format!("/proc/{pid}")).exists(), "{what}: the process is left");
                }
            }
        }
    }
    lab.finish()
}
