//! Seccomp: the spec's profile as a filter program, and Docker's default profile.
//!
//! A call that the profile names and this architecture does not have is passed over, as libseccomp does. A
//! call that is newer than our table fails with `ENOSYS` where the default is an error, so that a C library
//! falls back to an older one instead of giving up.

mod bpf;
mod docker;
pub(crate) mod notify;
mod table;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSyscall};

use self::bpf::{Answer, Assembler, Rule, Section};
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
    "SCMP_ACT_NOTIFY",
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
pub(crate) const ARCHITECTURES: &[&str] =
    &["SCMP_ARCH_AARCH64", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

/// How a filter can be loaded.
pub(crate) const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// A compiled profile, ready to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: u64,
}

impl Filter {
    /// Compiles a profile; an error names the field.
    // spec: oci-runtime config-linux.md#seccomp
    pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, Failure> {
        let listens = check_listener(profile)?;
        let field = || "linux.seccomp.default".to_owned();
        let default = verdict(profile.default_action(), profile.default_errno_ret(), field)?;
        let mut wanted = Vec::with_capacity(table::SYSCALLS.len());
        for (index, syscall) in profile.syscalls().iter().flatten().enumerate() {
            let answer = answer(syscall, index)?;
            let known = syscall.names().iter().filter_map(|name| Known::of(name));
            wanted.extend(known.map(|known| (known, answer.clone())));
        }
        let mut sections: Vec<Section> = Architecture::all_of(profile)
            .into_iter()
            .map(|architecture| section(&wanted, architecture, default))
            .collect();
        let program = Assembler::program(&mut sections, libc::SECCOMP_RET_KILL_PROCESS)
            .ok_or_else(|| Failure::invalid("`linux.seccomp` is too long for the kernel"))?;
        let flags = flags(profile, listens);
        // As runc says it, whose own tests read what was asked of the kernel here.
        tracing::debug!("seccomp filter flags: {flags}");
        Ok(Filter { program, flags })
    }

    /// Whether somebody has to be given what [`Filter::load`] returns.
    pub(crate) fn has_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// Confines the caller. Needs `CAP_SYS_ADMIN` or no_new_privs. Returns the listener, if there is one.
    pub(crate) fn load(&self) -> Result<Option<OwnedFd>, Failure> {
        sys::load_filter(&self.program, self.flags).context("error loading seccomp filter into kernel")
    }
}

/// An architecture whose calls this machine can make: a column of the table and the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Architecture {
    column: usize,
    audit: u32,
    /// x32's calls are told from x86-64's, whose architecture they share, by their numbers.
    with_x32: bool,
}

const X86_64: Architecture = Architecture { column: 0, audit: 0xc000_003e, with_x32: false };
const X86: Architecture = Architecture { column: 1, audit: 0x4000_0003, with_x32: false };
const AARCH64: Architecture = Architecture { column: 2, audit: 0xc000_00b7, with_x32: false };

/// Numbers from here on are x32's.
const X32_FIRST: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const NATIVE: Architecture = X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Architecture = AARCH64;

impl Architecture {
    /// The profile's architectures that this machine can run; the native one is always among them.
    fn all_of(profile: &LinuxSeccomp) -> Vec<Architecture> {
        let mut wanted = vec![NATIVE];
        for arch in profile.architectures().iter().flatten() {
            let known = match arch {
                Arch::ScmpArchNative => NATIVE,
                Arch::ScmpArchX86_64 => X86_64,
                Arch::ScmpArchX86 => X86,
                Arch::ScmpArchAarch64 => AARCH64,
                Arch::ScmpArchX32 => {
                    wanted[0].with_x32 = NATIVE == X86_64;
                    continue;
                }
                // Not runnable here, or 32-bit variants that then stay forbidden.
                _ => continue,
            };
            if wanted.iter().all(|there| there.audit != known.audit) {
                wanted.push(known);
            }
        }
        wanted
    }

    /// A call's numbers; none when the architecture has no such call.
    fn numbers(self, call: Known) -> impl Iterator<Item = u32> {
        let number = u32::try_from(call.numbers[self.column]).ok();
        let own = number.filter(|_| self.with_x32).map(|number| X32_FIRST | call.x32.unwrap_or(number));
        number.into_iter().chain(own)
    }

    fn last_number(self) -> u32 {
        table::LAST_NUMBERS[self.column]
    }
}

/// A call that is in the table: looked up once for all architectures.
#[derive(Debug, Clone, Copy)]
struct Known {
    numbers: [i16; 3],
    x32: Option<u32>,
}

impl Known {
    fn of(name: &str) -> Option<Known> {
        let row = table::SYSCALLS.binary_search_by_key(&name, |(known, _)| known).ok()?;
        Some(Known { numbers: table::SYSCALLS[row].1, x32: table::x32_number(name) })
    }
}

/// All answers of a profile for one architecture.
fn section(wanted: &[(Known, Answer)], architecture: Architecture, default: u32) -> Section {
    let mut section = Section::new(architecture.audit, default);
    for (call, answer) in wanted {
        for number in architecture.numbers(*call) {
            section.add(number, answer.clone());
        }
    }
    let refuses = default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
    let not_there = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let newer = if refuses { not_there } else { default };
    section.beyond(architecture.last_number() + 1, newer);
    if architecture.with_x32 {
        section.beyond(X32_FIRST, default);
        section.beyond(X32_FIRST + table::X32_LAST.max(architecture.last_number()) + 1, newer);
    } else if architecture.audit == X86_64.audit {
        section.beyond(X32_FIRST, not_there);
    }
    section
}

/// A rule with two conditions on one argument means either of them; on several arguments it means all.
fn answer(syscall: &LinuxSyscall, index: usize) -> Result<Answer, Failure> {
    let field = |name: &str| format!("linux.seccomp.syscalls[{index}].{name}");
    if syscall.names().is_empty() {
        return Err(Failure::invalid(format!("`{}` is empty", field("names"))));
    }
    let verdict = verdict(syscall.action(), syscall.errno_ret(), || field(""))?;
    let conditions = syscall.args().as_deref().unwrap_or_default();
    if let Some(wrong) = conditions.iter().position(|condition| condition.index() > 5) {
        let field = field(&format!("args[{wrong}].index"));
        return Err(Failure::invalid(format!("`{field}` is more than 5: a call has six arguments")));
    }
    if conditions.is_empty() {
        return Ok(Answer::Always(verdict));
    }
    let repeated =
        (0..6).any(|index| conditions.iter().filter(|condition| condition.index() == index).count() > 1);
    let rules: Rc<[Rule]> = if repeated {
        conditions.iter().map(|condition| Rule { conditions: vec![*condition], verdict }).collect()
    } else {
        Rc::new([Rule { conditions: conditions.to_vec(), verdict }])
    };
    Ok(Answer::Rules(rules))
}

/// What the kernel does: the action, and its number in the low half. An action that has no number must not be
/// given one. `field` is the beginning of both fields' names.
fn verdict(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    field: impl Fn() -> String,
) -> Result<u32, Failure> {
    let number = |max: u32| match errno.unwrap_or(DEFAULT_ERRNO) {
        number if number <= max => Ok(number),
        _ => Err(Failure::invalid(format!("`{}` is more than {max}", errno_field(&field())))),
    };
    let verdict = match action {
        // The kernel's highest error number: MAX_ERRNO.
        LinuxSeccompAction::ScmpActErrno => return Ok(libc::SECCOMP_RET_ERRNO | number(4095)?),
        LinuxSeccompAction::ScmpActTrace => {
            return Ok(libc::SECCOMP_RET_TRACE | number(libc::SECCOMP_RET_DATA)?);
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    };
    match errno {
        None => Ok(verdict),
        Some(_) => {
            let field = errno_field(&field());
            Err(Failure::invalid(format!("`{field}` is given, but {action} returns no error number")))
        }
    }
}

/// `linux.seccomp.defaultErrnoRet`, or that of a call.
fn errno_field(beginning: &str) -> String {
    let name = if beginning.ends_with('.') { "errnoRet" } else { "ErrnoRet" };
    format!("{beginning}{name}")
}

/// Whether calls are notified of, to somebody who can be.
fn check_listener(profile: &LinuxSeccomp) -> Result<bool, Failure> {
    let wrong = |why: &str| Err(Failure::invalid(format!("`linux.seccomp.{why}")));
    let is_notify = |action| action == LinuxSeccompAction::ScmpActNotify;
    let mut notifying = profile.syscalls().iter().flatten().filter(|syscall| is_notify(syscall.action()));
    let path = profile.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    if is_notify(profile.default_action()) {
        return wrong("defaultAction`: SCMP_ACT_NOTIFY cannot be used as default action");
    }
    if profile.listener_metadata().as_ref().is_some_and(|text| !text.is_empty()) && path.is_none() {
        return wrong("listenerMetadata` is given without `listenerPath`");
    }
    // The listener is announced by it, under the filter already.
    if notifying.clone().any(|syscall| syscall.names().iter().any(|name| name == "write")) {
        return wrong("syscalls`: SCMP_ACT_NOTIFY cannot be used for the write syscall");
    }
    match (notifying.next(), path) {
        (Some(_), None) => wrong("listenerPath` is missing: SCMP_ACT_NOTIFY needs somebody to notify"),
        (listens, _) => Ok(listens.is_some()),
    }
}

/// Without any, speculation is left to the kernel's default for ordinary programs, as runc has it.
fn flags(profile: &LinuxSeccomp, listens: bool) -> u64 {
    let number = |flag: &LinuxSeccompFilterFlag| match flag {
        // The caller has one thread, and a listener excludes this flag.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => {
            libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        }
        // Without a listener nobody waits.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    let asked = match profile.flags() {
        None => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Some(flags) => flags.iter().map(number).fold(0, |all, flag| all | flag),
    };
    asked | if listens { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use oci_spec::runtime::Capability;
    use serde_json::json;

    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

    fn number(name: &str, architecture: Architecture) -> Option<u32> {
        architecture.numbers(Known::of(name)?).next()
    }

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
        assert_eq!(bpf::run(&filter.program, NATIVE.audit, X32_FIRST + 5000, [0; 6]), ENOSYS);
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

    fn compile(profile: serde_json::Value) -> Result<Filter, String> {
        let profile = serde_json::from_value(profile).expect("a profile");
        Filter::compile(&profile).map_err(|failure| failure.message)
    }

    #[test]
    fn x32_programs_have_numbers_of_their_own_when_they_are_asked_for() {
        let calls = json!([{"names": ["read", "ioctl"], "action": "SCMP_ACT_ALLOW"}]);
        let profile = |arch| {
            json!({
                "defaultAction": "SCMP_ACT_ERRNO", "architectures": [arch], "syscalls": calls.clone()
            })
        };
        let ask = |filter: &Filter, number| bpf::run(&filter.program, X86_64.audit, number, [0; 6]);
        let with = compile(profile("SCMP_ARCH_X32")).expect("x32");
        assert_eq!([0, 16, X32_FIRST, X32_FIRST + 514].map(|number| ask(&with, number)), [ALLOW; 4]);
        assert_eq!([1, X32_FIRST + 16, X32_FIRST + 1].map(|number| ask(&with, number)), [EPERM; 3]);
        assert_eq!(ask(&with, X32_FIRST + 5000), ENOSYS);
        let without = compile(profile("SCMP_ARCH_X86_64")).expect("x86-64");
        assert_eq!([X32_FIRST, X32_FIRST + 514].map(|number| ask(&without, number)), [ENOSYS; 2]);
    }

    #[test]
    fn every_number_has_the_answer_that_a_search_in_order_would_give() {
        let filter = default_filter(&[]);
        let profile = docker_default(&HashSet::new());
        let mut answers = vec![EPERM; NATIVE.last_number() as usize + 1];
        let plain = |syscall: &&LinuxSyscall| syscall.args().as_ref().is_none_or(Vec::is_empty);
        for syscall in profile.syscalls().iter().flatten().filter(plain) {
            let verdict = verdict(syscall.action(), syscall.errno_ret(), String::new).expect("verdict");
            for name in syscall.names() {
                if let Some(number) = number(name, NATIVE) {
                    answers[number as usize] = verdict;
                }
            }
        }
        let conditional = ["socket", "personality", "clone"].map(|name| number(name, NATIVE));
        for (number, expected) in (0_u32..).zip(answers) {
            if !conditional.contains(&Some(number)) {
                assert_eq!(bpf::run(&filter.program, NATIVE.audit, number, [0; 6]), expected, "{number}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_field() {
        let call = |call: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]});
        let table = [
            (call(json!({"names": [], "action": "SCMP_ACT_LOG"})), "linux.seccomp.syscalls[0].names"),
            (
                call(json!({"names": ["x"], "action": "SCMP_ACT_LOG", "errnoRet": 1})),
                "`linux.seccomp.syscalls[0].errnoRet`",
            ),
            (
                call(json!({"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
                "`linux.seccomp.syscalls[0].errnoRet`",
            ),
            (
                call(json!({"names": ["x"], "action": "SCMP_ACT_LOG",
                    "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]})),
                "`linux.seccomp.syscalls[0].args[0].index`",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
                "`linux.seccomp.defaultErrnoRet`",
            ),
            (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "`linux.seccomp.defaultAction`"),
            (
                json!({"defaultAction": "SCMP_ACT_LOG", "listenerMetadata": "x"}),
                "`linux.seccomp.listenerMetadata`",
            ),
            (call(json!({"names": ["open"], "action": "SCMP_ACT_NOTIFY"})), "`linux.seccomp.listenerPath`"),
            (call(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})), "write syscall"),
        ];
        for (profile, expected) in table {
            let says = compile(profile).expect_err("refused");
            assert!(says.contains(expected), "{says}");
        }
    }

    #[test]
    fn flags_are_the_kernels() {
        let flags = |flags: serde_json::Value, action: &str| {
            let call = json!([{"names": ["open"], "action": action}]);
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "listenerPath": "/x", "syscalls": call
            });
            compile(profile).expect("compiles").flags
        };
        assert_eq!(flags(json!(null), "SCMP_ACT_LOG"), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
        assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_LOG"]), "SCMP_ACT_LOG"), libc::SECCOMP_FILTER_FLAG_LOG);
        let wait = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"]);
        assert_eq!(flags(wait.clone(), "SCMP_ACT_LOG"), 0);
        let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        assert_eq!(flags(wait, "SCMP_ACT_NOTIFY"), listener);
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

    #[test]
    #[ignore = "measures"]
    fn how_long_it_takes() {
        let profile = docker_default(&HashSet::new());
        let mut best = [std::time::Duration::MAX; 2];
        for _ in 0..200 {
            let begin = std::time::Instant::now();
            let filter = Filter::compile(&profile).expect("compiles");
            best[0] = best[0].min(begin.elapsed());
            let child = sys::clone_process(0, None, || {
                nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
                let begin = std::time::Instant::now();
                filter.load().expect("loads");
                i32::try_from(begin.elapsed().as_micros().min(255)).expect("it is below 256")
            });
            let child = child.expect("clone");
            let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None);
            if let Ok(nix::sys::wait::WaitStatus::Exited(_, micros)) = status {
                best[1] = best[1].min(std::time::Duration::from_micros(micros.unsigned_abs().into()));
            }
        }
        let length = Filter::compile(&profile).expect("compiles").program.len();
        println!("compile {:?}, load {:?}, {length} instructions", best[0], best[1]);
    }
}
