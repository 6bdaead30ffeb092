//! How long a container takes from nothing to nothing: create, start, the end of `true`, delete. For this
//! runtime and for crun and runc where they are installed, with the same bundle (every namespace but user and
//! time, Docker's capabilities, mounts and seccomp profile), in turns, so that a busy machine is busy for all.
//!
//! ```text
//! cargo bench -p rswarm-runtime [-- [--program RSWARM] [--rounds N] [--parallel N]]
//! ```
//! `--program` measures an `rswarm` binary instead of the library alone: `target/release/rswarm`.
//!
//! Needs root and a static busybox. As in `tests/it`, the program is its own runtime.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{Capability, Spec};
use rswarm_runtime::seccomp::docker_default;
use serde_json::json;

const BUSYBOX: &str = "/bin/busybox";
const UNIFIED: &str = "/sys/fs/cgroup/unified";
const ROUNDS: usize = 40;
const PARALLEL: usize = 16;

/// What Docker gives a container.
const CAPABILITIES: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::SysChroot,
    Capability::Mknod,
    Capability::AuditWrite,
    Capability::Setfcap,
];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match args.first().and_then(|word| word.to_str()) {
        Some("runtime") => {
            let code = rswarm_runtime::cli::main(args[1..].to_vec());
            return ExitCode::from(u8::try_from(code).unwrap_or(255));
        }
        Some("lane") => run_lane(&args[1..]),
        _ => compare(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The main program: one lane per runtime, a round of each in turn.
fn compare(args: &[OsString]) -> Result<()> {
    let options = Options::parse(args)?;
    if !nix::unistd::geteuid().is_root() || !Path::new(BUSYBOX).exists() {
        println!("skipped: needs root and {BUSYBOX} (busybox-static)");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("lifecycle").tempdir_in("/dev/shm")?;
    write_bundle(&dir.path().join("bundle"))?;
    let mut lanes = vec![Lane::open("rswarm", &options.ours()?, dir.path())?];
    for peer in ["crun", "runc"] {
        match find(peer) {
            Some(path) => lanes.push(Lane::open(peer, &[path.into_os_string()], dir.path())?),
            None => println!("{peer} is not installed"),
        }
    }
    for lane in &mut lanes {
        lane.ask("1", 1)?;
    }
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); lanes.len()];
    for _ in 0..options.rounds {
        for (lane, rounds) in lanes.iter_mut().zip(&mut rounds) {
            rounds.extend(lane.ask("1", 1)?);
        }
    }
    println!("one after another, {} rounds, medians in ms (ratio of the total)", options.rounds);
    print_table(&lanes, &rounds);
    let mut whole: Vec<Vec<Duration>> = vec![Vec::new(); lanes.len()];
    for _ in 0..5 {
        for (lane, whole) in lanes.iter_mut().zip(&mut whole) {
            let started = Instant::now();
            lane.ask(&options.parallel.to_string(), options.parallel)?;
            whole.push(started.elapsed());
        }
    }
    println!("{} in parallel, median ms until the last is gone", options.parallel);
    let ours = median(&whole[0]);
    for (lane, whole) in lanes.iter().zip(&whole) {
        let all = median(whole);
        println!(
            "  {:8} {:8.2}  {:5.2}",
            lane.name,
            milliseconds(all),
            all.as_secs_f64() / ours.as_secs_f64()
        );
    }
    Ok(())
}

/// What the command line says.
struct Options {
    program: Option<OsString>,
    rounds: usize,
    parallel: usize,
}

impl Options {
    fn parse(args: &[OsString]) -> Result<Options> {
        let mut options = Options { program: None, rounds: ROUNDS, parallel: PARALLEL };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{} needs a value", arg.display()));
            match arg.to_str() {
                Some("--bench") => {}
                Some("--program") => options.program = Some(value()?.clone()),
                Some("--rounds") => options.rounds = value()?.to_string_lossy().parse()?,
                Some("--parallel") => options.parallel = value()?.to_string_lossy().parse()?,
                _ => bail!("`{}` is not known", arg.display()),
            }
        }
        Ok(options)
    }

    fn ours(&self) -> Result<[OsString; 2]> {
        let program = self.program.clone().map_or_else(|| std::env::current_exe().map(OsString::from), Ok)?;
        Ok([program, "runtime".into()])
    }
}

fn print_table(lanes: &[Lane], rounds: &[Vec<Round>]) {
    println!("  {:8} {:>8} {:>8} {:>8} {:>8}", "", "create", "start", "delete", "total");
    let part =
        |rounds: &[Round], part: fn(&Round) -> Duration| median(&rounds.iter().map(part).collect::<Vec<_>>());
    let ours = part(&rounds[0], Round::total);
    for (lane, rounds) in lanes.iter().zip(rounds) {
        let total = part(rounds, Round::total);
        println!(
            "  {:8} {:8.2} {:8.2} {:8.2} {:8.2}  {:5.2}",
            lane.name,
            milliseconds(part(rounds, |round| round.create)),
            milliseconds(part(rounds, |round| round.start)),
            milliseconds(part(rounds, |round| round.delete)),
            milliseconds(total),
            total.as_secs_f64() / ours.as_secs_f64()
        );
    }
}

fn median(all: &[Duration]) -> Duration {
    let mut all = all.to_vec();
    all.sort_unstable();
    all[all.len() / 2]
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// One container's life.
#[derive(Debug, Clone, Copy)]
struct Round {
    create: Duration,
    /// Until the command has ended.
    start: Duration,
    delete: Duration,
}

impl Round {
    fn total(&self) -> Duration {
        self.create + self.start + self.delete
    }
}

/// A process that runs one runtime's containers, in a mount namespace of its own.
struct Lane {
    name: String,
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Lane {
    fn open(name: &str, program: &[OsString], dir: &Path) -> Result<Lane> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("lane")
            .arg(dir)
            .arg(name)
            .args(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().context("stdin")?;
        let answers = BufReader::new(process.stdout.take().context("stdout")?);
        Ok(Lane { name: name.to_owned(), process, orders, answers })
    }

    /// Orders containers, as many at once as the order says, and waits for all of them.
    fn ask(&mut self, order: &str, count: usize) -> Result<Vec<Round>> {
        writeln!(self.orders, "{order}")?;
        let mut rounds = Vec::new();
        for _ in 0..count {
            let mut line = String::new();
            ensure!(self.answers.read_line(&mut line)? > 0, "{} failed", self.name);
            let mut parts = line.split_whitespace().map(|part| part.parse().map(Duration::from_nanos));
            let mut part = || parts.next().context("too few figures")?.context("no figure");
            rounds.push(Round { create: part()?, start: part()?, delete: part()? });
        }
        Ok(rounds)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the lane's process: does as ordered until the orders end.
fn run_lane(args: &[OsString]) -> Result<()> {
    let [dir, name, program @ ..] = args else { bail!("a lane needs a directory, a name and a program") };
    hide_version_2()?;
    // What a monitor of containers does: a container's init becomes its child, whose end it waits for.
    prctl::set_child_subreaper(true)?;
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let dir = Path::new(dir);
    let lane =
        Runtime { program, root: dir.join(format!("{}-root", name.display())), bundle: dir.join("bundle") };
    let mut next = 0;
    for order in std::io::stdin().lines() {
        let count: usize = order?.parse()?;
        let ids: Vec<String> =
            (next..next + count).map(|n| format!("bench-{}-{n}", std::process::id())).collect();
        next += count;
        for round in lane.run(&ids)? {
            println!("{} {} {}", round.create.as_nanos(), round.start.as_nanos(), round.delete.as_nanos());
        }
    }
    Ok(())
}

/// crun refuses a machine that has controllers in version 1 and in version 2, so no lane sees version 2 there.
fn hide_version_2() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
    if Path::new(UNIFIED).exists() {
        umount2(UNIFIED, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

struct Runtime<'a> {
    program: &'a [OsString],
    root: PathBuf,
    bundle: PathBuf,
}

impl Runtime<'_> {
    fn run(&self, ids: &[String]) -> Result<Vec<Round>> {
        if let [id] = ids {
            return Ok(vec![self.run_one(id)?]);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = ids.iter().map(|id| scope.spawn(|| self.run_one(id))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }

    fn run_one(&self, id: &str) -> Result<Round> {
        let pid_file = self.bundle.join(format!("{id}.pid"));
        let started = Instant::now();
        self.call(
            &["create", "--bundle"],
            &[self.bundle.as_os_str(), "--pid-file".as_ref(), pid_file.as_os_str(), id.as_ref()],
        )?;
        let create = started.elapsed();
        let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
        let started = Instant::now();
        self.call(&["start", id], &[])?;
        waitpid(Pid::from_raw(pid), None)?;
        let start = started.elapsed();
        let started = Instant::now();
        self.call(&["delete", id], &[])?;
        let delete = started.elapsed();
        fs::remove_file(pid_file)?;
        Ok(Round { create, start, delete })
    }

    fn call(&self, words: &[&str], args: &[&std::ffi::OsStr]) -> Result<()> {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).arg("--root").arg(&self.root).args(words).args(args);
        // Standard error goes through: whoever measures wants to know why not.
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    }
}

fn write_bundle(bundle: &Path) -> Result<()> {
    let root = bundle.join("rootfs");
    for name in ["bin", "proc", "dev", "sys", "etc"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/true"))?;
    let capabilities: HashSet<Capability> = CAPABILITIES.iter().copied().collect();
    let mut spec = serde_json::to_value(Spec::default())?;
    let names = serde_json::to_value(&capabilities)?;
    spec["ociVersion"] = "1.0.2".into();
    spec["process"]["args"] = json!(["true"]);
    spec["process"]["terminal"] = false.into();
    spec["process"]["noNewPrivileges"] = false.into();
    spec["process"]["capabilities"] = json!({"bounding": names, "permitted": names, "effective": names});
    spec["linux"]["seccomp"] = serde_json::to_value(docker_default(&capabilities))?;
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    spec["linux"]["namespaces"] = namespaces.iter().map(|typ| json!({"type": typ})).collect();
    spec["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "memory": {"limit": 268_435_456},
        "pids": {"limit": 100},
        "cpu": {"shares": 512},
    });
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.exists())
}
