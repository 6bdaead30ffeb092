//! `--mount type=volume,source=data,target=/data`: the same words for containers and services. Pure.

use rswarm_api::types::{BindOptions, Driver, ImageOptions, Mount, TmpfsOptions, VolumeOptions};

use crate::units;

/// Reads one `--mount`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Mount, String> {
    let mut mount = Mount { kind: "volume".into(), ..Mount::default() };
    for field in split_csv(text) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.trim().to_ascii_lowercase(), None),
        };
        set(&mut mount, &key, value).map_err(|problem| format!("invalid mount `{text}`: {problem}"))?;
    }
    match mount {
        Mount { ref target, .. } if target.is_empty() => {
            Err(format!("invalid mount `{text}`: `target` is missing"))
        }
        Mount { ref kind, ref source, .. } if kind == "bind" && source.is_empty() => {
            Err(format!("invalid mount `{text}`: a bind mount needs a `source`"))
        }
        mount => Ok(mount),
    }
}

fn set(mount: &mut Mount, key: &str, value: Option<String>) -> Result<(), String> {
    let flag = || match value.as_deref() {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("`{key}` is true or false, not `{other}`")),
    };
    let text = || value.clone().ok_or_else(|| format!("`{key}` needs a value"));
    match key {
        "type" => mount.kind = text()?.to_ascii_lowercase(),
        "source" | "src" => mount.source = text()?,
        "target" | "dst" | "destination" => mount.target = text()?,
        "readonly" | "ro" => mount.read_only = flag()?,
        "consistency" => mount.consistency = text()?,
        "bind-propagation" => bind(mount).propagation = text()?,
        "bind-nonrecursive" => bind(mount).non_recursive = flag()?,
        "bind-create-mountpoint" => bind(mount).create_mountpoint = flag()?,
        "bind-recursive" => match text()?.as_str() {
            "enabled" => {}
            "disabled" => bind(mount).non_recursive = true,
            "writable" => bind(mount).read_only_non_recursive = true,
            "readonly" => bind(mount).read_only_force_recursive = true,
            other => return Err(format!("`{key}` cannot be `{other}`")),
        },
        "volume-nocopy" => volume(mount).no_copy = flag()?,
        "volume-subpath" => volume(mount).subpath = text()?,
        "image-subpath" => mount.image_options.get_or_insert_with(ImageOptions::default).subpath = text()?,
        "volume-label" => {
            let (name, value) = pair(&text()?);
            volume(mount).labels.insert(name, value);
        }
        "volume-driver" => driver(mount).name = text()?,
        "volume-opt" => {
            let (name, value) = pair(&text()?);
            driver(mount).options.insert(name, value);
        }
        "tmpfs-size" => tmpfs(mount).size_bytes = units::parse_bytes(&text()?)?,
        "tmpfs-mode" => {
            tmpfs(mount).mode =
                u32::from_str_radix(&text()?, 8).map_err(|_| format!("`{key}` is an octal number"))?;
        }
        _ => return Err(format!("`{key}` is not a mount option")),
    }
    Ok(())
}

fn bind(mount: &mut Mount) -> &mut BindOptions {
    mount.bind_options.get_or_insert_with(BindOptions::default)
}

fn volume(mount: &mut Mount) -> &mut VolumeOptions {
    mount.volume_options.get_or_insert_with(VolumeOptions::default)
}

fn driver(mount: &mut Mount) -> &mut Driver {
    volume(mount).driver_config.get_or_insert_with(Driver::default)
}

fn tmpfs(mount: &mut Mount) -> &mut TmpfsOptions {
    mount.tmpfs_options.get_or_insert_with(TmpfsOptions::default)
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// Fields of a line of comma-separated values; double quotes keep commas together.
pub fn split_csv(text: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            _ => field.push(c),
        }
    }
    fields.push(field);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_options() {
        let mount = parse("type=bind,src=/a,dst=/b,readonly,bind-propagation=rshared").expect("bind");
        assert_eq!((mount.kind.as_str(), mount.source.as_str(), mount.target.as_str()), ("bind", "/a", "/b"));
        assert!(mount.read_only);
        assert_eq!(mount.bind_options.expect("options").propagation, "rshared");

        let mount =
            parse(r#"target=/data,volume-opt=type=nfs,"volume-opt=o=addr=1.2.3.4,rw""#).expect("volume");
        let driver = mount.volume_options.expect("options").driver_config.expect("driver");
        assert_eq!(driver.options["type"], "nfs");
        assert_eq!(driver.options["o"], "addr=1.2.3.4,rw");

        let mount = parse("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").expect("tmpfs");
        let options = mount.tmpfs_options.expect("options");
        assert_eq!((options.size_bytes, options.mode), (1 << 20, 0o1770));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, problem) in [
            ("type=volume", "`target` is missing"),
            ("type=bind,target=/a", "needs a `source`"),
            ("target=/a,colour=red", "`colour` is not"),
            ("target=/a,ro=maybe", "true or false"),
            ("target", "needs a value"),
        ] {
            assert!(parse(text).expect_err(text).contains(problem), "{text}");
        }
    }
}
