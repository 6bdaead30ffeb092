//! `update`.

use std::fs;
use std::io::Read as _;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::args::{Flag, Order, Parsed, number};
use super::store::Status;
use super::{Call, Command};
use crate::failure::{Context, Failure};
use crate::spec;

pub(super) const UPDATE: Command = Command {
    name: "update",
    args: "ID",
    about: "change a container's resources",
    flags: &[
        Flag::value(
            "resources",
            "FILE",
            "linux.resources as in config.json, or `-`; other flags are ignored",
        )
        .or("r"),
        Flag::value("blkio-weight", "N", "weight of block I/O, 10 to 1000"),
        Flag::value("cpu-period", "US", "period of the processor limit, in microseconds"),
        Flag::value("cpu-quota", "US", "processor time in a period, in microseconds"),
        Flag::value("cpu-burst", "US", "processor time saved for later periods, in microseconds"),
        Flag::value("cpu-share", "N", "weight of processor time"),
        Flag::value("cpu-rt-period", "US", "realtime period, in microseconds"),
        Flag::value("cpu-rt-runtime", "US", "realtime processor time in a period, in microseconds"),
        Flag::value("cpu-idle", "0|1", "whether it runs only when nobody else wants to"),
        Flag::value("cpuset-cpus", "LIST", "processors"),
        Flag::value("cpuset-mems", "LIST", "memory nodes"),
        Flag::value("kernel-memory", "BYTES", "obsolete: ignored, as by runc"),
        Flag::value("kernel-memory-tcp", "BYTES", "obsolete: ignored, as by runc"),
        Flag::value("memory", "BYTES", "memory limit; -1 is none"),
        Flag::value("memory-reservation", "BYTES", "soft limit of memory"),
        Flag::value("memory-swap", "BYTES", "limit of memory and swap together; -1 is none"),
        Flag::value("pids-limit", "N", "how many processes and threads there may be"),
        Flag::value("l3-cache-schema", "SCHEMA", "Intel RDT: refused"),
        Flag::value("mem-bw-schema", "SCHEMA", "Intel RDT: refused"),
    ],
    order: Order::Anywhere,
    run: update,
};

fn update(call: &Call<'_>) -> Result<i32, Failure> {
    let id = call.args.only_id()?;
    let resources = match call.args.value("resources").filter(|path| !path.is_empty()) {
        Some(path) => from_file(path)?,
        None => from_flags(&call.args)?,
    };
    let entry = call.store.hold(id)?;
    if matches!(entry.status()?, Status::Creating | Status::Stopped) {
        return Err(Failure::invalid("container not running"));
    }
    entry.cgroup()?.apply(&resources)?;
    Ok(0)
}

fn from_file(path: &str) -> Result<LinuxResources, Failure> {
    let mut text = Vec::new();
    if path == "-" {
        std::io::stdin().read_to_end(&mut text).context("read resources from standard input")?;
    } else {
        text = fs::read(path).with_context(|| format!("read resources `{path}`"))?;
    }
    let mut resources = spec::parse_resources(&text)
        .map_err(|error| Failure::invalid(format!("`{path}` has no resources: {error}")))?;
    // As runc: what may be opened is not changed, since others may have added to it.
    resources.set_devices(None);
    Ok(resources)
}

/// The resources' JSON, from flags: it has the same words.
fn from_flags(args: &Parsed) -> Result<LinuxResources, Failure> {
    for (flag, what) in [("l3-cache-schema", "CAT: l3 cache"), ("mem-bw-schema", "MBA: memory bandwidth")] {
        if args.value(flag).is_some() {
            return Err(Failure::invalid(format!("Intel RDT/{what} schema is not enabled")));
        }
    }
    for flag in ["kernel-memory", "kernel-memory-tcp"] {
        if args.value(flag).is_some() {
            tracing::warn!("Kernel memory settings are ignored and will be removed");
        }
    }
    let given = |flags: &[Figure]| -> Result<Map<String, Value>, Failure> {
        let mut part = Map::new();
        for (flag, field, kind) in flags {
            if let Some(text) = args.value(flag).filter(|text| !text.is_empty()) {
                part.insert((*field).to_owned(), kind.read(flag, text)?);
            }
        }
        Ok(part)
    };
    let mut resources = Map::new();
    for (name, flags) in PARTS {
        let part = given(flags)?;
        if !part.is_empty() {
            resources.insert((*name).to_owned(), part.into());
        }
    }
    serde_json::from_value(resources.into())
        .map_err(|error| Failure::invalid(format!("these resources do not exist: {error}")))
}

/// What a flag's text is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    /// A number that may be negative.
    Signed,
    Bytes,
}

impl Kind {
    fn read(self, flag: &str, text: &str) -> Result<Value, Failure> {
        Ok(match self {
            Kind::Text => text.into(),
            Kind::Number => number::<u64>(flag, text)?.into(),
            Kind::Signed => number::<i64>(flag, text)?.into(),
            Kind::Bytes => bytes(flag, text)?.into(),
        })
    }
}

/// A flag, the name of its field, and what its text is.
type Figure = (&'static str, &'static str, Kind);

// spec: oci-runtime config-linux.md: the names are those of linux.resources.
const PARTS: &[(&str, &[Figure])] = &[
    (
        "cpu",
        &[
            ("cpu-period", "period", Kind::Number),
            ("cpu-quota", "quota", Kind::Signed),
            ("cpu-burst", "burst", Kind::Number),
            ("cpu-share", "shares", Kind::Number),
            ("cpu-rt-period", "realtimePeriod", Kind::Number),
            ("cpu-rt-runtime", "realtimeRuntime", Kind::Signed),
            ("cpu-idle", "idle", Kind::Signed),
            ("cpuset-cpus", "cpus", Kind::Text),
            ("cpuset-mems", "mems", Kind::Text),
        ],
    ),
    (
        "memory",
        &[
            ("memory", "limit", Kind::Bytes),
            ("memory-reservation", "reservation", Kind::Bytes),
            ("memory-swap", "swap", Kind::Bytes),
        ],
    ),
    ("pids", &[("pids-limit", "limit", Kind::Signed)]),
    ("blockIO", &[("blkio-weight", "weight", Kind::Number)]),
];

/// `1073741824`, `512m`, `1.5 GiB`; powers of 1024, and -1 for no limit.
fn bytes(flag: &str, text: &str) -> Result<i64, Failure> {
    let wrong = || Failure::invalid(format!("invalid value for {flag}: `{text}` is no number of bytes"));
    if text == "-1" {
        return Ok(-1);
    }
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.trim_start().to_lowercase();
    let letter = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let power = match letter {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let factor = 1_i64 << (10 * power);
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    #[expect(clippy::cast_possible_truncation, reason = "a fraction of a byte is none; too large saturates")]
    #[expect(clippy::cast_precision_loss, reason = "a power of two")]
    Ok((number * factor as f64) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resources(line: &[&str]) -> Result<LinuxResources, Failure> {
        let line: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        from_flags(&Parsed::parse(&line, UPDATE.flags, UPDATE.order).expect("parsed"))
    }

    #[test]
    fn flags_become_resources() {
        let line = [
            "--memory",
            "512m",
            "--memory-swap=-1",
            "--cpu-quota",
            "-1",
            "--cpuset-cpus=0-1",
            "--pids-limit=7",
            "id",
        ];
        let wanted = serde_json::json!({
            "cpu": {"quota": -1, "cpus": "0-1"},
            "memory": {"limit": 536_870_912, "swap": -1},
            "pids": {"limit": 7},
        });
        assert_eq!(resources(&line), Ok(serde_json::from_value(wanted).expect("resources")));
        assert_eq!(resources(&["id"]), Ok(serde_json::from_value(serde_json::json!({})).expect("empty")));
    }

    #[test]
    fn what_is_no_figure_is_refused_by_name() {
        for line in ["--cpu-period=x", "--memory=lots", "--memory=1x", "--cpu-share=-1", "--pids-limit=1.5"] {
            let flag = line.trim_start_matches("--").split('=').next().expect("flag");
            let failure = resources(&[line, "id"]).expect_err(line);
            assert!(failure.message.contains(&format!("invalid value for {flag}")), "{failure}");
        }
        assert!(resources(&["--l3-cache-schema=L3:0=f", "id"]).is_err());
    }

    #[test]
    fn bytes_have_units() {
        let read = |text| bytes("memory", text).expect(text);
        assert_eq!(
            ["7", "1k", "1KB", "2kib", "1.5g", "1 m"].map(read),
            [7, 1024, 1024, 2048, 1_610_612_736, 1 << 20]
        );
        assert!(
            bytes("memory", "9999999999t").is_err()
                && bytes("memory", "").is_err()
                && bytes("memory", ".").is_err()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_number_of_bytes_or_none(text in ".{0,24}") {
            if let Ok(count) = bytes("memory", &text) {
                prop_assert!(count >= -1);
            }
        }
    }
}
