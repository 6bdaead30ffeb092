//! The tests, each a sentence.

use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_shim::client::{CallError, ConnectError, ExecRequest, LaunchError, Shim, launch};
use rswarm_shim::{Exit, ShimState};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::fixture::{Container, DEADLINE, eventually, read_frames};

pub type Case = fn() -> Pin<Box<dyn Future<Output = Result<()>>>>;

macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        /// Every test with its name.
        pub const ALL: &[(&str, Case)] = &[$((stringify!($name), || Box::pin($name()))),+];
    };
}

cases![
    exit_codes_are_the_commands,
    a_command_that_is_not_there_fails_in_runcs_words,
    a_container_sees_its_own_namespaces,
    devices_and_mounts_are_as_docker_has_them,
    masked_and_readonly_paths_are_so,
    no_mount_of_a_container_is_in_the_machines_table,
    a_bind_is_read_only_with_all_below_it,
    a_bind_through_a_link_stays_inside,
    capabilities_are_those_asked_for,
    the_default_seccomp_profile_confines,
    no_new_privileges_and_seccomp_go_together,
    a_user_is_looked_up_inside,
    memory_is_limited_and_running_out_is_seen,
    processes_are_limited,
    devices_are_denied,
    an_rlimit_that_cannot_be_had_is_named,
    a_root_can_be_read_only,
    sysctls_are_the_containers,
    many_layers_can_be_mounted,
    the_log_is_complete,
    attached_clients_all_see_everything,
    standard_input_reaches_the_command,
    a_terminal_has_the_size_asked_for,
    a_killed_container_exits_with_137,
    a_paused_container_stands_still,
    a_daemon_finds_a_living_shim_again,
    a_container_dies_with_its_shim,
    an_exit_is_recorded_before_it_is_told,
    a_created_container_can_be_thrown_away,
    a_failed_launch_leaves_nothing,
    orphans_are_reaped,
    an_exec_runs_beside_the_command,
    an_exec_that_fails_says_so,
    an_exec_dies_with_the_container,
    a_slow_reader_loses_nothing,
    a_container_is_quick,
    a_shim_is_small,
];

async fn exit_codes_are_the_commands() -> Result<()> {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$; sleep 1; exit 4", 4), ("false", 1)]
    {
        let outcome = Container::sh(script)?.run().await?;
        ensure!(outcome.exit.code == code, "`{script}` gave {}", outcome.exit.code);
        ensure!(!outcome.exit.oom_killed);
    }
    Ok(())
}

/// Launches what must fail, checks that nothing is left, and gives words and code.
async fn refused(container: &Container) -> Result<(String, i32)> {
    let error = container.create().await.err().context("it was created")?;
    container.nothing_is_left().await?;
    let launched: &LaunchError = error.downcast_ref().context("another error")?;
    Ok((launched.to_string(), launched.exit_code()))
}

async fn a_command_that_is_not_there_fails_in_runcs_words() -> Result<()> {
    let cases = [
        ("foo", "exec: \"foo\": executable file not found in $PATH", 127),
        ("/none/foo", "exec: \"/none/foo\": stat /none/foo: no such file or directory", 127),
        ("/etc/plain", "exec: \"/etc/plain\": permission denied", 126),
        ("/etc", "exec: \"/etc\": is a directory", 126),
    ];
    for (command, words, code) in cases {
        let said = refused(&Container::new(&[command])?).await?;
        ensure!(said == (words.to_owned(), code), "{said:?}");
    }
    let container = Container::new(&["broken"])?;
    let shim = container.create().await?;
    let error = shim.start().await.err().context("it was started")?;
    ensure!(error.to_string() == "exec /bin/broken: exec format error", "{error}");
    ensure!(error.exit_code() == 126);
    ensure!(shim.wait().await?.code == 126);
    container.finish(&shim).await
}

async fn a_container_sees_its_own_namespaces() -> Result<()> {
    let script = "echo $$; hostname; for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done; \
                  ls /sys/class/net; cat /sys/class/net/lo/operstate; ip link show lo | grep -c UP; ls /proc | grep -c '^[0-9]'; \
                  cat /proc/self/cgroup | grep -v ':/$' | wc -l";
    let output = Container::sh(script)?.output().await?;
    let lines: Vec<&str> = output.lines().collect();
    ensure!(lines[..2] == ["1", "box"], "{output}");
    for (line, name) in lines[2..8].iter().zip(["pid", "mnt", "uts", "ipc", "net", "cgroup"]) {
        let ours = fs::read_link(format!("/proc/self/ns/{name}"))?;
        ensure!(line.starts_with(name) && ours.to_str() != Some(line), "{name} is shared: {line}");
    }
    ensure!(lines[8] == "lo" && lines[10] == "1", "{output}");
    ensure!(lines[11].parse::<u32>()? < 6, "processes of others show: {output}");
    ensure!(lines[12] == "0", "cgroups of others show: {output}");
    Ok(())
}

async fn devices_and_mounts_are_as_docker_has_them() -> Result<()> {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  echo x > /dev/null; head -c 3 /dev/zero | wc -c; for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; \
                  for m in /proc /dev /dev/pts /sys /dev/mqueue /dev/shm /sys/fs/cgroup; do grep -q \" $m \" /proc/mounts || echo no $m; done; \
                  grep ' /sys ' /proc/mounts | grep -c 'ro,'; grep ' / ' /proc/mounts | cut -d' ' -f3; ls /sys/fs/cgroup | grep -c .; \
                  stat -c %a /dev/shm; stat -c %a /dev/null";
    let output = Container::sh(script)?.output().await?;
    let lines: Vec<&str> = output.lines().collect();
    let links = ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"];
    ensure!(lines[0] == "3" && lines[1..6] == links, "{output}");
    ensure!(lines[6] == "1" && lines[7] == "overlay", "{output}");
    ensure!(lines[8].parse::<u32>()? > 3, "{output}");
    ensure!(lines[9..] == ["1777", "666"], "{output}");
    Ok(())
}

async fn masked_and_readonly_paths_are_so() -> Result<()> {
    let script = "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; \
                  (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>&1 | grep -c -i 'read-only'";
    let output = Container::sh(script)?.output().await?;
    ensure!(output == "0\n0\n1\n", "{output}");
    Ok(())
}

async fn no_mount_of_a_container_is_in_the_machines_table() -> Result<()> {
    let before = fs::read_to_string("/proc/self/mountinfo")?.lines().count();
    let container = Container::sh("sleep 100")?;
    let shim = container.create().await?;
    ensure!(container.mounts()?.is_empty(), "{:?}", container.mounts()?);
    shim.start().await?;
    ensure!(container.mounts()?.is_empty(), "{:?}", container.mounts()?);
    ensure!(fs::read_to_string("/proc/self/mountinfo")?.lines().count() == before);
    shim.kill(9, false).await?;
    shim.wait().await?;
    container.finish(&shim).await
}

async fn a_bind_is_read_only_with_all_below_it() -> Result<()> {
    let mut container = Container::sh(
        "cat /data/file; (echo x > /data/file) 2>&1 | grep -c -i read-only; (echo x > /data/sub/file) 2>&1 | grep -c -i read-only; \
         echo y > /rw/file; cat /etc/hosts",
    )?;
    let data = container.path("data");
    fs::create_dir_all(data.join("sub"))?;
    fs::create_dir(container.path("rw"))?;
    fs::write(data.join("file"), "content\n")?;
    fs::write(container.path("hosts"), "127.0.0.1 localhost\n")?;
    let bind = |source: std::path::PathBuf, destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    let more = [
        bind(data, "/data", &["rbind", "rro", "rprivate"]),
        bind(container.path("rw"), "/rw", &["rbind", "rw", "rprivate"]),
        bind(container.path("hosts"), "/etc/hosts", &["rbind", "ro", "rprivate"]),
    ];
    container.spec["mounts"].as_array_mut().context("mounts")?.extend(more);
    // A mount below the source, in this process's own mount namespace: the shim sees it as the machine's.
    let sub = container.path("data/sub");
    let outcome = with_tmpfs(&sub, container.run_kept()).await?;
    container.nothing_is_left().await?;
    let output = outcome.stdout;
    ensure!(output == "content\n1\n1\n127.0.0.1 localhost\n", "{output}");
    ensure!(fs::read_to_string(container.path("rw/file"))? == "y\n");
    Ok(())
}

/// Has a tmpfs at `path` for as long as `work` takes.
async fn with_tmpfs<T>(path: &std::path::Path, work: impl Future<Output = Result<T>>) -> Result<T> {
    nix::mount::mount(Some("none"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)?;
    let done = work.await;
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)?;
    done
}

async fn a_bind_through_a_link_stays_inside() -> Result<()> {
    let mut container = Container::sh("cat /run/real; cat /etc/resolv.conf")?;
    fs::write(container.path("file"), "inside\n")?;
    fs::create_dir_all(container.path("upper/etc"))?;
    std::os::unix::fs::symlink("../../../../run/real", container.path("upper/etc/resolv.conf"))?;
    let mount = json!({"destination": "/etc/resolv.conf", "type": "bind", "source": container.path("file"), "options": ["bind"]});
    container.spec["mounts"].as_array_mut().context("mounts")?.push(mount);
    ensure!(container.output().await? == "inside\ninside\n");
    ensure!(!std::path::Path::new("/run/real").exists());
    Ok(())
}

async fn capabilities_are_those_asked_for() -> Result<()> {
    let mut container = Container::sh(
        "grep Cap /proc/self/status; chown 1 /tmp && echo chown; (mknod /tmp/x c 1 3 && echo mknod) 2>&1",
    )?;
    let output = container.output().await?;
    ensure!(
        output.contains("CapEff:\t00000000a80425fb") && output.contains("CapBnd:\t00000000a80425fb"),
        "{output}"
    );
    ensure!(
        output.contains("CapAmb:\t0000000000000000") && output.contains("chown") && output.contains("mknod"),
        "{output}"
    );
    container = Container::sh("grep Cap /proc/self/status; chown 1 /tmp 2>&1")?;
    container.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"],
        "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"],
    });
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let outcome = container.run().await?;
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        ensure!(outcome.stdout.contains(&format!("Cap{set}:\t0000000000002000")), "{}", outcome.stdout);
    }
    ensure!(outcome.exit.code == 1 && outcome.stdout.contains("not permitted"), "{}", outcome.stdout);
    Ok(())
}

async fn the_default_seccomp_profile_confines() -> Result<()> {
    let script = "grep Seccomp: /proc/self/status; grep NoNewPrivs /proc/self/status; (unshare -n true || echo denied) 2>&1 | tail -1";
    let output = Container::sh(script)?.output().await?;
    ensure!(output == "Seccomp:\t2\nNoNewPrivs:\t0\ndenied\n", "{output}");
    let mut container = Container::sh("grep Seccomp: /proc/self/status")?;
    container.spec["linux"]["seccomp"] = serde_json::Value::Null;
    ensure!(container.output().await? == "Seccomp:\t0\n");
    Ok(())
}

async fn no_new_privileges_and_seccomp_go_together() -> Result<()> {
    let mut container = Container::sh("grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; id -u")?;
    container.spec["process"]["noNewPrivileges"] = true.into();
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = container.output().await?;
    ensure!(output == "NoNewPrivs:\t1\nSeccomp:\t2\n1000\n", "{output}");
    Ok(())
}

async fn a_user_is_looked_up_inside() -> Result<()> {
    let mut container = Container::sh("id; echo $HOME; echo again > /dev/stdout; umask; pwd")?;
    container.launch.user = Some("web".to_owned());
    container.launch.groups = vec!["99".to_owned()];
    container.spec["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 0o27, "additionalGids": [5]});
    container.spec["process"]["cwd"] = "/made/for/me".into();
    let output = container.output().await?;
    let wanted = "uid=33(web) gid=34(web) groups=5,34(web),77(extra),99\n/home\nagain\n0027\n/made/for/me\n";
    ensure!(output == wanted, "{output}");
    container = Container::sh("true")?;
    container.launch.user = Some("nobody-here".to_owned());
    let (words, _) = refused(&container).await?;
    ensure!(words == "unable to find user nobody-here: no matching entries in passwd file", "{words}");
    Ok(())
}

async fn memory_is_limited_and_running_out_is_seen() -> Result<()> {
    let mut container = Container::sh("head -c 100m /dev/zero | tail | wc -c; echo survived")?;
    container.spec["linux"]["resources"]["memory"] = json!({"limit": 33_554_432, "swap": 33_554_432});
    let shim = container.create().await?;
    let limit = fs::read_to_string(container.cgroup("memory").join("memory.limit_in_bytes"))
        .or_else(|_| fs::read_to_string(container.cgroup("memory").join("memory.max")))?;
    ensure!(limit.trim() == "33554432", "{limit}");
    let mut stream = shim.attach().await?;
    shim.start().await?;
    let (stdout, _) = read_frames(&mut stream).await?;
    let exit = shim.wait().await?;
    ensure!(exit.oom_killed, "{exit:?} {stdout}");
    container.finish(&shim).await
}

async fn processes_are_limited() -> Result<()> {
    let mut container = Container::sh("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; wait")?;
    container.spec["linux"]["resources"]["pids"] = json!({"limit": 5});
    let outcome = container.run().await?;
    ensure!(outcome.stderr.contains("can't fork"), "{}", outcome.stderr);
    Ok(())
}

async fn devices_are_denied() -> Result<()> {
    let mut container = Container::sh(
        "mknod /tmp/kmsg c 1 11; (cat /tmp/kmsg || echo denied) 2>&1 | tail -1; mknod /tmp/zero c 1 5; head -c 1 /tmp/zero | wc -c; ls -l /dev/more | cut -c1; stat -c %a:%u /dev/more",
    )?;
    container.spec["linux"]["devices"] =
        json!([{"path": "/dev/more", "type": "c", "major": 1, "minor": 7, "fileMode": 0o600, "uid": 5}]);
    let output = container.output().await?;
    ensure!(output == "denied\n1\nc\n600:5\n", "{output}");
    Ok(())
}

async fn an_rlimit_that_cannot_be_had_is_named() -> Result<()> {
    let mut container = Container::sh("ulimit -n; ulimit -c")?;
    container.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    ensure!(container.output().await? == "123\n0\n");
    if rswarm_runtime::hard_limit(oci_spec::runtime::PosixRlimitType::RlimitNofile)
        .is_some_and(|hard| hard < 1 << 30)
    {
        container.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 << 30}]);
        match refused(&container).await {
            Ok((words, _)) => ensure!(words.contains("RLIMIT_NOFILE"), "{words}"),
            Err(error) => ensure!(format!("{error}").contains("it was created"), "{error}"),
        }
    }
    Ok(())
}

async fn a_root_can_be_read_only() -> Result<()> {
    let mut container =
        Container::sh("(echo x > /file) 2>&1 | grep -c -i read-only; echo x > /dev/shm/file && echo shm")?;
    container.spec["root"]["readonly"] = true.into();
    ensure!(container.output().await? == "1\nshm\n");
    Ok(())
}

async fn sysctls_are_the_containers() -> Result<()> {
    let mut container =
        Container::sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax")?;
    let ours = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    container.spec["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.msgmax": "12345"});
    ensure!(container.output().await? == "7\n12345\n");
    ensure!(fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")? == ours);
    container.spec["linux"]["sysctl"] = json!({"net.none.such": "1"});
    let (words, _) = refused(&container).await?;
    ensure!(words == "write sysctl net.none.such: no such file or directory", "{words}");
    Ok(())
}

async fn many_layers_can_be_mounted() -> Result<()> {
    let mut container = Container::sh("ls /layers | wc -l; cat /top")?;
    let rswarm_runtime::Rootfs::Overlay { lower, .. } = &mut container.launch.rootfs else { unreachable!() };
    let base = container.dir.path().join("a rather, long: name for the directory of all the layers");
    for number in 0..150 {
        let layer = base.join(format!("layer-{number:060}"));
        fs::create_dir_all(layer.join("layers"))?;
        fs::write(layer.join(format!("layers/{number}")), "")?;
        fs::write(layer.join("top"), format!("{number}\n"))?;
        lower.insert(0, layer);
    }
    ensure!(container.output().await? == "150\n149\n");
    Ok(())
}

async fn the_log_is_complete() -> Result<()> {
    let container = Container::sh(
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo oops >&2; printf end; head -c 20000 /dev/zero | tr '\\0' x >&2",
    )?;
    ensure!(container.run().await?.exit.code == 0);
    let log = container.log()?;
    let of = |name: &str| {
        log.iter().filter(|(stream, _)| stream == name).map(|(_, text)| text.as_str()).collect::<String>()
    };
    let mut wanted: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    wanted.push_str("end");
    ensure!(of("stdout") == wanted);
    ensure!(of("stderr") == format!("oops\n{}", "x".repeat(20000)));
    ensure!(log.iter().all(|(_, text)| text.len() <= 16384));
    Ok(())
}

async fn attached_clients_all_see_everything() -> Result<()> {
    let container = Container::sh("seq 1 5000; echo err >&2")?;
    let shim = container.create().await?;
    let (mut one, mut two) = (shim.attach().await?, shim.attach().await?);
    shim.start().await?;
    let (one, two) = tokio::join!(read_frames(&mut one), read_frames(&mut two));
    let wanted: String = (1..=5000).map(|number| format!("{number}\n")).collect();
    for seen in [one?, two?] {
        ensure!(seen == (wanted.clone(), "err\n".to_owned()));
    }
    container.finish(&shim).await
}

async fn standard_input_reaches_the_command() -> Result<()> {
    let mut container = Container::sh("wc -c; echo done")?;
    (container.launch.open_stdin, container.launch.stdin_once) = (true, true);
    let shim = container.create().await?;
    let mut stream = shim.attach().await?;
    shim.start().await?;
    stream.write_all(&vec![b'x'; 300_000]).await?;
    stream.shutdown().await?;
    let (stdout, _) = read_frames(&mut stream).await?;
    ensure!(stdout == "300000\ndone\n", "{stdout}");
    container.finish(&shim).await?;

    let mut container = Container::sh("read a; echo $a; read b; echo $b")?;
    container.launch.open_stdin = true;
    let shim = container.create().await?;
    shim.start().await?;
    for word in ["first\n", "second\n"] {
        let mut stream = shim.attach().await?;
        stream.write_all(word.as_bytes()).await?;
        stream.shutdown().await?;
        eventually("the word is logged", || {
            container.log().is_ok_and(|log| log.iter().any(|(_, text)| text == word))
        })
        .await?;
    }
    timeout(DEADLINE, shim.wait()).await??;
    container.finish(&shim).await
}

async fn a_terminal_has_the_size_asked_for() -> Result<()> {
    let mut container = Container::sh(
        "stty size; tty; test -t 2 && echo tty; read x; stty size; echo $x; ls -l /dev/console | cut -c1",
    )?;
    (container.launch.tty, container.launch.open_stdin) = (true, true);
    container.launch.console_size = Some((100, 40));
    container.spec["process"]["terminal"] = true.into();
    let shim = container.create().await?;
    let mut stream = shim.attach().await?;
    shim.start().await?;
    let mut output = Vec::new();
    let mut read_until = async |wanted: &str| -> Result<()> {
        let mut buffer = [0; 1024];
        while !String::from_utf8_lossy(&output).contains(wanted) {
            let length = timeout(DEADLINE, stream.read(&mut buffer)).await??;
            ensure!(length > 0, "ended: {}", String::from_utf8_lossy(&output));
            output.extend_from_slice(&buffer[..length]);
        }
        Ok(())
    };
    read_until("tty\r\n").await?;
    read_until("40 100\r\n/dev/pts/0\r\ntty\r\n").await?;
    shim.resize(90, 30).await?;
    stream.write_all(b"hello\n").await?;
    let mut rest = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut rest)).await??;
    ensure!(rest == "hello\r\n30 90\r\nhello\r\nc\r\n", "{rest:?}");
    ensure!(shim.wait().await?.code == 0);
    ensure!(matches!(shim.resize(1, 1).await, Err(CallError::Refused(_))));
    container.finish(&shim).await
}

async fn a_killed_container_exits_with_137() -> Result<()> {
    for (signal, all, code) in [(9, false, 137), (9, true, 137), (15, false, 7), (34, false, 8)] {
        let container = Container::sh(
            "trap 'exit 7' TERM; trap 'exit 8' 34; sleep 1000 & echo up; while :; do wait; done",
        )?;
        let shim = container.create().await?;
        shim.start().await?;
        eventually("it is up", || container.log().is_ok_and(|log| !log.is_empty())).await?;
        shim.kill(signal, all).await?;
        let exit = timeout(DEADLINE, shim.wait()).await??;
        ensure!(exit.code == code, "signal {signal} gave {}", exit.code);
        ensure!(matches!(shim.kill(9, false).await, Err(CallError::Refused(_))));
        container.finish(&shim).await?;
    }
    Ok(())
}

async fn a_paused_container_stands_still() -> Result<()> {
    let container = Container::sh("while :; do echo tick; sleep 0.01; done")?;
    let shim = container.create().await?;
    ensure!(matches!(shim.pause().await, Err(CallError::Refused(_))));
    shim.start().await?;
    eventually("it ticks", || container.log().is_ok_and(|log| log.len() > 2)).await?;
    shim.pause().await?;
    ensure!(matches!(shim.state().await?, ShimState::Running { paused: true, .. }));
    let before = container.log()?.len();
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    let frozen = container.log()?.len();
    ensure!(frozen <= before + 1, "{before} became {frozen}");
    shim.resume().await?;
    eventually("it ticks again", || container.log().is_ok_and(|log| log.len() > frozen + 2)).await?;
    shim.pause().await?;
    shim.kill(9, false).await?;
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 137);
    container.finish(&shim).await
}

async fn a_daemon_finds_a_living_shim_again() -> Result<()> {
    let container = Container::sh("echo one; sleep 0.3; echo two; exit 5")?;
    let pid = {
        let shim = container.create().await?;
        shim.start().await?.pid
    };
    let parent = fs::read_to_string(format!("/proc/{}/stat", container.processes()[0]))?;
    let fields: Vec<&str> = parent.rsplit(')').next().context("stat")?.split_whitespace().collect();
    ensure!(fields[1] != std::process::id().to_string(), "the shim is the daemon's child");
    let shim = Shim::connect(container.path("state").as_path()).await?;
    ensure!(matches!(shim.state().await?, ShimState::Running { pid: same, .. } if same == pid));
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 5);
    let again = Shim::connect(container.path("state").as_path()).await?;
    ensure!(matches!(again.state().await?, ShimState::Stopped(Exit { code: 5, .. })));
    ensure!(container.log()?.len() == 2);
    container.finish(&again).await?;
    ensure!(matches!(Shim::connect(container.path("state").as_path()).await, Err(ConnectError::Gone { .. })));
    Ok(())
}

async fn a_container_dies_with_its_shim() -> Result<()> {
    for user in [None, Some("web".to_owned())] {
        let mut container = Container::sh("sleep 1000 & sleep 1000")?;
        container.launch.user = user;
        let shim = container.create().await?;
        let pid = shim.start().await?.pid;
        let waiting = shim.clone();
        let killed = async {
            for pid in container.processes() {
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            }
            anyhow::Ok(())
        };
        let (waited, killed) = tokio::join!(timeout(DEADLINE, waiting.wait()), killed);
        killed?;
        ensure!(matches!(waited?, Err(CallError::Gone)));
        eventually("the container is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists())
            .await?;
        ensure!(matches!(
            Shim::connect(container.path("state").as_path()).await,
            Err(ConnectError::Gone { .. })
        ));
        ensure!(container.mounts()?.is_empty());
        rswarm_shim::client::clear_remains(&container.launch).await?;
        container.nothing_is_left().await?;
    }
    Ok(())
}

async fn an_exit_is_recorded_before_it_is_told() -> Result<()> {
    let container = Container::sh("exit 9")?;
    let shim = container.create().await?;
    ensure!(!container.launch.exit_file.exists());
    shim.start().await?;
    let exit = shim.wait().await?;
    let recorded: Exit = rswarm_base::fsx::read_json(&container.launch.exit_file)?.context("not recorded")?;
    ensure!(recorded == exit && exit.code == 9 && !exit.at.is_zero());
    ensure!(container.cgroups().is_empty(), "an exited container has cgroups");
    container.finish(&shim).await
}

async fn a_created_container_can_be_thrown_away() -> Result<()> {
    let container = Container::sh("echo never")?;
    let shim = container.create().await?;
    ensure!(matches!(shim.state().await?, ShimState::Created { .. }));
    container.finish(&shim).await?;
    ensure!(container.log()?.is_empty());
    Ok(())
}

async fn a_failed_launch_leaves_nothing() -> Result<()> {
    let mut container = Container::sh("true")?;
    let missing =
        json!({"destination": "/data", "type": "bind", "source": "/none/such", "options": ["rbind"]});
    container.spec["mounts"].as_array_mut().context("mounts")?.push(missing);
    let (words, code) = refused(&container).await?;
    let wanted =
        "error mounting \"/none/such\" to rootfs at \"/data\": open /none/such: no such file or directory";
    ensure!((words.as_str(), code) == (wanted, 128), "{words} {code}");
    let mut container = Container::sh("true")?;
    container.spec["linux"]["intelRdt"] = json!({});
    ensure!(refused(&container).await?.0 == "`linux.intelRdt` is not supported by this runtime");
    let mut container = Container::sh("true")?;
    container.spec["mounts"][1]["options"] = json!(["mode=755", "nonsense=1"]);
    let (words, _) = refused(&container).await?;
    ensure!(words.contains("nonsense"), "{words}");
    let container = Container::sh("true")?;
    let error =
        launch(std::path::Path::new("/none/exe"), &container.launch).await.err().context("launched")?;
    ensure!(error.to_string() == "shim `/none/exe` could not be run", "{error}");
    Ok(())
}

async fn orphans_are_reaped() -> Result<()> {
    // Without a pid namespace of its own, the container's orphans fall to the shim.
    let mut container =
        Container::sh("(sleep 0.05 & sleep 0.05 &) ; sleep 0.3; (sleep 1000 &); echo up; sleep 1000")?;
    let namespaces = container.spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let shim = container.create().await?;
    shim.start().await?;
    eventually("it is up", || container.log().is_ok_and(|log| !log.is_empty())).await?;
    let shim_pid = container.processes()[0];
    let children =
        || fs::read_to_string(format!("/proc/{shim_pid}/task/{shim_pid}/children")).unwrap_or_default();
    // The keeper is the third.
    ensure!(children().split_whitespace().count() == 3, "children: {}", children());
    shim.kill(9, false).await?;
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 137);
    eventually("all are gone", || children().is_empty()).await?;
    container.finish(&shim).await
}

pub fn exec(args: &[&str]) -> ExecRequest {
    ExecRequest {
        id: rswarm_base::id::engine_id(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/bin".to_owned()],
        ..ExecRequest::default()
    }
}

async fn an_exec_runs_beside_the_command() -> Result<()> {
    let container = Container::sh("sleep 1000")?;
    let shim = container.create().await?;
    ensure!(matches!(shim.exec(exec(&["true"])).await, Err(CallError::Refused(_))));
    shim.start().await?;
    let script = "hostname; cat /proc/1/cmdline | tr '\\0' ' '; echo; grep -E 'CapEff|Seccomp:' /proc/self/status; pwd; id -u; echo err >&2; exit 6";
    let request = ExecRequest {
        cwd: Some("/tmp".to_owned()),
        user: Some("web".to_owned()),
        ..exec(&["sh", "-c", script])
    };
    let (started, mut stream) = shim.exec(request.clone()).await?;
    ensure!(started.pid > 1);
    let (stdout, stderr) = read_frames(&mut stream).await?;
    let wanted = "box\nsh -c sleep 1000 \nCapEff:\t0000000000000000\nSeccomp:\t2\n/tmp\n33\n";
    let wanted_exec = wanted.replace("sh -c sleep 1000 ", "sleep 1000 ");
    ensure!(stdout == wanted || stdout == wanted_exec, "{stdout}");
    ensure!(stderr == "err\n");
    ensure!(shim.exec_wait(&request.id).await?.code == 6);
    ensure!(matches!(shim.exec_wait("none").await, Err(CallError::Refused(_))));

    let request = ExecRequest {
        stdin: true,
        privileged: true,
        ..exec(&[
            "sh",
            "-c",
            "cat; grep Seccomp: /proc/self/status; cat /proc/self/cgroup | grep -v ':/$' | wc -l",
        ])
    };
    let (_, mut stream) = shim.exec(request).await?;
    stream.write_all(b"given\n").await?;
    stream.shutdown().await?;
    ensure!(read_frames(&mut stream).await?.0 == "given\nSeccomp:\t0\n0\n");

    let request =
        ExecRequest { tty: true, console_size: Some((70, 20)), ..exec(&["sh", "-c", "stty size; tty"]) };
    let (_, mut stream) = shim.exec(request).await?;
    let mut output = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut output)).await??;
    ensure!(output == "20 70\r\n/dev/pts/0\r\n", "{output:?}");
    shim.kill(9, false).await?;
    shim.wait().await?;
    container.finish(&shim).await
}

async fn an_exec_that_fails_says_so() -> Result<()> {
    let container = Container::sh("sleep 1000")?;
    let shim = container.create().await?;
    shim.start().await?;
    let error = shim.exec(exec(&["nothing"])).await.err().context("it ran")?;
    ensure!(
        error.to_string() == "exec: \"nothing\": executable file not found in $PATH"
            && error.exit_code() == 127,
        "{error}"
    );
    let error = shim.exec(exec(&["/bin/broken"])).await.err().context("it ran")?;
    ensure!(
        error.to_string() == "exec /bin/broken: exec format error" && error.exit_code() == 126,
        "{error}"
    );
    shim.pause().await?;
    ensure!(matches!(shim.exec(exec(&["true"])).await, Err(CallError::Refused(_))));
    shim.kill(9, true).await?;
    shim.wait().await?;
    container.finish(&shim).await
}

async fn an_exec_dies_with_the_container() -> Result<()> {
    let container = Container::sh("sleep 1000")?;
    let shim = container.create().await?;
    shim.start().await?;
    let request = exec(&["sleep", "1000"]);
    let (_, mut stream) = shim.exec(request.clone()).await?;
    let second = exec(&["sleep", "1000"]);
    let (_, mut other) = shim.exec(second.clone()).await?;
    shim.exec_kill(&second.id, 15).await?;
    ensure!(timeout(DEADLINE, shim.exec_wait(&second.id)).await??.code == 143);
    read_frames(&mut other).await?;
    shim.kill(9, false).await?;
    ensure!(timeout(DEADLINE, shim.exec_wait(&request.id)).await??.code == 137);
    read_frames(&mut stream).await?;
    ensure!(timeout(DEADLINE, shim.wait()).await??.code == 137);
    container.finish(&shim).await
}

async fn a_slow_reader_loses_nothing() -> Result<()> {
    let container = Container::sh("seq 1 600000; echo end >&2")?;
    let shim = container.create().await?;
    let mut stream = shim.attach().await?;
    shim.start().await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    ensure!(
        matches!(shim.state().await?, ShimState::Running { .. }),
        "the container did not wait for its reader"
    );
    let (stdout, stderr) = read_frames(&mut stream).await?;
    ensure!(stdout.lines().count() == 600_000 && stderr == "end\n");
    ensure!(container.log()?.len() == 600_001);
    container.finish(&shim).await
}

async fn a_container_is_quick() -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..10 {
        let container = Container::new(&["true"])?;
        fs::write(container.launch.bundle.join("config.json"), serde_json::to_vec(&container.spec)?)?;
        let started = std::time::Instant::now();
        let shim = container.create().await?;
        shim.start().await?;
        ensure!(shim.wait().await?.code == 0);
        times.push(started.elapsed());
        container.finish(&shim).await?;
    }
    times.sort();
    println!(
        "    create, start and exit of `true`: {:?} at best, {:?} in the middle",
        times[0],
        times[times.len() / 2]
    );
    ensure!(times[0] < std::time::Duration::from_millis(500), "{times:?}");
    Ok(())
}

async fn a_shim_is_small() -> Result<()> {
    let container = Container::sh("sleep 1000")?;
    let shim = container.create().await?;
    shim.start().await?;
    let pid = container.processes()[0];
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let dirty =
        rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).context("no Private_Dirty")?;
    println!("    private memory of the shim:{dirty}");
    ensure!(fs::read_dir(format!("/proc/{pid}/task"))?.count() == 1, "the shim has threads");
    ensure!(
        fs::metadata(container.path("state/shim.sock"))?.mode() & 0o077 == 0,
        "the socket is open to others"
    );
    shim.kill(9, false).await?;
    shim.wait().await?;
    container.finish(&shim).await
}
