//! Arguments: the flags of a command, as data, and a line taken apart by them. Pure.
//!
//! The forms are those that callers of runc use: `--name value`, `--name=value`, one dash for two, one letter
//! where there is one, and truth values spelled as Go spells them.

use std::ffi::OsString;
use std::fmt::Write as _;

use crate::failure::Failure;

/// A flag of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flag {
    name: &'static str,
    letter: Option<&'static str>,
    /// What its value is, for a flag that takes one.
    value: Option<&'static str>,
    about: &'static str,
}

impl Flag {
    /// One that is there or not.
    pub(super) const fn switch(name: &'static str, about: &'static str) -> Flag {
        Flag { name, letter: None, value: None, about }
    }

    /// One that is followed by a value.
    pub(super) const fn value(name: &'static str, value: &'static str, about: &'static str) -> Flag {
        Flag { name, letter: None, value: Some(value), about }
    }

    /// The same with a short form.
    pub(super) const fn or(self, letter: &'static str) -> Flag {
        Flag { letter: Some(letter), ..self }
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.letter == Some(name)
    }
}

/// Lines that explain flags.
pub(super) fn explain(flags: &[Flag]) -> String {
    let mut text = String::new();
    for flag in flags {
        let letter = flag.letter.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = flag.value.map_or_else(String::new, |value| format!(" {value}"));
        let form = format!("{letter}--{}{value}", flag.name);
        let _ = writeln!(text, "  {form:32} {}", flag.about);
    }
    text
}

/// Where flags may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Before the first argument that is none: what follows may be another command's line.
    Leading,
    /// Anywhere.
    Anywhere,
}

/// A command line, sorted out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    flags: Vec<(&'static str, String)>,
    /// What is no flag.
    pub rest: Vec<String>,
}

impl Parsed {
    /// Sorts a line by the flags that are known.
    pub(super) fn parse(args: &[String], known: &[Flag], order: Order) -> Result<Parsed, Failure> {
        let mut parsed = Parsed::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                parsed.rest.extend(args.by_ref().cloned());
                break;
            }
            let Some(text) = arg.strip_prefix('-').filter(|text| !text.is_empty()) else {
                parsed.rest.push(arg.clone());
                if order == Order::Leading {
                    parsed.rest.extend(args.by_ref().cloned());
                }
                continue;
            };
            let text = text.strip_prefix('-').unwrap_or(text);
            let (name, given) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let flag = known.iter().find(|flag| flag.is_called(name)).ok_or_else(|| unknown(arg))?;
            let value = match (flag.value, given) {
                (Some(_), Some(value)) => value.to_owned(),
                (Some(_), None) => args.next().ok_or_else(|| missing(flag.name))?.clone(),
                (None, given) => truth(flag.name, given.unwrap_or("true"))?.to_string(),
            };
            parsed.flags.push((flag.name, value));
        }
        Ok(parsed)
    }

    /// Whether a switch is on; the last one counts.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// A flag's value; the last one counts.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// A flag's values, in order.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// A flag's value as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        self.value(name).map(|text| number(name, text)).transpose()
    }

    /// The container's id, when that is all there is to be.
    pub(super) fn only_id(&self) -> Result<&str, Failure> {
        match self.rest.as_slice() {
            [id] => Ok(id),
            _ => Err(Failure::invalid("exactly one container id is needed")),
        }
    }

    /// The container's id, and what follows.
    pub(super) fn id_and_more(&self) -> Result<(&str, &[String]), Failure> {
        match self.rest.as_slice() {
            [id, more @ ..] => Ok((id, more)),
            [] => Err(Failure::invalid("a container id is needed")),
        }
    }

    /// Refuses arguments.
    pub(super) fn nothing_more(&self) -> Result<(), Failure> {
        match self.rest.first() {
            None => Ok(()),
            Some(arg) => Err(Failure::invalid(format!("`{arg}` is one argument too many"))),
        }
    }
}

/// A number given for a flag.
pub(super) fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::invalid(format!("invalid value for {name}: `{text}` is no number that fits")))
}

fn unknown(arg: &str) -> Failure {
    Failure::invalid(format!("flag provided but not defined: `{arg}`; see `rswarm runtime --help`"))
}

fn missing(name: &str) -> Failure {
    Failure::invalid(format!("flag needs an argument: `--{name}`"))
}

/// As Go's `strconv.ParseBool` reads it.
pub(super) fn truth(name: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Failure::invalid(format!("invalid value for {name}: `{text}` is neither true nor false"))),
    }
}

/// Arguments as text.
pub(super) fn as_text(args: Vec<OsString>) -> Result<Vec<String>, Failure> {
    let text = |arg: OsString| {
        arg.into_string().map_err(|arg| Failure::invalid(format!("argument {} is not UTF-8", arg.display())))
    };
    args.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: &[Flag] = &[
        Flag::value("bundle", "DIR", "").or("b"),
        Flag::value("env", "NAME=VALUE", "").or("e"),
        Flag::switch("force", "").or("f"),
    ];

    fn parse(line: &str, order: Order) -> Result<Parsed, String> {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Parsed::parse(&args, KNOWN, order).map_err(|failure| failure.message)
    }

    #[test]
    fn flags_have_the_forms_that_callers_use() {
        for line in
            ["--bundle /x --force id", "--bundle=/x -f id", "-bundle /x -force=1 id", "-b=/x --force=true id"]
        {
            let parsed = parse(line, Order::Leading).expect(line);
            assert_eq!((parsed.value("bundle"), parsed.has("force")), (Some("/x"), true), "{line}");
            assert_eq!(parsed.rest, ["id"], "{line}");
        }
    }

    #[test]
    fn flags_stop_or_do_not_stop_at_the_first_argument() {
        assert_eq!(parse("-f id --other x", Order::Leading).expect("parsed").rest, ["id", "--other", "x"]);
        let parsed = parse("id -f KILL", Order::Anywhere).expect("parsed");
        assert_eq!((parsed.rest.len(), parsed.has("force")), (2, true));
        assert_eq!(parse("-f -- -b", Order::Anywhere).expect("parsed").rest, ["-b"]);
        assert_eq!(parse("-", Order::Anywhere).expect("parsed").rest, ["-"]);
    }

    #[test]
    fn the_last_value_counts_unless_all_do() {
        let parsed = parse("-e A=1 -e B=2=3 -f -f=false", Order::Leading).expect("parsed");
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B=2=3"]);
        assert_eq!((parsed.value("env"), parsed.has("force")), (Some("B=2=3"), false));
    }

    #[test]
    fn mistakes_are_named() {
        let fails = |line| parse(line, Order::Leading).expect_err(line);
        assert!(fails("--nonsense").contains("`--nonsense`"));
        assert!(fails("--bundle").contains("needs an argument"));
        assert!(fails("--force=maybe").contains("neither true nor false"));
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("--bundle"),
            Just("-b"),
            Just("-force"),
            Just("--"),
            Just("-"),
            Just("---"),
            Just("--="),
            Just("-f=true"),
            Just("--env=A=b"),
            Just("-=x"),
            Just("id"),
            Just(""),
        ]
        .prop_map(str::to_owned)
        .boxed()
        .prop_union(".{0,12}".boxed())
    }

    proptest! {
        #[test]
        fn any_line_is_sorted_out_or_refused(line in prop::collection::vec(word(), 0..8), anywhere: bool) {
            let order = if anywhere { Order::Anywhere } else { Order::Leading };
            if let Ok(parsed) = Parsed::parse(&line, KNOWN, order) {
                // Nothing is invented and nothing is lost: each argument is a flag, its value, `--`, or left.
                prop_assert!(parsed.rest.iter().all(|arg| line.contains(arg)));
                prop_assert!(parsed.rest.len() + parsed.flags.len() <= line.len());
                prop_assert!(parsed.rest.len() + 2 * parsed.flags.len() + 1 >= line.len());
            }
        }

        #[test]
        fn what_follows_two_dashes_is_never_a_flag(line in prop::collection::vec(word(), 0..8)) {
            let args: Vec<String> = std::iter::once("--".to_owned()).chain(line.iter().cloned()).collect();
            let parsed = Parsed::parse(&args, KNOWN, Order::Anywhere).expect("parsed");
            prop_assert_eq!(parsed.rest, line);
        }
    }
}
