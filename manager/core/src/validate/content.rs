//! Secrets and configs, and how services refer to them.

use std::collections::BTreeMap;

use rswarm_proto::model::template::{self, Place};
use rswarm_proto::wire::{ContentSpec, FileReference, ObjectKind, ServiceSpec, TaskSpec};

use super::{Findings, Problem};
use crate::apply::noun;
use crate::content::VERSIONS;

/// A secret must be smaller than this (swarmkit `api/validation/secrets.go`).
pub const SECRET_BYTES_MAX: usize = 500 * 1024;
/// A config must be smaller than this (swarmkit `manager/controlapi/config.go`).
pub const CONFIG_BYTES_MAX: usize = 1000 * 1024;
/// Characters of a name.
const NAME_MAX: usize = 64;
/// The one kind of template there is.
const GOLANG: &str = "golang";

/// Bytes of all labels of a secret or config: beside its data, they must fit one write.
const LABELS_BYTES_MAX: usize = 16 << 10;

/// Checks a secret or a config.
pub fn content(spec: &ContentSpec, kind: ObjectKind) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    let annotations = spec.annotations.clone().unwrap_or_default();
    let name = annotations.name.as_str();
    if name.is_empty() {
        findings.add("", "name must be provided");
    } else {
        let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let valid = inside && edge(name.chars().next()) && edge(name.chars().last());
        findings.add_if(
            !valid || name.len() > NAME_MAX,
            "",
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        );
    }
    let max = if kind == ObjectKind::Secret { SECRET_BYTES_MAX } else { CONFIG_BYTES_MAX };
    let noun = noun(kind);
    let reason = format!("{noun} data must be larger than 0 and less than {max} bytes");
    findings.add_if(spec.data.is_empty() || spec.data.len() >= max, "", reason);
    let labels: usize = annotations.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    let reason = format!("the labels of a {noun} may have {} bytes, not {labels}", LABELS_BYTES_MAX);
    findings.add_if(labels > LABELS_BYTES_MAX, "", reason);
    let versions = annotations.labels.get(VERSIONS).map_or("true", String::as_str);
    let reason = format!("label {VERSIONS} must be true or false, not `{versions}`");
    findings.add_if(!matches!(versions, "true" | "false"), "", reason);
    let templating = spec.templating.as_str();
    let reason = format!("unrecognized template driver '{templating}': want {GOLANG}");
    findings.add_if(!templating.is_empty() && templating != GOLANG, "", reason);
    findings.result()
}

/// What a task's spec says about its secrets and configs; whether they exist is asked elsewhere.
pub(super) fn references(spec: &TaskSpec, findings: &mut Findings) {
    for kind in [ObjectKind::Secret, ObjectKind::Config] {
        let mut targets: BTreeMap<String, &str> = BTreeMap::new();
        for reference in crate::content::references(spec, kind) {
            check(reference, kind, findings);
            let Some(file) = reference.file.as_ref().filter(|file| !file.name.is_empty()) else { continue };
            if let Some(other) = targets.insert(template::path(kind, &file.name), &reference.name) {
                let (noun, name, target) = (noun(kind), &reference.name, &file.name);
                let reason =
                    format!("{noun} references '{other}' and '{name}' have a conflicting target: '{target}'");
                findings.add("", reason);
            }
        }
    }
}

fn check(reference: &FileReference, kind: ObjectKind, findings: &mut Findings) {
    let noun = noun(kind);
    if reference.id.is_empty() || reference.name.is_empty() {
        return findings.add("", format!("malformed {noun} reference"));
    }
    let Some(file) = &reference.file else {
        return findings.add("", format!("malformed {noun} reference, no target provided"));
    };
    let reason = format!("malformed file {noun} reference, invalid target file name provided");
    findings.add_if(file.name.is_empty(), "", reason);
    for (what, id) in [("UID", &file.uid), ("GID", &file.gid)] {
        let reason = format!("malformed file {noun} reference, {what} '{id}' is not a number");
        findings.add_if(!id.is_empty() && id.parse::<u32>().is_err(), "", reason);
    }
}

/// Whether the templates of a container can be filled in, tried with made-up values (as swarmkit).
pub(super) fn templates(spec: &ServiceSpec, findings: &mut Findings) {
    let container = spec.task.as_ref().and_then(|task| task.container.clone()).unwrap_or_default();
    let place = Place::example(spec.annotations.clone().unwrap_or_default());
    if let Err(error) = place.expand(container) {
        findings.add("", rswarm_base::Chain(&error).to_string());
    }
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::{Annotations, FileTarget};

    use super::*;

    fn problems(kind: ObjectKind, name: &str, bytes: usize, templating: &str) -> Vec<String> {
        let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
        let spec = ContentSpec { annotations, data: vec![0; bytes], templating: templating.to_owned() };
        content(&spec, kind).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn secrets_and_configs_have_limits() {
        assert_eq!(problems(ObjectKind::Secret, "a.b-c_d", SECRET_BYTES_MAX - 1, ""), Vec::<String>::new());
        assert_eq!(problems(ObjectKind::Config, "c", CONFIG_BYTES_MAX - 1, "golang"), Vec::<String>::new());
        assert_eq!(
            problems(ObjectKind::Secret, "s", SECRET_BYTES_MAX, ""),
            ["secret data must be larger than 0 and less than 512000 bytes"]
        );
        assert_eq!(
            problems(ObjectKind::Config, "c", 0, "jinja"),
            [
                "config data must be larger than 0 and less than 1024000 bytes",
                "unrecognized template driver 'jinja': want golang"
            ]
        );
        let long = "a".repeat(65);
        for name in ["-a", "a-", "a b", long.as_str()] {
            assert!(
                problems(ObjectKind::Secret, name, 1, "")[0].starts_with("invalid name, only 64"),
                "{name}"
            );
        }
        assert_eq!(problems(ObjectKind::Secret, "", 1, ""), ["name must be provided"]);
        let mut labelled = ContentSpec { data: vec![0], ..ContentSpec::default() };
        let annotations = labelled.annotations.get_or_insert_default();
        annotations.name = "key".to_owned();
        annotations.labels.insert(VERSIONS.to_owned(), "yes".to_owned());
        let found = content(&labelled, ObjectKind::Secret).expect_err("an odd label");
        assert_eq!(found[0].to_string(), "label rswarm.versions must be true or false, not `yes`");
    }

    #[test]
    fn references_are_whole_and_go_to_places_of_their_own() {
        let reference = |id: &str, target: Option<&str>| FileReference {
            id: id.to_owned(),
            name: id.to_owned(),
            file: target.map(|name| FileTarget { name: name.to_owned(), ..FileTarget::default() }),
        };
        let found = |secrets: Vec<FileReference>, configs: Vec<FileReference>| {
            let mut findings = Findings::default();
            references(&TaskSpec { secrets, configs, ..TaskSpec::default() }, &mut findings);
            findings.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let fine = found(vec![reference("s", Some("x"))], vec![reference("c", Some("x"))]);
        assert_eq!(fine, Vec::<String>::new());
        assert_eq!(
            found(vec![reference("a", Some("x")), reference("b", Some("/run/secrets/x"))], vec![]),
            ["secret references 'a' and 'b' have a conflicting target: '/run/secrets/x'"]
        );
        assert_eq!(
            found(vec![reference("", Some("x"))], vec![reference("c", None), reference("d", Some(""))]),
            [
                "malformed secret reference",
                "malformed config reference, no target provided",
                "malformed file config reference, invalid target file name provided"
            ]
        );
        let mut named = reference("s", Some("x"));
        named.file.get_or_insert_default().uid = "root".to_owned();
        assert_eq!(
            found(vec![named], vec![]),
            ["malformed file secret reference, UID 'root' is not a number"]
        );
    }
}
