//! Which log a container keeps, from its driver's options. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use rswarm_proto::model::container::LogDriver;
use rswarm_shim::{LogFile, LogFormat};

use super::Container;

/// What the driver `local` keeps, as Docker's does: five files of 20 MB, the old ones compressed.
const LOCAL: (u64, u32) = (20 << 20, 5);

/// What waits for the disk with `mode=non-blocking`, unless `max-buffer-size` says otherwise.
// spec: docker: daemon/logger/ring.go
const BUFFER: u64 = 1 << 20;

/// Options that choose attributes; only json-file has room for them, as in Docker.
const ATTRIBUTES: [&str; 5] = ["labels", "labels-regex", "env", "env-regex", "tag"];

/// Fills in the engine's default driver, and its options where the driver is that one.
// spec: moby: daemon/logs.go mergeAndVerifyLogConfig
pub(crate) fn complete(driver: &mut LogDriver, default: &LogDriver) {
    if driver.name.is_empty() {
        driver_name(default).clone_into(&mut driver.name);
    }
    if driver.name == driver_name(default) {
        for (key, value) in &default.options {
            driver.options.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// How the driver's log is read.
pub(crate) fn format(driver: &LogDriver) -> LogFormat {
    if driver.name == "local" { LogFormat::Local } else { LogFormat::Json }
}

/// The log file of a driver's configuration, without its attributes; `None` keeps none.
///
/// # Errors
/// The driver or option that is not known, in Docker's words.
pub(crate) fn parse(driver: &LogDriver, path: &Path) -> Result<Option<LogFile>, String> {
    let is_local = match driver.name.as_str() {
        "" | "json-file" => false,
        "local" => true,
        "none" => return Ok(None),
        other => {
            return Err(format!("error looking up logging plugin {other}: plugin \"{other}\" not found"));
        }
    };
    let (max_size, max_files) = if is_local { LOCAL } else { (0, 1) };
    let mut file =
        LogFile { path: path.to_owned(), max_size, max_files, format: format(driver), ..LogFile::default() };
    let (mut compress, mut buffer) = (None, None);
    for (key, value) in &driver.options {
        let wrong = || format!("invalid value for log opt '{key}': {value}");
        match (key.as_str(), value.as_str()) {
            ("max-size", "-1") => file.max_size = 0,
            ("max-size", _) => file.max_size = size(value).filter(|size| *size > 0).ok_or_else(wrong)?,
            ("max-file", _) => {
                file.max_files = value.parse().ok().filter(|files| *files > 0).ok_or_else(wrong)?;
            }
            ("compress", _) => compress = Some(value.parse::<bool>().map_err(|_| wrong())?),
            ("mode", "blocking") => file.buffer = None,
            ("mode", "non-blocking") => file.buffer = Some(BUFFER),
            ("mode", other) => return Err(format!("logger: logging mode not supported: {other}")),
            ("max-buffer-size", _) => buffer = Some(size(value).filter(|size| *size > 0).ok_or_else(wrong)?),
            (name, _) if !is_local && ATTRIBUTES.contains(&name) => check_attribute(name, value)?,
            _ => return Err(format!("unknown log opt '{key}' for {} log driver", driver_name(driver))),
        }
    }
    match (buffer, &mut file.buffer) {
        (Some(asked), Some(bytes)) => *bytes = asked,
        (Some(_), None) => {
            return Err(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'".to_owned()
            );
        }
        (None, _) => {}
    }
    // moby: more files without a size are never begun, and no mistake.
    let rotates = file.max_files > 1 && file.max_size > 0;
    if compress == Some(true) && !rotates {
        return Err("compress cannot be true when max-file is less than 2 or max-size is not set".to_owned());
    }
    file.compress = compress.unwrap_or(is_local && rotates);
    Ok(Some(file))
}

/// The file that a container's driver writes: agents look for json-file's under this name.
pub(crate) fn path(dir: &Path, id: &str, driver: &LogDriver) -> PathBuf {
    match format(driver) {
        LogFormat::Json => dir.join(format!("{id}-json.log")),
        LogFormat::Local => dir.join("local-logs/container.log"),
    }
}

/// The attributes that a container's options choose for every line.
///
/// # Errors
/// An expression or template that cannot be read.
// spec: docker: daemon/logger/loginfo.go ExtraAttributes, daemon/logger/loggerutils/log_tag.go
pub(crate) fn attributes(container: &Container) -> Result<BTreeMap<String, String>, String> {
    let (spec, options) = (&container.config.spec, &container.config.log.options);
    let mut attributes = BTreeMap::new();
    let labels = spec.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let env = || spec.env.iter().filter_map(|entry| entry.split_once('='));
    let mut add = |chosen: Chosen, pairs: &mut dyn Iterator<Item = (&str, &str)>| {
        for (key, value) in pairs.filter(|(key, _)| chosen.has(key)) {
            attributes.insert(key.to_owned(), value.to_owned());
        }
    };
    add(Chosen::of(options, "labels", "labels-regex")?, &mut labels.into_iter());
    add(Chosen::of(options, "env", "env-regex")?, &mut env());
    if let Some(template) = options.get("tag").filter(|template| !template.is_empty()) {
        let text = tag(template, |name| {
            Some(match name {
                "ID" => rswarm_base::id::short(&container.id).to_owned(),
                "FullID" => container.id.clone(),
                "Name" => container.name.clone(),
                "ImageID" => rswarm_base::id::short(bare(&container.image_id)).to_owned(),
                "ImageFullID" => container.image_id.clone(),
                "ImageName" => spec.image.clone(),
                "DaemonName" => "rswarm".to_owned(),
                _ => return None,
            })
        })?;
        attributes.insert("tag".to_owned(), text);
    }
    Ok(attributes)
}

/// Which labels or variables are wanted.
struct Chosen<'a> {
    names: Vec<&'a str>,
    pattern: Option<Regex>,
}

impl<'a> Chosen<'a> {
    fn of(options: &'a BTreeMap<String, String>, names: &str, pattern: &str) -> Result<Chosen<'a>, String> {
        let names = options.get(names).map(|names| names.split(',').collect()).unwrap_or_default();
        let pattern = options.get(pattern).filter(|text| !text.is_empty()).map(|text| expression(text));
        Ok(Chosen { names, pattern: pattern.transpose()? })
    }

    fn has(&self, key: &str) -> bool {
        self.names.contains(&key) || self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(key))
    }
}

fn expression(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("invalid expression in log opt: {error}"))
}

fn bare(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn check_attribute(name: &str, value: &str) -> Result<(), String> {
    match name {
        "labels-regex" | "env-regex" => expression(value).map(drop),
        "tag" => tag(value, |_| Some(String::new())).map(drop),
        _ => Ok(()),
    }
}

/// Fills in `{{.Name}}`s; more of Go's templates than that is not read.
fn tag(template: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let unknown = || format!("log opt 'tag': template `{template}` is not supported");
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, after) = part.split_once("}}").ok_or_else(unknown)?;
        let name = name.trim().strip_prefix('.').ok_or_else(unknown)?;
        text.push_str(&value(name).ok_or_else(unknown)?);
        text.push_str(after);
    }
    Ok(text)
}

fn driver_name(driver: &LogDriver) -> &str {
    if driver.name.is_empty() { "json-file" } else { &driver.name }
}

/// `10m`, `1.5g`, `64kb`, `100`: bytes, by powers of 1024.
fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number: f64 = digits.parse().ok()?;
    let bytes = number * (1u64 << unit) as f64;
    (number.is_finite() && (0.0..=1e18).contains(&bytes)).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, options: &[(&str, &str)]) -> Result<Option<(u64, u32)>, String> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let driver = LogDriver { name: name.into(), options };
        parse(&driver, Path::new("/x")).map(|file| file.map(|file| (file.max_size, file.max_files)))
    }

    #[test]
    fn drivers_and_options_are_understood() {
        assert_eq!(of("", &[]), Ok(Some((0, 1))));
        assert_eq!(of("json-file", &[("max-size", "10m"), ("max-file", "3")]), Ok(Some((10 << 20, 3))));
        assert_eq!(of("json-file", &[("max-size", "1.5k")]), Ok(Some((1536, 1))));
        assert_eq!(of("json-file", &[("max-file", "3")]), Ok(Some((0, 3))), "files without a size");
        assert_eq!(of("local", &[]), Ok(Some(LOCAL)));
        assert_eq!(of("none", &[]), Ok(None));
    }

    #[test]
    fn the_engines_driver_is_the_default_and_so_are_its_options() {
        let driver = |name: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            LogDriver { name: name.into(), options }
        };
        let default = driver("local", &[("max-size", "1m"), ("max-file", "2")]);
        let completed = |name: &str, options: &[(&str, &str)]| {
            let mut asked = driver(name, options);
            complete(&mut asked, &default);
            asked
        };
        assert_eq!(
            completed("", &[("max-file", "9")]),
            driver("local", &[("max-size", "1m"), ("max-file", "9")])
        );
        assert_eq!(completed("json-file", &[]), driver("json-file", &[]));
        let mut none = driver("", &[]);
        complete(&mut none, &LogDriver::default());
        assert_eq!(none.name, "json-file");
    }

    #[test]
    fn modes_and_compression_are_understood() {
        let parse = |name: &str, options: &[(&str, &str)]| {
            let options =
                options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let file = parse(&LogDriver { name: name.into(), options }, Path::new("/x"));
            file.map(|file| file.map(|file| (file.compress, file.buffer)).expect("file"))
        };
        let rotated = ("max-size", "1m");
        assert_eq!(parse("json-file", &[rotated, ("max-file", "2"), ("compress", "true")]), Ok((true, None)));
        assert_eq!(parse("local", &[]), Ok((true, None)));
        assert_eq!(parse("local", &[("compress", "false")]), Ok((false, None)));
        assert_eq!(parse("local", &[("max-file", "1")]), Ok((false, None)));
        assert_eq!(parse("", &[("mode", "non-blocking")]), Ok((false, Some(1 << 20))));
        let buffer = [("max-buffer-size", "4m"), ("mode", "non-blocking")];
        assert_eq!(parse("", &buffer), Ok((false, Some(4 << 20))));
        assert!(parse("", &buffer[..1]).is_err_and(|why| why.contains("non-blocking")));
        assert!(parse("", &[("mode", "sometimes")]).is_err());
        assert!(parse("", &[("compress", "true"), rotated]).is_err());
        assert!(parse("local", &[("labels", "a")]).is_err());
        assert!(parse("", &[("labels-regex", "(")]).is_err());
        assert!(parse("", &[("tag", "{{.Name}}"), ("labels", "a,b")]).is_ok());
        assert!(parse("", &[("tag", "{{with")]).is_err());
    }

    #[test]
    fn labels_variables_and_the_tag_become_attributes() {
        let mut config = crate::config::ContainerConfig::default();
        let pairs = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        config.spec.labels = pairs(&[("a", "1"), ("b", "2"), ("com.x", "3")]).into_iter().collect();
        config.spec.env = vec!["E=5".to_owned(), "PATH=/bin".to_owned(), "gone".to_owned()];
        config.log.options = pairs(&[
            ("labels", "a,none"),
            ("labels-regex", "^com"),
            ("env", "E"),
            ("tag", "{{.Name}}/{{ .ID }}"),
        ]);
        let mut container = crate::spec::tests::container(config, Vec::new());
        (container.id, container.name) = ("0123456789abcdef".to_owned(), "web".to_owned());
        let wanted = pairs(&[("E", "5"), ("a", "1"), ("com.x", "3"), ("tag", "web/0123456789ab")]);
        assert_eq!(attributes(&container), Ok(wanted));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(of("syslog", &[]).expect_err("driver").contains("syslog"));
        for options in
            [&[("max-size", "big")][..], &[("max-file", "0")], &[("colour", "red")], &[("compress", "maybe")]]
        {
            assert!(of("json-file", options).is_err(), "{options:?}");
        }
    }
}
