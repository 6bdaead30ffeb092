//! Signals by name and by number. Pure.

/// SIGKILL.
pub(crate) const KILL: i32 = 9;
/// SIGTERM.
pub(crate) const TERM: i32 = 15;

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// `TERM`, `sigterm`, `15`, `SIGRTMIN+3`; `None` for what is no signal.
pub(crate) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).or_else(|| real_time(name))
}

fn real_time(name: &str) -> Option<i32> {
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        if offset.is_empty() {
            RTMIN
        } else {
            RTMIN + offset.strip_prefix('+')?.parse::<u8>().ok().map(i32::from)?
        }
    } else {
        let offset = name.strip_prefix("RTMAX")?;
        if offset.is_empty() {
            RTMAX
        } else {
            RTMAX - offset.strip_prefix('-')?.parse::<u8>().ok().map(i32::from)?
        }
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_parse_and_others_do_not() {
        let good = [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("1", 1),
            ("64", 64),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ];
        for (text, number) in good {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "-1", "65", "SIGFOO", "RTMIN-1", "RTMIN+31", "SIG", "RTMAX-31"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
