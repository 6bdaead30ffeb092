//! `events`: what a container uses, and when its memory ran out, in runc's JSON.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{Flag, Order};
use super::store::{Entry, Status};
use super::{Call, Command, say};
use crate::cgroup::{Cgroup, IoStats, MemoryStats, OomEvents, Pressure, Stats};
use crate::failure::{Context, Failure};

/// Between two looks, unless the caller says otherwise.
const INTERVAL: Duration = Duration::from_secs(5);

/// The longest wait in one call; the next one goes on.
const LOOK_WITHIN: Duration = Duration::from_secs(3600);

pub(super) const EVENTS: Command = Command {
    name: "events",
    args: "ID",
    about: "print what a container uses, again and again, and when its memory ran out",
    flags: &[
        Flag::switch("stats", "print what it uses once, and end"),
        Flag::value("interval", "DURATION", "how often (default 5s)"),
    ],
    order: Order::Anywhere,
    run: events,
};

fn events(call: &Call<'_>) -> Result<i32, Failure> {
    let interval = call.args.value("interval").map_or(Ok(INTERVAL), duration)?;
    let entry = call.store.find(call.args.only_id()?)?;
    if matches!(entry.status()?, Status::Creating | Status::Stopped) {
        return Err(Failure::invalid(format!("container with id {} is not running", entry.record.id)));
    }
    let cgroup = entry.cgroup()?;
    if call.args.has("stats") {
        return print_stats(&entry, &cgroup).map(|()| 0);
    }
    follow(&entry, &cgroup, interval).map(|()| 0)
}

/// Prints until the container has ended, or nobody listens.
fn follow(entry: &Entry, cgroup: &Cgroup, interval: Duration) -> Result<(), Failure> {
    let init = entry.init()?;
    let oom = match cgroup.oom_events() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
        oom => Some(oom.context("listen for memory running out")?),
    };
    let mut next = Instant::now() + interval;
    loop {
        let heard = wait(&init, oom.as_ref(), next)?;
        if heard.oom && oom.as_ref().is_some_and(OomEvents::take) {
            print("oom", entry, None)?;
        }
        if heard.end {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(entry, cgroup)?;
            next += interval;
        }
    }
}

struct Heard {
    end: bool,
    oom: bool,
}

fn wait(init: &OwnedFd, oom: Option<&OomEvents>, until: Instant) -> Result<Heard, Failure> {
    let left = until.saturating_duration_since(Instant::now()).min(LOOK_WITHIN);
    let left = Timespec::try_from(left).expect("it fits");
    let mut fds = vec![PollFd::new(init, PollFlags::IN)];
    fds.extend(oom.map(|oom| PollFd::from_borrowed_fd(oom.as_fd(), PollFlags::IN)));
    match rustix::event::poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Failure::os("wait for events", error)),
    }
    let at = |index: usize| fds.get(index).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
    Ok(Heard { end: at(0), oom: at(1) })
}

fn print_stats(entry: &Entry, cgroup: &Cgroup) -> Result<(), Failure> {
    let stats = cgroup.stats().context("unable to get container cgroup stats")?;
    print("stats", entry, Some(shown(&stats)))
}

/// One line, whose fields have runc's order: there are readers that go by it.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    typ: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn print(typ: &str, entry: &Entry, data: Option<Value>) -> Result<(), Failure> {
    let event = Event { typ, id: &entry.record.id, data };
    let line = serde_json::to_string(&event).map_err(io::Error::from).context("print event")?;
    say(&(line + "\n")).map(drop)
}

/// In runc's words. What the kernel does not count is left out; no limit is the largest number, as there.
fn shown(stats: &Stats) -> Value {
    let memory = stats.memory.clone().unwrap_or_default();
    let pids = stats.pids.clone().unwrap_or_default();
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| {
        let shown =
            json!({"usage": pages.usage, "max": pages.max_usage.unwrap_or(0), "failcnt": pages.failures});
        (size.clone(), shown)
    });
    let hugetlb: serde_json::Map<String, Value> = hugetlb.collect();
    json!({
        "cpu": cpu(stats),
        "memory": memory_parts(&memory, stats.pressure.get("memory")),
        "pids": {"current": pids.current, "limit": pids.limit.unwrap_or(0)},
        "blkio": blkio(&stats.io, stats.pressure.get("io")),
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn cpu(stats: &Stats) -> Value {
    let cpu = &stats.cpu;
    let mut shown = json!({
        "usage": {
            "total": cpu.usage,
            "percpu": cpu.per_cpu,
            "percpu_kernel": cpu.per_cpu_system,
            "percpu_user": cpu.per_cpu_user,
            "kernel": cpu.system,
            "user": cpu.user,
        },
        "throttling": {
            "periods": cpu.periods,
            "throttledPeriods": cpu.throttled_periods,
            "throttledTime": cpu.throttled_time,
        },
    });
    add_pressure(&mut shown, stats.pressure.get("cpu"));
    shown
}

fn memory_parts(memory: &MemoryStats, pressure: Option<&Pressure>) -> Value {
    // Version 1 and version 2 have different names for the page cache.
    let cache = memory.detail.get("cache").or_else(|| memory.detail.get("file"));
    let mut shown = json!({
        "cache": cache.copied().unwrap_or(0),
        "usage": {
            "limit": memory.limit.unwrap_or(u64::MAX),
            "usage": memory.usage,
            "max": memory.max_usage.unwrap_or(0),
            "failcnt": memory.failures,
        },
        "swap": {
            "limit": memory.swap_limit.unwrap_or(u64::MAX),
            "usage": memory.swap_usage.unwrap_or(0),
            "failcnt": 0,
        },
        "kernel": {"limit": u64::MAX, "usage": memory.kernel_usage.unwrap_or(0), "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
        "raw": memory.detail,
    });
    add_pressure(&mut shown, pressure);
    shown
}

fn blkio(devices: &[IoStats], pressure: Option<&Pressure>) -> Value {
    let entries = |count: fn(&IoStats) -> [(&'static str, u64); 3]| -> Vec<Value> {
        let of = |device: &IoStats| {
            let (major, minor) = (device.major, device.minor);
            count(device).map(|(op, value)| json!({"major": major, "minor": minor, "op": op, "value": value}))
        };
        devices.iter().flat_map(of).collect()
    };
    let mut shown = json!({
        "ioServiceBytesRecursive": entries(|device| {
            [("Read", device.read_bytes), ("Write", device.write_bytes), ("Discard", device.discard_bytes)]
        }),
        "ioServicedRecursive": entries(|device| {
            [
                ("Read", device.read_operations),
                ("Write", device.write_operations),
                ("Discard", device.discard_operations),
            ]
        }),
    });
    add_pressure(&mut shown, pressure);
    shown
}

fn add_pressure(part: &mut Value, pressure: Option<&Pressure>) {
    if let Some(pressure) = pressure {
        part["psi"] = json!(pressure);
    }
}

/// As Go writes durations: `5s`, `1m30s`, `1.5h`, `200ms`.
fn duration(text: &str) -> Result<Duration, Failure> {
    let wrong = || Failure::invalid(format!("invalid value for interval: `{text}` is no duration like 5s"));
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = after;
    }
    if total.is_zero() {
        Err(Failure::invalid("duration interval must be greater than 0"))
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_gos() {
        let read = |text| duration(text).expect(text).as_millis();
        assert_eq!(["5s", "1m30s", "1.5h", "200ms", "0h1s"].map(read), [5000, 90_000, 5_400_000, 200, 1000]);
        for text in ["", "5", "s", "5x", "-1s", "0s", "1s5", "9999999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_counted_is_told_in_runcs_words() {
        let mut stats = Stats::default();
        stats.cpu.usage = 7;
        stats.io.push(IoStats { major: 8, read_bytes: 5, ..IoStats::default() });
        stats.pressure.insert("cpu".into(), Pressure::default());
        let shown = shown(&stats);
        assert_eq!(shown["cpu"]["usage"]["total"], 7);
        assert_eq!(
            shown["blkio"]["ioServiceBytesRecursive"][0],
            json!({"major": 8, "minor": 0, "op": "Read", "value": 5})
        );
        assert_eq!(shown["memory"]["usage"]["limit"], u64::MAX);
        assert!(shown["cpu"]["psi"]["some"]["avg10"].is_number() && shown["memory"]["psi"].is_null());
    }

    proptest! {
        #[test]
        fn any_text_is_a_duration_or_none(text in "[0-9.nuµmsh-]{0,16}") {
            let _ = duration(&text);
        }
    }
}
