//! Real containers through a real shim, checked from inside and at the kernel. Needs root and a static busybox.
//!
//! The program is its own shim: the client runs it again as `… shim --state-dir DIR`, which must find no
//! thread, so there is no test harness. Arguments that are no options select tests by part of their name.

mod cases;
mod fixture;
mod more;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == "/sbin/docker-init") {
        let args: Vec<_> = std::env::args_os().skip(1).collect();
        return ExitCode::from(u8::try_from(rswarm_shim::init::main(&args)).unwrap_or(1));
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "shim") {
        let code = rswarm_shim::serve::main(args[1..].to_vec());
        return ExitCode::from(u8::try_from(code).expect("a shim's exit code is small"));
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Some(why) = fixture::missing() {
        eprintln!("skipped: {why}");
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let wanted: Vec<String> = args
        .iter()
        .filter_map(|arg| arg.to_str())
        .filter(|arg| !arg.starts_with('-'))
        .map(str::to_owned)
        .collect();
    let mut failures = Vec::new();
    for (name, test) in cases::ALL.iter().chain(more::ALL) {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let started = std::time::Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test())));
        let passed = matches!(&result, Ok(Ok(())));
        println!("test {name} ... {} ({:?})", if passed { "ok" } else { "FAILED" }, started.elapsed());
        if let Ok(Err(error)) = result {
            println!("    {error:#}");
        }
        if !passed {
            failures.push(name);
        }
    }
    println!("{} failed", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
