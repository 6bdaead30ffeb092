//! Mounts: `-v` texts, `--mount` objects and `--tmpfs`, all one list in the container spec.

use std::collections::BTreeMap;

use rswarm_proto::wire;
use rswarm_proto::wire::mount::{Recursion, Type};

use rswarm_engine::clean_path as clean;

use super::refuse;
use crate::error::ApiError;
use crate::types;

/// What a template of a service begins with.
const TEMPLATE: &str = "{{";
/// The propagation modes.
const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];
/// The types of mounts that Docker knows.
const KINDS: [&str; 6] = ["bind", "cluster", "image", "npipe", "tmpfs", "volume"];
/// What the sixth field of a `-v` text may say of access and labels.
const SELINUX: [&str; 2] = ["z", "Z"];

/// `source:target[:options]`, `name:target[:options]`, or a target alone for an anonymous volume.
pub(crate) fn parse_bind(text: &str) -> Result<wire::Mount, ApiError> {
    let invalid = || ApiError::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(invalid()),
    };
    let anonymous = parts.len() == 1;
    if !target.starts_with('/') || (source.is_empty() && !anonymous) {
        return Err(invalid());
    }
    if target == "/" {
        return Err(ApiError::invalid(format!(
            "invalid volume specification: '{text}': invalid mount config for type \"{}\": invalid specification: \
             destination can't be '/'",
            if source.starts_with('/') { "bind" } else { "volume" }
        )));
    }
    let is_bind = source.starts_with('/');
    if !is_bind && !anonymous {
        check_volume_name(source)?;
    }
    let mut mount = wire::Mount {
        source: source.to_owned(),
        target: clean(target),
        create_source: is_bind,
        ..wire::Mount::default()
    };
    mount.set_type(if is_bind { Type::Bind } else { Type::Volume });
    for option in options.split(',').filter(|option| !option.is_empty()) {
        apply_bind_option(&mut mount, option)
            .ok_or_else(|| ApiError::invalid(format!("invalid mode: {options}")))?;
    }
    Ok(mount)
}

fn apply_bind_option(mount: &mut wire::Mount, option: &str) -> Option<()> {
    let is_volume = mount.r#type() == Type::Volume;
    match option {
        "rw" => mount.read_only = false,
        "ro" => mount.read_only = true,
        "nocopy" if is_volume => mount.no_copy = true,
        // Hints for filesystems shared with a desktop's virtual machine; there is none here.
        "consistent" | "cached" | "delegated" | "default" => {}
        // No SELinux here: there is no label to change.
        label if SELINUX.contains(&label) => {}
        mode if PROPAGATIONS.contains(&mode) && !is_volume => mount.propagation = mode.to_owned(),
        _ => return None,
    }
    Some(())
}

/// A `--mount` of a service: what is no word of its options is told in moby's (`daemon/cluster/convert/container.go`).
/// The name of its volume may be a template: what becomes of that is checked on the node.
pub(crate) fn parse_service_mount(mount: &types::Mount) -> Result<wire::Mount, ApiError> {
    if !KINDS.contains(&mount.kind.as_str()) {
        return Err(ApiError::invalid(format!("invalid MountType: \"{}\"", mount.kind)));
    }
    let propagation = mount.bind_options.as_ref().map_or("", |options| &options.propagation);
    if !propagation.is_empty() && !PROPAGATIONS.contains(&propagation) {
        return Err(ApiError::invalid(format!("invalid MountPropagation: \"{propagation}\"")));
    }
    parse_any_mount(mount)
}

/// A `--mount` of a container.
pub(crate) fn parse_mount(mount: &types::Mount) -> Result<wire::Mount, ApiError> {
    if mount.kind == "volume" && !mount.source.is_empty() {
        check_volume_name(&mount.source)?;
    }
    parse_any_mount(mount)
}

fn parse_any_mount(mount: &types::Mount) -> Result<wire::Mount, ApiError> {
    let invalid =
        |why: String| ApiError::invalid(format!("invalid mount config for type \"{}\": {why}", mount.kind));
    if mount.target.is_empty() {
        return Err(invalid("field Target must not be empty".into()));
    }
    if !mount.target.starts_with('/') {
        return Err(invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.target)));
    }
    if clean(&mount.target) == "/" {
        return Err(invalid("invalid specification: destination can't be '/'".into()));
    }
    let mut result = wire::Mount {
        source: mount.source.clone(),
        target: clean(&mount.target),
        read_only: mount.read_only,
        ..wire::Mount::default()
    };
    match mount.kind.as_str() {
        "bind" => bind(mount, &mut result)?,
        "volume" => volume(mount, &mut result)?,
        "tmpfs" => tmpfs(mount, &mut result)?,
        "image" | "cluster" => return Err(ApiError::unsupported(format!("a mount of type {}", mount.kind))),
        _ => return Err(invalid("mount type unknown".to_owned())),
    }
    refuse_other_options(mount).map_err(invalid)?;
    Ok(result)
}

/// Options of another type are a mistake.
fn refuse_other_options(mount: &types::Mount) -> Result<(), String> {
    let groups = [
        ("bind", "BindOptions", mount.bind_options.is_some()),
        ("volume", "VolumeOptions", mount.volume_options.is_some()),
        ("tmpfs", "TmpfsOptions", mount.tmpfs_options.is_some()),
        ("image", "ImageOptions", mount.image_options.is_some()),
        ("cluster", "ClusterOptions", mount.cluster_options.is_some()),
    ];
    match groups.iter().find(|(kind, _, set)| *set && *kind != mount.kind) {
        Some((_, name, _)) => Err(format!("field {name} must not be specified")),
        None => Ok(()),
    }
}

fn bind(mount: &types::Mount, result: &mut wire::Mount) -> Result<(), ApiError> {
    result.set_type(Type::Bind);
    if mount.source.is_empty() {
        return Err(ApiError::invalid(
            "invalid mount config for type \"bind\": field Source must not be empty",
        ));
    }
    if !mount.source.starts_with('/') {
        return Err(ApiError::invalid(format!(
            "invalid mount config for type \"bind\": invalid mount path: '{}' mount path must be absolute",
            mount.source
        )));
    }
    let Some(options) = &mount.bind_options else { return Ok(()) };
    if !options.propagation.is_empty() && !PROPAGATIONS.contains(&options.propagation.as_str()) {
        return Err(ApiError::invalid(format!("invalid propagation mode: {}", options.propagation)));
    }
    result.set_recursion(recursion(mount, options)?);
    result.propagation = options.propagation.clone();
    result.create_source = options.create_mountpoint;
    Ok(())
}

/// `bind-recursive`: what becomes of the mounts below the source.
// moby: volume/mounts, linux_parser.go
fn recursion(mount: &types::Mount, options: &types::BindOptions) -> Result<Recursion, ApiError> {
    let invalid =
        |why: &str| Err(ApiError::invalid(format!("invalid mount config for type \"bind\": {why}")));
    if options.read_only_non_recursive && options.read_only_force_recursive {
        return invalid("ReadOnlyNonRecursive and ReadOnlyForceRecursive must not be specified together");
    }
    if options.read_only_non_recursive && !mount.read_only {
        return invalid("mount source is not read-only: ReadOnlyNonRecursive must not be specified");
    }
    if options.read_only_force_recursive {
        return match (mount.read_only, options.non_recursive, options.propagation.as_str()) {
            (false, ..) => {
                invalid("mount source is not read-only: ReadOnlyForceRecursive must not be specified")
            }
            (_, true, _) => invalid("ReadOnlyForceRecursive and NonRecursive must not be specified together"),
            (_, _, "rprivate") => Ok(Recursion::Readonly),
            _ => invalid("ReadOnlyForceRecursive needs propagation rprivate"),
        };
    }
    Ok(match (options.non_recursive, options.read_only_non_recursive) {
        (true, _) => Recursion::Disabled,
        (false, true) => Recursion::Writable,
        (false, false) => Recursion::Enabled,
    })
}

fn volume(mount: &types::Mount, result: &mut wire::Mount) -> Result<(), ApiError> {
    result.set_type(Type::Volume);
    if !mount.source.is_empty() && !mount.source.contains(TEMPLATE) {
        check_volume_name(&mount.source)?;
    }
    let Some(options) = &mount.volume_options else { return Ok(()) };
    refuse(!options.subpath.is_empty(), "volume-subpath (VolumeOptions.Subpath)")?;
    result.no_copy = options.no_copy;
    result.volume_labels = options.labels.clone();
    if let Some(driver) = &options.driver_config {
        result.volume_driver = driver.name.clone();
        result.volume_options = driver.options.clone();
    }
    Ok(())
}

fn tmpfs(mount: &types::Mount, result: &mut wire::Mount) -> Result<(), ApiError> {
    result.set_type(Type::Tmpfs);
    if !mount.source.is_empty() {
        return Err(ApiError::invalid(
            "invalid mount config for type \"tmpfs\": field Source must not be specified",
        ));
    }
    let Some(options) = &mount.tmpfs_options else { return Ok(()) };
    if options.size_bytes < 0 {
        return Err(ApiError::invalid("invalid mount config for type \"tmpfs\": size must not be negative"));
    }
    result.tmpfs_size = options.size_bytes;
    result.tmpfs_mode = options.mode;
    result.tmpfs_options = options.options.iter().map(|pair| pair.join("=")).collect::<Vec<_>>().join(",");
    Ok(())
}

/// `--tmpfs target[:options]`, as its map holds it.
pub(crate) fn parse_tmpfs(target: &str, options: &str) -> Result<wire::Mount, ApiError> {
    if !target.starts_with('/') {
        return Err(ApiError::invalid(format!("invalid mount path: '{target}' mount path must be absolute")));
    }
    let target = clean(target);
    if target == "/" {
        return Err(ApiError::invalid("invalid specification: destination can't be '/'"));
    }
    let mut mount =
        wire::Mount { target, tmpfs_options: options.to_owned(), tmpfs_map: true, ..wire::Mount::default() };
    mount.set_type(Type::Tmpfs);
    Ok(mount)
}

/// One place, one mount.
pub(crate) fn check_targets(mounts: &[wire::Mount]) -> Result<(), ApiError> {
    let mut seen = BTreeMap::new();
    for mount in mounts {
        if seen.insert(&mount.target, ()).is_some() {
            return Err(ApiError::invalid(format!("Duplicate mount point: {}", mount.target)));
        }
    }
    Ok(())
}

/// Docker's rule for the names of volumes.
fn check_volume_name(name: &str) -> Result<(), ApiError> {
    if name.len() == 1 {
        return Err(ApiError::invalid(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )));
    }
    let mut chars = name.chars();
    let valid = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if valid {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// A mount as `--mount` would have said it.
pub(crate) fn mount_out(mount: &wire::Mount) -> types::Mount {
    let mut result = types::Mount {
        source: mount.source.clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        ..types::Mount::default()
    };
    match mount.r#type() {
        Type::Bind => {
            result.kind = "bind".into();
            let options = types::BindOptions {
                propagation: mount.propagation.clone(),
                create_mountpoint: mount.create_source,
                non_recursive: mount.recursion() == Recursion::Disabled,
                read_only_non_recursive: mount.recursion() == Recursion::Writable,
                read_only_force_recursive: mount.recursion() == Recursion::Readonly,
            };
            result.bind_options = (options != types::BindOptions::default()).then_some(options);
        }
        Type::Volume => {
            result.kind = "volume".into();
            result.volume_options = volume_options_out(mount);
        }
        Type::Tmpfs => {
            result.kind = "tmpfs".into();
            result.tmpfs_options = tmpfs_options_out(mount);
        }
    }
    result
}

fn volume_options_out(mount: &wire::Mount) -> Option<types::VolumeOptions> {
    let driver = types::Driver { name: mount.volume_driver.clone(), options: mount.volume_options.clone() };
    let options = types::VolumeOptions {
        no_copy: mount.no_copy,
        labels: mount.volume_labels.clone(),
        driver_config: (driver != types::Driver::default()).then_some(driver),
        ..types::VolumeOptions::default()
    };
    (options != types::VolumeOptions::default()).then_some(options)
}

fn tmpfs_options_out(mount: &wire::Mount) -> Option<types::TmpfsOptions> {
    let pairs = mount.tmpfs_options.split(',').filter(|option| !option.is_empty());
    let options = types::TmpfsOptions {
        size_bytes: mount.tmpfs_size,
        mode: mount.tmpfs_mode,
        options: pairs.map(|option| option.splitn(2, '=').map(str::to_owned).collect()).collect(),
    };
    (options != types::TmpfsOptions::default()).then_some(options)
}

/// A mount as `-v` would have said it; `None` for a tmpfs and for what only `--mount` can say.
pub(crate) fn bind_out(mount: &wire::Mount) -> Option<String> {
    let is_bind = mount.r#type() == Type::Bind;
    let special = is_bind && (!mount.create_source || mount.recursion() != Recursion::Enabled);
    if mount.r#type() == Type::Tmpfs || special || mount.source.is_empty() {
        return None;
    }
    let mut options = Vec::new();
    if mount.read_only {
        options.push("ro");
    }
    if mount.no_copy {
        options.push("nocopy");
    }
    if !mount.propagation.is_empty() {
        options.push(&mount.propagation);
    }
    let mut text = format!("{}:{}", mount.source, mount.target);
    if !options.is_empty() {
        text.push_str(&format!(":{}", options.join(",")));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(Type, &str, &str, bool), &str>) {
        let parsed = parse_bind(text);
        match expected {
            Ok((kind, source, target, read_only)) => {
                let mount = parsed.unwrap_or_else(|error| panic!("{text}: {}", error.message));
                let found = (mount.r#type(), mount.source.as_str(), mount.target.as_str(), mount.read_only);
                assert_eq!(found, (kind, source, target, read_only), "{text}");
            }
            Err(expected) => assert_eq!(parsed.expect_err(text).message, expected, "{text}"),
        }
    }

    #[test]
    fn words_of_a_service_s_mount_that_there_are_not_are_told_as_moby_does() {
        let refused = |text: &str| {
            let mount: types::Mount = serde_json::from_str(text).expect("mount");
            parse_service_mount(&mount).expect_err(text).message
        };
        assert_eq!(refused(r#"{"Type":"odd","Target":"/b"}"#), "invalid MountType: \"odd\"");
        assert_eq!(
            refused(r#"{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"odd"}}"#),
            "invalid MountPropagation: \"odd\""
        );
    }

    #[test]
    fn volume_texts_are_binds_names_or_anonymous() {
        check("/src:/dst", Ok((Type::Bind, "/src", "/dst", false)));
        check("/src:/dst/:ro,rslave", Ok((Type::Bind, "/src", "/dst", true)));
        check("data:/dst:nocopy", Ok((Type::Volume, "data", "/dst", false)));
        check("/dst", Ok((Type::Volume, "", "/dst", false)));
        check("data", Err("invalid volume specification: 'data'"));
        check(":/dst", Err("invalid volume specification: ':/dst'"));
        check("a:/b:ro:c", Err("invalid volume specification: 'a:/b:ro:c'"));
        check("/a:/b:rox", Err("invalid mode: rox"));
        check("/a:/b:nocopy", Err("invalid mode: nocopy"));
        check("data:/dst:rslave", Err("invalid mode: rslave"));
        assert!(parse_bind("./x:/dst").is_err_and(|e| e.message.contains("use absolute path")));
    }

    #[test]
    fn mounts_come_back_as_they_were() {
        let mounts = [
            r#"{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"BindOptions":{"Propagation":"rslave"}}"#,
            r#"{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"BindOptions":{"NonRecursive":true}}"#,
            r#"{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"BindOptions":{"ReadOnlyNonRecursive":true}}"#,
            r#"{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"BindOptions":{"Propagation":"rprivate","ReadOnlyForceRecursive":true}}"#,
            r#"{"Type":"volume","Source":"data","Target":"/b","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"},"DriverConfig":{"Name":"local","Options":{"type":"nfs"}}}}"#,
            r#"{"Type":"tmpfs","Target":"/b","TmpfsOptions":{"SizeBytes":1024,"Mode":511,"Options":[["exec"],["uid","7"]]}}"#,
        ];
        for text in mounts {
            let mount: types::Mount = serde_json::from_str(text).expect("mount");
            let back =
                mount_out(&parse_mount(&mount).unwrap_or_else(|error| panic!("{text}: {}", error.message)));
            assert_eq!(serde_json::to_string(&back).expect("json"), text);
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let refused = [
            (r#"{"Type":"volume","Source":"data","Target":"/b","VolumeOptions":{"Subpath":"x"}}"#, "Subpath"),
            (r#"{"Type":"image","Source":"web","Target":"/b"}"#, "type image"),
            (r#"{"Type":"tmpfs","Source":"web","Target":"/b"}"#, "Source must not"),
            (r#"{"Type":"tmpfs","Target":"/b","VolumeOptions":{}}"#, "VolumeOptions must not"),
            (r#"{"Type":"bind","Source":"a","Target":"/b"}"#, "absolute"),
            (r#"{"Type":"volume","Target":"b"}"#, "absolute"),
            (r#"{"Type":"what","Target":"/b"}"#, "unknown"),
        ];
        for (text, why) in refused {
            let mount: types::Mount = serde_json::from_str(text).expect("mount");
            let error = parse_mount(&mount).expect_err(text);
            assert!(error.message.contains(why), "{text}: {}", error.message);
        }
    }

    #[test]
    fn a_volume_of_a_service_may_be_named_by_a_template() {
        let named = |source: &str| types::Mount {
            kind: "volume".to_owned(),
            source: source.to_owned(),
            target: "/b".to_owned(),
            ..types::Mount::default()
        };
        let template = named("data-{{.Node.Hostname}}.{{.Task.Slot}}");
        assert_eq!(parse_service_mount(&template).expect("a template").source, template.source);
        assert!(parse_mount(&template).is_err_and(|error| error.message.contains("invalid characters")));
        let wrong = parse_service_mount(&named("../x"));
        assert!(wrong.is_err_and(|error| error.message.contains("invalid characters")));
    }

    #[test]
    fn a_target_is_used_once() {
        let mounts = [parse_bind("/a:/x").expect("bind"), parse_bind("b1:/x/").expect("volume")];
        assert_eq!(check_targets(&mounts).expect_err("twice").message, "Duplicate mount point: /x");
    }
}
