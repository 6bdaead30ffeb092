//! Device rules for cgroup version 2: a small BPF program, assembled here.

use oci_spec::runtime::LinuxDeviceCgroup;

use super::plan::{DEFAULT_DEVICES, access, device_types, is_everything};
use crate::failure::Failure;

/// One rule, in the terms of `struct bpf_cgroup_dev_ctx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    /// `BPF_DEVCG_DEV_*`.
    typ: i32,
    /// `BPF_DEVCG_ACC_*` bits.
    access: i32,
    major: Option<i32>,
    minor: Option<i32>,
    allow: bool,
}

/// What a list of rules amounts to: exceptions in order, and the answer when none matches.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    exceptions: Vec<Rule>,
    otherwise: bool,
}

/// The program for the spec's rules; `None` when everything is allowed anyhow.
pub(super) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Option<Vec<u64>>, Failure> {
    let rules = collect(rules)?;
    let anything = rules.otherwise && rules.exceptions.iter().all(|rule| rule.allow);
    Ok((!anything).then(|| assemble(&rules)))
}

/// A rule about everything makes all before it void.
fn collect(rules: &[LinuxDeviceCgroup]) -> Result<Rules, Failure> {
    let mut collected = Rules { exceptions: Vec::new(), otherwise: true };
    for rule in rules {
        if is_everything(rule) {
            collected.exceptions.clear();
            collected.otherwise = rule.allow();
            if !rule.allow() {
                collected.exceptions.extend(default_rules());
            }
            continue;
        }
        let number = |number: Option<i64>| match number.filter(|number| *number >= 0) {
            None => Ok(None),
            Some(number) => i32::try_from(number)
                .map(Some)
                .map_err(|_| Failure::invalid(format!("device number {number} is too large"))),
        };
        let access = access_bits(access(rule)?);
        let (major, minor, allow) = (number(rule.major())?, number(rule.minor())?, rule.allow());
        for typ in device_types(rule)? {
            collected.exceptions.push(Rule { typ: type_bits(*typ), access, major, minor, allow });
        }
    }
    Ok(collected)
}

fn default_rules() -> impl Iterator<Item = Rule> {
    let number = |number: u32| i32::try_from(number).expect("the default devices have small numbers");
    DEFAULT_DEVICES.iter().map(move |(typ, major, minor, access)| Rule {
        typ: type_bits(*typ),
        access: access_bits(access),
        major: major.map(number),
        minor: minor.map(number),
        allow: true,
    })
}

fn type_bits(typ: char) -> i32 {
    if typ == 'b' { 1 } else { 2 }
}

fn access_bits(access: &str) -> i32 {
    let bit = |letter, bit| if access.contains(letter) { bit } else { 0 };
    bit('m', 1) | bit('r', 2) | bit('w', 4)
}

// Operations of linux/bpf.h; registers: r1 context, r2 type, r3 access, r4 major, r5 minor, r6 scratch.
const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The last rule that matches decides, so the program asks in reverse. An allow must cover all that is
/// asked for, a deny any of it.
fn assemble(rules: &Rules) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.exceptions.iter().rev() {
        code.extend(rule_code(rule));
    }
    code.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rules.otherwise)));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

fn rule_code(rule: &Rule) -> Vec<u64> {
    let mut tests: Vec<(u8, u8, i32)> = vec![(JUMP_NOT_EQUAL, 2, rule.typ)];
    tests.extend(rule.major.map(|major| (JUMP_NOT_EQUAL, 4, major)));
    tests.extend(rule.minor.map(|minor| (JUMP_NOT_EQUAL, 5, minor)));
    // What is asked for beyond an allow (must be nothing), or what of it a deny covers (must be something).
    let mask = if rule.allow { !rule.access } else { rule.access };
    let skip_operation = if rule.allow { JUMP_NOT_EQUAL } else { 0x15 };
    // Behind the tests: move, and, jump, verdict, exit.
    let length = tests.len() + 5;
    let mut code: Vec<u64> = Vec::with_capacity(length);
    let to_end = |at: usize| i16::try_from(length - at - 1).expect("a rule is a few instructions");
    for (operation, register, value) in tests {
        code.push(instruction(operation, register, 0, to_end(code.len()), value));
    }
    code.push(instruction(MOVE, 6, 3, 0, 0));
    code.push(instruction(AND_IMMEDIATE, 6, 0, 0, mask & 7));
    code.push(instruction(skip_operation, 6, 0, to_end(code.len()), 0));
    code.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rule.allow)));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

fn instruction(operation: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let registers = (source << 4) | target;
    u64::from(operation)
        | u64::from(registers) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(json).expect("rules")
    }

    /// Runs a program as the kernel would.
    fn run(code: &[u64], typ: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0_i64; 11];
        let context = [typ | access << 16, major, minor];
        let mut at = 0;
        loop {
            let word = code[at];
            let (operation, registers_byte) = ((word & 0xff) as u8, (word >> 8 & 0xff) as usize);
            let (target, source) = (registers_byte & 15, registers_byte >> 4);
            let offset = (word >> 16 & 0xffff) as u16;
            let immediate = i64::from((word >> 32) as u32 as i32);
            match operation {
                LOAD_WORD => registers[target] = i64::from(context[usize::from(offset) / 4]),
                AND_IMMEDIATE => registers[target] &= immediate,
                SHIFT_RIGHT => registers[target] >>= immediate,
                MOVE => registers[target] = registers[source],
                MOVE_IMMEDIATE => registers[target] = immediate,
                JUMP_NOT_EQUAL if registers[target] != immediate => at += usize::from(offset),
                0x15 if registers[target] == immediate => at += usize::from(offset),
                JUMP_NOT_EQUAL | 0x15 => {}
                EXIT => return registers[0] != 0,
                other => panic!("operation {other:#x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let code = program(&rules(serde_json::json!([
            {"allow": false},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "r"},
        ])))
        .expect("rules")
        .expect("program");
        let (block, character) = (1, 2);
        let (make, read, write) = (1, 2, 4);
        assert!(run(&code, character, read | write, 1, 3), "/dev/null is a default device");
        assert!(run(&code, block, read, 8, 0));
        assert!(!run(&code, block, read, 8, 1), "denied again");
        assert!(!run(&code, block, read | write, 8, 0), "an allow must cover all that is asked for");
        assert!(run(&code, block, make, 8, 0), "nodes may always be made");
        assert!(!run(&code, character, read, 10, 200));
    }

    #[test]
    fn allowing_everything_needs_no_program() {
        assert_eq!(program(&rules(serde_json::json!([{"allow": true}]))), Ok(None));
        assert_eq!(program(&[]), Ok(None));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        let code = program(&rules(serde_json::json!([{"allow": false}]))).expect("rules").expect("program");
        crate::sys::load_device_program(&code).expect("the verifier accepts it");
    }
}
