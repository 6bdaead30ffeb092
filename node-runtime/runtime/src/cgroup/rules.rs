//! What a list of device rules amounts to, and how a version 1 cgroup gets there. Pure.
// Documentation/admin-guide/cgroup-v1/devices.rst

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::check::refuse;
use crate::failure::Failure;

/// Bits of what a process may do with a device, as in `struct bpf_cgroup_dev_ctx`. linux/bpf.h
pub(super) const MAKE: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
const ALL: u8 = MAKE | READ | WRITE;

/// Block or character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Character,
}

/// Which devices: `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Devices {
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

/// An exception from what holds otherwise, or from an earlier exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub devices: Devices,
    pub access: u8,
    pub allow: bool,
}

/// Exceptions in order, of which the last that matches decides, and the answer when none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub exceptions: Vec<Rule>,
    pub otherwise: bool,
}

/// What a container may touch whatever its configuration says, as with runc: making any node, and the
/// standard devices.
// spec: oci-runtime config-linux.md#default-devices
const DEFAULTS: &[(Kind, Option<u32>, Option<u32>, u8)] = &[
    (Kind::Character, None, None, MAKE),
    (Kind::Block, None, None, MAKE),
    (Kind::Character, Some(1), Some(3), ALL),
    (Kind::Character, Some(1), Some(5), ALL),
    (Kind::Character, Some(1), Some(7), ALL),
    (Kind::Character, Some(1), Some(8), ALL),
    (Kind::Character, Some(1), Some(9), ALL),
    (Kind::Character, Some(5), Some(0), ALL),
    (Kind::Character, Some(5), Some(1), ALL),
    (Kind::Character, Some(5), Some(2), ALL),
    (Kind::Character, Some(136), None, ALL),
];

impl Devices {
    /// Whether all of the other's are among these.
    fn contains(self, other: Devices) -> bool {
        let covers = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    /// Whether some device is in both.
    fn overlaps(self, other: Devices) -> bool {
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meets(self.major, other.major) && meets(self.minor, other.minor)
    }
}

impl Rules {
    /// Reads a configuration's list. What no rule is about is denied, as with runc.
    ///
    /// # Errors
    /// With the index of a rule that cannot be.
    pub(super) fn collect(rules: &[LinuxDeviceCgroup]) -> Result<Rules, Failure> {
        let mut collected = Rules { exceptions: Vec::new(), otherwise: false };
        for (index, rule) in rules.iter().enumerate() {
            let field = format!("devices[{index}]");
            let access = access(&field, rule)?;
            let (major, minor) = (number(&field, rule.major())?, number(&field, rule.minor())?);
            let is_any = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
            if is_any && major.is_none() && minor.is_none() && access == ALL {
                // It makes all before it void.
                collected.exceptions.clear();
                collected.otherwise = rule.allow();
                continue;
            }
            for kind in kinds(&field, rule)? {
                collected.add(Rule {
                    devices: Devices { kind: *kind, major, minor },
                    access,
                    allow: rule.allow(),
                });
            }
        }
        if !collected.otherwise || collected.exceptions.iter().any(|rule| !rule.allow) {
            for (kind, major, minor, access) in DEFAULTS {
                let devices = Devices { kind: *kind, major: *major, minor: *minor };
                collected.add(Rule { devices, access: *access, allow: true });
            }
        }
        Ok(collected)
    }

    /// Whether everything is allowed.
    pub(super) fn allow_all(&self) -> bool {
        self.otherwise && self.exceptions.iter().all(|rule| rule.allow)
    }

    /// A rule about exactly the devices of an earlier one is merged with it, unless one between decides
    /// differently: then `r` and `w` given apart are `rw`.
    fn add(&mut self, rule: Rule) {
        for earlier in self.exceptions.iter_mut().rev() {
            if earlier.allow == rule.allow {
                if earlier.devices == rule.devices {
                    earlier.access |= rule.access;
                    return;
                }
            } else if earlier.devices.overlaps(rule.devices) {
                break;
            }
        }
        self.exceptions.push(rule);
    }

    /// The exceptions as version 1 keeps them: all of one sort, with no order. A rule that agrees with what
    /// holds otherwise takes earlier exceptions back, and there can only do so with whole ones.
    fn flat(&self) -> Result<Vec<(Devices, u8)>, Failure> {
        let mut kept: Vec<(Devices, u8)> = Vec::new();
        for rule in &self.exceptions {
            if rule.allow != self.otherwise {
                match kept.iter_mut().find(|(devices, _)| *devices == rule.devices) {
                    Some((_, access)) => *access |= rule.access,
                    None => kept.push((rule.devices, rule.access)),
                }
                continue;
            }
            for (devices, access) in &mut kept {
                if rule.devices.contains(*devices) {
                    *access &= !rule.access;
                } else if devices.overlaps(rule.devices) && *access & rule.access != 0 {
                    let (part, whole) = (line(rule.devices, rule.access), line(*devices, *access));
                    return Err(refuse(
                        "devices",
                        format!("with cgroup version 1 `{part}` cannot be taken out of `{whole}`"),
                    ));
                }
            }
        }
        kept.retain(|(_, access)| *access != 0);
        Ok(kept)
    }

    /// The writes that bring a version 1 cgroup here from what its `devices.list` says, as file and value.
    /// What is allowed before and after is allowed throughout.
    ///
    /// # Errors
    /// When version 1 cannot say it.
    pub(super) fn v1_writes(&self, list: &str) -> Result<Vec<(&'static str, String)>, Failure> {
        const ALLOW: &str = "devices.allow";
        const DENY: &str = "devices.deny";
        let wanted = self.flat()?;
        let lines = |file, rules: &[(Devices, u8)]| -> Vec<(&'static str, String)> {
            rules.iter().map(|(devices, access)| (file, line(*devices, *access))).collect()
        };
        let now: Option<Vec<(Devices, u8)>> = list.lines().map(parse_line).collect();
        let mut writes = Vec::new();
        match now {
            _ if self.otherwise => {
                writes.push((ALLOW, "a".to_owned()));
                writes.extend(lines(DENY, &wanted));
            }
            // `a *:* rwm`: everything is allowed, but for exceptions that are not shown.
            None => {
                writes.push((DENY, "a".to_owned()));
                writes.extend(lines(ALLOW, &wanted));
            }
            Some(now) => {
                writes.extend(lines(ALLOW, &without(&wanted, &now)));
                writes.extend(lines(DENY, &without(&now, &wanted)));
            }
        }
        Ok(writes)
    }
}

/// What of `rules` is not in `others`.
fn without(rules: &[(Devices, u8)], others: &[(Devices, u8)]) -> Vec<(Devices, u8)> {
    let rest = |(devices, access): &(Devices, u8)| {
        let there = others.iter().filter(|(other, _)| other == devices).fold(0, |all, (_, bits)| all | bits);
        (*devices, access & !there)
    };
    rules.iter().map(rest).filter(|(_, access)| *access != 0).collect()
}

/// `c 1:3 rwm`.
fn line(devices: Devices, access: u8) -> String {
    let kind = if devices.kind == Kind::Block { 'b' } else { 'c' };
    let part = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
    let letters: String = letters.iter().filter(|(bit, _)| access & bit != 0).map(|(_, c)| c).collect();
    format!("{kind} {}:{} {letters}", part(devices.major), part(devices.minor))
}

/// A line of `devices.list`; `None` for the one about everything.
fn parse_line(line: &str) -> Option<(Devices, u8)> {
    let mut words = line.split([' ', ':']);
    let kind = match words.next()? {
        "b" => Kind::Block,
        "c" => Kind::Character,
        _ => return None,
    };
    let mut number = || words.next().map(|word| word.parse().ok());
    let (major, minor) = (number()?, number()?);
    Some((Devices { kind, major, minor }, letters(words.next()?)?))
}

fn letters(text: &str) -> Option<u8> {
    text.chars().try_fold(0, |all, letter| match letter {
        'r' => Some(all | READ),
        'w' => Some(all | WRITE),
        'm' => Some(all | MAKE),
        _ => None,
    })
}

fn access(field: &str, rule: &LinuxDeviceCgroup) -> Result<u8, Failure> {
    let text = rule.access().as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm");
    letters(text).ok_or_else(|| refuse(&format!("{field}.access"), format!("`{text}` is not of r, w and m")))
}

/// Nothing and -1 are any number.
fn number(field: &str, number: Option<i64>) -> Result<Option<u32>, Failure> {
    match number.filter(|number| *number != -1) {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .ok()
            .filter(|number| i32::try_from(*number).is_ok())
            .map(Some)
            .ok_or_else(|| refuse(field, format!("there can be no device number {number}"))),
    }
}

fn kinds(field: &str, rule: &LinuxDeviceCgroup) -> Result<&'static [Kind], Failure> {
    match rule.typ() {
        None | Some(LinuxDeviceType::A) => Ok(&[Kind::Block, Kind::Character]),
        Some(LinuxDeviceType::B) => Ok(&[Kind::Block]),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Ok(&[Kind::Character]),
        Some(LinuxDeviceType::P) => Err(refuse(&format!("{field}.type"), "a pipe is no device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: &str = "a *:* rwm\n";

    fn rules(json: serde_json::Value) -> Result<Rules, Failure> {
        let list: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).expect("rules");
        Rules::collect(&list)
    }

    fn writes(json: serde_json::Value, list: &str) -> Vec<String> {
        let writes = rules(json).expect("rules").v1_writes(list).expect("writes");
        writes.into_iter().map(|(file, value)| format!("{file} {value}")).collect()
    }

    #[test]
    fn denying_all_leaves_the_default_devices() {
        let deny = serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        ]);
        let lines = writes(deny.clone(), FRESH);
        assert_eq!(lines[0], "devices.deny a");
        assert_eq!(lines[1], "devices.allow c 10:229 rw");
        assert_eq!(lines.iter().filter(|line| *line == "devices.allow c 1:3 rwm").count(), 1, "once");
        assert!(lines.contains(&"devices.allow c 136:* rwm".to_owned()));
        assert_eq!(writes(serde_json::json!([]), FRESH)[0], "devices.deny a", "silence denies");
        // What is there already is not written again.
        let list: String = lines[1..].iter().map(|l| format!("{}\n", &l["devices.allow ".len()..])).collect();
        assert_eq!(writes(deny, &list), [] as [&str; 0]);
    }

    #[test]
    fn a_change_never_denies_what_stays_allowed() {
        let before = "c 1:3 rwm\nc *:* m\nb *:* m\nb 8:0 r\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\n\
             c 5:0 rwm\nc 5:1 rwm\nc 5:2 rwm\nc 136:* rwm\n";
        let wanted = serde_json::json!([
            {"allow": false},
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rw"},
        ]);
        assert_eq!(writes(wanted, before), ["devices.allow b 8:16 rw", "devices.deny b 8:0 r"]);
    }

    #[test]
    fn everything_but_a_device() {
        let wanted = serde_json::json!([
            {"allow": true},
            {"allow": false, "type": "b", "major": 8, "access": "w"},
        ]);
        assert_eq!(writes(wanted, FRESH), ["devices.allow a", "devices.deny b 8:* w"]);
        assert!(rules(serde_json::json!([{"allow": true}])).expect("rules").allow_all());
        assert!(!rules(serde_json::json!([])).expect("rules").allow_all());
    }

    #[test]
    fn version_1_cannot_make_a_hole() {
        let hole = rules(serde_json::json!([
            {"allow": false},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "r"},
        ]));
        let failure = hole.expect("rules").v1_writes(FRESH).expect_err("refused");
        assert!(failure.message.contains("`b 8:1 r` cannot be taken out of `b 8:* r`"), "{failure}");
        let taken_back = serde_json::json!([
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rw"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
        ]);
        assert!(writes(taken_back, FRESH).contains(&"devices.allow b 8:1 r".to_owned()));
    }

    #[test]
    fn rules_for_the_same_device_add_up() {
        let apart = serde_json::json!([
            {"allow": true, "type": "c", "major": 9, "minor": 9, "access": "r"},
            {"allow": true, "type": "c", "major": 9, "minor": 9, "access": "w"},
        ]);
        assert!(writes(apart, FRESH).contains(&"devices.allow c 9:9 rw".to_owned()));
    }

    #[test]
    fn a_rule_that_cannot_be_is_named() {
        let refusal = |json| rules(json).expect_err("refused").message.replace('`', "");
        let cases = [
            (serde_json::json!([{"allow": true}, {"allow": true, "access": "x"}]), "devices[1].access: x"),
            (serde_json::json!([{"allow": true, "type": "p"}]), "devices[0].type"),
            (serde_json::json!([{"allow": true, "type": "c", "major": -2}]), "devices[0]: there can be no"),
            (serde_json::json!([{"allow": true, "type": "c", "minor": 1_i64 << 40}]), "devices[0]"),
        ];
        for (json, words) in cases {
            let said = refusal(json);
            assert!(said.starts_with("linux.resources.") && said.contains(words), "{said}");
        }
    }
}
