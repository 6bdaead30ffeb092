//! Attributes of a container's process, as it sees them itself and as the kernel shows them.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::support::Bundle;

pub const CASES: &[Case] = &[
    ("all_five_capability_sets_are_the_specs", all_five_capability_sets_are_the_specs),
    ("an_ordinary_user_has_ambient_capabilities", an_ordinary_user_has_ambient_capabilities),
    ("user_groups_and_umask_are_the_specs", user_groups_and_umask_are_the_specs),
    ("scheduling_is_the_specs", scheduling_is_the_specs),
    ("the_execution_domain_is_the_specs", the_execution_domain_is_the_specs),
    ("exec_runs_on_its_processors", exec_runs_on_its_processors),
    ("limits_are_set_to_the_last", limits_are_set_to_the_last),
    ("the_session_keyring_is_the_containers", the_session_keyring_is_the_containers),
    ("init_is_hidden_until_it_is_the_command", init_is_hidden_until_it_is_the_command),
    ("preserved_descriptors_and_no_others_arrive", preserved_descriptors_and_no_others_arrive),
    ("a_descriptor_that_is_not_open_is_refused", a_descriptor_that_is_not_open_is_refused),
    ("a_working_directory_on_the_machine_is_refused", a_working_directory_on_the_machine_is_refused),
    ("hostile_account_files_are_harmless", hostile_account_files_are_harmless),
    ("exec_into_a_hostile_tree_is_harmless", exec_into_a_hostile_tree_is_harmless),
    ("labels_without_their_module_are_refused", labels_without_their_module_are_refused),
    ("no_value_leaves_anything", no_value_leaves_anything),
    ("a_wrong_value_makes_nothing", a_wrong_value_makes_nothing),
];

/// What `/proc/self/status` of a container's command says of one field.
fn status(bundle: &Bundle, field: &str) -> Result<String> {
    let text = bundle.succeeds(&["run", &bundle.id])?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    Ok(line.context("no such field")?.trim().to_owned())
}

fn of_status(script: &str) -> Result<Bundle> {
    Bundle::sh(&format!("{script}cat /proc/self/status"))
}

fn all_five_capability_sets_are_the_specs() -> Result<()> {
    let mut bundle = of_status("")?;
    bundle.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_BPF"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"],
    });
    let text = bundle.succeeds(&["run", &bundle.id])?;
    let set = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such set")?;
        u64::from_str_radix(line.trim(), 16).context("hexadecimal")
    };
    // 0 CHOWN, 5 KILL, 10 NET_BIND_SERVICE, 39 BPF. Root's program gets back all that was permitted.
    ensure!(set("CapBnd:")? == 1 | 1 << 5 | 1 << 10 | 1 << 39, "{text}");
    ensure!(set("CapInh:")? == 1 && set("CapAmb:")? == 1, "{text}");
    ensure!(set("CapPrm:")? == 1 | 1 << 5, "{text}");
    bundle.nothing_is_left()
}

fn an_ordinary_user_has_ambient_capabilities() -> Result<()> {
    let mut bundle = of_status("")?;
    bundle.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let some = json!(["CAP_NET_BIND_SERVICE"]);
    bundle.spec["process"]["capabilities"] = json!({
        "bounding": some, "permitted": some, "effective": some, "inheritable": some, "ambient": some
    });
    let text = bundle.succeeds(&["run", &bundle.id])?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(text.contains(&format!("{set}:\t0000000000000400")), "{text}");
    }
    ensure!(text.contains("NoNewPrivs:\t1"), "{text}");
    bundle.spec["process"]["noNewPrivileges"] = false.into();
    ensure!(status(&bundle, "NoNewPrivs")? == "0");
    bundle.nothing_is_left()
}

fn user_groups_and_umask_are_the_specs() -> Result<()> {
    let mut bundle = of_status("")?;
    bundle.spec["process"]["user"] =
        json!({"uid": 1234, "gid": 2345, "umask": 0o027, "additionalGids": [7, 4_000_000_000_u32]});
    let text = bundle.succeeds(&["run", &bundle.id])?;
    for line in [
        "Uid:\t1234\t1234\t1234\t1234",
        "Gid:\t2345\t2345\t2345\t2345",
        "Groups:\t7 4000000000",
        "Umask:\t0027",
    ] {
        ensure!(text.contains(line), "{line}: {text}");
    }
    bundle.nothing_is_left()
}

fn scheduling_is_the_specs() -> Result<()> {
    // proc_pid_stat(5): nice is field 19, the policy 41.
    let mut bundle = Bundle::sh("cat /proc/self/stat; busybox ionice")?;
    bundle.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    bundle.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    let text = bundle.succeeds(&["run", &bundle.id])?;
    let fields: Vec<&str> = text.lines().next().context("a line")?.split(' ').collect();
    ensure!(fields[18] == "7" && fields[40] == "3", "{text}");
    ensure!(text.lines().nth(1) == Some("best-effort: prio 6"), "{text}");
    bundle.spec["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 3});
    let output = bundle.call(&["run", &bundle.id])?;
    let said = String::from_utf8(output.stderr)?;
    // Not every machine lets anyone run in real time; then that is said.
    let fields: Vec<String> = String::from_utf8(output.stdout)?.split(' ').map(str::to_owned).collect();
    ensure!(
        (output.status.success() && fields[40] == "1" && fields[39] == "3")
            || said.contains("set `process.scheduler`: operation not permitted"),
        "{said} {fields:?}"
    );
    bundle.spec["process"]["scheduler"] =
        json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000});
    bundle.spec["linux"]["resources"]["cpu"] = json!({"cpus": "0"});
    let said = bundle.fails(&["run", &bundle.id])?;
    ensure!(said.contains("`process.scheduler`") && said.contains("together with AllowedCPUs"), "{said}");
    bundle.nothing_is_left()
}

fn the_execution_domain_is_the_specs() -> Result<()> {
    let mut bundle = Bundle::sh("busybox uname -m; cat /proc/self/personality")?;
    bundle.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let said = bundle.succeeds(&["run", &bundle.id])?;
    ensure!(said.split_whitespace().nth(1) == Some("00000008"), "{said}");
    bundle.nothing_is_left()
}

fn exec_runs_on_its_processors() -> Result<()> {
    let mut bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    let mut process = bundle.spec["process"].clone();
    process["args"] = json!(["cat", "/proc/self/status"]);
    let file = bundle.path("process.json");
    let path = file.to_str().context("path")?.to_owned();
    let allowed = |bundle: &Bundle| -> Result<String> {
        let said = bundle.succeeds(&["exec", "--process", &path, &bundle.id])?;
        let line = said.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Ok(line.context("no list")?.trim().to_owned())
    };
    process["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    fs::write(&file, serde_json::to_vec(&process)?)?;
    ensure!(allowed(&bundle)? == "1");
    process["execCPUAffinity"] = json!({"final": "4000"});
    fs::write(&file, serde_json::to_vec(&process)?)?;
    let said = String::from_utf8(bundle.call(&["exec", "--process", &path, &bundle.id])?.stderr)?;
    ensure!(said.contains("process.execCPUAffinity.final"), "{said}");
    bundle.spec["process"]["args"] = json!([]);
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn limits_are_set_to_the_last() -> Result<()> {
    let mut bundle = Bundle::sh("cat /proc/self/limits")?;
    bundle.spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152},
    ]);
    let text = bundle.succeeds(&["run", &bundle.id])?;
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(line("Max open files") == ["64", "128"], "{text}");
    ensure!(line("Max core file size") == ["0", "0"], "{text}");
    ensure!(line("Max stack size") == ["1048576", "2097152"], "{text}");
    bundle.nothing_is_left()
}

fn the_session_keyring_is_the_containers() -> Result<()> {
    let mut bundle = Bundle::sh("")?;
    bundle.spec["linux"]["maskedPaths"] = json!([]);
    bundle.spec["process"]["args"] =
        json!(["sh", "-c", "cat /proc/keys > /new; busybox mv /new /said; sleep 1000"]);
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    bundle.appears("bundle/rootfs/said")?;
    let name = format!("_ses.{}", bundle.id);
    let exec = bundle.succeeds(&["exec", &bundle.id, "cat", "/proc/keys"])?;
    let key = |text: &str| {
        text.lines().find(|line| line.contains(&name)).map(|line| line[..8].to_owned()).context("no keyring")
    };
    let said = fs::read_to_string(bundle.path("bundle/rootfs/said"))?;
    ensure!(key(&exec)? == key(&said)?, "{exec} {said}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn init_is_hidden_until_it_is_the_command() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["create", &bundle.id])?;
    let pid = bundle.state()?["pid"].clone();
    let proc = format!("/proc/{pid}");
    // proc(5): files of a process that is not dumpable belong to root, whatever user it runs as; that shows
    // only with another user.
    let fds = |proc: &str| -> Result<Vec<String>> {
        let mut all: Vec<String> = fs::read_dir(format!("{proc}/fd"))?
            .map(|entry| Ok(fs::read_link(entry?.path())?.display().to_string()))
            .collect::<Result<_>>()?;
        all.retain(|link| !link.starts_with("/dev/null") && !link.contains("/out") && !link.contains("/err"));
        Ok(all)
    };
    let open = fds(&proc)?;
    // The word for start, a way to open it, and the parent; no directory of the machine's.
    let expected = |link: &String| {
        link.starts_with("socket:") || link == "/proc" || link.ends_with(&format!("{}/exec.fifo", bundle.id))
    };
    ensure!(open.iter().all(expected) && open.len() <= 3, "{open:?}");
    bundle.succeeds(&["start", &bundle.id])?;
    let open = fds(&proc)?;
    ensure!(open.is_empty(), "{open:?}");
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    let mut user = Bundle::sh("sleep 1000")?;
    user.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    user.succeeds(&["create", &user.id])?;
    let proc = format!("/proc/{}", user.state()?["pid"]);
    let owner = || -> Result<u32> {
        Ok(std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("{proc}/environ"))?))
    };
    ensure!(owner()? == 0, "init of user 1000 is dumpable");
    user.succeeds(&["start", &user.id])?;
    ensure!(owner()? == 1000, "the command is not dumpable");
    user.succeeds(&["delete", "--force", &user.id])?;
    bundle.nothing_is_left()?;
    user.nothing_is_left()
}

/// Runs with descriptor 3 (and no other) inherited.
fn with_descriptor(bundle: &Bundle, count: &str) -> Result<std::process::Output> {
    fs::write(bundle.path("given"), "given\n")?;
    let command = bundle.command(&["run", "--preserve-fds", count, &bundle.id])?;
    let quoted: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let script = format!("exec 3<'{}'; exec {}", bundle.path("given").display(), quoted.join(" "));
    Ok(std::process::Command::new("/bin/busybox")
        .args(["sh", "-c", &script])
        .current_dir(bundle.path("bundle"))
        .stdin(std::process::Stdio::null())
        .output()?)
}

fn preserved_descriptors_and_no_others_arrive() -> Result<()> {
    let bundle = Bundle::sh("cat <&3; echo /proc/self/fd/*")?;
    let output = with_descriptor(&bundle, "1")?;
    let said = String::from_utf8(output.stdout)?;
    let open = said.lines().nth(1).context("two lines")?;
    ensure!(said.starts_with("given\n"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    // The shell has the directory open while it lists it.
    ensure!(open.split(' ').count() <= 5, "{said}");
    bundle.nothing_is_left()
}

fn a_descriptor_that_is_not_open_is_refused() -> Result<()> {
    let bundle = Bundle::sh("")?;
    let output = with_descriptor(&bundle, "2")?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("preserved-fd"), "{said}");
    bundle.nothing_is_left()
}

fn a_working_directory_on_the_machine_is_refused() -> Result<()> {
    let host = fs::File::open("/")?;
    for number in [3, 4, 5, 6, 7, 8, 9, 10, host.as_raw_fd()] {
        let mut bundle = Bundle::sh("ls")?;
        bundle.spec["process"]["cwd"] = format!("/proc/self/fd/{number}").into();
        let output = bundle.call(&["run", &bundle.id])?;
        ensure!(!output.status.success(), "{number}: {}", String::from_utf8_lossy(&output.stdout));
        bundle.nothing_is_left()?;
    }
    let mut bundle = Bundle::sh("busybox pwd; ls")?;
    bundle.spec["process"]["cwd"] = "/../../../../../../etc/..".into();
    let said = bundle.succeeds(&["run", &bundle.id])?;
    ensure!(said.starts_with("/\n") && !said.contains("home"), "{said}");
    bundle.nothing_is_left()
}

fn hostile_account_files_are_harmless() -> Result<()> {
    type Make = fn(&std::path::Path) -> Result<()>;
    let kinds: [(&str, Make); 5] = [
        ("a FIFO", |path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?)),
        ("a link out", |path| Ok(symlink("../../../../../../../etc/passwd", path)?)),
        ("a magic link", |path| Ok(symlink("/proc/1/root/etc/passwd", path)?)),
        ("a device", |path| Ok(symlink("/dev/zero", path)?)),
        ("an endless line", |path| {
            let file = fs::File::create(path)?;
            Ok(file.set_len(1 << 40)?)
        }),
    ];
    for (what, make) in kinds {
        let mut bundle = Bundle::sh("echo $HOME")?;
        make(&bundle.path("bundle/rootfs/etc/passwd"))?;
        make(&bundle.path("bundle/rootfs/etc/group"))?;
        bundle.spec["process"]["user"] = json!({"uid": 1, "gid": 1});
        bundle.spec["process"]["env"] = json!(["PATH=/bin"]);
        let output = bundle.call(&["run", &bundle.id])?;
        let (said, error) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        let refused = error.contains("read the container's /etc/passwd: it is longer than");
        ensure!(said == "/\n" || (what == "an endless line" && refused), "{what}: {said} {error}");
        bundle.nothing_is_left()?;
    }
    Ok(())
}

fn exec_into_a_hostile_tree_is_harmless() -> Result<()> {
    let bundle = Bundle::sh("sleep 1000")?;
    bundle.succeeds(&["run", "--detach", &bundle.id])?;
    // What the container does to its tree while it runs.
    let script = "busybox rm -f /etc/passwd; busybox mkfifo /etc/passwd; busybox rm -rf /dev/ptmx; \
                  busybox ln -s /etc/passwd /dev/ptmx; busybox mkdir -p /work; busybox ln -s /proc/1/root /work/out";
    bundle.succeeds(&["exec", &bundle.id, "sh", "-c", script])?;
    let said = bundle.succeeds(&["exec", &bundle.id, "sh", "-c", "echo $HOME; ls /work/out/bin"])?;
    ensure!(said.starts_with("/\n") && said.contains("busybox"), "{said}");
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/self/fd/8"] {
        let output = bundle.call(&["exec", "--cwd", cwd, &bundle.id, "ls"])?;
        ensure!(!output.status.success(), "{cwd}: {}", String::from_utf8_lossy(&output.stdout));
    }
    bundle.succeeds(&["delete", "--force", &bundle.id])?;
    bundle.nothing_is_left()
}

fn labels_without_their_module_are_refused() -> Result<()> {
    let enabled = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.starts_with('Y'));
    let mut bundle = Bundle::sh("")?;
    if !enabled("/sys/module/apparmor/parameters/enabled") {
        bundle.spec["process"]["apparmorProfile"] = "strict".into();
        let said = bundle.fails(&["create", &bundle.id])?;
        ensure!(said.contains("`process.apparmorProfile` is given, and this kernel runs without"), "{said}");
    }
    if !fs::exists("/sys/fs/selinux/enforce")? {
        bundle.spec["process"]["apparmorProfile"] = "".into();
        bundle.spec["process"]["selinuxLabel"] = "a:b:c:s0".into();
        let said = bundle.fails(&["create", &bundle.id])?;
        ensure!(said.contains("`process.selinuxLabel` is given, and this kernel runs without"), "{said}");
    }
    bundle.nothing_is_left()
}

/// Places of a configuration, as JSON pointers; those that reach beyond the container are left out.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    if ["/linux/cgroupsPath", "/root", "/hooks", "/linux/seccomp/syscalls"].contains(&at) {
        return;
    }
    all.push(at.to_owned());
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, one)| places(one, &format!("{at}/{name}"), all))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, one)| places(one, &format!("{at}/{i}"), all))
        }
        _ => {}
    }
}

/// Every field with values that cannot be: what is refused names it, and whatever comes of it, nothing stays.
fn no_value_leaves_anything() -> Result<()> {
    let mut bundle = Bundle::sh("true")?;
    bundle.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]);
    bundle.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    bundle.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    bundle.spec["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5]});
    bundle.spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]);
    bundle.spec["linux"]["sysctl"] = json!({"kernel.msgmax": "8192"});
    bundle.spec["linux"]["personality"] = json!({"domain": "LINUX"});
    bundle.spec["linux"]["rootfsPropagation"] = "slave".into();
    bundle.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    bundle.spec["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 30}, "devices": [{"allow": true, "access": "rwm"}],
    });
    let good = bundle.spec.clone();
    let mut all = Vec::new();
    places(&good, "", &mut all);
    let bad = [json!(-3), json!(u64::MAX), json!("no\u{0}thing"), json!([[]]), Value::Null];
    let (mut refused, mut nameless) = (0, Vec::new());
    // A different one of the bad values for each place, so that the whole stays quick.
    for (index, pointer) in all.iter().enumerate().skip(1) {
        let value = &bad[index % bad.len()];
        bundle.spec = good.clone();
        *bundle.spec.pointer_mut(pointer).context("a place")? = value.clone();
        let output = bundle.call(&["create", &bundle.id])?;
        let said = String::from_utf8(output.stderr)?;
        if output.status.success() {
            bundle.succeeds(&["delete", "--force", &bundle.id])?;
        } else {
            refused += 1;
            let field = pointer.split('/').rfind(|part| part.parse::<usize>().is_err()).unwrap_or_default();
            // A set that is smaller than it was can be too small for another one.
            if !said.contains(field) {
                nameless.push(format!("{pointer} = {value}: {}", said.trim()));
            }
        }
        bundle.nothing_is_left().with_context(|| format!("{pointer} = {value}"))?;
    }
    ensure!(nameless.is_empty(), "{nameless:#?}");
    ensure!(refused > 60, "{refused} of {}", all.len());
    Ok(())
}

fn a_wrong_value_makes_nothing() -> Result<()> {
    let table: &[(&str, Value, &str)] = &[
        ("/linux/resources/memory", json!({"limit": "much"}), "`linux.resources.memory.limit`"),
        ("/process/capabilities", json!({"bounding": ["CAP_KILL", 7]}), "`process.capabilities.bounding[1]`"),
        ("/process/oomScoreAdj", json!(5000), "`process.oomScoreAdj`"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_MAYBE"}), "`linux.seccomp.defaultAction`"),
        ("/linux/intelRdt", json!({"closID": "x"}), "`linux.intelRdt`"),
        ("/linux/netDevices", json!({"eth 9": {}}), "`linux.netDevices.eth 9`"),
    ];
    for (pointer, value, field) in table {
        let mut bundle = Bundle::sh("")?;
        let (parent, name) = pointer.rsplit_once('/').context("a path")?;
        bundle.spec.pointer_mut(parent).context("a parent")?[name] = value.clone();
        let said = bundle.fails(&["create", &bundle.id])?;
        ensure!(said.contains(field), "{said}");
        bundle.nothing_is_left()?;
    }
    Ok(())
}
