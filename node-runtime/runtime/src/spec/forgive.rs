//! What other runtimes accept though the parser does not: mended in a configuration that it has refused.

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

/// Mends a process; whether anything was.
pub(super) fn process(process: &mut Value) -> bool {
    let Some(members) = process.as_object_mut() else { return false };
    let nobody = !members.contains_key("user");
    if nobody {
        members.insert("user".to_owned(), json!({}));
    }
    let renamed = members.get_mut("scheduler").is_some_and(rename_flags);
    members.get_mut("capabilities").is_some_and(drop_unknown) | renamed | nobody
}

/// The specification's names of flags, where the parser has others.
// spec: oci-runtime config.md#linux-process scheduler.flags
fn rename_flags(scheduler: &mut Value) -> bool {
    let mut renamed = false;
    for flag in scheduler.get_mut("flags").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = name.into();
        renamed = true;
    }
    renamed
}

/// Takes capabilities away that nobody knows, with a warning.
// spec: oci-runtime config.md#linux-process "Any value which cannot be mapped to a relevant kernel interface …
// MUST be logged as a warning", and "Runtimes SHOULD NOT fail".
fn drop_unknown(sets: &mut Value) -> bool {
    let is_known = |one: &Value| match one {
        Value::String(_) => serde_json::from_value::<Capability>(one.clone()).is_ok(),
        _ => true,
    };
    let mut unknown: Vec<String> = Vec::new();
    for set in sets.as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(set) = set.as_array_mut() else { continue };
        let names = set.iter().filter(|one| !is_known(one)).filter_map(Value::as_str);
        unknown.extend(names.map(str::to_owned));
        set.retain(is_known);
    }
    unknown.sort();
    unknown.dedup();
    if !unknown.is_empty() {
        tracing::warn!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" "));
    }
    !unknown.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse_process;

    #[test]
    fn a_process_needs_no_user_and_no_capability_that_nobody_knows() {
        let sets = json!({"bounding": ["CAP_CHOWN", "CAP_NONE"], "effective": ["OTHER"]});
        let read = parse_process(json!({"cwd": "/", "capabilities": sets}).to_string().as_bytes());
        let read = read.expect("a process");
        assert_eq!((read.user().uid(), read.user().gid()), (0, 0));
        let sets = read.capabilities().clone().expect("sets");
        let only = std::collections::HashSet::from([Capability::Chown]);
        assert_eq!((sets.bounding(), sets.effective()), (&Some(only), &Some(Default::default())));
    }

    #[test]
    fn flags_have_the_specifications_names() {
        let flags = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY"]);
        let process = json!({"cwd": "/", "scheduler": {"policy": "SCHED_DEADLINE", "flags": flags}});
        let read = parse_process(process.to_string().as_bytes()).expect("a process");
        let flags = read.scheduler().as_ref().and_then(|scheduler| scheduler.flags().clone());
        assert_eq!(flags.map(|flags| flags.len()), Some(3));
    }

    #[test]
    fn other_mistakes_stay_mistakes() {
        for wrong in [json!([]), json!({"cwd": 7}), json!({"cwd": "/", "capabilities": {"bounding": [7]}})] {
            assert!(parse_process(wrong.to_string().as_bytes()).is_err(), "{wrong}");
        }
    }
}
