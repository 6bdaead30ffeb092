//! What a shim costs: the speed of its log beside a container that writes a file itself, its memory, its start.
//!
//! `cargo bench -p rswarm-shim` as root; all figures come from one run on one disk. The program is its own shim,
//! as in the tests.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark may stop, and reads the clock"
)]

#[path = "../tests/containers/fixture.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod fixture;

use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fixture::Container;
use rswarm_shim::LogFormat;
use serde_json::json;

/// How much a container writes.
const BYTES: usize = 200 << 20;
const ROUNDS: usize = 8;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "shim") {
        let code = rswarm_shim::serve::main(args[1..].to_vec());
        return ExitCode::from(u8::try_from(code).expect("a shim's exit code is small"));
    }
    if let Some(why) = fixture::missing() {
        eprintln!("skipped: {why}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    match runtime.block_on(all()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `log`, `memory` and `exit` choose; without words all.
async fn all() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |word: &str| words.is_empty() || words.iter().any(|other| other == word);
    if wanted("memory") {
        memory_and_start().await?;
    }
    for width in [100, 1000].into_iter().filter(|_| wanted("log")) {
        log_speed(width).await?;
    }
    if wanted("exit") {
        exit_record()?;
    }
    Ok(())
}

/// The middle of some times.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Who writes what the container says: itself, into a file of its own, or the shim, by format and buffer.
type Way = (&'static str, Option<(LogFormat, Option<u64>)>);

const WAYS: [Way; 4] = [
    ("the container's own file", None),
    ("json-file", Some((LogFormat::Json, None))),
    ("local", Some((LogFormat::Local, None))),
    ("local, non-blocking", Some((LogFormat::Local, Some(1 << 20)))),
];

async fn log_speed(width: usize) -> Result<()> {
    let mut times = WAYS.map(|_| Vec::new());
    for round in 0..ROUNDS {
        // Whoever comes first finds less of the others' pages to be given back: they take turns.
        for place in 0..WAYS.len() {
            let way = (round + place) % WAYS.len();
            times[way].push(write(width, WAYS[way].1).await?);
        }
    }
    println!("200 MiB in lines of {width} bytes");
    let [plain, ..] = times.clone().map(median);
    for ((name, _), times) in WAYS.into_iter().zip(times) {
        let time = median(times);
        println!("    {name}: {time:?}, {:.2} of the speed", plain.as_secs_f64() / time.as_secs_f64());
    }
    Ok(())
}

/// Start to exit of a container that copies a file in memory to its output.
async fn write(width: usize, log: Option<(LogFormat, Option<u64>)>) -> Result<Duration> {
    let to = if log.is_some() { "" } else { " of=/data/output" };
    let mut container = Container::sh(&format!("exec dd if=/data/input bs=64k{to} 2>/dev/null"))?;
    let data = container.path("data");
    fs::create_dir(&data)?;
    let line = [vec![b'x'; width - 1], vec![b'\n']].concat();
    let mut input = std::io::BufWriter::new(fs::File::create(data.join("input"))?);
    for _ in 0..BYTES / width {
        input.write_all(&line)?;
    }
    input.flush()?;
    // What was written before is not written back while something is measured.
    rustix::fs::sync();
    container.spec["mounts"]
        .as_array_mut()
        .context("mounts")?
        .push(json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"]}));
    match (&mut container.launch.log, log) {
        (Some(file), Some((format, buffer))) => (file.format, file.buffer) = (format, buffer),
        (file, _) => *file = None,
    }
    let shim = container.create().await?;
    let started = Instant::now();
    shim.start().await?;
    let exit = shim.wait().await?;
    let took = started.elapsed();
    anyhow::ensure!(exit.code == 0, "exit code {}", exit.code);
    container.finish(&shim).await?;
    Ok(took)
}

async fn memory_and_start() -> Result<()> {
    let mut starts = Vec::new();
    for _ in 0..20 {
        let container = Container::new(&["true"])?;
        fs::write(container.launch.bundle.join("config.json"), serde_json::to_vec(&container.spec)?)?;
        let started = Instant::now();
        let shim = container.create().await?;
        starts.push(started.elapsed());
        shim.start().await?;
        shim.wait().await?;
        container.finish(&shim).await?;
    }
    println!("shim and created container in {:?}", median(starts));
    let mut execs = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(["shim", "--nothing"])
            .stderr(std::process::Stdio::null())
            .status()?;
        anyhow::ensure!(status.code() == Some(2));
        execs.push(started.elapsed());
    }
    println!("of which the program itself takes {:?}", median(execs));
    let container = Container::sh("echo up; exec sleep 1000")?;
    let shim = container.create().await?;
    shim.start().await?;
    fixture::eventually("it is up", || container.log().is_ok_and(|log| !log.is_empty())).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for pid in container.processes() {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let of = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        println!(
            "process {pid} of the shim, idle: USS {} KiB (clean {}, dirty {}), PSS {} KiB, RSS {} KiB",
            of("Private_Clean:") + of("Private_Dirty:"),
            of("Private_Clean:"),
            of("Private_Dirty:"),
            of("Pss:"),
            of("Rss:"),
        );
    }
    shim.kill(9, false).await?;
    shim.wait().await?;
    container.finish(&shim).await
}

/// A rename costs a second turn of the journal.
fn exit_record() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut renamed, mut in_place) = (Vec::new(), Vec::new());
    for number in 0..30 {
        let started = Instant::now();
        rswarm_base::fsx::write_json(&dir.path().join(format!("renamed-{number}")), &number)?;
        renamed.push(started.elapsed());
        let path = dir.path().join(format!("in-place-{number}"));
        let started = Instant::now();
        let mut file = fs::File::create(&path)?;
        serde_json::to_writer(&mut file, &number)?;
        file.sync_all()?;
        rswarm_base::fsx::sync_dir(dir.path())?;
        in_place.push(started.elapsed());
    }
    println!("a durable exit: {:?}; by temporary file and rename: {:?}", median(in_place), median(renamed));
    Ok(())
}
