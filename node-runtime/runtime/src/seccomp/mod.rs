//! Seccomp: the spec's profile as a filter program, and Docker's default profile.
//!
//! A call that the profile names and this architecture does not have is passed over, as libseccomp does. A
//! call that is newer than our table fails with `ENOSYS` where the default is an error, so that a C library
//! falls back to an older one instead of giving up.

mod bpf;
mod docker;
mod table;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSyscall};

use self::bpf::{Assembler, Rule, Section};
pub use self::docker::docker_default;
use crate::failure::{Context, Failure};
use crate::sys;

/// `EPERM`, when a profile names no number.
const DEFAULT_ERRNO: u32 = 1;

/// What can happen to a call.
pub(crate) const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// How an argument can be compared.
pub(crate) const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// Whose calls have names here.
pub(crate) const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

/// A compiled profile, ready to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: u64,
}

impl Filter {
    /// Compiles a profile.
    pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, Failure> {
        if profile.listener_path().is_some() {
            return Err(Failure::invalid("not supported by this runtime: seccomp.listenerPath"));
        }
        let default = verdict(profile.default_action(), profile.default_errno_ret())?;
        let mut sections = Vec::new();
        for architecture in architectures(profile)? {
            sections.push(section(profile, architecture, default)?);
        }
        let program = Assembler::program(&sections, libc::SECCOMP_RET_KILL_PROCESS)
            .ok_or_else(|| Failure::invalid("seccomp profile is too long for the kernel"))?;
        Ok(Filter { program, flags: flags(profile) })
    }

    /// Confines the caller. Needs `CAP_SYS_ADMIN` or no_new_privs.
    pub(crate) fn load(&self) -> Result<(), Failure> {
        sys::load_filter(&self.program, self.flags).context("load seccomp filter")
    }
}

/// An architecture whose calls this machine can make: a column of the table and the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Architecture {
    column: usize,
    audit: u32,
}

const X86_64: Architecture = Architecture { column: 0, audit: 0xc000_003e };
const X86: Architecture = Architecture { column: 1, audit: 0x4000_0003 };
const AARCH64: Architecture = Architecture { column: 2, audit: 0xc000_00b7 };

/// Numbers from here on are x32's, which shares x86-64's architecture and which we do not serve.
const X32_FIRST: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const NATIVE: Architecture = X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Architecture = AARCH64;

/// The profile's architectures that this machine can run; the native one is always among them.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<Architecture>, Failure> {
    let mut wanted = vec![NATIVE];
    for arch in profile.architectures().iter().flatten() {
        let known = match arch {
            Arch::ScmpArchNative => NATIVE,
            Arch::ScmpArchX86_64 => X86_64,
            Arch::ScmpArchX86 => X86,
            Arch::ScmpArchAarch64 => AARCH64,
            // Not runnable here, or 32-bit variants that then stay forbidden.
            _ => continue,
        };
        if !wanted.contains(&known) {
            wanted.push(known);
        }
    }
    Ok(wanted)
}

/// All rules of a profile for one architecture.
fn section(profile: &LinuxSeccomp, architecture: Architecture, default: u32) -> Result<Section, Failure> {
    let mut section = Section::new(architecture.audit, default);
    for syscall in profile.syscalls().iter().flatten() {
        let verdict = verdict(syscall.action(), syscall.errno_ret())?;
        for name in syscall.names() {
            if let Some(number) = number(name, architecture) {
                section.add(number, rules(syscall, verdict)?);
            }
        }
    }
    let refuses = default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
    let not_there = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    section.beyond(last_number(architecture) + 1, if refuses { not_there } else { default });
    if architecture == X86_64 {
        section.beyond(X32_FIRST, not_there);
    }
    Ok(section)
}

/// A rule with two conditions on one argument means either of them; on several arguments it means all.
// spec: oci-runtime config-linux.md#seccomp
fn rules(syscall: &LinuxSyscall, verdict: u32) -> Result<Vec<Rule>, Failure> {
    let conditions = syscall.args().as_deref().unwrap_or_default();
    if let Some(wrong) = conditions.iter().find(|condition| condition.index() > 5) {
        return Err(Failure::invalid(format!("seccomp: there is no argument {}", wrong.index())));
    }
    let repeated =
        (0..6).any(|index| conditions.iter().filter(|condition| condition.index() == index).count() > 1);
    Ok(if repeated {
        conditions.iter().map(|condition| Rule { conditions: vec![*condition], verdict }).collect()
    } else {
        vec![Rule { conditions: conditions.to_vec(), verdict }]
    })
}

fn number(name: &str, architecture: Architecture) -> Option<u32> {
    let row = table::SYSCALLS.binary_search_by_key(&name, |(known, _)| known).ok()?;
    u32::try_from(table::SYSCALLS[row].1[architecture.column]).ok()
}

fn last_number(architecture: Architecture) -> u32 {
    let numbers = table::SYSCALLS.iter().filter_map(|(_, row)| u32::try_from(row[architecture.column]).ok());
    numbers.max().expect("the table has calls of every architecture")
}

/// What the kernel does: the action, and its number in the low half.
fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Failure> {
    let number = errno.unwrap_or(DEFAULT_ERRNO) & libc::SECCOMP_RET_DATA;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | number,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | number,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Failure::invalid("not supported by this runtime: seccomp action SCMP_ACT_NOTIFY"));
        }
    })
}

fn flags(profile: &LinuxSeccomp) -> u64 {
    let number = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // Means something only together with a listener, which is refused.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    profile.flags().iter().flatten().map(number).fold(0, |all, flag| all | flag)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::Capability;

    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

    fn default_filter(caps: &[Capability]) -> Filter {
        let caps: HashSet<Capability> = caps.iter().copied().collect();
        Filter::compile(&docker_default(&caps)).expect("the default profile compiles")
    }

    fn ask(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
        let nr = number(name, NATIVE).unwrap_or_else(|| panic!("{name} is in the table"));
        bpf::run(&filter.program, NATIVE.audit, nr, args)
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(table::SYSCALLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(number("read", X86_64), Some(0));
        assert_eq!(number("read", X86), Some(3));
        assert_eq!(number("read", AARCH64), Some(63));
        assert_eq!(number("openat", NATIVE).map(i64::from), Some(libc::SYS_openat));
        assert_eq!(number("clone3", NATIVE).map(i64::from), Some(libc::SYS_clone3));
        assert_eq!(number("open", AARCH64), None);
    }

    #[test]
    fn the_default_profile_allows_denies_and_does_not_know() {
        let filter = default_filter(&[]);
        assert_eq!(ask(&filter, "read", [0; 6]), ALLOW);
        assert_eq!(ask(&filter, "mount", [0; 6]), EPERM);
        assert_eq!(ask(&filter, "keyctl", [0; 6]), EPERM);
        assert_eq!(ask(&filter, "clone3", [0; 6]), ENOSYS);
        assert_eq!(bpf::run(&filter.program, NATIVE.audit, 5000, [0; 6]), ENOSYS, "newer than the table");
        assert_eq!(bpf::run(&filter.program, NATIVE.audit, X32_FIRST + 1, [0; 6]), ENOSYS);
        assert_eq!(bpf::run(&filter.program, 0x1234, 0, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn arguments_are_compared_in_64_bits() {
        let filter = default_filter(&[]);
        let socket = |family| ask(&filter, "socket", [family, 0, 0, 0, 0, 0]);
        assert_eq!((socket(2), socket(40), socket(16), socket(1 << 32 | 40)), (ALLOW, EPERM, ALLOW, ALLOW));
        let personality = |value| ask(&filter, "personality", [value, 0, 0, 0, 0, 0]);
        assert_eq!((personality(8), personality(9), personality(0xffff_ffff)), (ALLOW, EPERM, ALLOW));
        let clone = |flags| ask(&filter, "clone", [flags, 0, 0, 0, 0, 0]);
        assert_eq!((clone(17), clone(0x1000_0000 | 17)), (ALLOW, EPERM));
    }

    #[test]
    fn capabilities_open_more() {
        let filter = default_filter(&[Capability::SysAdmin, Capability::SysTime]);
        assert_eq!(ask(&filter, "mount", [0; 6]), ALLOW);
        assert_eq!(ask(&filter, "clone3", [0; 6]), ALLOW);
        assert_eq!(ask(&filter, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(ask(&filter, "settimeofday", [0; 6]), ALLOW);
        assert_eq!(ask(&filter, "reboot", [0; 6]), EPERM);
    }

    #[test]
    fn thirty_two_bit_programs_have_their_own_numbers() {
        let filter = default_filter(&[]);
        assert_eq!(bpf::run(&filter.program, X86.audit, 3, [0; 6]), ALLOW, "read");
        assert_eq!(bpf::run(&filter.program, X86.audit, 21, [0; 6]), EPERM, "mount");
    }

    #[test]
    fn every_comparison_does_what_its_name_says() {
        // Operator, value, second value, what passes, what does not.
        type Row = (&'static str, u64, u64, [u64; 2], [u64; 2]);
        let table: &[Row] = &[
            ("SCMP_CMP_NE", 5, 0, [4, 5 | 1 << 40], [5, 5]),
            ("SCMP_CMP_LT", 5, 0, [4, 0], [5, 1 << 40]),
            ("SCMP_CMP_LE", 5, 0, [5, 4], [6, 1 << 40]),
            ("SCMP_CMP_EQ", 5 | 1 << 40, 0, [5 | 1 << 40, 5 | 1 << 40], [5, 1 << 40]),
            ("SCMP_CMP_GE", 5, 0, [5, 1 << 40], [4, 0]),
            ("SCMP_CMP_GT", 5, 0, [6, 1 << 40], [5, 4]),
            ("SCMP_CMP_MASKED_EQ", 0xf0, 0x10, [0x15, 0x1f | 1 << 40], [0x25, 0]),
        ];
        for (op, value, value_two, pass, fail) in table {
            let profile = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
                "names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                "args": [{"index": 1, "value": value, "valueTwo": value_two, "op": op}],
            }]});
            let filter =
                Filter::compile(&serde_json::from_value(profile).expect("profile")).expect("compiles");
            for value in pass {
                assert_eq!(
                    ask(&filter, "getpid", [0, *value, 0, 0, 0, 0]),
                    libc::SECCOMP_RET_ERRNO | 7,
                    "{op} {value}"
                );
            }
            for value in fail {
                assert_eq!(ask(&filter, "getpid", [0, *value, 0, 0, 0, 0]), ALLOW, "not {op} {value}");
            }
        }
    }
}
