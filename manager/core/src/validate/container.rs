//! Containers: images, mounts, environment and confinement.

use std::collections::BTreeSet;

use rswarm_proto::wire::{ContainerSpec, Mount, mount};

use super::Findings;

pub(super) fn container(spec: &ContainerSpec, findings: &mut Findings) {
    const FIELD: &str = "ContainerSpec";
    if spec.image.trim().is_empty() {
        findings.add(FIELD, "image reference must be provided");
    } else {
        let valid = is_reference(&spec.image);
        let reason = format!("\"{}\" is not a valid repository/tag", spec.image);
        findings.add_fixable(
            !valid,
            FIELD,
            reason,
            "want [REGISTRY/]NAME[:TAG][@DIGEST], the name in lower case",
        );
    }
    let mut targets = BTreeSet::new();
    for mount in &spec.mounts {
        let twice = !targets.insert(mount.target.as_str());
        let reason = format!("duplicate mount point: {}", mount.target);
        findings.add_fixable(twice, FIELD, reason, "mount one thing at each place");
        check_mount(mount, findings);
    }
    for variable in &spec.env {
        let nameless = variable.is_empty() || variable.starts_with('=');
        let reason = format!("invalid environment variable: \"{variable}\"");
        findings.add_fixable(nameless, FIELD, reason, "want NAME=VALUE");
    }
    findings.add_if(spec.stop_grace.is_some_and(|ns| ns < 0), FIELD, "stop-grace-period cannot be negative");
    confinement(spec, findings);
    if let Some(check) = &spec.healthcheck {
        for (name, ns) in [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
        ] {
            let wrong = ns != 0 && ns < 1_000_000;
            findings.add_if(wrong, FIELD, format!("{name} in HealthConfig cannot be less than 1ms"));
        }
        findings.add_if(check.retries < 0, FIELD, "Retries in HealthConfig cannot be negative");
    }
}

/// What can be told without knowing the node; whether a capability or a runtime is there, only the node knows.
fn confinement(spec: &ContainerSpec, findings: &mut Findings) {
    const FIELD: &str = "ContainerSpec";
    let score = -1000..=1000;
    findings.add_if(
        !score.contains(&spec.oom_score_adj),
        FIELD,
        format!("Invalid value {}, range for oom score adj is [-1000, 1000]", spec.oom_score_adj),
    );
    for ulimit in &spec.ulimits {
        // -1 is without limit.
        let soft_is_more = ulimit.hard != -1 && (ulimit.soft > ulimit.hard || ulimit.soft == -1);
        let name = &ulimit.name;
        findings.add_if(name.is_empty(), FIELD, "invalid ulimit: it has no name");
        let (soft, hard) = (ulimit.soft, ulimit.hard);
        let reason = format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}");
        findings.add_fixable(soft_is_more, FIELD, reason, "want NAME=SOFT:HARD");
    }
    for key in spec.sysctls.keys() {
        let is_namespaced = ["net.", "kernel.", "fs.mqueue."].iter().any(|prefix| key.starts_with(prefix));
        let reason = format!("sysctl '{key}' is not allowed: it is not a namespace's own");
        let fix = "a container has net.*, kernel.* and fs.mqueue.* of its own; set others on the nodes";
        findings.add_fixable(!is_namespaced, FIELD, reason, fix);
    }
}

/// Whether the text could name an image at all; the registry client parses it in full.
fn is_reference(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let (host, repository) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", path),
    };
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        part.chars().all(allowed) && edge(part.chars().next()) && edge(part.chars().last())
    };
    let is_tag = |tag: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(allowed) && !tag.starts_with(['.', '-'])
    };
    let host_ok = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    host_ok
        && repository.split('/').all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|digest| digest.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32))
}

fn check_mount(mount: &Mount, findings: &mut Findings) {
    const FIELD: &str = "ContainerSpec";
    const ABSOLUTE: &str = "begin it with `/`";
    if mount.target.is_empty() {
        return findings.add(FIELD, "invalid mount config: field Target must not be empty");
    }
    let (target, source) = (&mount.target, &mount.source);
    let reason = format!("invalid mount path: '{target}' mount path must be absolute");
    findings.add_fixable(!target.starts_with('/'), FIELD, reason, ABSOLUTE);
    let root = target.starts_with('/') && target.trim_matches(['/', '.']).is_empty();
    let reason = "invalid mount config: destination can't be '/'";
    findings.add_fixable(root, FIELD, reason, "mount at a directory below it");
    match mount.r#type() {
        mount::Type::Bind => {
            let reason = format!("invalid mount path: '{source}' mount path must be absolute");
            findings.add_fixable(!source.starts_with('/'), FIELD, reason, ABSOLUTE);
        }
        mount::Type::Tmpfs => {
            let reason = "invalid mount config: field Source must not be specified";
            findings.add_fixable(!source.is_empty(), FIELD, reason, "leave it out: a tmpfs is of nothing");
            findings.add_if(
                mount.tmpfs_size < 0,
                FIELD,
                "invalid mount config: tmpfs size cannot be negative",
            );
        }
        mount::Type::Volume => {
            let reason = format!("invalid mount source: volume name `{source}` must not be a path");
            findings.add_fixable(
                source.contains('/'),
                FIELD,
                reason,
                "mount paths of the node with type=bind",
            );
        }
    }
}
