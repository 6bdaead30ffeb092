//! Attempts to get out: each attack is carried out, and what it was after on the host is looked at.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::Case;
use crate::mounts::{add, mount, run};
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("a_link_at_a_mount_point_stays_inside", a_link_at_a_mount_point_stays_inside),
    ("a_link_at_proc_or_sys_is_refused", a_link_at_proc_or_sys_is_refused),
    ("nothing_but_procfs_is_mounted_at_proc", nothing_but_procfs_is_mounted_at_proc),
    ("a_magic_link_leads_nowhere", a_magic_link_leads_nowhere),
    ("a_root_that_changes_meanwhile_leads_nowhere", a_root_that_changes_meanwhile_leads_nowhere),
    ("a_device_stays_inside", a_device_stays_inside),
    ("a_false_null_hides_nothing", a_false_null_hides_nothing),
    ("a_false_console_is_refused", a_false_console_is_refused),
    ("a_mount_point_is_never_opened", a_mount_point_is_never_opened),
    (
        "the_program_cannot_be_overwritten_by_its_container",
        the_program_cannot_be_overwritten_by_its_container,
    ),
    ("the_program_cannot_be_overwritten_through_exec", the_program_cannot_be_overwritten_through_exec),
    ("without_pivot_the_machine_is_out_of_reach", without_pivot_the_machine_is_out_of_reach),
    ("no_descriptor_of_the_caller_is_open_inside", no_descriptor_of_the_caller_is_open_inside),
    ("a_working_directory_is_inside", a_working_directory_is_inside),
];

/// A directory of the host that attacks are after.
struct Victim {
    dir: PathBuf,
}

impl Victim {
    fn beside(bundle: &Bundle) -> Result<Victim> {
        let dir = bundle.path("victim");
        fs::create_dir(&dir)?;
        fs::write(dir.join("file"), "untouched")?;
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600))?;
        Ok(Victim { dir })
    }

    /// The same, as seen by a link inside the root that climbs.
    fn climbing(&self) -> PathBuf {
        let inside = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        Path::new("../../../../../../../../../..").join(inside)
    }

    fn is_untouched(&self) -> Result<()> {
        let names: Vec<_> = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(names == ["file"], "the host has new files: {names:?}");
        let file = self.dir.join("file");
        ensure!(fs::read_to_string(&file)? == "untouched");
        let meta = fs::symlink_metadata(&file)?;
        ensure!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.dir.display().to_string()), "something is mounted on the host");
        Ok(())
    }
}

fn a_link_at_a_mount_point_stays_inside() -> Result<()> {
    let mut bundle = Bundle::sh("echo x > /climbs/new/mine; echo x > /absolute/mine; echo x > /file; ls /")?;
    let victim = Victim::beside(&bundle)?;
    let root = bundle.path("bundle/rootfs");
    symlink(victim.climbing(), root.join("climbs"))?;
    symlink(&victim.dir, root.join("absolute"))?;
    symlink(victim.climbing().join("file"), root.join("file"))?;
    fs::write(bundle.path("bundle/source"), "")?;
    add(&mut bundle, mount("/climbs/new", "tmpfs", "tmpfs", ""))?;
    add(&mut bundle, mount("/absolute", "tmpfs", "tmpfs", ""))?;
    add(&mut bundle, mount("/../../climbs/../absolute/dir", "tmpfs", "tmpfs", ""))?;
    add(&mut bundle, mount("/file", "bind", "source", "bind"))?;
    run(&bundle)?;
    // The links were followed, in the root.
    let inside = root.join(victim.dir.strip_prefix("/")?);
    ensure!(inside.join("new").is_dir() && inside.is_dir());
    ensure!(fs::read_to_string(bundle.path("bundle/source"))? == "x\n");
    victim.is_untouched()
}

fn a_link_at_proc_or_sys_is_refused() -> Result<()> {
    for (name, typ) in [("proc", "proc"), ("sys", "sysfs")] {
        let mut bundle = Bundle::sh("")?;
        let victim = Victim::beside(&bundle)?;
        let root = bundle.path("bundle/rootfs");
        if typ == "proc" {
            fs::remove_dir(root.join("proc"))?;
        }
        fs::create_dir_all(root.join("elsewhere"))?;
        symlink("elsewhere", root.join(name))?;
        if typ == "sysfs" {
            add(&mut bundle, mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"))?;
        }
        let error = bundle.fails(&["run", &bundle.id])?;
        let wanted = format!("filesystem \"{typ}\" must be mounted on ordinary directory");
        ensure!(error.contains(&wanted), "{error}");
        bundle.nothing_is_left()?;
        victim.is_untouched()?;
    }
    Ok(())
}

fn nothing_but_procfs_is_mounted_at_proc() -> Result<()> {
    let refused = [
        ("/proc", "tmpfs", "tmpfs", "", "\"/proc\" cannot be mounted because it is not of type proc"),
        ("/proc", "bind", "source", "bind", "\"/proc\" cannot be mounted because it is not of type proc"),
        ("/link", "bind", "source", "rbind", "\"/proc\" cannot be mounted because it is not of type proc"),
        ("/proc/self/attr", "bind", "source", "bind", "cannot be mounted because it is inside /proc"),
        ("/link/sys/kernel", "tmpfs", "tmpfs", "", "cannot be mounted because it is inside /proc"),
        ("/x/../proc/1", "tmpfs", "tmpfs", "", "cannot be mounted because it is inside /proc"),
    ];
    for (destination, typ, source, options, why) in refused {
        let mut bundle = Bundle::sh("")?;
        fs::create_dir_all(bundle.path("bundle/source"))?;
        symlink("proc", bundle.path("bundle/rootfs/link"))?;
        add(&mut bundle, mount(destination, typ, source, options))?;
        let error = bundle.fails(&["run", &bundle.id])?;
        ensure!(error.contains(why), "{destination}: {error}");
        bundle.nothing_is_left()?;
    }
    let mut bundle = Bundle::sh("cat /proc/cpuinfo /proc/uptime; cat /proc/1/comm")?;
    fs::write(bundle.path("bundle/mine"), "mine\n")?;
    for name in ["/proc/cpuinfo", "/proc/uptime"] {
        add(&mut bundle, mount(name, "bind", "mine", "bind,ro"))?;
    }
    let said = run(&bundle)?;
    ensure!(said.starts_with("mine\nmine\n"), "{said}");
    Ok(())
}

/// procfs has links to open files, wherever these are.
fn a_magic_link_leads_nowhere() -> Result<()> {
    for destination in
        ["/proc/self/fd/9/mine", "/link/mine", "/proc/self/root/../mine", "/proc/self/cwd/mine"]
    {
        let mut bundle = Bundle::sh("ls /proc/self/cwd/mine")?;
        let victim = Victim::beside(&bundle)?;
        symlink("/proc/self/fd/9", bundle.path("bundle/rootfs/link"))?;
        add(&mut bundle, mount(destination, "tmpfs", "tmpfs", ""))?;
        let call = bundle.command(&["run", &bundle.id])?;
        let mut open = Command::new("sh");
        open.args(["-c", "exec 9< \"$0\"; exec \"$@\""]).arg(&victim.dir);
        open.arg(call.get_program()).args(call.get_args()).current_dir(bundle.path("bundle"));
        let output = open.output()?;
        ensure!(!output.status.success(), "{destination}: {output:?}");
        bundle.nothing_is_left()?;
        victim.is_untouched()?;
    }
    Ok(())
}

/// Somebody swaps a directory for a link to the host, over and over, while containers are made.
fn a_root_that_changes_meanwhile_leads_nowhere() -> Result<()> {
    const TRIES: u32 = 60;
    let mut bundle = Bundle::sh("touch /race/new/mine /race/etc/mine 2> /dev/null; ls /race/new /race/etc")?;
    let victim = Victim::beside(&bundle)?;
    let root = bundle.path("bundle/rootfs");
    fs::create_dir(root.join("race"))?;
    symlink(victim.climbing(), root.join("trap"))?;
    fs::write(bundle.path("bundle/source"), "")?;
    for (index, destination) in ["/race/new", "/race/deep/er/dir", "/race/etc"].iter().enumerate() {
        add(&mut bundle, mount(destination, "tmpfs", "tmpfs", &format!("size={}k", 64 + index)))?;
    }
    add(&mut bundle, mount("/race/conf/file", "bind", "source", "bind"))?;
    bundle.spec["linux"]["devices"] = json!([
        {"path": "/race/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7},
        {"path": "/race/file", "type": "p", "fileMode": 0o777},
    ]);
    bundle.spec["process"]["cwd"] = "/race/work/ing".into();
    bundle.spec["linux"]["maskedPaths"] = json!(["/race/etc", "/race/file"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/race/new"]);
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let outcome = std::thread::scope(|scope| -> Result<(u32, u32)> {
        scope.spawn(|| {
            let (here, there) = (root.join("race"), root.join("trap"));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                let swapped =
                    rustix::fs::renameat_with(rustix::fs::CWD, &here, rustix::fs::CWD, &there, flags);
                swaps.fetch_add(u64::from(swapped.is_ok()), Ordering::Relaxed);
            }
        });
        let mut outcome = (0, 0);
        let tried = (0..TRIES).try_for_each(|_| -> Result<()> {
            let output = bundle.call(&["run", &bundle.id])?;
            if output.status.success() {
                outcome.0 += 1
            } else {
                outcome.1 += 1
            }
            bundle.nothing_is_left()
        });
        stop.store(true, Ordering::Relaxed);
        tried.map(|()| outcome)
    });
    let (made, refused) = outcome?;
    ensure!(swaps.load(Ordering::Relaxed) > u64::from(TRIES), "nobody swapped");
    ensure!(made + refused == TRIES);
    victim.is_untouched()
}

fn a_device_stays_inside() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let victim = Victim::beside(&bundle)?;
    let root = bundle.path("bundle/rootfs");
    let without_dev = |mount: &serde_json::Value| {
        mount["destination"].as_str().is_some_and(|path| !path.starts_with("/dev"))
    };
    bundle.spec["mounts"].as_array_mut().context("mounts")?.retain(without_dev);
    // The directory of devices leads to the host, and so does that of one of them.
    fs::remove_dir(root.join("dev"))?;
    symlink(victim.climbing(), root.join("dev"))?;
    symlink(&victim.dir, root.join("other"))?;
    bundle.spec["linux"]["devices"] = json!([
        {"path": "/other/sub/node", "type": "c", "major": 1, "minor": 3, "fileMode": 0o777},
        {"path": "/dev/../../../../up", "type": "p"},
    ]);
    run(&bundle)?;
    victim.is_untouched()?;
    // A device's own name is a link to a file of the host, whose mode it would change.
    let mut bundle = Bundle::sh("")?;
    let victim = Victim::beside(&bundle)?;
    let root = bundle.path("bundle/rootfs");
    bundle.spec["mounts"].as_array_mut().context("mounts")?.retain(without_dev);
    symlink(victim.climbing().join("file"), root.join("dev/null"))?;
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("make device `/dev/null`: another file is in its place"), "{error}");
    bundle.nothing_is_left()?;
    victim.is_untouched()
}

/// What hides files is bound from the container's `/dev`: an image must not choose what it shows instead.
fn a_false_null_hides_nothing() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/kcore /hidden")?;
    let victim = Victim::beside(&bundle)?;
    fs::create_dir(bundle.path("false"))?;
    for name in ["zero", "full", "random", "urandom", "tty", "console", "ptmx"] {
        fs::write(bundle.path("false").join(name), "")?;
    }
    fs::write(bundle.path("bundle/rootfs/hidden"), "secret")?;
    symlink(victim.dir.join("file"), bundle.path("false/null"))?;
    // A bound `/dev` is the image's or the user's choice.
    bundle.spec["mounts"]
        .as_array_mut()
        .context("mounts")?
        .retain(|mount| mount["destination"].as_str().is_some_and(|path| !path.starts_with("/dev")));
    add(&mut bundle, mount("/dev", "bind", "../false", "rbind"))?;
    bundle.spec["linux"]["maskedPaths"] = json!(["/hidden"]);
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("mask `/hidden`") || error.contains("/dev/null"), "{error}");
    fs::remove_file(bundle.path("false/null"))?;
    fs::write(bundle.path("false/null"), "not null")?;
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("the container's /dev/null is something else"), "{error}");
    bundle.nothing_is_left()?;
    victim.is_untouched()
}

fn a_false_console_is_refused() -> Result<()> {
    let mut bundle = Bundle::sh("true")?;
    let victim = Victim::beside(&bundle)?;
    let root = bundle.path("bundle/rootfs");
    bundle.spec["process"]["terminal"] = true.into();
    bundle.spec["mounts"].as_array_mut().context("mounts")?.retain(|mount| mount["destination"] != "/dev");
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir_all(root.join("dev").join(name))?;
    }
    let socket = bundle.path("console");
    let _listener = UnixListener::bind(&socket)?;
    let socket = socket.to_str().context("path")?.to_owned();
    for target in ["/proc/sys/kernel/panic".into(), victim.climbing().join("file")] {
        let console = root.join("dev/console");
        let _ = fs::remove_file(&console);
        symlink(&target, &console)?;
        let error = bundle.fails(&["create", "--console-socket", &socket, &bundle.id])?;
        ensure!(error.contains("/dev/console"), "{error}");
        bundle.nothing_is_left()?;
    }
    victim.is_untouched()
}

/// A mount point that blocks or acts when it is opened does neither.
fn a_mount_point_is_never_opened() -> Result<()> {
    let mut bundle = Bundle::sh("cat /pipe /node")?;
    let root = bundle.path("bundle/rootfs");
    fs::write(bundle.path("bundle/source"), "mine\n")?;
    for (name, kind, number) in [
        ("pipe", rustix::fs::FileType::Fifo, 0),
        ("node", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(4, 250)),
    ] {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, 0o666.into(), number)?;
        add(&mut bundle, mount(&format!("/{name}"), "bind", "source", "bind"))?;
    }
    ensure!(run(&bundle)? == "mine\nmine\n");
    Ok(())
}

/// Writes to whatever program runs as process `$1`, by the name that procfs gives it, also when it has ended.
const OVERWRITE: &str = "exec 8< /proc/$1/exe && { echo mine > /proc/self/fd/8; echo mine >> /proc/$1/exe; }";

/// The program of the runtime, which is what attacks are after.
fn program() -> Result<(PathBuf, Vec<u8>)> {
    let path = std::env::current_exe()?;
    let bytes = fs::read(&path)?;
    Ok((path, bytes))
}

/// The container's command is the runtime's own program, by the kernel's name for it.
fn the_program_cannot_be_overwritten_by_its_container() -> Result<()> {
    let (path, before) = program()?;
    let mut bundle = Bundle::sh("")?;
    let script = bundle.path("bundle/rootfs/evil");
    fs::write(&script, "#!/proc/self/exe --list\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    for args in [json!(["/evil"]), json!(["/proc/self/exe", "--list"])] {
        bundle.spec["process"]["args"] = args;
        // Whether it runs or not: it runs from a view that cannot be written to.
        bundle.call(&["run", &bundle.id])?;
        bundle.nothing_is_left()?;
        ensure!(fs::read(&path)? == before, "the program was overwritten");
    }
    // The command looks back at itself: it keeps the program open while it becomes another, and writes.
    let script = format!("set -- self; cp /proc/self/exe /mine; {OVERWRITE}; echo done");
    bundle.spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
    symlink("busybox", bundle.path("bundle/rootfs/bin/cp"))?;
    run(&bundle)?;
    ensure!(fs::read(&path)? == before, "the program was overwritten");
    Ok(())
}

/// CVE-2019-5736: what is added to the container is the runtime's own program, by the kernel's name for it.
/// It waits for a FIFO, so that the container has the time to open it, and to write when it has ended.
fn the_program_cannot_be_overwritten_through_exec() -> Result<()> {
    let (path, before) = program()?;
    let attack = "while [ ! -e /holding ]; do for dir in /proc/[0-9]*; do
            [ $dir = /proc/1 ] && continue
            case \"$(busybox tr '\\0' ' ' < $dir/cmdline)\" in *--bundle*)
                exec 8< $dir/exe && touch /holding && break;; esac
        done; done 2> /dev/null
        echo mine > $dir/exe
        while [ -d $dir ]; do sleep 0.01; done
        echo mine > /proc/self/fd/8
        busybox md5sum < /proc/self/fd/8; touch /tried";
    let mut bundle = Bundle::sh(&format!("( {attack} ) > /said 2>&1"))?;
    allow_all(&mut bundle)?;
    let fifo = bundle.path("bundle/rootfs/config.json");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let mut added = bundle
        .command(&["exec", &bundle.id, "/proc/self/exe", "runtime", "create", "--bundle", "/", "x"])?
        .stderr(std::process::Stdio::null())
        .spawn()?;
    eventually(|| bundle.path("bundle/rootfs/holding").exists()).context("it was not opened")?;
    // Somebody reads now: let it go.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    eventually(|| rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()).is_ok())?;
    added.wait()?;
    eventually(|| bundle.path("bundle/rootfs/tried").exists()).context("it was not tried")?;
    bundle.status_becomes("stopped")?;
    bundle.succeeds(&["delete", &bundle.id])?;
    let said = fs::read_to_string(bundle.path("bundle/rootfs/said"))?;
    ensure!(fs::read(&path)? == before, "the program was overwritten: {said}");
    ensure!(said.contains("/proc/self/fd/8: Read-only file system"), "{said}");
    bundle.nothing_is_left()
}

/// Looks until it is so, at most ten seconds.
fn eventually(is_so: impl Fn() -> bool) -> Result<()> {
    for _ in 0..2000 {
        if is_so() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    anyhow::bail!("it never became so")
}

/// As `--privileged`: every capability.
fn allow_all(bundle: &mut Bundle) -> Result<()> {
    let names = ["SYS_ADMIN", "SYS_PTRACE", "DAC_OVERRIDE", "DAC_READ_SEARCH", "SYS_CHROOT", "MKNOD"];
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut bundle.spec["process"]["capabilities"][set];
        set.as_array_mut().context("capabilities")?.extend(names.map(|name| format!("CAP_{name}").into()));
    }
    Ok(())
}

fn no_descriptor_of_the_caller_is_open_inside() -> Result<()> {
    let bundle = Bundle::sh("cd /proc/self/fd; for fd in *; do [ -e $fd ] && echo $fd; done; :")?;
    let victim = Victim::beside(&bundle)?;
    let call = bundle.command(&["run", &bundle.id])?;
    let mut open = Command::new("sh");
    open.args(["-c", "exec 7< \"$0/file\" 8< \"$0\" 9>> \"$0/file\"; exec \"$@\""]).arg(&victim.dir);
    open.arg(call.get_program()).args(call.get_args()).current_dir(bundle.path("bundle"));
    let output = open.output()?;
    ensure!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout)?;
    ensure!(said == "0\n1\n2\n", "more is open: {said}");
    bundle.nothing_is_left()?;
    victim.is_untouched()
}

fn a_working_directory_is_inside() -> Result<()> {
    for cwd in ["/../../../../../..", "/bin/../../../../etc/../.."] {
        let mut bundle = Bundle::sh("pwd -P; ls ../../../..; touch ../../../../here")?;
        bundle.spec["process"]["cwd"] = cwd.into();
        let said = run(&bundle)?;
        ensure!(said.starts_with("/\nbin\n"), "{cwd}: {said}");
        ensure!(bundle.path("bundle/rootfs/here").exists());
    }
    // CVE-2024-21626: a directory of the host that somebody forgot to close.
    for cwd in ["/proc/self/fd/7", "/link", "/proc/self/fd/7/../../.."] {
        let mut bundle = Bundle::sh("pwd; echo mine > file; ls")?;
        let victim = Victim::beside(&bundle)?;
        symlink("/proc/self/fd/7", bundle.path("bundle/rootfs/link"))?;
        bundle.spec["process"]["cwd"] = cwd.into();
        let call = bundle.command(&["run", &bundle.id])?;
        let mut open = Command::new("sh");
        open.args(["-c", "exec 7< \"$0\"; exec \"$@\""]).arg(&victim.dir);
        open.arg(call.get_program()).args(call.get_args()).current_dir(bundle.path("bundle"));
        let output = open.output()?;
        ensure!(!output.status.success(), "{cwd}: {output:?}");
        bundle.nothing_is_left()?;
        victim.is_untouched()?;
    }
    Ok(())
}

/// Without pivot_root(2) the machine's tree is below: its procfs must be gone, or a new one would be whole.
fn without_pivot_the_machine_is_out_of_reach() -> Result<()> {
    let script = "ls /; cat /proc/self/mountinfo; cd ../../..; pwd; busybox chroot . ls /";
    let mut bundle = Bundle::sh(script)?;
    allow_all(&mut bundle)?;
    let said = bundle.succeeds(&["run", "--no-pivot", &bundle.id])?;
    ensure!(said.starts_with("bin\n"), "{said}");
    // The container's own procfs is the only whole one, and nothing of the machine is to be seen.
    let mounts: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
    let whole = |mount: &&Vec<&str>| mount.len() > 8 && mount[3] == "/" && mount.contains(&"proc");
    ensure!(mounts.iter().filter(whole).count() == 1, "{said}");
    let outside = |mount: &&Vec<&str>| mount.len() > 8 && mount[4].contains("bundle");
    ensure!(mounts.iter().filter(outside).count() == 0, "{said}");
    ensure!(said.ends_with("\n/\nbin\ndev\netc\nproc\nsys\n"), "{said}");
    bundle.spec["linux"]["rootfsPropagation"] = "private".into();
    let error = bundle.fails(&["run", "--no-pivot", &bundle.id])?;
    ensure!(error.contains("is not safe without pivot_root"), "{error}");
    bundle.nothing_is_left()
}
