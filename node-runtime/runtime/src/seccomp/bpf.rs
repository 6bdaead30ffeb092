//! Classic BPF for seccomp: a section for each architecture, in it runs of numbers with the same answer.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

/// The kernel's limit on a filter's length.
const LENGTH_MAX: usize = 4096;

// Offsets in `struct seccomp_data`.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENTS: u32 = 16;

// Operations of linux/bpf_common.h.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// A verdict when all conditions hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    pub conditions: Vec<LinuxSeccompArg>,
    pub verdict: u32,
}

/// What happens to the calls of one architecture.
#[derive(Debug)]
pub(super) struct Section {
    audit: u32,
    default: u32,
    calls: BTreeMap<u32, Vec<Rule>>,
    /// From this number on, this verdict; later entries begin later.
    beyond: BTreeMap<u32, u32>,
}

impl Section {
    pub(super) fn new(audit: u32, default: u32) -> Section {
        Section { audit, default, calls: BTreeMap::new(), beyond: BTreeMap::new() }
    }

    /// Adds rules for a call; the first that holds decides, and one without conditions comes last.
    pub(super) fn add(&mut self, number: u32, rules: Vec<Rule>) {
        let all = self.calls.entry(number).or_default();
        all.extend(rules);
        all.sort_by_key(|rule| rule.conditions.is_empty());
        if let Some(last) = all.iter().position(|rule| rule.conditions.is_empty()) {
            all.truncate(last + 1);
        }
    }

    /// All calls from `number` on that have no rules.
    pub(super) fn beyond(&mut self, number: u32, verdict: u32) {
        self.beyond.insert(number, verdict);
    }

    /// Runs of numbers with the same answer: where each begins, and its rules.
    fn runs(&self) -> Vec<(u32, Vec<Rule>)> {
        let always = |verdict| vec![Rule { conditions: Vec::new(), verdict }];
        let mut starts: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        starts.insert(0, always(self.default));
        for (number, verdict) in &self.beyond {
            starts.insert(*number, always(*verdict));
        }
        for (number, rules) in &self.calls {
            starts.entry(number + 1).or_insert_with(|| always(self.default));
            let mut rules = rules.clone();
            if rules.last().is_some_and(|rule| !rule.conditions.is_empty()) {
                rules.extend(always(self.default));
            }
            starts.insert(*number, rules);
        }
        let mut runs: Vec<(u32, Vec<Rule>)> = Vec::new();
        for (start, rules) in starts {
            if runs.last().is_none_or(|(_, before)| *before != rules) {
                runs.push((start, rules));
            }
        }
        runs
    }
}

/// Where a conditional jump goes.
#[derive(Debug, Clone, Copy)]
enum To {
    Next,
    /// The end of the present rule: it does not hold.
    Fail,
    /// This many instructions on.
    Skip(u8),
}

/// Instructions so far.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<libc::sock_filter>,
}

impl Assembler {
    /// The whole filter; `None` when it is too long. `foreign` is the verdict on other architectures.
    pub(super) fn program(sections: &[Section], foreign: u32) -> Option<Vec<libc::sock_filter>> {
        let mut all = Assembler::default();
        all.push(LOAD, AT_ARCHITECTURE);
        for section in sections {
            let body = Assembler::section(section);
            all.jump(JUMP_EQUAL, section.audit, 1, 0);
            all.push(JUMP, u32::try_from(body.code.len()).ok()?);
            all.code.extend(body.code);
        }
        all.push(RETURN, foreign);
        (all.code.len() <= LENGTH_MAX).then_some(all.code)
    }

    fn section(section: &Section) -> Assembler {
        let mut body = Assembler::default();
        body.push(LOAD, AT_NUMBER);
        let runs = section.runs();
        for (index, (_, rules)) in runs.iter().enumerate() {
            let answer = Assembler::rules(rules);
            if let Some((next, _)) = runs.get(index + 1) {
                match u8::try_from(answer.code.len()) {
                    Ok(length) => body.jump(JUMP_GREATER_EQUAL, *next, length, 0),
                    Err(_) => {
                        body.jump(JUMP_GREATER_EQUAL, *next, 0, 1);
                        body.push(JUMP, u32::try_from(answer.code.len()).unwrap_or(u32::MAX));
                    }
                }
            }
            body.code.extend(answer.code);
        }
        body
    }

    fn rules(rules: &[Rule]) -> Assembler {
        let mut answer = Assembler::default();
        for rule in rules {
            // A condition is at most six instructions and there are at most six: jumps fit a byte.
            let mut code: Vec<(u16, u32, To, To)> = Vec::new();
            for condition in &rule.conditions {
                compare(&mut code, condition);
            }
            let length = code.len() + 1;
            for (at, (operation, value, yes, no)) in code.into_iter().enumerate() {
                let distance = |to: To| match to {
                    To::Next => 0,
                    To::Skip(count) => count,
                    To::Fail => {
                        u8::try_from(length - at - 1).expect("a rule is shorter than 256 instructions")
                    }
                };
                answer.jump(operation, value, distance(yes), distance(no));
            }
            answer.push(RETURN, rule.verdict);
        }
        answer
    }

    fn push(&mut self, operation: u16, value: u32) {
        self.jump(operation, value, 0, 0);
    }

    fn jump(&mut self, operation: u16, value: u32, yes: u8, no: u8) {
        self.code.push(libc::sock_filter { code: operation, jt: yes, jf: no, k: value });
    }
}

/// A 64-bit comparison, by halves: little endian, the low half comes first.
fn compare(code: &mut Vec<(u16, u32, To, To)>, condition: &LinuxSeccompArg) {
    use To::{Fail, Next, Skip};
    let index = u32::try_from(condition.index()).expect("an argument's index was checked to be below six");
    let low_at = AT_ARGUMENTS + 8 * index;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value());
    let mut step = |operation, value, yes, no| code.push((operation, value, yes, no));
    step(LOAD, low_at + 4, Next, Next);
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpEq => {
            step(JUMP_EQUAL, high, Next, Fail);
            step(LOAD, low_at, Next, Next);
            step(JUMP_EQUAL, low, Next, Fail);
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            step(JUMP_EQUAL, high, Next, Skip(2));
            step(LOAD, low_at, Next, Next);
            step(JUMP_EQUAL, low, Fail, Next);
        }
        LinuxSeccompOperator::ScmpCmpGt => {
            step(JUMP_GREATER, high, Skip(3), Next);
            step(JUMP_EQUAL, high, Next, Fail);
            step(LOAD, low_at, Next, Next);
            step(JUMP_GREATER, low, Next, Fail);
        }
        LinuxSeccompOperator::ScmpCmpGe => {
            step(JUMP_GREATER, high, Skip(3), Next);
            step(JUMP_EQUAL, high, Next, Fail);
            step(LOAD, low_at, Next, Next);
            step(JUMP_GREATER_EQUAL, low, Next, Fail);
        }
        LinuxSeccompOperator::ScmpCmpLt => {
            step(JUMP_GREATER, high, Fail, Next);
            step(JUMP_EQUAL, high, Next, Skip(2));
            step(LOAD, low_at, Next, Next);
            step(JUMP_GREATER_EQUAL, low, Fail, Next);
        }
        LinuxSeccompOperator::ScmpCmpLe => {
            step(JUMP_GREATER, high, Fail, Next);
            step(JUMP_EQUAL, high, Next, Skip(2));
            step(LOAD, low_at, Next, Next);
            step(JUMP_GREATER, low, Fail, Next);
        }
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (wanted_high, wanted_low) = halves(condition.value_two().unwrap_or(0));
            step(AND, high, Next, Next);
            step(JUMP_EQUAL, wanted_high, Next, Fail);
            step(LOAD, low_at, Next, Next);
            step(AND, low, Next, Next);
            step(JUMP_EQUAL, wanted_low, Next, Fail);
        }
    }
}

/// Runs a filter as the kernel would.
#[cfg(test)]
pub(super) fn run(program: &[libc::sock_filter], architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program[at];
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        at += 1;
        match code {
            LOAD => {
                accumulator = match k {
                    AT_NUMBER => number,
                    AT_ARCHITECTURE => architecture,
                    offset => {
                        let argument = args[(offset - AT_ARGUMENTS) as usize / 8];
                        if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
                    }
                }
            }
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += branch(accumulator == k),
            JUMP_GREATER => at += branch(accumulator > k),
            JUMP_GREATER_EQUAL => at += branch(accumulator >= k),
            RETURN => return k,
            other => panic!("operation {other:#x}"),
        }
    }
}
