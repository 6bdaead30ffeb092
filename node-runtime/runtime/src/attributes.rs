//! Attributes of a process beside its privileges: scheduling, I/O priority, processors, memory policy,
//! execution domain. Applied to the caller.

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use crate::failure::{Context, Failure};
use crate::procfs::Proc;
use crate::sys::{self, SchedulerAttributes};

/// More processors or memory nodes than any kernel is built for.
const NUMBERS_MAX: u32 = 8192;
/// The kernel counts deadlines' time in steps of that many nanoseconds: `1 << DL_SCALE`.
const DEADLINE_RUNTIME_MIN_NS: u64 = 1 << 10;

/// How the kernel chooses among those who want to run, and where they may allocate.
pub(crate) fn apply(process: &Process, linux: &Linux) -> Result<(), Failure> {
    if let Some(scheduler) = process.scheduler() {
        let set = sys::set_scheduler(scheduler_attributes(scheduler)?);
        set.map_err(|error| unscheduled(scheduler, linux, error))?;
    }
    if let Some(priority) = process.io_priority() {
        sys::set_io_priority(packed(priority)?).context("set `process.ioPriority`")?;
    }
    if let Some(personality) = linux.personality() {
        sys::set_personality(domain(personality)?).context("set `linux.personality`")?;
    }
    if let Some(policy) = linux.memory_policy() {
        let (mode, nodes) = memory_policy(policy)?;
        sys::set_memory_policy(mode, &nodes).context("set `linux.memoryPolicy`")?;
    }
    Ok(())
}

/// Why the kernel took no scheduler, as far as it can be told.
// sched_setattr(2), sched(7)
fn unscheduled(scheduler: &Scheduler, linux: &Linux, error: std::io::Error) -> Failure {
    let cpu = linux.resources().as_ref().and_then(|resources| resources.cpu().as_ref());
    let is_pinned = cpu.is_some_and(|cpu| cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty()));
    let what = match error.raw_os_error() {
        // runc's words, which callers look for.
        Some(libc::EPERM) if is_pinned => {
            "`process.scheduler`: process scheduler can't be used together with AllowedCPUs (`linux.resources.cpu.cpus`)"
        }
        Some(libc::EBUSY) => "set `process.scheduler`: no processor has that much time left to promise",
        Some(libc::EINVAL) if scheduler.policy() == &LinuxSchedulerPolicy::SchedDeadline => {
            "set `process.scheduler`: `period` is not within this kernel's kernel.sched_deadline_period_{min,max}_us"
        }
        _ => "set `process.scheduler`",
    };
    Failure::os(what, error)
}

/// Sets how ready the kernel is to kill the process for want of memory. Below the caller's own it takes
/// `CAP_SYS_RESOURCE` on the machine: before a user namespace is entered.
pub(crate) fn set_oom_score(proc: &Proc, who: &str, process: &Process) -> Result<(), Failure> {
    match process.oom_score_adj() {
        Some(score) => proc
            .write(&format!("{who}/oom_score_adj"), score.to_string().as_bytes())
            .with_context(|| format!("set `process.oomScoreAdj` to {score}")),
        None => Ok(()),
    }
}

/// What sched_setattr(2) is given.
// spec: oci-runtime config.md#linux-process scheduler
pub(crate) fn scheduler_attributes(scheduler: &Scheduler) -> Result<SchedulerAttributes, Failure> {
    let refuse = |field: &str, why: &str| {
        Err(Failure::invalid(format!("`process.scheduler.{field}` {why} {}", scheduler.policy())))
    };
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return refuse("policy", "is one that Linux has reserved and not made:");
        }
    };
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse("nice", "is not between -20 and 19, with policy");
    }
    let priority = scheduler.priority().unwrap_or(0);
    let realtime = matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR);
    if realtime && !(1..=99).contains(&priority) {
        return refuse("priority", "must be between 1 and 99 with policy");
    }
    if !realtime && priority != 0 {
        return refuse("priority", "means nothing with policy");
    }
    let deadline = [scheduler.runtime(), scheduler.deadline(), scheduler.period()];
    if policy != libc::SCHED_DEADLINE && deadline.iter().any(|value| value.is_some_and(|value| value != 0)) {
        return refuse("runtime` (or `deadline`, or `period`)", "means nothing with policy");
    }
    let [runtime, deadline, period] = deadline.map(|value| value.unwrap_or(0));
    if policy == libc::SCHED_DEADLINE {
        check_deadline(runtime, deadline, period)?;
    }
    Ok(SchedulerAttributes {
        size: 0,
        policy: policy.cast_unsigned(),
        flags: scheduler.flags().iter().flatten().map(scheduler_flag).fold(0, |all, flag| all | flag),
        nice,
        priority: priority.cast_unsigned(),
        runtime,
        deadline,
        period,
    })
}

/// What the kernel holds of every deadline.
// sched(7), "SCHED_DEADLINE"; kernel/sched/deadline.c, `__checkparam_dl`
fn check_deadline(runtime: u64, deadline: u64, period: u64) -> Result<(), Failure> {
    let refuse = |field: &str, why: String| {
        Err(Failure::invalid(format!("`process.scheduler.{field}` {why} with policy SCHED_DEADLINE")))
    };
    for (field, value) in [("deadline", deadline), ("period", period)] {
        if value > u64::MAX >> 1 {
            return refuse(field, format!("({value} ns) must be below 2^63"));
        }
    }
    if runtime < DEADLINE_RUNTIME_MIN_NS {
        return refuse("runtime", format!("({runtime} ns) must be at least {DEADLINE_RUNTIME_MIN_NS}"));
    }
    if deadline < runtime {
        return refuse("deadline", format!("({deadline} ns) must be at least `runtime` ({runtime} ns)"));
    }
    if period != 0 && period < deadline {
        return refuse(
            "period",
            format!("({period} ns) must be zero or at least `deadline` ({deadline} ns)"),
        );
    }
    Ok(())
}

/// include/uapi/linux/sched.h
fn scheduler_flag(flag: &LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// Class and level as ioprio_set(2) packs them.
pub(crate) fn packed(priority: &LinuxIOPriority) -> Result<u32, Failure> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(Failure::invalid("`process.ioPriority.priority` is not between 0 and 7")),
    }
}

/// personality(2)
pub(crate) fn domain(personality: &LinuxPersonality) -> Result<u64, Failure> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Failure::invalid(
            "`linux.personality.flags` is not supported: the specification has none",
        ));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

/// What set_mempolicy(2) is given: include/uapi/linux/mempolicy.h.
pub(crate) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(u32, Vec<u64>), Failure> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    };
    let flags = policy.flags().iter().flatten().map(flag).fold(0, |all: u32, flag| all | flag);
    let nodes = policy.nodes().as_deref().unwrap_or_default();
    let nodes = if nodes.is_empty() { Vec::new() } else { mask(nodes, "linux.memoryPolicy.nodes")? };
    let takes_none = matches!(mode, 0 | 4);
    if takes_none != nodes.is_empty() && mode != 1 {
        let why = if takes_none { "means nothing with" } else { "is needed with" };
        let mode = serde_json::json!(policy.mode());
        return Err(Failure::invalid(format!("`linux.memoryPolicy.nodes` {why} mode {mode}")));
    }
    Ok((mode | flags, nodes))
}

/// Lets the caller run on some processors only.
pub(crate) fn set_affinity(list: &str, field: &str) -> Result<(), Failure> {
    let mut set = nix::sched::CpuSet::new();
    for cpu in numbers(list, field)? {
        set.set(cpu as usize)
            .map_err(|_| Failure::invalid(format!("`{field}`: there is no processor {cpu}")))?;
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("set `{field}` to `{list}`"))
}

/// Lets the caller run on every processor that its cgroup admits, wherever its maker was confined to.
pub(crate) fn reset_affinity() -> Result<(), Failure> {
    let mut set = nix::sched::CpuSet::new();
    for cpu in 0..nix::sched::CpuSet::count() {
        set.set(cpu).map_err(|error| Failure::os("name all processors", error))?;
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).context("run on all processors")
}

/// `0-3,7` as a bit mask in words.
fn mask(list: &str, field: &str) -> Result<Vec<u64>, Failure> {
    let mut words = Vec::new();
    for number in numbers(list, field)? {
        let word = number as usize / 64;
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << (number % 64);
    }
    Ok(words)
}

/// The numbers of a list like `0-3,7`.
// cpuset(7) "List format"
pub(crate) fn numbers(list: &str, field: &str) -> Result<Vec<u32>, Failure> {
    let wrong = || Failure::invalid(format!("`{field}`: `{list}` is no list of numbers like `0-3,7`"));
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number < NUMBERS_MAX);
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn scheduler(value: Value) -> Result<SchedulerAttributes, String> {
        let scheduler = serde_json::from_value(value).expect("scheduler");
        scheduler_attributes(&scheduler).map_err(|failure| failure.message)
    }

    #[test]
    fn a_scheduler_is_what_the_kernel_takes() {
        let flags = json!(["SCHED_RESET_ON_FORK", "SCHED_FLAG_KEEP_PARAMS"]);
        let made = scheduler(json!({"policy": "SCHED_FIFO", "priority": 7, "flags": flags}));
        let made = made.expect("fifo");
        assert_eq!((made.policy, made.priority, made.flags), (1, 7, 0x11));
        let made = scheduler(json!({"policy": "SCHED_BATCH", "nice": 5})).expect("batch");
        assert_eq!((made.policy, made.nice), (3, 5));
    }

    #[test]
    fn what_a_policy_does_not_have_is_refused_by_name() {
        let says = |value| scheduler(value).expect_err("refused");
        assert!(says(json!({"policy": "SCHED_OTHER", "nice": 20})).contains("scheduler.nice`"));
        assert!(says(json!({"policy": "SCHED_OTHER", "priority": 1})).contains("scheduler.priority`"));
        assert!(says(json!({"policy": "SCHED_RR"})).contains("scheduler.priority`"));
        assert!(says(json!({"policy": "SCHED_RR", "priority": 1, "runtime": 5})).contains("runtime`"));
        assert!(says(json!({"policy": "SCHED_ISO"})).contains("scheduler.policy`"));
        let deadline = |runtime: u64, deadline: u64, period: u64| {
            scheduler(json!({"policy": "SCHED_DEADLINE", "runtime": runtime, "deadline": deadline, "period": period}))
                .map(|made| (made.runtime, made.deadline, made.period))
        };
        assert_eq!(deadline(42_000, 100_000, 0), Ok((42_000, 100_000, 0)));
        for (made, field) in [
            (deadline(0, 100_000, 0), "`process.scheduler.runtime`"),
            (deadline(42_000, 41_999, 0), "`process.scheduler.deadline`"),
            (deadline(42_000, 100_000, 99_999), "`process.scheduler.period`"),
            (deadline(42_000, u64::MAX, 0), "`process.scheduler.deadline`"),
        ] {
            assert!(made.is_err_and(|why| why.contains(field)), "{field}");
        }
    }

    #[test]
    fn a_list_of_numbers_is_read() {
        assert_eq!(numbers("0-2,7", "x"), Ok(vec![0, 1, 2, 7]));
        assert_eq!(mask("0,65", "x"), Ok(vec![1, 2]));
        for wrong in ["", "3-1", "a", "1,,2", "-1", "0-99999"] {
            assert!(numbers(wrong, "f").is_err_and(|failure| failure.message.contains("`f`")), "{wrong}");
        }
    }

    #[test]
    fn an_io_priority_is_packed() {
        let of = |class: &str, priority: i64| {
            packed(&serde_json::from_value(json!({"class": class, "priority": priority})).expect("priority"))
        };
        assert_eq!(of("IOPRIO_CLASS_BE", 4), Ok(2 << 13 | 4));
        assert!(
            of("IOPRIO_CLASS_BE", 8).is_err_and(|failure| failure.message.contains("ioPriority.priority"))
        );
    }
}
