//! Files with the kernel's words in them, and what is read out of them.

use super::*;

/// A directory with files as the kernel writes them.
fn files(contents: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().expect("directory");
    for (name, text) in contents {
        fs::write(dir.path().join(name), text).expect("write");
    }
    let mut files = Files::new();
    files.enter(dir.path());
    (dir, files)
}

#[test]
fn time_of_version_1() {
    let (_dir, mut files) = files(&[("cpuacct.usage_all", "cpu user system\n0 100 20\n1 7 3\n")]);
    let mut cpu = CpuStats::default();
    time_v1(&mut files, &mut cpu);
    assert_eq!((cpu.usage, cpu.user, cpu.system), (130, 107, 23));
    assert_eq!(cpu.per_cpu, [120, 10]);
}

#[test]
fn time_of_version_2() {
    let text = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n";
    let (_dir, mut files) = files(&[("cpu.stat", text)]);
    let mut cpu = CpuStats::default();
    cpu_v2(&mut files, &mut cpu);
    assert_eq!((cpu.usage, cpu.periods, cpu.throttled_time), (5000, 7, 9000));
}

#[test]
fn swap_means_the_same_in_both_versions() {
    let (_dir, mut one) = files(&[
        ("memory.usage_in_bytes", "100\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.usage_in_bytes", "130\n"),
        ("memory.memsw.limit_in_bytes", "2048\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("memory.stat", "cache 5\nrss 6\n"),
    ]);
    let v1 = memory_v1(&mut one);
    assert_eq!((v1.usage, v1.limit, v1.swap_usage, v1.swap_limit), (100, None, Some(130), Some(2048)));
    assert_eq!((v1.oom_kills, v1.detail.get("rss")), (2, Some(&6)));
    let (_dir, mut two) = files(&[
        ("memory.current", "100\n"),
        ("memory.max", "1024\n"),
        ("memory.swap.current", "30\n"),
        ("memory.swap.max", "1024\n"),
        ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n"),
        ("memory.stat", "anon 6\nkernel 7\n"),
    ]);
    let v2 = memory_v2(&mut two);
    assert_eq!((v2.usage, v2.limit, v2.swap_usage, v2.swap_limit), (100, Some(1024), Some(130), Some(2048)));
    assert_eq!((v2.failures, v2.oom_kills, v2.kernel_usage), (4, 2, Some(7)));
}

#[test]
fn block_devices_of_both_versions() {
    let (_dir, mut one) = files(&[
        (
            "blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 4096\n8:0 Write 10\n8:0 Total 4106\nTotal 4106\n",
        ),
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\n8:16 Read 3\nTotal 6\n"),
    ]);
    let v1 = io_v1(&mut one);
    assert_eq!(v1.len(), 2);
    assert_eq!((v1[0].major, v1[0].minor, v1[0].read_bytes, v1[0].write_operations), (8, 0, 4096, 2));
    let (_dir, mut two) =
        files(&[("io.stat", "8:0 rbytes=4096 wbytes=10 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n")]);
    let v2 = io_v2(&mut two);
    assert_eq!(IoStats { ..v2[0].clone() }, v1[0]);
    assert_eq!((v2[1].major, v2[1].minor), (7, 1));
}

#[test]
fn pressure_is_read() {
    let text =
        "some avg10=1.50 avg60=0.00 avg300=0.25 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
    let (_dir, mut files) = files(&[("memory.pressure", text)]);
    let all = pressure(&mut files);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["memory"]);
    let some = &all["memory"].some;
    assert!((some.avg10 - 1.5).abs() < f64::EPSILON && some.total == 77 && all["memory"].full.total == 5);
}

#[test]
fn huge_pages_have_the_kernels_names() {
    let names = ["hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB"].map(page_size);
    assert_eq!(names, ["2MB", "1GB", "64KB"].map(|name| Some(name.to_owned())));
}

#[test]
fn a_long_file_is_read_whole() {
    let long: String = (0..5000).map(|n| format!("name{n} {n}\n")).collect();
    let (_dir, mut files) = files(&[("memory.stat", &long)]);
    assert_eq!(detail(&mut files).get("name4999"), Some(&4999));
}
