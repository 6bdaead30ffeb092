//! What `run`, `update`, `top`, `stats` and `events` promise, seen from inside the container and from the kernel.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::{Check, all_pass};

/// One daemon for all of it: each check removes its containers.
#[test]
fn options_reach_the_container_and_are_shown_again() -> Result<()> {
    let lab = Lab::start(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let checks: [Check; 11] = [
        ("top", top),
        ("stats", stats),
        ("update", update),
        ("events", events),
        ("namespaces", namespaces),
        ("privileges", privileges),
        ("mounts", mounts),
        ("propagation", propagation),
        ("waits and restarts", waits_and_restarts),
        ("files", files),
        ("refusals", refusals),
    ];
    all_pass(host, &checks)?;
    lab.finish()
}

fn sleeper(host: &Host, more: &[&str]) -> Result<String> {
    let mut args = vec!["run", "-d"];
    args.extend(more);
    args.extend(["busybox", "sleep", "1000"]);
    Ok(host.docker(&args)?.trim().to_owned())
}

/// What a shell script in a new container says.
fn inside(host: &Host, options: &[&str], script: &str) -> Result<String> {
    let mut args = vec!["run", "--rm"];
    args.extend(options);
    args.extend(["busybox", "sh", "-c", script]);
    Ok(host.docker(&args)?.trim().to_owned())
}

fn remove(host: &Host, id: &str) -> Result<()> {
    host.docker(&["rm", "-f", id]).map(drop)
}

fn top(host: &Host) -> Result<()> {
    let id = sleeper(host, &["-u", "nobody"])?;
    let text = host.docker(&["top", &id])?;
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    ensure!(titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "{text}");
    let row: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", &id])?;
    ensure!(row[1] == pid.trim() && row[7..] == ["sleep", "1000"], "{text}");
    // The machine's own `ps` is the oracle.
    let oracle =
        run(Command::new("ps").args(["-o", "user,pid,ppid,pgid,ni,vsz,tty,stat,args", "-p", pid.trim()]))?;
    let ours = host.docker(&["top", &id, "-o", "user,pid,ppid,pgid,ni,vsz,tty,stat,args"])?;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ensure!(words(&oracle) == words(&ours), "{oracle}\n{ours}");
    ensure!(host.docker(&["top", &id, "aux"])?.starts_with("USER"));
    ensure!(host.refusal(&["top", &id, "-o", "cmd"])?.contains("Couldn't find PID field in ps output"));
    host.docker(&["kill", &id])?;
    ensure!(host.refusal(&["top", &id])?.contains("is not running"));
    remove(host, &id)
}

fn stats(host: &Host) -> Result<()> {
    let id = host.docker(&[
        "run",
        "-d",
        "--memory",
        "64m",
        "--name",
        "busy",
        "busybox",
        "sh",
        "-c",
        "while :; do :; done",
    ])?;
    let id = id.trim();
    let (code, body) =
        host.api("GET", &format!("/v1.51/containers/{id}/stats?stream=false&one-shot=false"), "")?;
    ensure!(code == 200, "{body}");
    let json: serde_json::Value = serde_json::from_str(&body)?;
    let number = |pointer: &str| json.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
    ensure!(json["name"] == "/busy" && json["id"] == id, "{json}");
    ensure!(
        number("/cpu_stats/cpu_usage/total_usage") > number("/precpu_stats/cpu_usage/total_usage"),
        "{json}"
    );
    ensure!(number("/cpu_stats/system_cpu_usage") > number("/precpu_stats/system_cpu_usage"), "{json}");
    ensure!(number("/cpu_stats/online_cpus") > 0 && number("/pids_stats/current") == 1, "{json}");
    ensure!(number("/memory_stats/limit") == 64 << 20 && number("/memory_stats/usage") > 0, "{json}");
    ensure!(json.pointer("/networks/eth0/rx_bytes").is_some(), "{json}");
    let (code, _) = host.api("GET", &format!("/containers/{id}/stats?stream=1&one-shot=1"), "")?;
    ensure!(code == 400);
    for cli in [Host::docker, Host::rswarm] {
        let text =
            cli(host, &["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "busy"])?;
        ensure!(text.starts_with("busy 1 ") && text.contains("/ 64MiB"), "{text}");
    }
    host.docker(&["kill", id])?;
    let (_, body) = host.api("GET", &format!("/containers/{id}/stats?stream=false"), "")?;
    ensure!(body.contains("\"name\":\"/busy\"") && body.contains("0001-01-01T00:00:00Z"), "{body}");
    remove(host, id)
}

/// A file of the container's cgroup, by its names in version 1 and 2.
fn cgroup_file(host: &Host, id: &str, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", id])?;
    let table = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.trim()))?;
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if controllers.split(',').any(|name| name == controller) {
            let file = format!("/sys/fs/cgroup/{controller}{path}/{v1}");
            return Ok(std::fs::read_to_string(&file).context(file)?.trim().to_owned());
        }
    }
    let path = table.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup")?;
    let file = format!("/sys/fs/cgroup{path}/{v2}");
    Ok(std::fs::read_to_string(&file).context(file)?.trim().to_owned())
}

fn update(host: &Host) -> Result<()> {
    let id = sleeper(host, &["--memory", "64m", "--pids-limit", "50"])?;
    for cli in [Host::docker, Host::rswarm] {
        cli(
            host,
            &[
                "update",
                "--memory",
                "96m",
                "--memory-swap",
                "128m",
                "--cpus",
                "0.5",
                "--pids-limit",
                "70",
                &id,
            ],
        )?;
        cli(
            host,
            &[
                "update",
                "--memory",
                "64m",
                "--memory-swap",
                "64m",
                "--cpu-shares",
                "512",
                "--restart",
                "on-failure:3",
                &id,
            ],
        )?;
    }
    ensure!(
        cgroup_file(host, &id, "memory", "memory.limit_in_bytes", "memory.max")? == (64 << 20).to_string()
    );
    ensure!(cgroup_file(host, &id, "pids", "pids.max", "pids.max")? == "70");
    let quota = cgroup_file(host, &id, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with("50000"), "{quota}");
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.CpuShares}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    let shown = host.docker(&["inspect", "--format", format, &id])?;
    ensure!(shown.trim() == "67108864 500000000 512 on-failure 3", "{shown}");
    host.docker(&["update", "--pids-limit", "-1", &id])?;
    ensure!(cgroup_file(host, &id, "pids", "pids.max", "pids.max")? == "max");
    // In the API zero is no limit too, and no word of it changes nothing.
    let path = format!("/containers/{id}/update");
    for (body, wanted) in [("{\"PidsLimit\":60}", "60"), ("{}", "60"), ("{\"PidsLimit\":0}", "max")] {
        let (status, said) = host.api("POST", &path, body)?;
        ensure!(status == 200, "{body}: {said}");
        ensure!(cgroup_file(host, &id, "pids", "pids.max", "pids.max")? == wanted, "{body}");
    }
    let wrong = host.refusal(&["update", "--memory", "1g", &id])?;
    ensure!(wrong.contains("update the memoryswap at the same time"), "{wrong}");
    let wrong = host.refusal(&["update", "--cpu-quota", "50000", &id])?;
    ensure!(wrong.contains("Conflicting options"), "{wrong}");
    remove(host, &id)
}

/// The actions of a container's events, oldest first, with the attribute that matters.
fn actions(host: &Host, id: &str) -> Result<Vec<String>> {
    let created = host.docker(&["inspect", "--format", "{{.Created}}", id])?;
    let args = ["events", "--since", created.trim(), "--until", "0s", "--filter"];
    let mut args = args.to_vec();
    let filter = format!("container={id}");
    let format = "{{.Action}}{{with .Actor.Attributes.exitCode}} {{.}}{{end}}{{with .Actor.Attributes.signal}} {{.}}{{end}}";
    args.extend([filter.as_str(), "--format", format]);
    Ok(host.docker(&args)?.lines().map(|line| line.trim_end().to_owned()).collect())
}

fn events(host: &Host) -> Result<()> {
    let id = host.docker(&["create", "--stop-signal", "KILL", "busybox", "sleep", "1000"])?;
    let id = id.trim();
    host.docker(&["start", id])?;
    ensure!(host.refusal(&["exec", id, "sh", "-c", "exit 3"])?.is_empty());
    host.docker(&["top", id])?;
    host.docker(&["pause", id])?;
    host.docker(&["unpause", id])?;
    host.docker(&["update", "--memory", "64m", id])?;
    host.docker(&["rename", id, "renamed"])?;
    host.docker(&["restart", id])?;
    host.docker(&["kill", id])?;
    let wanted = [
        "create",
        "start",
        "exec_create: sh -c exit 3",
        "exec_start: sh -c exit 3",
        "exec_die 3",
        "top",
        "pause",
        "unpause",
        "update",
        "rename",
        "kill 9",
        "die 137",
        "stop",
        "start",
        "restart",
        "kill 9",
        "die 137",
    ];
    eventually(Duration::from_secs(5), "the events are in dockerd's order", || {
        let found = actions(host, id)?;
        ensure!(found == wanted, "{found:#?}");
        Ok(true)
    })?;
    remove(host, id)
}

fn namespaces(host: &Host) -> Result<()> {
    let own = |name: &str| {
        Ok::<_, anyhow::Error>(std::fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string())
    };
    for (option, namespace) in
        [("--pid=host", "pid"), ("--ipc=host", "ipc"), ("--uts=host", "uts"), ("--cgroupns=host", "cgroup")]
    {
        let file = format!("readlink /proc/self/ns/{namespace}");
        ensure!(inside(host, &[option], &file)? == own(namespace)?, "{option}");
        if namespace != "cgroup" {
            ensure!(inside(host, &[], &file)? != own(namespace)?, "without {option}");
        }
    }
    ensure!(inside(host, &["--cgroupns=private"], "readlink /proc/self/ns/cgroup")? != own("cgroup")?);
    // IPC that is shared on request, with its /dev/shm.
    let donor = sleeper(host, &["--ipc", "shareable", "--shm-size", "1m"])?;
    host.docker(&["exec", &donor, "touch", "/dev/shm/given"])?;
    let mode = format!("container:{donor}");
    ensure!(inside(host, &["--ipc", &mode], "ls /dev/shm; df -k /dev/shm | tail -1")?.starts_with("given"));
    ensure!(inside(host, &["--pid", &mode], "cat /proc/1/cmdline")?.contains("sleep"));
    let private = sleeper(host, &["--ipc", "private"])?;
    let refused =
        host.refusal(&["run", "--rm", "--ipc", &format!("container:{private}"), "busybox", "true"])?;
    ensure!(refused.contains("non-shareable IPC"), "{refused}");
    ensure!(
        inside(host, &["--ipc", "none"], "ls -d /dev/shm 2>&1; grep -c /dev/shm /proc/mounts; true")?
            .ends_with('0')
    );
    // A network is shared while its owner runs.
    let sharer = sleeper(host, &["--network", &mode])?;
    host.docker(&["stop", "-t", "0", &donor])?;
    let refused = host.refusal(&["restart", "-t", "0", &sharer])?;
    let wanted = format!(
        "Cannot restart container {sharer}: cannot join network namespace of a non running container: {donor}"
    );
    ensure!(refused.contains(&wanted), "{refused}");
    remove(host, &sharer)?;
    remove(host, &donor)?;
    remove(host, &private)
}

fn privileges(host: &Host) -> Result<()> {
    let caps = |options: &[&str]| inside(host, options, "grep CapEff /proc/self/status | cut -f2");
    ensure!(caps(&[])? == "00000000a80425fb");
    ensure!(caps(&["--cap-drop", "ALL"])? == "0000000000000000");
    ensure!(caps(&["--cap-drop", "all", "--cap-add", "net_admin"])? == "0000000000001000");
    ensure!(caps(&["--cap-drop", "CAP_CHOWN"])? == "00000000a80425fa");
    let status = |options: &[&str], field: &str| {
        inside(host, options, &format!("grep ^{field}: /proc/self/status | cut -f2"))
    };
    ensure!(
        status(&[], "Seccomp")? == "2"
            && status(&["--security-opt", "seccomp=unconfined"], "Seccomp")? == "0"
    );
    ensure!(status(&["--security-opt", "no-new-privileges"], "NoNewPrivs")? == "1");
    ensure!(
        status(&["--security-opt", "apparmor=unconfined", "--security-opt", "label=disable"], "NoNewPrivs")?
            == "0"
    );
    ensure!(
        inside(host, &["--security-opt", "systempaths=unconfined"], "grep -c ' /proc/.* ro,' /proc/mounts")
            .is_err(),
        "grep finds no read-only path and fails"
    );
    ensure!(inside(host, &[], "grep -c ' /proc/sys .*ro,' /proc/mounts")? == "1");
    ensure!(inside(host, &["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj")? == "321");
    ensure!(inside(host, &["--ulimit", "nofile=123:456"], "ulimit -Sn; ulimit -Hn")? == "123\n456");
    ensure!(
        inside(host, &["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward")? == "1"
    );
    ensure!(inside(host, &["--group-add", "1234", "--group-add", "nogroup"], "id -G")? == "0 1234 65534");
    ensure!(
        inside(host, &["--device", "/dev/loop-control:/dev/x:r"], "ls /dev/x")? == "/dev/x"
            || !std::path::Path::new("/dev/loop-control").exists()
    );
    // A device by its number, although no node of it was asked for: /dev/fuse, which anybody may open.
    let open = "mknod /tmp/fuse c 10 229 && exec 3<>/tmp/fuse && echo open";
    if std::path::Path::new("/dev/fuse").exists() {
        ensure!(inside(host, &["--device-cgroup-rule", "c 10:229 rw"], open)? == "open");
    }
    ensure!(inside(host, &[], &format!("({open}) 2>/dev/null || echo closed"))? == "closed");
    let dir = tempfile::tempdir()?;
    let profile = dir.path().join("seccomp.json");
    std::fs::write(
        &profile,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )?;
    let option = format!("seccomp={}", profile.display());
    ensure!(inside(host, &["--security-opt", &option], "mkdir /x 2>/dev/null || echo refused")? == "refused");
    ensure!(inside(host, &["--privileged"], "ls /dev/kmsg; mount -t tmpfs x /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs x /mnt && echo mounted")?.ends_with("mounted"));
    ensure!(
        inside(host, &["--init"], "cat /proc/1/cmdline")?.contains("docker-init"),
        "--init is the first process"
    );
    Ok(())
}

fn mounts(host: &Host) -> Result<()> {
    let options = |target: &str| format!("grep ' {target} ' /proc/mounts | cut -d' ' -f3,4");
    let tmpfs = inside(host, &["--tmpfs", "/t:size=1m,mode=700,exec"], &options("/t"))?;
    ensure!(tmpfs.starts_with("tmpfs rw,nosuid,nodev,relatime,size=1024k,mode=700"), "{tmpfs}");
    let shm = inside(host, &["--shm-size", "2m"], &options("/dev/shm"))?;
    ensure!(shm.contains("size=2048k"), "{shm}");
    ensure!(
        inside(host, &["--read-only"], "touch /x 2>&1; touch /dev/shm/x && echo ok")?
            .ends_with("Read-only file system\nok")
    );
    let dir = tempfile::tempdir()?;
    let source = dir.path().display();
    std::fs::write(dir.path().join("file"), "")?;
    ensure!(
        inside(host, &["-v", &format!("{source}:/b:ro")], "touch /b/x 2>/dev/null || echo refused")?
            == "refused"
    );
    let mount = format!("type=bind,source={source},target=/b,readonly,bind-recursive=writable");
    ensure!(inside(host, &["--mount", &mount], "ls /b")? == "file");
    let id = sleeper(host, &["--name", "donor", "-v", "shared:/data", "-v", &format!("{source}:/b")])?;
    host.docker(&["exec", &id, "touch", "/data/one"])?;
    let from = ["--volumes-from", "donor:ro"];
    ensure!(
        inside(host, &from, "ls /data /b; touch /data/x 2>/dev/null || echo refused")?.ends_with("refused")
    );
    let other = host.docker(&["create", "--volumes-from", "donor:ro", "busybox", "true"])?;
    let shown = host.docker(&["inspect", "--format", "{{.HostConfig.VolumesFrom}}", other.trim()])?;
    ensure!(shown.trim() == "[donor:ro]", "{shown}");
    remove(host, other.trim())?;
    remove(host, &id)?;
    host.docker(&["volume", "rm", "shared"]).map(drop)
}

/// A tmpfs of the test's own, with what is mounted below it.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn make(how: &str) -> Result<Mounted> {
        let mounted = Mounted(tempfile::tempdir()?);
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(mounted.0.path()))?;
        run(Command::new("mount").arg(how).arg(mounted.0.path()))?;
        std::fs::create_dir(mounted.0.path().join("sub"))?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--recursive", "--lazy"]).arg(self.0.path()).status();
    }
}

fn propagation(host: &Host) -> Result<()> {
    let (private, shared) = (Mounted::make("--make-private")?, Mounted::make("--make-shared")?);
    let bind = |source: &Mounted, mode: &str| format!("{}:/b:{mode}", source.0.path().display());
    for (mode, wanted) in [("rshared", "shared"), ("shared", "shared"), ("rslave", "shared or slave")] {
        let said = host.refusal(&["run", "--rm", "-v", &bind(&private, mode), "busybox", "true"])?;
        let path = private.0.path().display();
        let words = format!("path {path} is mounted on {path} but it is not a {wanted} mount");
        ensure!(said.contains(&words), "{mode}: {said}");
    }
    for (mode, leaves, arrives) in
        [("rshared", true, true), ("rslave", false, true), ("rprivate", false, false)]
    {
        let id = sleeper(host, &["--cap-add", "SYS_ADMIN", "-v", &bind(&shared, mode)])?;
        let shown = host.docker(&["inspect", "--format", "{{(index .Mounts 0).Propagation}}", &id])?;
        ensure!(shown.trim() == mode, "{shown}");
        host.docker(&["exec", &id, "mount", "-t", "tmpfs", "inner", "/b/sub"])?;
        let sub = shared.0.path().join("sub");
        let machines = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(machines.contains(&format!(" {} ", sub.display())) == leaves, "{mode}: {machines}");
        host.docker(&["exec", &id, "umount", "/b/sub"])?;
        run(Command::new("mount").args(["-t", "tmpfs", "outer"]).arg(&sub))?;
        let containers = host.docker(&["exec", &id, "cat", "/proc/self/mounts"])?;
        ensure!(containers.contains("outer /b/sub ") == arrives, "{mode}: {containers}");
        run(Command::new("umount").arg(&sub))?;
        remove(host, &id)?;
    }
    Ok(())
}

fn waits_and_restarts(host: &Host) -> Result<()> {
    let id = sleeper(host, &["--restart", "on-failure:2", "--name", "held"])?;
    // A kill by hand ends it for good.
    let waiting = host.docker_command(&["wait", &id]).stdout(Stdio::piped()).spawn()?;
    host.docker(&["kill", &id])?;
    ensure!(String::from_utf8(waiting.wait_with_output()?.stdout)?.trim() == "137");
    remove(host, &id)?;
    let started = Instant::now();
    host.docker(&["run", "-d", "--name", "flaky", "--restart", "on-failure:3", "busybox", "false"])?;
    let format = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}";
    eventually(Duration::from_secs(20), "it was restarted three times", || {
        Ok(host.docker(&["inspect", "--format", format, "flaky"])?.trim() == "exited 3 1")
    })?;
    ensure!(started.elapsed() >= Duration::from_millis(700), "100, 200 and 400 ms lie between the runs");
    // docker's client asks for whole seconds: the last events are told a moment later.
    eventually(Duration::from_secs(5), "it died four times", || {
        let actions = actions(host, "flaky")?;
        ensure!(actions.iter().filter(|action| *action == "die 1").count() == 4, "{actions:?}");
        Ok(true)
    })?;
    remove(host, "flaky")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("cid").display().to_string();
    for cli in [Host::docker, Host::rswarm] {
        let id = cli(
            host,
            &["create", "--cidfile", &file, "--annotation", "a=b", "--stop-timeout", "3", "busybox", "true"],
        )?;
        ensure!(std::fs::read_to_string(&file)?.trim() == id.trim());
        let format = "{{.Config.StopTimeout}} {{.HostConfig.Annotations.a}}";
        ensure!(host.docker(&["inspect", "--format", format, id.trim()])?.trim() == "3 b");
        remove(host, id.trim())?;
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

/// docker's command line decides what goes where by what we say there is, and so does ours.
fn files(host: &Host) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let here = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(here("file"), "content")?;
    let id = sleeper(host, &[])?;
    let there = |path: &str| format!("{id}:{path}");
    host.docker(&["cp", &here("file"), &there("/tmp/")])?;
    host.rswarm(&["cp", &here("file"), &there("/tmp/renamed")])?;
    host.docker(&["exec", &id, "mkdir", "-p", "/srv/tree/sub"])?;
    host.docker(&["exec", &id, "mv", "/tmp/file", "/tmp/renamed", "/srv/tree/sub"])?;
    host.docker(&["cp", &there("/srv/tree"), &here("by-docker")])?;
    host.rswarm(&["cp", &there("/srv/tree"), &here("by-rswarm")])?;
    for copy in ["by-docker/sub/file", "by-rswarm/sub/renamed"] {
        ensure!(std::fs::read_to_string(here(copy))? == "content", "{copy}");
    }
    let refused = host.refusal(&["cp", &there("/nope"), &here("x")])?;
    ensure!(refused.contains(&format!("Could not find the file /nope in container {id}")), "{refused}");
    let changes = "A /srv\nA /srv/tree\nA /srv/tree/sub\nA /srv/tree/sub/file\nA /srv/tree/sub/renamed\n";
    for changed in [host.docker(&["diff", &id])?, host.rswarm(&["diff", &id])?] {
        ensure!(changed.contains(changes), "{changed}");
    }
    host.rswarm(&["commit", "-c", "CMD cat /srv/tree/sub/file", &id, "made:1"])?;
    let said = host.docker(&["run", "--rm", "made:1"])?;
    ensure!(said == "content", "{said}");
    remove(host, &id)?;
    host.docker(&["rmi", "made:1"])?;
    let usage = host.docker(&["system", "df", "--format", "{{.Type}}: {{.TotalCount}}"])?;
    ensure!(usage.contains("Images: 1") && usage.contains("Containers: 0"), "{usage}");
    host.docker(&["system", "prune", "--force"]).map(drop)
}

fn refusals(host: &Host) -> Result<()> {
    let cases: [(&[&str], &str); 10] = [
        (&["--gpus", "all"], "could not select device driver \"\" with capabilities: [[gpu]]"),
        (&["--memory", "1m"], "Minimum memory limit allowed is 6MB"),
        (&["--cpus", "1000"], "range of CPUs is from 0.01 to"),
        (&["--cpuset-cpus", "999"], "Requested CPUs are not available - requested 999, available: 0"),
        (&["--blkio-weight", "5"], "ange of blkio weight is from 10 to 1000"),
        (&["--oom-score-adj", "2000"], "range for oom score adj is [-1000, 1000]"),
        (&["--security-opt", "magic=1"], "invalid --security-opt"),
        (&["--runtime", "magic"], "unknown or invalid runtime name: magic"),
        (&["--device-read-bps", "/dev/gone:1mb"], "stat /dev/gone: no such file or directory"),
        (&["--storage-opt", "size=1g"], "only for overlay over xfs with 'pquota' mount option"),
    ];
    for (options, words) in cases {
        let mut args = vec!["run", "--rm"];
        args.extend(options);
        args.extend(["busybox", "true"]);
        let said = host.refusal(&args)?;
        ensure!(said.contains(words), "{options:?}: {said}");
    }
    eventually(Duration::from_secs(10), "nothing is left of them", || {
        Ok(host.docker(&["ps", "-aq"])?.trim().is_empty())
    })
}
