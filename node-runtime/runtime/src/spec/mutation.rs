//! Configurations that somebody has damaged: never a panic, and an error that names what is wrong.

use std::collections::HashSet;
use std::mem::discriminant;
use std::path::Path;

use oci_spec::runtime::Spec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::seccomp::{Filter, docker_default};
use crate::{spec, validate};

/// One that has something of everything.
fn rich() -> Value {
    let mut config = serde_json::to_value(Spec::default()).expect("json");
    let hook = json!([{"path": "/bin/hook", "args": ["hook", "x"], "env": ["A=b"], "timeout": 5}]);
    config["hooks"] = json!({"prestart": hook, "createContainer": hook, "poststop": hook});
    config["annotations"] = json!({"a": "b"});
    let process = &mut config["process"];
    process["consoleSize"] = json!({"height": 24, "width": 80});
    process["oomScoreAdj"] = json!(5);
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3, "flags": ["SCHED_RESET_ON_FORK"]});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    process["execCPUAffinity"] = json!({"initial": "0-1", "final": "0"});
    process["user"] = json!({"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]});
    let linux = &mut config["linux"];
    linux["seccomp"] = serde_json::to_value(docker_default(&HashSet::new())).expect("json");
    // The whole of it would be most of what is chosen from.
    linux["seccomp"]["syscalls"].as_array_mut().expect("syscalls").drain(..);
    linux["seccomp"]["syscalls"] = json!([
        {"names": ["open", "read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
    ]);
    let namespaces = linux["namespaces"].as_array_mut().expect("namespaces");
    namespaces.extend([json!({"type": "user"}), json!({"type": "time"})]);
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    linux["timeOffsets"] = json!({"boottime": {"secs": 1, "nanosecs": 2}});
    linux["personality"] = json!({"domain": "LINUX"});
    linux["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    linux["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    linux["resources"] = json!({
        "memory": {"limit": 1_000_000, "swap": -1}, "cpu": {"shares": 5, "cpus": "0", "quota": 5000},
        "pids": {"limit": 7}, "devices": [{"allow": false, "access": "rwm"}],
        "blockIO": {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 10}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 5}],
        "network": {"classID": 5, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5": {"hcaHandles": 5, "hcaObjects": 6}}, "unified": {"memory.high": "1000"},
    });
    linux["devices"] =
        json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 384, "uid": 1, "gid": 2}]);
    linux["netDevices"] = json!({"eth5": {"name": "eth6"}});
    linux["maskedPaths"] = json!(["/proc/kcore"]);
    linux["readonlyPaths"] = json!(["/proc/sys"]);
    linux["rootfsPropagation"] = json!("slave");
    linux["cgroupsPath"] = json!("/a/b");
    config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]);
    config["mounts"].as_array_mut().expect("mounts").push(json!({
        "destination": "/x", "source": "/y", "type": "none", "options": ["rbind", "ro"],
        "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
    }));
    config
}

/// Calls `each` with the place of every value below `value`, as errors and as JSON pointers write it.
fn walk(value: &Value, path: &str, pointer: &str, each: &mut dyn FnMut(&str, &str, &Value)) {
    each(path, pointer, value);
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(
                    member,
                    &path,
                    &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")),
                    each,
                );
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                walk(element, &format!("{path}[{index}]"), &format!("{pointer}/{index}"), each);
            }
        }
        _ => {}
    }
}

/// No field takes a value of another type, whatever it is, and each is named in full.
#[test]
fn a_value_of_another_type_is_told_by_its_whole_path() {
    let config = rich();
    let mut places = Vec::new();
    walk(&config, "", "", &mut |path, pointer, value| {
        places.push((path.to_owned(), pointer.to_owned(), value.clone()))
    });
    assert!(places.len() > 200, "{}", places.len());
    for (path, pointer, value) in &places[1..] {
        let others = [json!(true), json!(7.5), json!("\u{1}"), json!([[7]]), json!({"\u{1}": 7})];
        for other in others.iter().filter(|other| discriminant(*other) != discriminant(value)) {
            let mut config = config.clone();
            *config.pointer_mut(pointer).expect("it was there") = other.clone();
            let why = judge(config.to_string().as_bytes()).err().unwrap_or_default();
            assert!(why.contains(&format!("`{path}")), "{path} = {other}: {why}");
        }
    }
}

/// What a value is replaced with; `None` takes it away.
fn replacement() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        any::<bool>().prop_map(|value| Some(value.into())),
        any::<i64>().prop_map(|value| Some(value.into())),
        any::<u64>().prop_map(|value| Some(value.into())),
        any::<f64>().prop_map(|value| Some(value.into())),
        (-3_i64..70_000).prop_map(|value| Some(value.into())),
        ".{0,12}".prop_map(|value| Some(value.into())),
        "[/a-zA-Z0-9_\\-,\u{0}]{0,80}".prop_map(|value| Some(value.into())),
        Just(Some(json!([]))),
        Just(Some(json!({}))),
        Just(Some(json!([{"type": "mount"}, {"type": "user", "path": "/x"}]))),
    ]
}

/// Walks down by the numbers given, each choosing among what is there, and replaces what it arrives at.
fn damage(value: &mut Value, way: &[usize], with: &Option<Value>) {
    let Some((first, rest)) = way.split_first() else { return };
    let at_end = |children: usize| rest.is_empty() || children == 0;
    match value {
        Value::Object(members) if !members.is_empty() => {
            let name = members.keys().nth(first % members.len()).expect("it is below the length").clone();
            match with {
                None if at_end(members.len()) => drop(members.remove(&name)),
                Some(with) if at_end(members[&name].as_array().map_or(1, Vec::len)) => {
                    members.insert(name, with.clone());
                }
                _ => damage(&mut members[&name], rest, with),
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            let at = first % elements.len();
            match with {
                None if at_end(elements.len()) => drop(elements.remove(at)),
                Some(with) if rest.is_empty() => elements[at] = with.clone(),
                _ => damage(&mut elements[at], rest, with),
            }
        }
        other => {
            if let Some(with) = with {
                *other = with.clone();
            }
        }
    }
}

fn judge(bytes: &[u8]) -> Result<(), String> {
    let config = spec::parse(bytes)?;
    validate::config(&config).map_err(|failure| failure.message)?;
    let seccomp = config.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    seccomp.map(Filter::compile).transpose().map_err(|failure| failure.message)?;
    spec::root_path(&config, Path::new("/nowhere")).map_err(|failure| failure.message)?;
    Ok(())
}

#[test]
fn what_is_damaged_later_is_right() {
    assert_eq!(judge(&serde_json::to_vec(&rich()).expect("json")), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_configuration_is_accepted_or_refused_in_words(
        ways in proptest::collection::vec(
            (proptest::collection::vec(any::<usize>(), 1..7), replacement()), 1..4
        ),
    ) {
        let mut config = rich();
        for (way, with) in &ways {
            damage(&mut config, way, with);
        }
        if let Err(why) = judge(&serde_json::to_vec(&config).expect("json")) {
            prop_assert!(!why.is_empty());
            let names_a_field = why.contains('`') || why.starts_with("config.json has no") || why.contains("missing");
            prop_assert!(names_a_field, "{}", why);
        }
    }

    #[test]
    fn a_damaged_text_is_never_a_panic(at in any::<usize>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = serde_json::to_vec(&rich()).expect("json");
        let at = at % bytes.len();
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        let _ = judge(&bytes);
    }
}
