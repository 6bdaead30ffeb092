//! Seccomp profiles in Docker's JSON format: OCI's, with conditions on capabilities and architectures.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::{Map, Value};

/// The architecture that conditions are checked against, in Docker's (Go's) words, and its entry in `archMap`.
const ARCHITECTURE: (&str, &str) = if cfg!(target_arch = "aarch64") {
    ("arm64", "SCMP_ARCH_AARCH64")
} else {
    ("amd64", "SCMP_ARCH_X86_64")
};

/// Reads a profile for a container with these capabilities.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub(super) fn parse(json: &str, capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp, String> {
    let wrong = |error: serde_json::Error| format!("Decoding seccomp profile failed: {error}");
    let mut profile: Map<String, Value> = serde_json::from_str(json).map_err(wrong)?;
    if let Some(map) = profile.remove("archMap") {
        let native =
            map.as_array().into_iter().flatten().find(|entry| entry["architecture"] == ARCHITECTURE.1);
        let mut all = vec![Value::from(ARCHITECTURE.1)];
        all.extend(
            native.and_then(|entry| entry["subArchitectures"].as_array()).into_iter().flatten().cloned(),
        );
        profile.insert("architectures".to_owned(), all.into());
    }
    if let Some(Value::Array(rules)) = profile.get_mut("syscalls") {
        rules.retain(|rule| applies(rule, capabilities));
        rules.iter_mut().filter_map(Value::as_object_mut).for_each(to_oci);
    }
    profile.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(profile)).map_err(wrong)
}

/// Drops Docker's own fields, and Go's empty ones. A rule may have one `name` instead of `names`.
fn to_oci(rule: &mut Map<String, Value>) {
    if let Some(name) = rule.remove("name").filter(|name| name.as_str().is_some_and(|name| !name.is_empty()))
    {
        rule.entry("names").or_insert_with(|| Value::Array(vec![name]));
    }
    for own in ["includes", "excludes", "comment"] {
        rule.remove(own);
    }
    rule.retain(|_, value| !value.is_null());
}

fn applies(rule: &Value, capabilities: &HashSet<Capability>) -> bool {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let has =
        |name: &String| name.trim_start_matches("CAP_").parse().is_ok_and(|cap| capabilities.contains(&cap));
    let here = |name: &String| name == ARCHITECTURE.0;
    let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
    let (arches, caps) = (texts(&includes["arches"]), texts(&includes["caps"]));
    (arches.is_empty() || arches.iter().any(here))
        && caps.iter().all(has)
        && !texts(&excludes["arches"]).iter().any(here)
        && !texts(&excludes["caps"]).iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"name": "clone", "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["breakpoint"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm"]}}
        ]}"#;

    fn names(capabilities: &[Capability]) -> Vec<String> {
        let profile = parse(PROFILE, &capabilities.iter().copied().collect()).expect("profile");
        assert_eq!(profile.architectures().as_ref().map(Vec::len), Some(2));
        profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn conditions_are_checked_and_dropped() {
        assert_eq!(names(&[]), ["read", "clone"]);
        assert_eq!(names(&[Capability::SysAdmin]), ["read", "mount"]);
    }

    #[test]
    fn what_is_no_profile_is_an_error() {
        assert!(parse("{}", &HashSet::new()).is_err());
        assert!(
            parse("[1]", &HashSet::new()).expect_err("array").starts_with("Decoding seccomp profile failed")
        );
    }
}
