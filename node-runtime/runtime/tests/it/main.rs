//! Containers of the runtime, looked at from inside, or at the kernel from outside. Needs root and a static
//! busybox.
//!
//! The program is its own runtime: it runs itself as `… runtime COMMAND`, which must find no thread, so there
//! is no test harness. A module lists its tests in `CASES`.

mod cgroups;
mod cli;
mod conform;
mod escape;
mod hooks;
mod mounts;
mod namespaces;
mod netdevices;
mod process;
mod seccomp;
mod support;
mod user_mounts;

use std::fs;
use std::process::ExitCode;

use anyhow::Result;

/// A test's name and the test.
pub type Case = (&'static str, fn() -> Result<()>);

const MODULES: &[(&str, &[Case])] = &[
    ("cgroups", cgroups::CASES),
    ("cli", cli::CASES),
    ("conform", conform::CASES),
    ("mounts", mounts::CASES),
    ("user_mounts", user_mounts::CASES),
    ("escape", escape::CASES),
    ("namespaces", namespaces::CASES),
    ("netdevices", netdevices::CASES),
    ("process", process::CASES),
    ("seccomp", seccomp::CASES),
    ("hooks", hooks::CASES),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "runtime") {
        let code = rswarm_runtime::cli::main(args[1..].to_vec());
        return ExitCode::from(u8::try_from(code).unwrap_or(255));
    }
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() || !fs::exists(support::BUSYBOX).is_ok_and(|there| there) {
        eprintln!("skipped: needs root and {} (busybox-static)", support::BUSYBOX);
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let wanted: Vec<&str> =
        args.iter().filter_map(|arg| arg.to_str()).filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = 0;
    for (module, cases) in MODULES {
        for (name, test) in *cases {
            let name = format!("{module}::{name}");
            if wanted.is_empty() || wanted.iter().any(|part| name.contains(part)) {
                failed += u32::from(!passes(&name, *test));
            }
        }
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(name: &str, test: fn() -> Result<()>) -> bool {
    let result = test();
    println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
    if let Err(error) = &result {
        println!("    {error:#}");
    }
    result.is_ok()
}
