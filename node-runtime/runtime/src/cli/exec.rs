//! `exec`.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxCapabilities, Process, Spec};

use super::args::{Flag, Order, Parsed, number};
use super::console::{
    CONSOLE_SOCKET, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS, check_preserved, check_terminal, hand_over, stdio,
    write_pid,
};
use super::foreground::Foreground;
use super::own_program::run_from_readonly_view;
use super::store::{Entry, Status};
use super::{Call, Command};
use crate::cgroup::Cgroup;
use crate::exec::{Added, Exec};
use crate::failure::{Context, Failure};
use crate::{spec, sys};

/// What the program ends with when there is no process whose code it could be.
pub(super) const FAILED: i32 = 255;

pub(super) const EXEC: Command = Command {
    name: "exec",
    args: "ID COMMAND [ARG...]",
    about: "run another command in a container",
    flags: &[
        Flag::value("process", "FILE", "a process as in config.json, instead of COMMAND and flags").or("p"),
        Flag::value("cwd", "DIR", "working directory"),
        Flag::value("env", "NAME=VALUE", "an environment variable, besides the container's").or("e"),
        Flag::switch("tty", "with a terminal").or("t"),
        Flag::value("user", "UID[:GID]", "user, by number; or by name, looked up in the container").or("u"),
        Flag::value("additional-gids", "GID", "one more group").or("g"),
        Flag::value("cap", "CAPABILITY", "one more capability").or("c"),
        Flag::switch("no-new-privs", "it cannot gain privileges"),
        Flag::value("apparmor", "PROFILE", "AppArmor profile"),
        Flag::value("process-label", "LABEL", "SELinux label"),
        Flag::switch("detach", "do not wait").or("d"),
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        PID_FILE,
        PRESERVE_FDS,
        Flag::switch("ignore-paused", "in a paused container: it runs when that goes on"),
        Flag::value(
            "cgroup",
            "[CONTROLLER[,CONTROLLER]:]PATH",
            "an existing cgroup below the container's; may be repeated for others of version 1",
        ),
    ],
    order: Order::Leading,
    run: |call: &Call<'_>| exec(call).map_err(named),
};

/// Callers look for these words.
fn named(failure: Failure) -> Failure {
    Failure { message: format!("exec failed: {}", failure.message), ..failure }
}

fn exec(call: &Call<'_>) -> Result<i32, Failure> {
    let args = &call.args;
    let (id, command) = args.id_and_more()?;
    run_from_readonly_view()?;
    let entry = call.store.find(id)?;
    let paused = match entry.status()? {
        Status::Creating | Status::Stopped => {
            return Err(Failure::invalid("cannot exec in a stopped container: container not running"));
        }
        status => status == Status::Paused,
    };
    if paused && !args.has("ignore-paused") {
        return Err(Failure::invalid("cannot exec in a paused container (use --ignore-paused to override)"));
    }
    let spec = entry.spec()?;
    let process = match args.value("process") {
        Some(path) => read_process(Path::new(path))?,
        None => changed(spec::process(&spec)?.clone(), args, command)?,
    };
    run(call, &entry, &spec, process)
}

fn run(call: &Call<'_>, entry: &Entry, spec: &Spec, process: Process) -> Result<i32, Failure> {
    let args = &call.args;
    let (detached, terminal) = (args.has("detach"), process.terminal().unwrap_or(false));
    check_terminal(terminal, detached, args.value("console-socket"))?;
    let preserve_fds = args.number("preserve-fds")?.unwrap_or(0);
    check_preserved(preserve_fds)?;
    let cgroup = cgroup(entry, args)?;
    // Refuses one that has ended, whose number may be another's by now.
    drop(entry.init()?);
    let foreground = if detached { None } else { Some(Foreground::prepare()?) };
    let added = crate::exec(Exec {
        id: &entry.record.id,
        spec,
        bundle: &entry.record.bundle,
        init: entry.record.init.map_or(0, |init| init.pid),
        cgroup: &cgroup,
        process,
        user: args.value("user").filter(|user| args.value("process").is_none() && !is_numeric(user)),
        groups: &[],
        filtered: true,
        stdio: stdio(terminal, detached),
        preserve_fds,
        die_with_parent: false,
    })?;
    tell(args, &added).inspect_err(|_| drop(sys::send_signal(&added.pidfd, libc::SIGKILL)))?;
    match foreground {
        Some(foreground) => foreground.follow(added.pid, &added.pidfd, added.terminal),
        None => Ok(0),
    }
}

fn tell(args: &Parsed, added: &Added) -> Result<(), Failure> {
    if let (Some(socket), Some(terminal)) = (args.value("console-socket"), &added.terminal) {
        hand_over(Path::new(socket), b"/dev/ptmx", terminal)?;
    }
    if let Some(socket) = args.value("pidfd-socket") {
        hand_over(Path::new(socket), b"pidfd", &added.pidfd)?;
    }
    write_pid(args.value("pid-file"), added.pid)
}

fn read_process(path: &Path) -> Result<Process, Failure> {
    let bytes = std::fs::read(path).with_context(|| format!("read process `{}`", path.display()))?;
    spec::parse_process(&bytes)
        .map_err(|why| Failure::invalid(format!("`{}` is not a process: {why}", path.display())))
}

/// The container's process, with what the flags change.
fn changed(mut process: Process, args: &Parsed, command: &[String]) -> Result<Process, Failure> {
    if command.is_empty() {
        return Err(Failure::invalid("exec args cannot be empty"));
    }
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(args.has("tty")));
    if let Some(cwd) = args.value("cwd") {
        process.set_cwd(PathBuf::from(cwd));
    }
    if let Some(profile) = args.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if let Some(label) = args.value("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    if args.value("no-new-privs").is_some() {
        process.set_no_new_privileges(Some(args.has("no-new-privs")));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.values("env").map(str::to_owned));
    process.set_env(Some(env));
    change_user(&mut process, args)?;
    add_capabilities(&mut process, args)?;
    Ok(process)
}

fn is_numeric(user: &str) -> bool {
    user.split(':').all(|part| part.parse::<u32>().is_ok())
}

fn change_user(process: &mut Process, args: &Parsed) -> Result<(), Failure> {
    let user = process.user_mut();
    if let Some(text) = args.value("user").filter(|text| is_numeric(text)) {
        let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
        user.set_uid(number("user", uid)?);
        if let Some(gid) = gid {
            user.set_gid(number("user", gid)?);
        }
    }
    let more = args.values("additional-gids").map(|gid| number("additional-gids", gid));
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    groups.extend(more.collect::<Result<Vec<u32>, _>>()?);
    user.set_additional_gids(Some(groups));
    Ok(())
}

/// Ambient only what can be inherited: the kernel refuses the others. capabilities(7)
fn add_capabilities(process: &mut Process, args: &Parsed) -> Result<(), Failure> {
    let more = args.values("cap").map(capability).collect::<Result<HashSet<_>, _>>()?;
    if more.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    let with = |set: &Option<HashSet<Capability>>, more: &HashSet<Capability>| {
        Some(set.iter().flatten().chain(more).copied().collect::<HashSet<_>>())
    };
    let inherited =
        more.iter().copied().filter(|one| sets.inheritable().iter().flatten().any(|set| set == one));
    let ambient = with(sets.ambient(), &inherited.collect());
    let (bounding, effective, permitted) =
        (with(sets.bounding(), &more), with(sets.effective(), &more), with(sets.permitted(), &more));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted).set_ambient(ambient);
    process.set_capabilities(Some(sets));
    Ok(())
}

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    none
}

fn capability(name: &str) -> Result<Capability, Failure> {
    let upper = name.to_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    serde_json::from_value(full.into()).map_err(|_| Failure::invalid(format!("unknown capability `{name}`")))
}

/// The container's cgroup, or those below it that the flags name.
fn cgroup(entry: &Entry, args: &Parsed) -> Result<Cgroup, Failure> {
    let mut cgroup = entry.cgroup()?;
    for text in args.values("cgroup") {
        let (controllers, below) =
            text.split_once(':').map_or((None, text), |(names, path)| (Some(names), path));
        let relative = Path::new(below).strip_prefix("/").unwrap_or(Path::new(below));
        // Callers look for these words, which are runc's.
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Failure::invalid(format!("bad sub cgroup path: {below}")));
        }
        cgroup = cgroup.below(controllers, relative)?;
    }
    Ok(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Parsed {
        let line: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        Parsed::parse(&line, EXEC.flags, EXEC.order).expect("parsed")
    }

    fn with(line: &[&str]) -> Result<Process, Failure> {
        let args = parsed(line);
        changed(Process::default(), &args, args.id_and_more()?.1)
    }

    #[test]
    fn flags_change_the_containers_process() {
        let line =
            ["-u", "7:8", "-g", "9", "-e", "A=1", "-t", "--cwd=/tmp", "-c", "net_raw", "id", "ls", "-l"];
        let process = with(&line).expect("process");
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert_eq!(process.user().additional_gids().as_deref(), Some([9].as_slice()));
        assert_eq!(process.env().as_ref().and_then(|env| env.last().cloned()).as_deref(), Some("A=1"));
        assert_eq!((process.terminal(), process.cwd().as_path()), (Some(true), Path::new("/tmp")));
        assert_eq!(process.args().as_deref(), Some(["ls".to_owned(), "-l".to_owned()].as_slice()));
        let bounding = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).expect("set");
        assert!(bounding.contains(&Capability::NetRaw) && bounding.contains(&Capability::Kill));
    }

    #[test]
    fn a_user_without_a_group_keeps_the_containers() {
        let mut process = Process::default();
        process.user_mut().set_gid(5);
        let process =
            changed(process, &parsed(&["-u", "7", "id", "ls"]), &["ls".to_owned()]).expect("process");
        assert_eq!((process.user().uid(), process.user().gid()), (7, 5));
        assert!(is_numeric("7:8") && !is_numeric("nobody") && !is_numeric("7:staff"));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(with(&["id"]).expect_err("no command").message.contains("cannot be empty"));
        assert!(with(&["-c", "FLY", "id", "ls"]).expect_err("capability").message.contains("`FLY`"));
        assert!(with(&["-g", "-1", "id", "ls"]).expect_err("group").message.contains("additional-gids"));
    }
}
