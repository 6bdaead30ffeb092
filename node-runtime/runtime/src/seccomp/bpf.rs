//! Classic BPF for seccomp: a section for each architecture, in it a search tree over runs of numbers with the
//! same answer.
//!
//! The tree is not only for the container's calls: when it loads a filter, the kernel runs it once for every
//! number there is, to know which calls it need not be asked about.

use std::rc::Rc;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

/// The kernel's limit on a filter's length: `BPF_MAXINSNS`.
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

/// What the profile says about some calls, in its order.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// The same whatever the arguments.
    Always(u32),
    /// The first rule that holds decides.
    Rules(Rc<[Rule]>),
}

/// What happens to the calls of one architecture.
#[derive(Debug)]
pub(super) struct Section {
    audit: u32,
    default: u32,
    /// In the profile's order.
    calls: Vec<(u32, Answer)>,
    /// From this number on, this verdict; later entries begin later.
    beyond: Vec<(u32, u32)>,
}

/// Numbers from here on have the same answer.
#[derive(Debug)]
struct Run {
    start: u32,
    answer: Final,
}

/// What is done about a call in the end.
#[derive(Debug, Clone, PartialEq)]
enum Final {
    Return(u32),
    /// Rules with conditions, and the verdict when none holds.
    Ask(Vec<Rule>, u32),
}

impl Section {
    pub(super) fn new(audit: u32, default: u32) -> Section {
        Section { audit, default, calls: Vec::new(), beyond: Vec::new() }
    }

    /// Adds an answer for a call. Conditions come before what holds always, of which the first counts.
    pub(super) fn add(&mut self, number: u32, answer: Answer) {
        self.calls.push((number, answer));
    }

    /// All calls from `number` on that have no answer; to be said in ascending order.
    pub(super) fn beyond(&mut self, number: u32, verdict: u32) {
        self.beyond.push((number, verdict));
    }

    fn runs(&mut self) -> Vec<Run> {
        // The sort is stable: a call's answers stay in order.
        self.calls.sort_by_key(|(number, _)| *number);
        let mut runs = Runs(Vec::with_capacity(self.calls.len()));
        let mut next = 0;
        for answers in self.calls.chunk_by(|one, other| one.0 == other.0) {
            let number = answers[0].0;
            self.fill(&mut runs, next, number);
            let fallback = self.verdict_at(number);
            runs.push(number, settle(answers, fallback));
            next = number + 1;
        }
        self.fill(&mut runs, next, u32::MAX);
        runs.0
    }

    /// Numbers without an answer of their own.
    fn fill(&self, runs: &mut Runs, from: u32, to: u32) {
        if from < to {
            runs.push(from, Final::Return(self.verdict_at(from)));
        }
        for (start, verdict) in self.beyond.iter().filter(|(start, _)| (from..to).contains(start)) {
            runs.push(*start, Final::Return(*verdict));
        }
    }

    fn verdict_at(&self, number: u32) -> u32 {
        let last = self.beyond.iter().rev().find(|(start, _)| *start <= number);
        last.map_or(self.default, |(_, verdict)| *verdict)
    }
}

/// Neighbours with the same answer are one run.
struct Runs(Vec<Run>);

impl Runs {
    fn push(&mut self, start: u32, answer: Final) {
        match self.0.last_mut() {
            Some(last) if last.start == start => last.answer = answer,
            Some(last) if last.answer == answer => {}
            _ => self.0.push(Run { start, answer }),
        }
    }
}

fn settle(answers: &[(u32, Answer)], fallback: u32) -> Final {
    let (mut conditional, mut always) = (Vec::new(), None);
    for (_, answer) in answers {
        match answer {
            Answer::Always(verdict) => always = always.or(Some(*verdict)),
            Answer::Rules(rules) => conditional.extend_from_slice(rules),
        }
    }
    let verdict = always.unwrap_or(fallback);
    if conditional.is_empty() { Final::Return(verdict) } else { Final::Ask(conditional, verdict) }
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
#[derive(Debug)]
pub(super) struct Assembler {
    code: Vec<libc::sock_filter>,
}

impl Assembler {
    /// The whole filter; `None` when it is too long. `foreign` is the verdict on other architectures.
    pub(super) fn program(sections: &mut [Section], foreign: u32) -> Option<Vec<libc::sock_filter>> {
        let mut all = Assembler { code: Vec::with_capacity(2048) };
        all.push(LOAD, AT_ARCHITECTURE);
        for section in sections {
            let runs = section.runs();
            all.jump(JUMP_EQUAL, section.audit, 1, 0);
            let over = all.code.len();
            all.push(JUMP, 0);
            all.push(LOAD, AT_NUMBER);
            all.tree(&runs);
            all.code[over].k = u32::try_from(all.code.len() - over - 1).ok()?;
        }
        all.push(RETURN, foreign);
        (all.code.len() <= LENGTH_MAX).then_some(all.code)
    }

    /// Halves the runs until one is left. A conditional jump reaches 255 instructions, an unconditional any.
    fn tree(&mut self, runs: &[Run]) {
        let (left, right) = match runs {
            [] => return,
            [run] => return self.answer(&run.answer),
            runs => runs.split_at(runs.len() / 2),
        };
        let at = self.code.len();
        self.push(JUMP_GREATER_EQUAL, right[0].start);
        self.tree(left);
        let length = self.code.len() - at - 1;
        match u8::try_from(length) {
            Ok(near) => self.code[at].jt = near,
            Err(_) => {
                self.code[at].jf = 1;
                let far = libc::sock_filter { code: JUMP, jt: 0, jf: 0, k: length as u32 };
                self.code.insert(at + 1, far);
            }
        }
        self.tree(right);
    }

    fn answer(&mut self, answer: &Final) {
        match answer {
            Final::Return(verdict) => self.push(RETURN, *verdict),
            Final::Ask(rules, otherwise) => {
                self.rules(rules);
                self.push(RETURN, *otherwise);
            }
        }
    }

    fn rules(&mut self, rules: &[Rule]) {
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
                self.jump(operation, value, distance(yes), distance(no));
            }
            self.push(RETURN, rule.verdict);
        }
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
