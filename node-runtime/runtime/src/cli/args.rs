//! Arguments: flags of a command, some with a value, and what is left. Pure.

use std::ffi::OsString;

use crate::failure::Failure;

/// Arguments, sorted out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    flags: Vec<(String, Option<String>)>,
    /// What is no flag.
    pub rest: Vec<String>,
}

impl Parsed {
    /// Takes flags until the first argument that is none.
    pub(super) fn leading(args: &[String], known: &[(&str, bool)]) -> Result<Parsed, Failure> {
        let mut parsed = Parsed::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                break;
            }
            let Some(name) = arg.starts_with('-').then(|| spelled_out(arg)) else {
                parsed.rest.push(arg.clone());
                break;
            };
            let (name, given) =
                name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            let Some((_, takes_value)) = known.iter().find(|(known, _)| *known == name) else {
                return Err(Failure::invalid(format!(
                    "flag `{arg}` is not known; see `rswarm runtime --help`"
                )));
            };
            let value = match (takes_value, given) {
                (true, Some(value)) => Some(value.to_owned()),
                (true, None) => {
                    let missing = || Failure::invalid(format!("flag `{arg}` needs a value"));
                    Some(args.next().ok_or_else(missing)?.clone())
                }
                (false, None | Some("true")) => None,
                (false, Some(_)) => return Err(Failure::invalid(format!("flag `{name}` takes no value"))),
            };
            parsed.flags.push((name.to_owned(), value));
        }
        parsed.rest.extend(args.cloned());
        Ok(parsed)
    }

    /// Whether a flag was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(known, _)| known == name)
    }

    /// A flag's value; the last one counts.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(known, _)| known == name)?.1.as_deref()
    }
}

/// runc's short forms, and one dash for two.
fn spelled_out(arg: &str) -> &str {
    match arg {
        "-b" => "--bundle",
        "-d" => "--detach",
        "-f" => "--force",
        "-a" => "--all",
        "-v" => "--version",
        "-h" => "--help",
        other => other,
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
    use super::*;

    const KNOWN: &[(&str, bool)] = &[("--bundle", true), ("--force", false)];

    fn parse(line: &str) -> Result<Parsed, String> {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Parsed::leading(&args, KNOWN).map_err(|failure| failure.message)
    }

    #[test]
    fn flags_come_first() {
        let parsed = parse("-b /x --force id --other").expect("parsed");
        assert_eq!((parsed.value("--bundle"), parsed.has("--force")), (Some("/x"), true));
        assert_eq!(parsed.rest, ["id", "--other"]);
        assert_eq!(parse("--bundle=/y -- --id").expect("parsed").rest, ["--id"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parse("--nonsense").expect_err("unknown").contains("`--nonsense` is not known"));
        assert!(parse("--bundle").expect_err("no value").contains("needs a value"));
        assert!(parse("--force=no").expect_err("value").contains("takes no value"));
    }
}
