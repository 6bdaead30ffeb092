//! Reading what the kernel counts: every file once, no directory is listed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use super::layout::Version;
use super::stats::{
    CpuStats, HugetlbStats, IoStats, MemoryStats, PidStats, Pressure, RdmaStats, Stall, Stats,
};
use super::{Cgroup, is_gone};

/// Version 1 writes no limit as the highest number of pages, in bytes. mm/page_counter
const UNLIMITED: u64 = i64::MAX.cast_unsigned() / 4096 * 4096;

/// One file after the other into one buffer.
struct Files {
    path: Vec<u8>,
    dir_length: usize,
    text: Vec<u8>,
}

impl Files {
    fn new() -> Files {
        Files { path: Vec::with_capacity(256), dir_length: 0, text: vec![0; 16 << 10] }
    }

    fn enter(&mut self, dir: &Path) -> &mut Files {
        self.path.clear();
        self.path.extend_from_slice(dir.as_os_str().as_bytes());
        self.path.push(b'/');
        self.dir_length = self.path.len();
        self
    }

    /// A file's text; empty when this kernel, or this cgroup, does not have it.
    fn read(&mut self, name: &str) -> &str {
        self.path.truncate(self.dir_length);
        self.path.extend_from_slice(name.as_bytes());
        let length = self.fill().unwrap_or(0);
        std::str::from_utf8(&self.text[..length]).unwrap_or_default()
    }

    /// The kernel fills as much of the buffer as it has; a full one may not have been enough.
    fn fill(&mut self) -> io::Result<usize> {
        let file = File::open(Path::new(std::ffi::OsStr::from_bytes(&self.path)))?;
        let mut length = 0;
        loop {
            let read = rustix::io::read(&file, &mut self.text[length..])?;
            length += read;
            if read == 0 || length < self.text.len() {
                return Ok(length);
            }
            self.text.resize(self.text.len() * 2, 0);
        }
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.read(name).trim().parse().ok()
    }

    /// `name number` lines.
    fn each(&mut self, name: &str, mut each: impl FnMut(&str, u64)) {
        for line in self.read(name).lines() {
            if let Some((name, number)) = line.split_once(' ')
                && let Ok(number) = number.parse()
            {
                each(name, number);
            }
        }
    }
}

impl Cgroup {
    /// What the kernel counts for it now.
    ///
    /// # Errors
    /// `NotFound` when the cgroup is not there.
    pub fn stats(&self) -> io::Result<Stats> {
        let any = self.unified.as_ref().or(self.v1.first());
        match any.map(fs::metadata).transpose() {
            Err(error) if is_gone(&error) => return Err(io::ErrorKind::NotFound.into()),
            there => there?,
        };
        let mut files = Files::new();
        Ok(Stats {
            cpu: self.cpu(&mut files),
            memory: self.part("memory", &mut files, memory_v1, memory_v2),
            pids: self.part("pids", &mut files, pids, pids),
            io: self.io(&mut files),
            hugetlb: self.part("hugetlb", &mut files, hugetlb_v1, hugetlb_v2).unwrap_or_default(),
            rdma: self.part("rdma", &mut files, rdma, rdma).unwrap_or_default(),
            pressure: self.unified.as_ref().map(|dir| pressure(files.enter(dir))).unwrap_or_default(),
        })
    }

    /// One controller's numbers, by the version that has it.
    fn part<T>(
        &self,
        controller: &str,
        files: &mut Files,
        v1: fn(&mut Files) -> T,
        v2: fn(&mut Files) -> T,
    ) -> Option<T> {
        let files = files.enter(self.directory(controller)?);
        Some(if self.layout.version_of(controller)? == Version::V1 { v1(files) } else { v2(files) })
    }

    /// Version 1 has time and bandwidth in two controllers. Version 2 counts time without any.
    fn cpu(&self, files: &mut Files) -> CpuStats {
        let mut cpu = CpuStats::default();
        match (self.directory("cpuacct"), &self.unified) {
            (Some(dir), _) => time_v1(files.enter(dir), &mut cpu),
            (None, Some(dir)) => cpu_v2(files.enter(dir), &mut cpu),
            (None, None) => {}
        }
        if self.layout.version_of("cpu") == Some(Version::V1)
            && let Some(dir) = self.directory("cpu")
        {
            files.enter(dir).each("cpu.stat", |name, number| match name {
                "nr_periods" => cpu.periods = number,
                "nr_throttled" => cpu.throttled_periods = number,
                "throttled_time" => cpu.throttled_time = number,
                "nr_bursts" => cpu.burst_periods = number,
                "burst_time" => cpu.burst_time = number,
                _ => {}
            });
        }
        cpu
    }

    fn io(&self, files: &mut Files) -> Vec<IoStats> {
        match (self.directory("blkio"), self.directory("io")) {
            (Some(dir), _) => io_v1(files.enter(dir)),
            (None, Some(dir)) => io_v2(files.enter(dir)),
            (None, None) => Vec::new(),
        }
    }
}

// === processor

fn time_v1(files: &mut Files, cpu: &mut CpuStats) {
    // The first line is the table's head.
    for line in files.read("cpuacct.usage_all").lines().skip(1) {
        let mut words = line.split(' ').skip(1).map(|word| word.parse::<u64>().unwrap_or(0));
        let (user, system) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        cpu.per_cpu_user.push(user);
        cpu.per_cpu_system.push(system);
        cpu.per_cpu.push(user + system);
    }
    cpu.user = cpu.per_cpu_user.iter().sum();
    cpu.system = cpu.per_cpu_system.iter().sum();
    cpu.usage = cpu.user + cpu.system;
    if cpu.per_cpu.is_empty() {
        // Kernels before 4.6 have no such table.
        cpu.usage = files.number("cpuacct.usage").unwrap_or(0);
    }
}

fn cpu_v2(files: &mut Files, cpu: &mut CpuStats) {
    files.each("cpu.stat", |name, number| match name {
        "usage_usec" => cpu.usage = number * 1000,
        "user_usec" => cpu.user = number * 1000,
        "system_usec" => cpu.system = number * 1000,
        "nr_periods" => cpu.periods = number,
        "nr_throttled" => cpu.throttled_periods = number,
        "throttled_usec" => cpu.throttled_time = number * 1000,
        "nr_bursts" => cpu.burst_periods = number,
        "burst_usec" => cpu.burst_time = number * 1000,
        _ => {}
    });
}

// === memory

fn limit(number: Option<u64>) -> Option<u64> {
    number.filter(|bytes| *bytes < UNLIMITED)
}

fn memory_v1(files: &mut Files) -> MemoryStats {
    let mut memory = MemoryStats {
        usage: files.number("memory.usage_in_bytes").unwrap_or(0),
        max_usage: files.number("memory.max_usage_in_bytes"),
        limit: limit(files.number("memory.limit_in_bytes")),
        swap_usage: files.number("memory.memsw.usage_in_bytes"),
        swap_limit: limit(files.number("memory.memsw.limit_in_bytes")),
        failures: files.number("memory.failcnt").unwrap_or(0),
        kernel_usage: files.number("memory.kmem.usage_in_bytes"),
        ..MemoryStats::default()
    };
    files.each("memory.oom_control", |name, number| {
        if name == "oom_kill" {
            memory.oom_kills = number;
        }
    });
    memory.detail = detail(files);
    memory
}

fn memory_v2(files: &mut Files) -> MemoryStats {
    let usage = files.number("memory.current").unwrap_or(0);
    let limit = files.number("memory.max");
    let swap_limit = files.number("memory.swap.max");
    let mut memory = MemoryStats {
        usage,
        max_usage: files.number("memory.peak"),
        limit,
        swap_usage: files.number("memory.swap.current").map(|swap| usage + swap),
        swap_limit: limit.zip(swap_limit).map(|(memory, swap)| memory.saturating_add(swap)),
        ..MemoryStats::default()
    };
    files.each("memory.events", |name, number| match name {
        "max" => memory.failures = number,
        "oom_kill" => memory.oom_kills = number,
        _ => {}
    });
    memory.detail = detail(files);
    memory.kernel_usage = memory.detail.get("kernel").copied();
    memory
}

fn detail(files: &mut Files) -> BTreeMap<String, u64> {
    let mut detail = BTreeMap::new();
    files.each("memory.stat", |name, number| {
        detail.insert(name.to_owned(), number);
    });
    detail
}

fn pids(files: &mut Files) -> PidStats {
    PidStats { current: files.number("pids.current").unwrap_or(0), limit: files.number("pids.max") }
}

// === block devices

fn device(number: &str) -> Option<(u64, u64)> {
    let (major, minor) = number.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Counted where the bandwidth is limited, with all below: the only numbers of kernels without CFQ.
fn io_v1(files: &mut Files) -> Vec<IoStats> {
    let mut devices: BTreeMap<(u64, u64), IoStats> = BTreeMap::new();
    for (name, is_bytes) in
        [("blkio.throttle.io_service_bytes_recursive", true), ("blkio.throttle.io_serviced_recursive", false)]
    {
        for line in files.read(name).lines() {
            let mut words = line.split(' ');
            let (Some(number), Some(operation), Some(value)) =
                (words.next().and_then(device), words.next(), words.next())
            else {
                continue;
            };
            let device = devices.entry(number).or_default();
            let field = match (operation, is_bytes) {
                ("Read", true) => &mut device.read_bytes,
                ("Write", true) => &mut device.write_bytes,
                ("Discard", true) => &mut device.discard_bytes,
                ("Read", false) => &mut device.read_operations,
                ("Write", false) => &mut device.write_operations,
                ("Discard", false) => &mut device.discard_operations,
                _ => continue,
            };
            *field = value.parse().unwrap_or(0);
        }
    }
    devices.into_iter().map(|((major, minor), stats)| IoStats { major, minor, ..stats }).collect()
}

fn io_v2(files: &mut Files) -> Vec<IoStats> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = device(words.next()?)?;
        let mut stats = IoStats { major, minor, ..IoStats::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let field = match key {
                "rbytes" => &mut stats.read_bytes,
                "wbytes" => &mut stats.write_bytes,
                "rios" => &mut stats.read_operations,
                "wios" => &mut stats.write_operations,
                "dbytes" => &mut stats.discard_bytes,
                "dios" => &mut stats.discard_operations,
                _ => continue,
            };
            *field = value.parse().unwrap_or(0);
        }
        Some(stats)
    };
    files.read("io.stat").lines().filter_map(line).collect()
}

// === the rarer ones

/// The sizes of huge pages that this machine has, in the words of the cgroup files; they never change.
fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| page_size(&name)).collect()
    })
}

/// `hugepages-2048kB` is `2MB`. mm/hugetlb_cgroup.c, `mem_fmt`
fn page_size(name: &str) -> Option<String> {
    let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kilobytes {
        1_048_576.. => format!("{}GB", kilobytes >> 20),
        1024.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    })
}

fn hugetlb_v1(files: &mut Files) -> BTreeMap<String, HugetlbStats> {
    let of = |size: &String| {
        let stats = HugetlbStats {
            usage: files.number(&format!("hugetlb.{size}.usage_in_bytes"))?,
            max_usage: files.number(&format!("hugetlb.{size}.max_usage_in_bytes")),
            failures: files.number(&format!("hugetlb.{size}.failcnt")).unwrap_or(0),
            limit: limit(files.number(&format!("hugetlb.{size}.limit_in_bytes"))),
            reserved: files.number(&format!("hugetlb.{size}.rsvd.usage_in_bytes")),
        };
        Some((size.clone(), stats))
    };
    page_sizes().iter().filter_map(of).collect()
}

fn hugetlb_v2(files: &mut Files) -> BTreeMap<String, HugetlbStats> {
    let of = |size: &String| {
        let mut stats = HugetlbStats {
            usage: files.number(&format!("hugetlb.{size}.current"))?,
            limit: files.number(&format!("hugetlb.{size}.max")),
            reserved: files.number(&format!("hugetlb.{size}.rsvd.current")),
            ..HugetlbStats::default()
        };
        files.each(&format!("hugetlb.{size}.events"), |_, number| stats.failures = number);
        Some((size.clone(), stats))
    };
    page_sizes().iter().filter_map(of).collect()
}

fn rdma(files: &mut Files) -> BTreeMap<String, RdmaStats> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let of = |key: &str| {
            rest.split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
                .unwrap_or(0)
        };
        Some((name.to_owned(), RdmaStats { handles: of("hca_handle"), objects: of("hca_object") }))
    };
    files.read("rdma.current").lines().filter_map(line).collect()
}

fn pressure(files: &mut Files) -> BTreeMap<String, Pressure> {
    let of = |name: &&str| {
        let text = files.read(&format!("{name}.pressure"));
        (!text.is_empty()).then(|| ((*name).to_owned(), stalls(text)))
    };
    ["cpu", "memory", "io"].iter().filter_map(of).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn stalls(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        *stall = words.filter_map(|word| word.split_once('=')).fold(
            Stall::default(),
            |mut stall, (key, value)| {
                let percent = || value.parse().unwrap_or(0.0);
                match key {
                    "avg10" => stall.avg10 = percent(),
                    "avg60" => stall.avg60 = percent(),
                    "avg300" => stall.avg300 = percent(),
                    "total" => stall.total = value.parse().unwrap_or(0),
                    _ => {}
                }
                stall
            },
        );
    }
    pressure
}

#[cfg(test)]
mod tests;
