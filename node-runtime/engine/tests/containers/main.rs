//! Real containers on a real engine, checked through the engine's face, from inside and at the kernel. Needs
//! root, iproute2 and a static busybox.
//!
//! The program is its own shim: the engine runs it again as `… shim --state-dir DIR`, which must find no thread,
//! so there is no test harness. And it is the daemon that dies: `… life DIR …` opens an engine, does what a test
//! wants done, and kills itself. Before any thread it moves into a network and a mount namespace of its own, so
//! that nothing here touches the machine's. Arguments that are no options select tests by part of their name.

mod cases;
mod files;
mod fixture;
mod networks;
mod restarts;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "shim") {
        let code = rswarm_shim::serve::main(args[1..].to_vec());
        return ExitCode::from(u8::try_from(code).expect("a shim's exit code is small"));
    }
    if let [life, dir, daemon_id, bridge, name] = &args[..]
        && life == "life"
    {
        return fixture::live_and_die(dir.as_ref(), daemon_id, bridge, name);
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Some(why) = fixture::missing() {
        eprintln!("skipped: {why}");
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    fixture::leave_the_machine().expect("namespaces of our own");
    let wanted: Vec<&str> =
        args.iter().filter_map(|arg| arg.to_str()).filter(|arg| !arg.starts_with('-')).collect();
    let mut failures = 0;
    let all = cases::ALL.iter().chain(files::ALL).chain(networks::ALL).chain(restarts::ALL);
    for (name, test) in
        all.filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part)))
    {
        let started = std::time::Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test));
        let passed = matches!(&result, Ok(Ok(())));
        println!("test {name} ... {} ({:?})", if passed { "ok" } else { "FAILED" }, started.elapsed());
        if let Ok(Err(error)) = result {
            println!("    {error:#}");
        }
        failures += usize::from(!passed);
    }
    println!("{failures} failed");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
