//! `import --change` and `commit --change`: Dockerfile instructions that shape an image's configuration.
//! Pure.

use rswarm_base::{Classify, Kind};

use crate::config::{Healthcheck, ImageConfig};

const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
const PORTS_MAX: usize = 65_535;

/// Which change cannot be made, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// An instruction that builds rather than describes, or none at all.
    #[error("{0} is not a valid change command")]
    Command(String),
    /// An instruction without what it needs.
    #[error("{0} requires {1}")]
    Arguments(&'static str, &'static str),
    /// Something else is wrong with it.
    #[error("invalid {command} `{value}`: {reason}")]
    Value {
        /// The instruction.
        command: &'static str,
        /// What it was given.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

impl Classify for ChangeError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// Applies instructions, one in each line, in order.
///
/// # Errors
/// [`ChangeError`] for the first that cannot be applied; `config` may then be half changed.
pub fn apply_changes(config: &mut ImageConfig, changes: &[String]) -> Result<(), ChangeError> {
    let mut is_cmd_set = false;
    for line in changes.iter().flat_map(|change| change.lines()).map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let command = command.to_ascii_uppercase();
        apply(config, &command, rest.trim(), &mut is_cmd_set)?;
    }
    Ok(())
}

fn apply(
    config: &mut ImageConfig,
    command: &str,
    rest: &str,
    is_cmd_set: &mut bool,
) -> Result<(), ChangeError> {
    match command {
        "CMD" => {
            config.cmd = command_line(config, rest);
            *is_cmd_set = true;
        }
        "ENTRYPOINT" => {
            config.entrypoint = command_line(config, rest);
            if !*is_cmd_set {
                config.cmd.clear(); // it was meant for the former entry point
            }
        }
        "ENV" => env(config, rest)?,
        "EXPOSE" => expose(config, rest)?,
        "LABEL" => {
            for (key, value) in pairs("LABEL", rest, &config.env)? {
                config.labels.insert(key, value);
            }
        }
        "USER" => config.user = one("USER", rest, &config.env)?,
        "VOLUME" => volume(config, rest)?,
        "WORKDIR" => workdir(config, rest)?,
        "STOPSIGNAL" => config.stop_signal = one("STOPSIGNAL", rest, &config.env)?,
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest)?),
        "ONBUILD" => on_build(config, rest)?,
        other => return Err(ChangeError::Command(other.to_ascii_lowercase())),
    }
    Ok(())
}

/// `["a", "b"]`, when it is exactly that.
fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// The exec form as it is, the shell form behind the image's shell.
fn command_line(config: &ImageConfig, text: &str) -> Vec<String> {
    json_list(text).unwrap_or_else(|| {
        if text.is_empty() {
            return Vec::new();
        }
        let mut line = match config.shell.as_slice() {
            [] => DEFAULT_SHELL.map(str::to_owned).to_vec(),
            shell => shell.to_vec(),
        };
        line.push(text.to_owned());
        line
    })
}

fn env(config: &mut ImageConfig, rest: &str) -> Result<(), ChangeError> {
    for (key, value) in pairs("ENV", rest, &config.env)? {
        let prefix = format!("{key}=");
        let entry = format!("{prefix}{value}");
        match config.env.iter_mut().find(|known| known.starts_with(&prefix)) {
            Some(known) => *known = entry,
            None => config.env.push(entry),
        }
    }
    Ok(())
}

fn expose(config: &mut ImageConfig, rest: &str) -> Result<(), ChangeError> {
    let ports = words(rest, &config.env);
    if ports.is_empty() {
        return Err(ChangeError::Arguments("EXPOSE", "at least one argument"));
    }
    for port in ports {
        let (range, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let refused = || ChangeError::Value {
            command: "EXPOSE",
            value: port.clone(),
            reason: "a port is a number from 1 to 65535, with /tcp, /udp or /sctp".to_owned(),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(refused);
        let (first, last) = (number(first)?, number(last)?);
        let protocol = protocol.to_ascii_lowercase();
        if first > last || !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(refused());
        }
        config.exposed_ports.extend((first..=last).take(PORTS_MAX).map(|port| format!("{port}/{protocol}")));
    }
    Ok(())
}

fn volume(config: &mut ImageConfig, rest: &str) -> Result<(), ChangeError> {
    let volumes = json_list(rest).unwrap_or_else(|| words(rest, &config.env));
    if volumes.is_empty() || volumes.iter().any(|volume| volume.trim().is_empty()) {
        return Err(ChangeError::Arguments("VOLUME", "at least one path, none of them empty"));
    }
    config.volumes.extend(volumes.iter().map(|volume| volume.trim().to_owned()));
    Ok(())
}

fn workdir(config: &mut ImageConfig, rest: &str) -> Result<(), ChangeError> {
    let given = one("WORKDIR", rest, &config.env)?;
    let joined = if given.starts_with('/') { given } else { format!("/{}/{given}", config.working_dir) };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    config.working_dir = format!("/{}", parts.join("/"));
    Ok(())
}

fn on_build(config: &mut ImageConfig, rest: &str) -> Result<(), ChangeError> {
    let command = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match command.as_str() {
        "" => Err(ChangeError::Arguments("ONBUILD", "at least one argument")),
        "ONBUILD" | "FROM" | "MAINTAINER" => Err(ChangeError::Value {
            command: "ONBUILD",
            value: rest.to_owned(),
            reason: format!("{command} isn't allowed as an ONBUILD trigger"),
        }),
        _ => {
            config.on_build.push(rest.to_owned());
            Ok(())
        }
    }
}

// spec: Dockerfile reference, HEALTHCHECK
fn healthcheck(rest: &str) -> Result<Healthcheck, ChangeError> {
    let mut check = Healthcheck::default();
    let mut rest = rest;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        health_option(&mut check, option)?;
        rest = after.trim_start();
    }
    let (kind, line) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (kind.to_ascii_uppercase().as_str(), line.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", "") => return Err(ChangeError::Arguments("HEALTHCHECK", "a command after CMD")),
        ("CMD", line) => match json_list(line) {
            Some(words) => std::iter::once("CMD".to_owned()).chain(words).collect(),
            None => vec!["CMD-SHELL".to_owned(), line.to_owned()],
        },
        _ => return Err(ChangeError::Arguments("HEALTHCHECK", "CMD and a command, or NONE alone")),
    };
    Ok(check)
}

fn health_option(check: &mut Healthcheck, option: &str) -> Result<(), ChangeError> {
    let refused = |reason: &str| ChangeError::Value {
        command: "HEALTHCHECK",
        value: format!("--{option}"),
        reason: reason.to_owned(),
    };
    let (name, value) = option.split_once('=').ok_or_else(|| refused("an option is written --name=value"))?;
    let time = || duration_ns(value).ok_or_else(|| refused("not a duration such as 30s or 1m30s"));
    match name {
        "interval" => check.interval = time()?,
        "timeout" => check.timeout = time()?,
        "start-period" => check.start_period = time()?,
        "start-interval" => check.start_interval = time()?,
        "retries" => check.retries = value.parse().map_err(|_| refused("not a number"))?,
        _ => return Err(refused("unknown option")),
    }
    Ok(())
}

/// A duration as Go writes it: `1m30s`, `500ms`, `0`.
fn duration_ns(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0.0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let units = &rest[digits..];
        let unit = &units[..units.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(units.len())];
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 6e10,
            "h" => 3.6e12,
            _ => return None,
        };
        total += number * scale;
        rest = &units[unit.len()..];
    }
    (!text.is_empty() && total.is_finite() && total < i64::MAX as f64).then_some(total as i64)
}

fn one(command: &'static str, rest: &str, env: &[String]) -> Result<String, ChangeError> {
    match words(rest, env).join(" ") {
        empty if empty.is_empty() => Err(ChangeError::Arguments(command, "exactly one argument")),
        word => Ok(word),
    }
}

/// `key=value …`, or the old `key the rest of the line`.
fn pairs(command: &'static str, rest: &str, env: &[String]) -> Result<Vec<(String, String)>, ChangeError> {
    let wanted = || ChangeError::Arguments(command, "at least one key=value");
    let first = rest.split_whitespace().next().ok_or_else(wanted)?;
    if !first.contains('=') {
        let (key, value) = rest.split_once(char::is_whitespace).ok_or_else(wanted)?;
        return Ok(vec![(key.to_owned(), words(value.trim(), env).join(" "))]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ChangeError::Value { command, value: word, reason: "not of the form key=value".to_owned() }),
    };
    words(rest, env).into_iter().map(pair).collect()
}

/// Splits at blanks; quotes group and are dropped, `\` takes the next character as it is, `$name` and
/// `${name}` (also with `:-` and `:+`) are replaced outside of single quotes.
fn words(text: &str, env: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut quote = None::<char>;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, quote) {
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => match rest.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => word.get_or_insert_default().push('\\'),
            },
            ('$', None | Some('"')) => {
                let value = variable(&mut rest, env);
                word.get_or_insert_default().push_str(&value);
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What follows a `$`.
fn variable(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, env: &[String]) -> String {
    let lookup = |name: &str| {
        env.iter()
            .rev()
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
            .filter(|v| !v.is_empty())
    };
    if rest.next_if_eq(&'{').is_some() {
        let inner: String = rest.by_ref().take_while(|&c| c != '}').collect();
        if let Some((name, default)) = inner.split_once(":-") {
            return lookup(name).unwrap_or(default).to_owned();
        }
        if let Some((name, other)) = inner.split_once(":+") {
            return lookup(name).map(|_| other).unwrap_or_default().to_owned();
        }
        return lookup(&inner).unwrap_or_default().to_owned();
    }
    let mut name = String::new();
    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if name.is_empty() { "$".to_owned() } else { lookup(&name).unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Result<ImageConfig, ChangeError> {
        let mut config = ImageConfig::default();
        let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
        apply_changes(&mut config, &changes).map(|()| config)
    }

    #[test]
    fn commands_come_in_two_forms_and_an_entry_point_drops_a_stale_command() {
        let config = changed(&[r#"CMD ["a", "b"]"#]).expect("valid");
        assert_eq!(config.cmd, ["a", "b"]);
        let config = changed(&["cmd echo $HOME"]).expect("valid");
        assert_eq!(config.cmd, ["/bin/sh", "-c", "echo $HOME"]);
        let mut config = ImageConfig { cmd: vec!["old".into()], ..ImageConfig::default() };
        apply_changes(&mut config, &[r#"ENTRYPOINT ["x"]"#.to_owned()]).expect("valid");
        assert_eq!((config.entrypoint.len(), config.cmd.len()), (1, 0));
        let config = changed(&[r#"CMD ["c"]"#, r#"ENTRYPOINT ["x"]"#]).expect("valid");
        assert_eq!(config.cmd, ["c"]);
    }

    #[test]
    fn values_are_quoted_escaped_and_expanded_as_in_a_dockerfile() {
        let config = changed(&[
            r#"ENV A=1 B="two words" C=three\ words D='$A'"#,
            "ENV OLD the rest of it",
            "ENV E=${A}-${NONE:-x}-${A:+y}-$A A=2",
            "LABEL \"com.example\"=\"$B\" plain=",
            "ENV A=3",
        ])
        .expect("valid");
        assert_eq!(
            config.env,
            ["A=3", "B=two words", "C=three words", "D=$A", "OLD=the rest of it", "E=1-x-y-1"]
        );
        assert_eq!(config.labels["com.example"], "two words");
        assert_eq!(config.labels["plain"], "");
    }

    #[test]
    fn the_other_instructions_set_their_fields() {
        let config = changed(&[
            "EXPOSE 80 53/udp 8000-8002",
            "USER app:app",
            "VOLUME /data /logs",
            "VOLUME [\"/more\"]",
            "WORKDIR /srv",
            "WORKDIR app/../web",
            "STOPSIGNAL SIGQUIT",
            "ONBUILD RUN make",
            "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=5 CMD curl localhost",
        ])
        .expect("valid");
        let ports: Vec<_> = config.exposed_ports.iter().map(String::as_str).collect();
        assert_eq!(ports, ["53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]);
        assert_eq!(config.working_dir, "/srv/web");
        assert_eq!(config.volumes.len(), 3);
        assert_eq!((config.user.as_str(), config.stop_signal.as_str()), ("app:app", "SIGQUIT"));
        assert_eq!(config.on_build, ["RUN make"]);
        let check = config.healthcheck.expect("set");
        assert_eq!(check.test, ["CMD-SHELL", "curl localhost"]);
        assert_eq!((check.interval, check.timeout, check.retries), (90_000_000_000, 500_000_000, 5));
    }

    #[test]
    fn what_cannot_be_applied_is_named() {
        let table = [
            ("RUN make", "run is not a valid change command"),
            ("nonsense", "nonsense is not a valid change command"),
            ("ENV", "ENV requires at least one key=value"),
            ("EXPOSE 0", "invalid EXPOSE `0`: a port is a number from 1 to 65535, with /tcp, /udp or /sctp"),
            (
                "EXPOSE 9-8",
                "invalid EXPOSE `9-8`: a port is a number from 1 to 65535, with /tcp, /udp or /sctp",
            ),
            ("USER", "USER requires exactly one argument"),
            ("HEALTHCHECK NONE x", "HEALTHCHECK requires CMD and a command, or NONE alone"),
            (
                "HEALTHCHECK --interval=1x CMD a",
                "invalid HEALTHCHECK `--interval=1x`: not a duration such as 30s or 1m30s",
            ),
            ("ONBUILD FROM x", "invalid ONBUILD `FROM x`: FROM isn't allowed as an ONBUILD trigger"),
        ];
        for (change, message) in table {
            assert_eq!(changed(&[change]).expect_err(change).to_string(), message);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}") {
            for command in ["CMD", "ENV", "LABEL", "HEALTHCHECK", "EXPOSE", "WORKDIR", "VOLUME"] {
                let _ = changed(&[&format!("{command} {text}")]);
            }
        }
    }
}
