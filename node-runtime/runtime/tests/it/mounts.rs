//! Mounts, devices and what is hidden or read-only, as the container sees them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("every_option_shows_in_the_mount_table", every_option_shows_in_the_mount_table),
    ("a_bind_shows_a_directory_or_a_file", a_bind_shows_a_directory_or_a_file),
    ("recursive_attributes_reach_mounts_below", recursive_attributes_reach_mounts_below),
    ("a_bind_has_its_sources_flags_or_those_it_names", a_bind_has_its_sources_flags_or_those_it_names),
    ("a_remount_changes_what_is_there", a_remount_changes_what_is_there),
    ("a_tmpfs_can_start_with_what_it_covers", a_tmpfs_can_start_with_what_it_covers),
    ("a_tmpfs_has_the_mode_of_what_it_covers", a_tmpfs_has_the_mode_of_what_it_covers),
    ("an_overlay_takes_more_layers_than_fsconfig", an_overlay_takes_more_layers_than_fsconfig),
    ("ids_are_mapped_for_a_mount", ids_are_mapped_for_a_mount),
    ("ids_are_mapped_of_what_was_mounted_before", ids_are_mapped_of_what_was_mounted_before),
    ("a_file_system_without_id_maps_is_named", a_file_system_without_id_maps_is_named),
    ("the_cgroups_shown_are_the_containers", the_cgroups_shown_are_the_containers),
    ("mounts_of_the_machine_arrive_and_none_leaves", mounts_of_the_machine_arrive_and_none_leaves),
    ("a_shared_bind_leaves_when_the_root_may_share", a_shared_bind_leaves_when_the_root_may_share),
    ("the_roots_propagation_is_the_specs", the_roots_propagation_is_the_specs),
    ("default_devices_and_links_are_there", default_devices_and_links_are_there),
    ("devices_are_made_as_the_spec_says", devices_are_made_as_the_spec_says),
    ("a_different_file_at_a_device_is_an_error", a_different_file_at_a_device_is_an_error),
    ("hidden_and_readonly_paths_are", hidden_and_readonly_paths_are),
    ("sysctls_are_the_containers_own", sysctls_are_the_containers_own),
    (
        "a_readonly_root_is_readonly_and_its_mounts_are_not",
        a_readonly_root_is_readonly_and_its_mounts_are_not,
    ),
    ("a_root_on_a_readonly_file_system_works", a_root_on_a_readonly_file_system_works),
    ("mistakes_are_named", mistakes_are_named),
];

/// A mount of the spec.
pub fn mount(destination: &str, typ: &str, source: &str, options: &str) -> Value {
    let options: Vec<&str> = options.split(',').filter(|option| !option.is_empty()).collect();
    json!({"destination": destination, "type": typ, "source": source, "options": options})
}

/// Adds a mount to a bundle's own.
pub fn add(bundle: &mut Bundle, mount: Value) -> Result<()> {
    bundle.spec["mounts"].as_array_mut().context("mounts")?.push(mount);
    Ok(())
}

/// Runs it to its end; what it printed.
pub fn run(bundle: &Bundle) -> Result<String> {
    let said = bundle.succeeds(&["run", &bundle.id])?;
    bundle.nothing_is_left()?;
    Ok(said)
}

/// Gives the command a capability.
fn allow(bundle: &mut Bundle, capability: &str) -> Result<()> {
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut bundle.spec["process"]["capabilities"][set];
        set.as_array_mut().context("capabilities")?.push(capability.into());
    }
    Ok(())
}

/// A line of a mount table.
#[derive(Debug)]
pub struct Line {
    pub root: String,
    pub options: Vec<String>,
    /// `shared:1`, `master:1`, …
    pub tags: Vec<String>,
    pub typ: String,
    superblock: Vec<String>,
}

/// The last mount at a path, in what a command said. Fields as in proc_pid_mountinfo(5).
pub fn line(table: &str, path: &str) -> Result<Line> {
    let words = |text: &str| text.split(',').map(str::to_owned).collect();
    for line in table.lines().rev() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let (mount, filesystem): (Vec<&str>, Vec<&str>) =
            (mount.split(' ').collect(), filesystem.split(' ').collect());
        if mount[4] == path {
            return Ok(Line {
                root: mount[3].to_owned(),
                options: words(mount[5]),
                tags: mount[6..].iter().map(ToString::to_string).collect(),
                typ: filesystem[0].to_owned(),
                superblock: words(filesystem[2]),
            });
        }
    }
    anyhow::bail!("nothing is mounted at {path}:\n{table}")
}

impl Line {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().chain(&self.superblock).any(|known| known == option)
    }
}

/// Runs a shell script in a mount namespace of its own, where `"$@"` is a call of the runtime.
pub fn in_namespace(bundle: &Bundle, script: &str, args: &[&str]) -> Result<Output> {
    let call = bundle.command(args)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]);
    command.arg(call.get_program()).args(call.get_args());
    command.current_dir(bundle.path("bundle")).env("DIR", bundle.path(""));
    Ok(command.output()?)
}

pub fn said(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

const OPTIONS: &[(&str, &[&str], &[&str])] = &[
    ("ro", &["ro"], &[]),
    ("ro,rw", &["rw"], &["ro"]),
    ("nosuid", &["nosuid"], &["nodev", "noexec"]),
    ("nosuid,suid", &[], &["nosuid"]),
    ("nodev", &["nodev"], &[]),
    ("nodev,dev", &[], &["nodev"]),
    ("noexec", &["noexec"], &[]),
    ("noexec,exec", &[], &["noexec"]),
    ("nosymfollow", &["nosymfollow"], &[]),
    ("nosymfollow,symfollow", &[], &["nosymfollow"]),
    ("noatime", &["noatime"], &["relatime"]),
    ("noatime,atime", &["relatime"], &["noatime"]),
    ("nodiratime", &["nodiratime", "relatime"], &[]),
    ("nodiratime,diratime", &[], &["nodiratime"]),
    ("strictatime", &[], &["relatime", "noatime"]),
    ("strictatime,nostrictatime", &["relatime"], &[]),
    ("noatime,relatime", &["relatime"], &["noatime"]),
    ("relatime,norelatime", &["relatime"], &[]),
    ("sync", &["sync"], &[]),
    ("sync,async", &[], &["sync"]),
    ("dirsync", &["dirsync"], &[]),
    ("lazytime", &["lazytime"], &[]),
    ("lazytime,nolazytime", &[], &["lazytime"]),
    ("mand", &["mand"], &[]),
    ("mand,nomand", &[], &["mand"]),
    ("rro,rnosuid,rnodev,rnoexec,rnoatime", &["ro", "nosuid", "nodev", "noexec", "noatime"], &[]),
    ("ro,rrw,nosuid,rsuid", &["rw"], &["nosuid"]),
    ("defaults,silent,loud", &["rw", "relatime"], &[]),
    ("size=64k,mode=750,uid=3", &["size=64k", "mode=750", "uid=3"], &[]),
];

fn every_option_shows_in_the_mount_table() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
    for (index, (options, ..)) in OPTIONS.iter().enumerate() {
        add(&mut bundle, mount(&format!("/m/{index}"), "tmpfs", "tmpfs", options))?;
    }
    for (name, _) in PROPAGATION {
        add(&mut bundle, mount(&format!("/p/{name}"), "tmpfs", "tmpfs", name))?;
    }
    let table = run(&bundle)?;
    for (index, (options, there, missing)) in OPTIONS.iter().enumerate() {
        let line = line(&table, &format!("/m/{index}"))?;
        ensure!(there.iter().all(|option| line.has(option)), "{options}: {line:?}");
        ensure!(!missing.iter().any(|option| line.has(option)), "{options}: {line:?}");
    }
    for (name, tag) in PROPAGATION {
        let line = line(&table, &format!("/p/{name}"))?;
        ensure!(line.tags.first().is_some_and(|first| first.starts_with(tag)) || tag.is_empty(), "{line:?}");
        ensure!(!tag.is_empty() || line.tags.is_empty(), "{line:?}");
    }
    Ok(())
}

const PROPAGATION: &[(&str, &str)] = &[
    ("shared", "shared:"),
    ("rshared", "shared:"),
    ("private", ""),
    ("rprivate", ""),
    ("slave", ""),
    ("unbindable", "unbindable"),
    ("runbindable", "unbindable"),
];

fn a_bind_shows_a_directory_or_a_file() -> Result<()> {
    let script = "cat /d/name /f; echo changed > /f; touch /d/new; touch /ro/x || echo refused; pwd";
    let mut bundle = Bundle::sh(script)?;
    fs::create_dir(bundle.path("bundle/source"))?;
    fs::write(bundle.path("bundle/source/name"), "directory\n")?;
    fs::write(bundle.path("bundle/file"), "file\n")?;
    // Relative sources start at the bundle, whatever type is given.
    add(&mut bundle, mount("/d", "none", "source", "bind"))?;
    add(&mut bundle, mount("f", "tmpfs", "file", "rbind"))?;
    add(&mut bundle, mount("/ro", "bind", "source", "ro,nosuid"))?;
    ensure!(run(&bundle)? == "directory\nfile\nrefused\n/\n");
    ensure!(fs::read_to_string(bundle.path("bundle/file"))? == "changed\n");
    ensure!(bundle.path("bundle/source/new").exists() && !bundle.path("bundle/source/x").exists());
    let point = fs::metadata(bundle.path("bundle/rootfs/f"))?;
    ensure!(point.is_file() && point.len() == 0 && point.permissions().mode() & 0o777 == 0o644);
    Ok(())
}

fn recursive_attributes_reach_mounts_below() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
    fs::create_dir_all(bundle.path("bundle/source/sub"))?;
    add(&mut bundle, mount("/ro", "bind", "source", "rbind,ro"))?;
    add(&mut bundle, mount("/rro", "bind", "source", "rbind,rro,rnoexec,rstrictatime"))?;
    add(&mut bundle, mount("/rrw", "bind", "source", "rbind,rrw"))?;
    add(&mut bundle, mount("/bind", "bind", "source", "bind"))?;
    let script = "mount -t tmpfs tmpfs source/sub; mount -o remount,bind,ro source/sub; exec \"$@\"";
    let table = said(&in_namespace(&bundle, script, &["run", &bundle.id])?)?;
    ensure!(line(&table, "/ro")?.has("ro") && line(&table, "/ro/sub")?.options.contains(&"ro".to_owned()));
    let below = line(&table, "/rro/sub")?;
    ensure!(below.has("ro") && below.has("noexec") && !below.has("relatime"), "{below:?}");
    ensure!(line(&table, "/rrw/sub")?.options.contains(&"rw".to_owned()), "{table}");
    ensure!(line(&table, "/bind").is_ok() && line(&table, "/bind/sub").is_err(), "{table}");
    bundle.nothing_is_left()
}

fn a_bind_has_its_sources_flags_or_those_it_names() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
    fs::create_dir_all(bundle.path("bundle/source"))?;
    add(&mut bundle, mount("/kept", "bind", "source", "bind,rprivate"))?;
    add(&mut bundle, mount("/named", "bind", "source", "bind,nosuid"))?;
    add(&mut bundle, mount("/cleared", "bind", "source", "bind,dev"))?;
    add(&mut bundle, mount("/times", "bind", "source", "bind,nodiratime"))?;
    add(&mut bundle, mount("/untimed", "bind", "source", "bind,atime,norelatime,nostrictatime,diratime"))?;
    add(&mut bundle, mount("/relative", "bind", "source", "bind,noatime,norelatime,relatime"))?;
    let script = "mount -t tmpfs -o ro,nodev,noatime tmpfs source; exec \"$@\"";
    let run = |bundle: &Bundle| said(&in_namespace(bundle, script, &["run", &bundle.id])?);
    let flags = |table: &str, path: &str| -> Result<String> { Ok(line(table, path)?.options.join(",")) };
    let table = run(&bundle)?;
    ensure!(flags(&table, "/kept")? == "ro,nodev,noatime", "{table}");
    ensure!(flags(&table, "/named")? == "rw,nosuid,noatime", "{table}");
    ensure!(flags(&table, "/cleared")? == "rw,noatime", "{table}");
    ensure!(flags(&table, "/times")? == "rw,nodiratime,relatime", "{table}");
    // As mount(2) has it, access times stay as they are until a rule for them is named.
    ensure!(flags(&table, "/untimed")? == "rw,noatime", "{table}");
    ensure!(flags(&table, "/relative")? == "rw,relatime", "{table}");
    // A user namespace may not take off what the machine has put on.
    bundle.spec["mounts"].as_array_mut().context("mounts")?.retain(|mount| {
        !["/cleared", "/times", "/relative"].iter().any(|gone| mount["destination"] == *gone)
    });
    bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        bundle.spec["linux"][map] = json!([{"containerID": 0, "hostID": 0, "size": 1000}]);
    }
    let table = run(&bundle)?;
    ensure!(flags(&table, "/named")? == "ro,nosuid,nodev,noatime", "{table}");
    ensure!(flags(&table, "/untimed")? == "ro,nodev,noatime", "{table}");
    // Nor may it have other rules for access times.
    add(&mut bundle, mount("/relative", "bind", "source", "bind,relatime"))?;
    let refused = in_namespace(&bundle, script, &["run", &bundle.id])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("set mount options: operation not permitted"),
        "{said}"
    );
    bundle.nothing_is_left()
}

fn a_remount_changes_what_is_there() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
    add(&mut bundle, mount("/t", "tmpfs", "tmpfs", "size=64k"))?;
    add(&mut bundle, mount("/t", "tmpfs", "tmpfs", "remount,size=128k,noexec"))?;
    add(&mut bundle, mount("/t", "none", "/t", "remount,bind,ro"))?;
    let table = run(&bundle)?;
    ensure!(table.matches(" /t ").count() == 1, "{table}");
    let line = line(&table, "/t")?;
    ensure!(line.has("size=128k") && line.has("noexec") && line.has("ro") && line.typ == "tmpfs", "{line:?}");
    Ok(())
}

fn a_tmpfs_can_start_with_what_it_covers() -> Result<()> {
    let script = "cd /full && cat file dir/inner link && stat -c '%a %u %g %F' file dir node pipe . &&
        stat -c %Y file && touch new || exit 1; touch /frozen/new || echo frozen; cat /frozen/file";
    let mut bundle = Bundle::sh(script)?;
    allow(&mut bundle, "CAP_DAC_OVERRIDE")?;
    for name in ["full", "frozen"] {
        let dir = bundle.path("bundle/rootfs").join(name);
        fs::create_dir_all(dir.join("dir"))?;
        fs::write(dir.join("file"), "contents\n")?;
        fs::write(dir.join("dir/inner"), "inner\n")?;
        symlink("file", dir.join("link"))?;
        std::os::unix::fs::chown(dir.join("file"), Some(12), Some(34))?;
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o4750))?;
        fs::set_permissions(dir.join("dir"), fs::Permissions::from_mode(0o1700))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        fs::File::open(dir.join("file"))?
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000))?;
        let null = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("node"), kind, 0o600.into(), null)?;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("pipe"), kind, 0o640.into(), 0)?;
    }
    add(&mut bundle, mount("/full", "tmpfs", "tmpfs", "tmpcopyup"))?;
    add(&mut bundle, mount("/frozen", "tmpfs", "tmpfs", "tmpcopyup,ro"))?;
    let wanted = "contents\ninner\ncontents\n\
        4750 12 34 regular file\n1700 0 0 directory\n600 0 0 character special file\n640 0 0 fifo\n\
        711 0 0 directory\n1000000\nfrozen\ncontents\n";
    let said = run(&bundle)?;
    ensure!(said == wanted, "{said}");
    ensure!(!bundle.path("bundle/rootfs/full/new").exists());
    Ok(())
}

fn a_tmpfs_has_the_mode_of_what_it_covers() -> Result<()> {
    let mut bundle = Bundle::sh("stat -c '%a %u %g' /there /asked /fresh")?;
    for copied in [false, true] {
        bundle.spec["mounts"].as_array_mut().context("mounts")?.retain(|mount| mount["type"] != "tmpfs");
        for name in ["there", "asked"] {
            let dir = bundle.path("bundle/rootfs").join(name);
            fs::create_dir_all(&dir)?;
            std::os::unix::fs::chown(&dir, Some(5), Some(6))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o2751))?;
        }
        for (name, options) in [("/there", ""), ("/asked", "mode=1700,uid=7"), ("/fresh", "")] {
            let options = if copied { format!("{options},tmpcopyup") } else { options.to_owned() };
            add(&mut bundle, mount(name, "tmpfs", "tmpfs", &options))?;
        }
        // What is asked for counts; a copy takes the owner along, too.
        let there = if copied { "2751 5 6" } else { "2751 0 0" };
        let said = run(&bundle)?;
        ensure!(said == format!("{there}\n1700 7 0\n1777 0 0\n"), "{copied}: {said}");
        fs::remove_dir(bundle.path("bundle/rootfs/fresh"))?;
    }
    Ok(())
}

/// A value of fsconfig(2) is shorter than 256 bytes.
fn an_overlay_takes_more_layers_than_fsconfig() -> Result<()> {
    let mut bundle = Bundle::sh("cat /o/0 /o/39; touch /o/x || echo refused; cat /proc/self/mountinfo")?;
    let layers = (0..40).map(|index| {
        let dir = bundle.path("bundle").join(format!("layer-{index}"));
        fs::create_dir(&dir)?;
        fs::write(dir.join(index.to_string()), format!("{index}\n"))?;
        Ok(dir.display().to_string())
    });
    let lower = layers.collect::<Result<Vec<_>>>()?.join(":");
    ensure!(lower.len() > 1000);
    let options = format!("lowerdir={lower},nosuid,rprivate");
    add(&mut bundle, mount("/o", "overlay", "overlay", &options))?;
    let said = run(&bundle)?;
    let table = said.strip_prefix("0\n39\nrefused\n").with_context(|| said.clone())?;
    ensure!(line(table, "/o")?.typ == "overlay" && line(table, "/o")?.has("nosuid"), "{table}");
    Ok(())
}

fn ids_are_mapped_for_a_mount() -> Result<()> {
    let script = "stat -c '%u %g' /mapped/file /again/file /plain/file; touch /mapped/new";
    let mut bundle = Bundle::sh(script)?;
    fs::create_dir(bundle.path("bundle/source"))?;
    fs::write(bundle.path("bundle/source/file"), "")?;
    std::os::unix::fs::chown(bundle.path("bundle/source"), Some(77), Some(78))?;
    std::os::unix::fs::chown(bundle.path("bundle/source/file"), Some(5), Some(6))?;
    let uids =
        json!([{"containerID": 5, "hostID": 1005, "size": 1}, {"containerID": 77, "hostID": 0, "size": 1}]);
    let gids =
        json!([{"containerID": 6, "hostID": 2006, "size": 1}, {"containerID": 78, "hostID": 0, "size": 1}]);
    for (destination, options) in [("/mapped", "bind"), ("/again", "rbind,ridmap")] {
        let mut mapped = mount(destination, "bind", "source", options);
        mapped["uidMappings"] = uids.clone();
        mapped["gidMappings"] = gids.clone();
        add(&mut bundle, mapped)?;
    }
    add(&mut bundle, mount("/plain", "bind", "source", "bind"))?;
    ensure!(run(&bundle)? == "1005 2006\n1005 2006\n5 6\n");
    let new = fs::metadata(bundle.path("bundle/source/new"))?;
    ensure!((new.uid(), new.gid()) == (77, 78), "{new:?}");
    Ok(())
}

/// As runc: the source is looked up when the mounts before it are made.
fn ids_are_mapped_of_what_was_mounted_before() -> Result<()> {
    let mut bundle = Bundle::sh("stat -c '%u %g' /mapped/dir /tmpfs/dir")?;
    fs::create_dir_all(bundle.path("bundle/source/dir"))?;
    std::os::unix::fs::chown(bundle.path("bundle/source/dir"), Some(5), Some(6))?;
    add(&mut bundle, mount("/tmpfs", "tmpfs", "tmpfs", "mode=0755"))?;
    add(&mut bundle, mount("/tmpfs/dir", "bind", "source/dir", "bind"))?;
    let mut mapped = mount("/mapped", "bind", "rootfs/tmpfs", "rbind,ridmap");
    let map = |id: u32| json!([{"containerID": id, "hostID": 1000 + id, "size": 1}, {"containerID": 0, "hostID": 0, "size": 1}]);
    mapped["uidMappings"] = map(5);
    mapped["gidMappings"] = map(6);
    add(&mut bundle, mapped)?;
    ensure!(run(&bundle)? == "1005 1006\n5 6\n");
    Ok(())
}

fn a_file_system_without_id_maps_is_named() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    let mut mapped = mount("/x", "bind", "/proc/sys", "bind");
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    mapped["uidMappings"] = map.clone();
    mapped["gidMappings"] = map;
    add(&mut bundle, mapped)?;
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("\"/x\"") && error.contains("id-map `/proc/sys`"), "{error}");
    bundle.nothing_is_left()
}

fn the_cgroups_shown_are_the_containers() -> Result<()> {
    let script = "cat /proc/self/mountinfo; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x || echo refused
        cd /sys/fs/cgroup; cat cgroup.procs unified/cgroup.procs memory/cgroup.procs 2> /dev/null | sort -u";
    let mut bundle = Bundle::sh(script)?;
    add(&mut bundle, mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,ro"))?;
    symlink("busybox", bundle.path("bundle/rootfs/bin/sort"))?;
    let said = run(&bundle)?;
    let mounts: Vec<&str> = said.lines().filter(|line| line.contains(" - cgroup")).collect();
    ensure!(!mounts.is_empty(), "{said}");
    for mount in mounts {
        let mut fields = mount.split(' ').skip(3);
        let (root, point, options) = (fields.next(), fields.next(), fields.next().context("options")?);
        ensure!(root == Some("/") && point.is_some_and(|at| at.starts_with("/sys/fs/cgroup")), "{mount}");
        ensure!(options.starts_with("ro,nosuid,nodev,noexec"), "{mount}");
    }
    ensure!(said.contains("refused\n1\n"), "the container is not alone in its cgroups: {said}");
    Ok(())
}

/// Waits in the container, at most ten seconds, for a file.
const WAIT: &str = "for i in $(busybox seq 1000); do [ -e $F ] && break; sleep 0.01; done";

fn mounts_of_the_machine_arrive_and_none_leaves() -> Result<()> {
    let script = format!(
        "mount -t tmpfs mine /to && F=/from/sub/ready && touch /from/up && {WAIT}; cat /proc/self/mountinfo"
    );
    let mut bundle = Bundle::sh(&script)?;
    allow(&mut bundle, "CAP_SYS_ADMIN")?;
    fs::create_dir_all(bundle.path("host/sub"))?;
    add(&mut bundle, mount("/from", "bind", "../host", "rbind,rslave"))?;
    add(&mut bundle, mount("/to", "bind", "../host", "rbind,rshared"))?;
    add(&mut bundle, mount("/private", "bind", "../host", "rbind,rprivate"))?;
    let script = "mount -t tmpfs host $DIR/host; mount --make-shared $DIR/host; mkdir $DIR/host/sub
        \"$@\" > $DIR/table & runtime=$!
        for i in $(seq 1000); do [ -e $DIR/host/up ] && break; sleep 0.01; done
        mount -t tmpfs sub $DIR/host/sub; touch $DIR/host/sub/ready
        wait $runtime; cat /proc/self/mountinfo";
    let host = said(&in_namespace(&bundle, script, &["run", &bundle.id])?)?;
    let table = fs::read_to_string(bundle.path("table"))?;
    ensure!(line(&table, "/from")?.tags.iter().any(|tag| tag.starts_with("master:")), "{table}");
    ensure!(line(&table, "/from/sub").is_ok() && line(&table, "/private/sub").is_err(), "{table}");
    ensure!(line(&table, "/private")?.tags.is_empty(), "{table}");
    ensure!(!host.contains(" mine "), "a mount left the container:\n{host}");
    bundle.nothing_is_left()
}

fn a_shared_bind_leaves_when_the_root_may_share() -> Result<()> {
    let mut bundle = Bundle::sh("mount -t tmpfs mine /to/sub; mount -t tmpfs mine /kept/sub")?;
    allow(&mut bundle, "CAP_SYS_ADMIN")?;
    for name in ["host", "other"] {
        fs::create_dir_all(bundle.path(name))?;
    }
    add(&mut bundle, mount("/to", "bind", "../host", "rbind,rshared"))?;
    add(&mut bundle, mount("/kept", "bind", "../other", "rbind,rprivate"))?;
    bundle.spec["linux"]["rootfsPropagation"] = "shared".into();
    let script = "for name in host other; do
            mount -t tmpfs $name $DIR/$name; mount --make-shared $DIR/$name; mkdir $DIR/$name/sub; done
        mount --bind $DIR/bundle $DIR/bundle; mount --make-shared $DIR/bundle; cd $DIR/bundle
        cat /proc/self/mountinfo > $DIR/before
        \"$@\"; cat /proc/self/mountinfo";
    let host = said(&in_namespace(&bundle, script, &["run", &bundle.id])?)?;
    let path = |name: &str| bundle.path(name).display().to_string();
    ensure!(line(&host, &path("host/sub"))?.typ == "tmpfs", "{host}");
    let before = fs::read_to_string(bundle.path("before"))?.lines().count();
    ensure!(host.lines().count() == before + 1, "more than one mount left:\n{host}");
    bundle.nothing_is_left()
}

fn the_roots_propagation_is_the_specs() -> Result<()> {
    for (name, tag) in [("shared", "shared:"), ("rshared", "shared:"), ("unbindable", "unbindable")] {
        let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
        bundle.spec["linux"]["rootfsPropagation"] = name.into();
        let table = run(&bundle)?;
        let root = line(&table, "/")?;
        ensure!(root.tags.first().is_some_and(|first| first.starts_with(tag)), "{name}: {root:?}");
        ensure!(name != "rshared" || !line(&table, "/proc")?.tags.is_empty(), "{table}");
    }
    // On a shared file system of the machine a root gets its mounts, or does not.
    for (name, is_slave) in
        [("", true), ("rslave", true), ("slave", true), ("private", false), ("rprivate", false)]
    {
        let mut bundle = Bundle::sh("cat /proc/self/mountinfo")?;
        bundle.spec["linux"]["rootfsPropagation"] = name.into();
        let script = "mount --rbind $DIR/bundle $DIR/bundle; mount --make-shared $DIR/bundle
            cd $DIR/bundle; \"$@\"";
        let table = said(&in_namespace(&bundle, script, &["run", &bundle.id])?)?;
        let root = line(&table, "/")?;
        let master = root.tags.iter().any(|tag| tag.starts_with("master:"));
        ensure!(master == is_slave && root.tags.len() == usize::from(is_slave), "{name}: {root:?}");
    }
    Ok(())
}

fn default_devices_and_links_are_there() -> Result<()> {
    let script = "cd /dev; stat -c '%n %t:%T %a %u:%g' null zero full random urandom tty
        ls -l /dev | busybox awk '/->/ {print $9, $11}'; stat -c %F pts/ptmx; echo x > null";
    let said = run(&Bundle::sh(script)?)?;
    let wanted = "null 1:3 666 0:0\nzero 1:5 666 0:0\nfull 1:7 666 0:0\nrandom 1:8 666 0:0\n\
        urandom 1:9 666 0:0\ntty 5:0 666 0:0\n";
    let rest = said.strip_prefix(wanted).with_context(|| said.clone())?;
    for link in [
        "fd /proc/self/fd",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "stderr /proc/self/fd/2",
        "ptmx pts/ptmx",
    ] {
        ensure!(rest.lines().any(|line| line == link), "{link} is missing: {rest}");
    }
    ensure!(rest.ends_with("character special file\n"), "{rest}");
    Ok(())
}

fn devices_are_made_as_the_spec_says() -> Result<()> {
    let script = "stat -c '%n %t:%T %a %u:%g %F' /dev/own /dev/sub/dir/block /data/pipe /dev/null /dev/same";
    let mut bundle = Bundle::sh(script)?;
    let source = bundle.path("same");
    let null = rustix::fs::makedev(1, 3);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &source, kind, 0o640.into(), null)?;
    add(&mut bundle, mount("/dev/same", "bind", source.to_str().context("path")?, "bind"))?;
    bundle.spec["linux"]["devices"] = json!([
        {"path": "/dev/own", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 1000, "gid": 2000},
        {"path": "/dev/sub/dir/block", "type": "b", "major": 7, "minor": 200},
        {"path": "/data/pipe", "type": "p", "fileMode": 0o622, "gid": 5},
        {"path": "/dev/null", "type": "u", "major": 1, "minor": 3, "fileMode": 0o606},
        {"path": "/dev/same", "type": "c", "major": 1, "minor": 3, "fileMode": 0o777, "uid": 1},
    ]);
    let said = run(&bundle)?;
    let wanted = "/dev/own a:e5 600 1000:2000 character special file\n\
        /dev/sub/dir/block 7:c8 666 0:0 block special file\n\
        /data/pipe 0:0 622 0:5 fifo\n\
        /dev/null 1:3 606 0:0 character special file\n\
        /dev/same 1:3 640 0:0 character special file\n";
    ensure!(said == wanted, "{said}");
    // What was there is the machine's own node, which keeps its owner and mode.
    let same = fs::metadata(&source)?;
    ensure!(same.file_type().is_char_device() && same.mode() & 0o777 == 0o640 && same.uid() == 0);
    Ok(())
}

fn a_different_file_at_a_device_is_an_error() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    fs::write(bundle.path("bundle/rootfs/there"), "mine")?;
    bundle.spec["linux"]["devices"] = json!([{"path": "/there", "type": "c", "major": 1, "minor": 3}]);
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("make device `/there`: another file is in its place"), "{error}");
    ensure!(fs::read_to_string(bundle.path("bundle/rootfs/there"))? == "mine");
    bundle.nothing_is_left()
}

fn hidden_and_readonly_paths_are() -> Result<()> {
    let script = "cat /secret; cat /hidden/name; ls /hidden /also; touch /hidden/x || echo refused
        cat /linked; echo 1 > /fixed/file || echo fixed; cat /fixed/file; echo x > /proc/sys/kernel/panic || echo sys
        cat /proc/self/mountinfo";
    let mut bundle = Bundle::sh(script)?;
    let root = bundle.path("bundle/rootfs");
    fs::write(root.join("secret"), "secret\n")?;
    fs::write(root.join("behind"), "secret\n")?;
    symlink("/behind", root.join("linked"))?;
    for name in ["hidden", "also", "fixed"] {
        fs::create_dir(root.join(name))?;
        fs::write(root.join(name).join("file"), "kept\n")?;
    }
    bundle.spec["linux"]["maskedPaths"] =
        json!(["/secret", "/hidden", "/linked", "/also", "/none", "/secret/below"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/none/at/all"]);
    let said = run(&bundle)?;
    let table = said.strip_prefix("/also:\n\n/hidden:\nrefused\nfixed\nkept\nsys\n");
    let table = table.or(said.strip_prefix("/hidden:\n\n/also:\nrefused\nfixed\nkept\nsys\n"));
    let table = table.with_context(|| said.clone())?;
    ensure!(line(table, "/behind")?.root == "/null" && line(table, "/also")?.has("ro"), "{table}");
    ensure!(fs::read_to_string(root.join("behind"))? == "secret\n");
    Ok(())
}

fn sysctls_are_the_containers_own() -> Result<()> {
    let read = "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/domainname";
    let before = said(&Command::new("sh").args(["-c", read]).output()?)?;
    let mut bundle = Bundle::sh(read)?;
    let own = json!({"kernel.msgmax": "4321", "net/ipv4/ip_forward": "1", "kernel.domainname": "example"});
    bundle.spec["linux"]["sysctl"] = own;
    ensure!(run(&bundle)? == "4321\n1\nexample\n");
    ensure!(said(&Command::new("sh").args(["-c", read]).output()?)? == before);
    for (key, why) in [
        ("vm.swappiness", "sysctl \"vm.swappiness\" is not in a separate kernel namespace"),
        ("kernel.hostname", "conflicts with the OCI"),
        ("net/../kernel/panic", "is not a name"),
    ] {
        bundle.spec["linux"]["sysctl"] = json!({key: "1"});
        let error = bundle.fails(&["create", &bundle.id])?;
        ensure!(error.contains(why), "{error}");
    }
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "ipc");
    for (key, why) in [
        ("net.ipv4.ip_forward", "not allowed in host network namespace"),
        ("kernel.msgmax", "is not allowed in the hosts ipc namespace"),
    ] {
        bundle.spec["linux"]["sysctl"] = json!({key: "1"});
        let error = bundle.fails(&["create", &bundle.id])?;
        ensure!(error.contains(why), "{error}");
    }
    bundle.nothing_is_left()
}

fn a_readonly_root_is_readonly_and_its_mounts_are_not() -> Result<()> {
    let script = "touch /x || echo root; touch /dev/x || echo dev; touch /t/x && echo tmpfs; umask";
    let mut bundle = Bundle::sh(script)?;
    bundle.spec["root"]["readonly"] = true.into();
    add(&mut bundle, mount("/t", "tmpfs", "tmpfs", ""))?;
    // One that is read-only itself, with a mount point and devices inside.
    for mount in bundle.spec["mounts"].as_array_mut().context("mounts")? {
        if mount["destination"] == "/dev" {
            mount["options"].as_array_mut().context("options")?.push("ro".into());
        }
    }
    ensure!(run(&bundle)? == "root\ndev\ntmpfs\n0022\n");
    Ok(())
}

fn a_root_on_a_readonly_file_system_works() -> Result<()> {
    let mut bundle = Bundle::sh("stat -c %F /dev/null /sys; touch /x || echo refused")?;
    for name in ["sys", "missing"] {
        fs::create_dir(bundle.path("bundle/rootfs").join(name))?;
    }
    let script = "mount --bind rootfs rootfs; mount -o remount,bind,ro rootfs; exec \"$@\"";
    let there = in_namespace(&bundle, script, &["run", &bundle.id])?;
    ensure!(said(&there)? == "character special file\ndirectory\nrefused\n");
    add(&mut bundle, mount("/not/there", "tmpfs", "tmpfs", ""))?;
    let missing = in_namespace(&bundle, script, &["run", &bundle.id])?;
    let error = String::from_utf8(missing.stderr)?;
    ensure!(error.contains("\"/not/there\"") && error.contains("read-only file system"), "{error}");
    bundle.nothing_is_left()
}

fn mistakes_are_named() -> Result<()> {
    for (wrong, why) in [
        (mount("/x", "nonsense", "none", ""), "file system of type `nonsense`: no such device"),
        (mount("/x", "tmpfs", "tmpfs", "colour=red"), "option `colour`"),
        (mount("/x", "bind", "/does/not/exist", "bind"), "open /does/not/exist: no such file or directory"),
        (mount("/x", "bind", "/etc", "bind,size=1m"), "filesystem-specific options applied: `size`"),
        (mount("/", "tmpfs", "tmpfs", ""), "the mount point is the root itself"),
        (mount("/x", "cgroup", "cgroup", "memory"), "`memory` is no option of a cgroup mount"),
    ] {
        let mut bundle = Bundle::sh("")?;
        add(&mut bundle, wrong)?;
        let error = bundle.fails(&["run", &bundle.id])?;
        ensure!(error.contains(why), "{error}");
        bundle.nothing_is_left()?;
    }
    let mut bundle = Bundle::sh("")?;
    bundle.spec["linux"]["rootfsPropagation"] = "sideways".into();
    let error = bundle.fails(&["run", &bundle.id])?;
    ensure!(error.contains("rootfsPropagation"), "{error}");
    bundle.nothing_is_left()
}
