//! Against the machine's own hierarchies, in cgroups of their own. Needs root.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// Eight that never stop making processes.
const FORKERS: &str = "for i in 1 2 3 4 5 6 7 8; do (while :; do /bin/true; done) & done; wait";

/// A cgroup that is gone at the test's end, with whatever is in it.
struct Mine(Cgroup);

impl Mine {
    fn new(name: &str) -> Mine {
        let layout = Layout::detect().expect("layout");
        Mine(Cgroup::within(layout, &Path::new("/").join(format!("rswarm-{name}-{}", std::process::id()))))
    }

    /// As on a machine that has version 1 alone.
    fn of_v1(name: &str) -> Option<Mine> {
        let mut layout = Layout::clone(&*Layout::detect().expect("layout"));
        layout.unified = None;
        layout.unified_controllers.clear();
        layout.version_of("freezer")?;
        let path = Path::new("/").join(format!("rswarm-{name}-{}", std::process::id()));
        Some(Mine(Cgroup::within(Arc::new(layout), &path)))
    }

    fn create(&self, json: serde_json::Value) -> Result<(), Failure> {
        self.0.create(Some(&resources(json)))
    }

    fn apply(&self, json: serde_json::Value) -> Result<(), Failure> {
        self.0.apply(&resources(json))
    }

    /// Runs a shell script in it.
    fn run(&self, script: &str) -> Child {
        let all = self.0.v1.iter().chain(&self.0.unified);
        let enter: Vec<String> = all.map(|dir| format!("echo 0 >{}/cgroup.procs", dir.display())).collect();
        let script = format!("{}; {script}", enter.join(" && "));
        Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::null()).spawn().expect("shell")
    }

    fn text(&self, controller: &str, file: &str) -> String {
        let dir = self.0.directory(controller).expect("controller");
        fs::read_to_string(dir.join(file)).expect("read").trim().to_owned()
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.remove();
    }
}

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).expect("resources")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(2));
    }
}

fn is_v1(controller: &str) -> bool {
    Layout::detect().expect("layout").v1_index(controller).is_some()
}

#[test]
fn a_cgroup_is_made_limited_entered_killed_and_removed() {
    let mine = Mine::new("life");
    mine.create(serde_json::json!({"pids": {"limit": 7}})).expect("create");
    assert_eq!(mine.text("pids", "pids.max"), "7");
    assert!(mine.0.is_empty().expect("empty"));
    let mut child = mine.run("exec sleep 1000");
    until("the process is in it", || mine.0.pids().expect("pids").contains(&child.id().cast_signed()));
    assert!(mine.create(serde_json::json!({})).expect_err("in use").message.contains("is not empty"));
    mine.0.freeze().expect("freeze");
    assert!(mine.0.is_frozen());
    mine.0.kill().expect("kill a frozen cgroup");
    mine.0.remove().expect("remove");
    let status = child.wait().expect("wait");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::SIGKILL as i32));
    assert!(mine.0.v1.iter().chain(&mine.0.unified).all(|dir| !dir.exists()));
    assert_eq!(mine.0.stats().expect_err("gone").kind(), io::ErrorKind::NotFound);
    mine.0.remove().expect("to remove nothing is fine");
}

#[test]
fn what_is_left_from_earlier_is_made_anew() {
    let mine = Mine::new("anew");
    mine.create(serde_json::json!({"pids": {"limit": 7}})).expect("create");
    for dir in mine.0.v1.iter().chain(&mine.0.unified) {
        fs::create_dir(dir.join("nested")).expect("nested");
    }
    mine.create(serde_json::json!({})).expect("create again");
    assert_eq!(mine.text("pids", "pids.max"), "max");
    assert!(!mine.0.directory("pids").expect("pids").join("nested").exists());
}

#[test]
fn a_failed_create_leaves_nothing() {
    let mine = Mine::new("failed");
    let none = || mine.0.v1.iter().chain(&mine.0.unified).all(|dir| !dir.exists());
    let said = mine.create(serde_json::json!({"cpu": {"idle": 7}})).expect_err("out of range").message;
    assert!(said.starts_with("`linux.resources.cpu.idle`: ") && none(), "{said}");
    // What only the kernel knows.
    let said =
        mine.create(serde_json::json!({"cpu": {"cpus": "4000"}})).expect_err("no such processor").message;
    assert!(said.starts_with("`linux.resources.cpu.cpus`: failed to write \"4000\" to") && none(), "{said}");
}

#[test]
fn memory_can_be_raised_and_lowered_with_swap() {
    let mine = Mine::new("memory");
    mine.create(serde_json::json!({})).expect("create");
    for (limit, swap) in [(32_i64, 32_i64), (64, 100), (16, 16), (-1, -1), (8, 9), (-1, 0), (12, -1)] {
        let bytes = |megabytes: i64| if megabytes > 0 { megabytes << 20 } else { megabytes };
        mine.apply(serde_json::json!({"memory": {"limit": bytes(limit), "swap": bytes(swap)}}))
            .expect("apply");
        let stats = mine.0.stats().expect("stats").memory.expect("memory");
        assert_eq!(stats.limit, u64::try_from(bytes(limit)).ok(), "{limit} {swap}");
        let together = u64::try_from(bytes(swap)).ok().filter(|bytes| *bytes != 0);
        assert!(stats.swap_usage.is_none() || stats.swap_limit == together, "{limit} {swap}: {stats:?}");
    }
}

#[test]
fn quota_period_and_burst_change_in_any_order() {
    let mine = Mine::new("quota");
    mine.create(serde_json::json!({})).expect("create");
    let limits = [
        (50_000_i64, 100_000, 50_000),
        (2_000, 1_000, 1_000),
        (900_000, 1_000_000, 900_000),
        (1_000, 2_000, 0),
    ];
    for (quota, period, burst) in limits {
        let cpu = serde_json::json!({"cpu": {"quota": quota, "period": period, "burst": burst}});
        mine.apply(cpu).expect("apply");
    }
    mine.apply(serde_json::json!({"cpu": {"period": 4_000}})).expect("apply");
    if is_v1("cpu") {
        assert_eq!(mine.text("cpu", "cpu.cfs_quota_us"), "1000");
        assert_eq!(mine.text("cpu", "cpu.cfs_period_us"), "4000");
    } else {
        assert_eq!(mine.text("cpu", "cpu.max"), "1000 4000", "the quota stays");
    }
}

#[test]
fn a_limit_below_what_is_used_can_be_refused_beforehand() {
    let mine = Mine::new("used");
    mine.create(serde_json::json!({})).expect("create");
    let mut child = mine.run("x=$(head -c 4000000 /dev/zero | tr '\\0' x); kill -STOP $$; echo $x");
    until("memory is used", || mine.0.stats().expect("stats").memory.expect("memory").usage > 4_000_000);
    let limit = serde_json::json!({"memory": {"limit": 1 << 20, "checkBeforeUpdate": true}});
    let said = mine.apply(limit).expect_err("refused").message;
    assert!(said.starts_with("`linux.resources.memory.limit`: 1048576 is not more than"), "{said}");
    mine.0.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn version_2_decides_on_devices_by_a_program_and_exchanges_it() {
    let mine = Mine::new("devices");
    let Some(dir) = mine.0.unified.clone() else { return };
    mine.0.create(None).expect("create");
    let rules = |json| {
        let list: Vec<oci_spec::runtime::LinuxDeviceCgroup> = serde_json::from_value(json).expect("rules");
        rules::Rules::collect(&list).expect("rules")
    };
    let may = |path: &str| {
        let script = format!("echo 0 >{}/cgroup.procs; exec true <{path}", dir.display());
        let mut command = Command::new("/bin/sh");
        let command = command.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("shell").success()
    };
    let attached = || sys::attached_device_programs(&File::open(&dir).expect("open")).expect("query").len();
    let before = attached();
    devices::attach(&dir, &rules(serde_json::json!([])), true).expect("attach");
    assert!(may("/dev/zero") && !may("/dev/kmsg"), "only the standard devices");
    assert_eq!(attached(), before + 1);
    let kmsg = serde_json::json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    if mine.0.only_unified().is_none() {
        // Where version 2 has the devices, the cgroup has a program of its own beside this one.
        devices::attach(&dir, &rules(kmsg), false).expect("exchange");
        assert!(may("/dev/zero") && may("/dev/kmsg"));
        assert_eq!(attached(), 1, "the old program is gone");
        devices::attach(&dir, &rules(serde_json::json!([{"allow": true}])), false).expect("allow all");
        assert_eq!(attached(), 0);
    }
}

#[test]
fn version_1_goes_from_one_list_of_devices_to_another() {
    let mine = Mine::new("devlist");
    if !is_v1("devices") {
        return;
    }
    mine.0.create(None).expect("create");
    let list = mine.text("devices", "devices.list");
    assert!(list.contains("c 1:3 rwm") && !list.contains("a *:*"), "{list}");
    let one = serde_json::json!({"devices": [{"allow": true, "type": "b", "major": 7, "minor": 0, "access": "rw"}]});
    mine.apply(one).expect("apply");
    assert!(mine.text("devices", "devices.list").contains("b 7:0 rw"));
    mine.apply(serde_json::json!({"pids": {"limit": 5}})).expect("no rules, no change");
    assert!(mine.text("devices", "devices.list").contains("b 7:0 rw"));
    mine.apply(serde_json::json!({"devices": []})).expect("apply");
    assert_eq!(mine.text("devices", "devices.list"), list);
    mine.apply(serde_json::json!({"devices": [{"allow": true}]})).expect("allow all");
    assert_eq!(mine.text("devices", "devices.list"), "a *:* rwm");
}

#[test]
fn version_1_alone_freezes_and_kills_a_fork_bomb() {
    let Some(mine) = Mine::of_v1("bomb") else { return };
    mine.create(serde_json::json!({"pids": {"limit": 100}})).expect("create");
    let mut child = mine.run(FORKERS);
    until("it forks", || mine.0.pids().expect("pids").len() > 8);
    mine.0.freeze().expect("freeze");
    assert!(mine.0.is_frozen());
    mine.0.kill().expect("kill");
    child.wait().expect("wait");
    assert!(mine.0.is_empty().expect("empty"));
    mine.0.remove().expect("remove");
}

#[test]
fn a_kernel_without_cgroup_kill_is_served_too() {
    let mine = Mine::new("each");
    mine.create(serde_json::json!({"pids": {"limit": 100}})).expect("create");
    let mut child = mine.run(FORKERS);
    until("it forks", || mine.0.pids().expect("pids").len() > 8);
    mine.0.kill_each().expect("kill");
    child.wait().expect("wait");
    assert!(mine.0.is_empty().expect("empty"));
}

#[test]
fn memory_running_out_is_told_and_counted() {
    let mine = Mine::new("oom");
    mine.create(serde_json::json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}})).expect("create");
    let events = mine.0.oom_events().expect("events");
    let within = |seconds| {
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout)).expect("poll") == 1
    };
    assert!(!within(0) && !events.take());
    // Not the first process of the group.
    let mut child = mine.run("tail /dev/zero; true");
    assert!(within(60), "the kernel tells");
    until("it is taken", || events.take());
    assert!(child.wait().expect("wait").success());
    assert_eq!(mine.0.oom_kills(), 1);
    assert_eq!(mine.0.stats().expect("stats").memory.expect("memory").oom_kills, 1);
    while events.take() {}
    mine.0.remove().expect("remove");
    assert!(!events.take(), "a cgroup that goes has not run out of memory");
}

#[test]
fn everything_is_counted() {
    let mine = Mine::new("stats");
    mine.create(serde_json::json!({"pids": {"limit": 9}})).expect("create");
    let mut child = mine.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; kill -STOP $$");
    let stats = || mine.0.stats().expect("stats");
    until("it has worked", || stats().cpu.usage > 5_000_000);
    until("the kernel has added up", || stats().memory.is_some_and(|memory| memory.usage > 0));
    let stats = stats();
    assert_eq!(stats.pids, Some(PidStats { current: 1, limit: Some(9) }));
    let memory = stats.memory.expect("memory");
    assert!(!memory.detail.is_empty() && memory.limit.is_none(), "{memory:?}");
    if mine.0.unified.is_some() && Path::new("/proc/pressure/cpu").exists() {
        assert!(stats.pressure.contains_key("cpu") && stats.pressure.contains_key("memory"));
    }
    mine.0.kill().expect("kill");
    child.wait().expect("wait");
}

/// `cargo test --release -p rswarm-runtime --lib -- --ignored --nocapture how_long` prints figures.
#[test]
#[ignore = "measures"]
fn how_long_it_takes() {
    let mine = Mine::new("time");
    let limits =
        serde_json::json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}, "cpu": {"shares": 512}});
    let limits = resources(limits);
    let (mut look, mut create, mut stats, mut remove) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = Instant::now();
        Layout::look().expect("layout");
        look.push(start.elapsed());
        let start = Instant::now();
        mine.0.create(Some(&limits)).expect("create");
        create.push(start.elapsed());
        let start = Instant::now();
        mine.0.stats().expect("stats");
        stats.push(start.elapsed());
        let start = Instant::now();
        mine.0.remove().expect("remove");
        remove.push(start.elapsed());
    }
    for (what, mut times) in [("look", look), ("create", create), ("stats", stats), ("remove", remove)] {
        times.sort();
        println!("{what}: least {:?}, median {:?}", times[0], times[times.len() / 2]);
    }
}
