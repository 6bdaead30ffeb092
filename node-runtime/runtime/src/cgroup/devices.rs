//! Device rules for cgroup version 2: a small BPF program, assembled here.

use std::fs::File;
use std::io;
use std::path::Path;

use super::rules::{Kind, Rule, Rules};
use super::sys;

/// The program for the rules; `None` when everything is allowed anyhow.
pub(super) fn program(rules: &Rules) -> Option<Vec<u64>> {
    (!rules.allow_all()).then(|| assemble(rules))
}

/// Puts the rules in force. A new cgroup has no program; in an old one the kernel exchanges ours for the new
/// one at once, so that no access falls between the two.
pub(super) fn attach(dir: &Path, rules: &Rules, is_new: bool) -> io::Result<()> {
    let program = program(rules);
    if is_new && program.is_none() {
        return Ok(());
    }
    let cgroup = File::open(dir)?;
    let old = if is_new { Vec::new() } else { sys::attached_device_programs(&cgroup)? };
    let Some(program) = program else {
        return old.iter().try_for_each(|old| sys::detach_device_program(&cgroup, old));
    };
    let program = sys::load_device_program(&program)?;
    match old.as_slice() {
        [] => sys::attach_device_program(&cgroup, &program, None),
        // Kernels before 5.6 cannot exchange. Between the two calls both are asked, and both must agree.
        [only] => sys::attach_device_program(&cgroup, &program, Some(only)).or_else(|_| {
            sys::attach_device_program(&cgroup, &program, None)?;
            sys::detach_device_program(&cgroup, only)
        }),
        several => {
            sys::attach_device_program(&cgroup, &program, None)?;
            several.iter().try_for_each(|old| sys::detach_device_program(&cgroup, old))
        }
    }
}

// Operations of linux/bpf.h; registers: r1 context, r2 type, r3 access, r4 major, r5 minor, r6 scratch.
const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const JUMP_EQUAL: u8 = 0x15;
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
    // `BPF_DEVCG_DEV_*`.
    let typ = if rule.devices.kind == Kind::Block { 1 } else { 2 };
    let mut tests: Vec<(u8, u8, i32)> = vec![(JUMP_NOT_EQUAL, 2, typ)];
    tests.extend(rule.devices.major.map(|major| (JUMP_NOT_EQUAL, 4, major.cast_signed())));
    tests.extend(rule.devices.minor.map(|minor| (JUMP_NOT_EQUAL, 5, minor.cast_signed())));
    // What is asked for beyond an allow (must be nothing), or what of it a deny covers (must be something).
    let mask = i32::from(if rule.allow { !rule.access } else { rule.access });
    let skip_operation = if rule.allow { JUMP_NOT_EQUAL } else { JUMP_EQUAL };
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
    use oci_spec::runtime::LinuxDeviceCgroup;

    use super::*;

    fn rules(json: serde_json::Value) -> Rules {
        let list: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).expect("rules");
        Rules::collect(&list).expect("rules")
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
                JUMP_EQUAL if registers[target] == immediate => at += usize::from(offset),
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
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
        .expect("program");
        let (block, character) = (1, 2);
        let (make, read, write) = (1, 2, 4);
        assert!(run(&code, character, read | write, 1, 3), "/dev/null is a default device");
        assert!(run(&code, block, read, 8, 0));
        assert!(!run(&code, block, read, 8, 1), "denied again");
        assert!(run(&code, block, make, 8, 1), "what a rule is not about stays");
        assert!(!run(&code, block, read | write, 8, 0), "an allow must cover all that is asked for");
        assert!(run(&code, block, make, 8, 0), "nodes may always be made");
        assert!(!run(&code, character, read, 10, 200));
    }

    #[test]
    fn allowing_everything_needs_no_program() {
        assert_eq!(program(&rules(serde_json::json!([{"allow": true}]))), None);
        assert!(program(&rules(serde_json::json!([]))).is_some());
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        let code = program(&rules(serde_json::json!([{"allow": false}]))).expect("program");
        sys::load_device_program(&code).expect("the verifier accepts it");
    }
}
