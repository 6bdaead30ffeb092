//! What `docker service create` sends survives the way in and out.

use std::collections::BTreeMap;

use rswarm_proto::wire::update_status;

use super::*;

/// As the docker command line 28 sends for `service create` with most of its options.
const CREATE: &str = r#"{"Name":"web","Labels":{"tier":"front"},"TaskTemplate":{"ContainerSpec":{
"Image":"web:1@sha256:aaaa","Labels":{"c":"d"},"Args":["serve","--all"],"Hostname":"{{.Node.Hostname}}",
"Env":["A=b"],"Dir":"/srv","User":"www","Groups":["adm"],"Privileges":{"CredentialSpec":null,"SELinuxContext":null,
"NoNewPrivileges":true},"Init":true,"StopSignal":"SIGQUIT","TTY":true,"ReadOnly":true,
"Mounts":[{"Type":"volume","Source":"data","Target":"/data"},{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true}],
"StopGracePeriod":30000000000,"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000,"Retries":2},
"Hosts":["10.0.0.9 db  store"],"DNSConfig":{"Nameservers":["9.9.9.9"]},"Isolation":"default","Sysctls":{"net.core.somaxconn":"1024"},
"CapabilityAdd":["CAP_NET_ADMIN"],"CapabilityDrop":["CAP_MKNOD"],
"Secrets":[{"File":{"Name":"key","UID":"33","GID":"0","Mode":288},"SecretID":"s1","SecretName":"key_v1"}],
"Configs":[{"File":{"Name":"/etc/web.conf","UID":"0","GID":"0","Mode":292},"ConfigID":"c1","ConfigName":"web"}],
"Ulimits":[{"Name":"nofile","Hard":20,"Soft":10}],"OomScoreAdj":7},
"Resources":{"Limits":{"NanoCPUs":500000000,"MemoryBytes":67108864,"Pids":9},"Reservations":{"NanoCPUs":100000000,"MemoryBytes":33554432},"SwapBytes":33554432,"MemorySwappiness":10},
"RestartPolicy":{"Condition":"on-failure","Delay":2000000000,"MaxAttempts":3,"Window":60000000000},
"Placement":{"Constraints":["node.role==worker"],"Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.zone"}}],"MaxReplicas":2,"Platforms":[{"Architecture":"amd64","OS":"linux"}]},
"Networks":[{"Target":"netid","Aliases":["www"]}],"LogDriver":{"Name":"json-file","Options":{"max-size":"1m"}},
"ForceUpdate":0,"Runtime":"container"},"Mode":{"Replicated":{"Replicas":3}},
"UpdateConfig":{"Parallelism":2,"Delay":1000000000,"FailureAction":"rollback","Monitor":5000000000,"MaxFailureRatio":0.25,"Order":"start-first"},
"RollbackConfig":{"Parallelism":1,"FailureAction":"pause","MaxFailureRatio":0,"Order":"stop-first"},
"EndpointSpec":{"Mode":"vip","Ports":[{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"host"}]}}"#;

fn parse(text: &str) -> types::ServiceSpec {
    serde_json::from_str(text).expect("spec")
}

fn no_networks() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[test]
fn what_docker_service_create_sends_survives_the_way_in_and_out() {
    let sent = parse(CREATE);
    let stored = spec(&sent, &no_networks()).unwrap_or_else(|error| panic!("{}", error.message));
    let shown = spec_out(&stored);
    assert_eq!(serde_json::to_value(&shown).expect("json"), serde_json::to_value(&sent).expect("json"));
    let again = spec(&shown, &no_networks()).expect("its own output");
    assert_eq!(again, stored);
}

#[test]
fn network_names_become_identifiers() {
    let text =
        r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web"}},"Networks":[{"Target":"front"}]}"#;
    let sent = parse(text);
    assert_eq!(network_targets(&sent).collect::<Vec<_>>(), ["front"]);
    let networks = BTreeMap::from([("front".to_owned(), "id1".to_owned())]);
    let stored = spec(&sent, &networks).expect("spec");
    assert_eq!(stored.task.expect("task").networks[0].target, "id1");
}

#[test]
fn a_service_without_a_mode_has_one_replica() {
    let stored =
        spec(&parse(r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"web"}}}"#), &no_networks());
    assert_eq!(stored.expect("spec").mode_or_default(), defaults::Mode::Replicated(1));
    let global = r#"{"Name":"web","Mode":{"Global":{}},"TaskTemplate":{"ContainerSpec":{"Image":"web"}}}"#;
    let stored = spec(&parse(global), &no_networks()).expect("spec");
    assert_eq!(stored.mode_or_default(), defaults::Mode::Global);
    assert_eq!(serde_json::to_string(&spec_out(&stored).mode).expect("json"), r#"{"Global":{}}"#);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let container =
        |fields: &str| format!(r#"{{"TaskTemplate":{{"ContainerSpec":{{"Image":"web",{fields}}}}}}}"#);
    let template =
        |fields: &str| format!(r#"{{"TaskTemplate":{{"ContainerSpec":{{"Image":"web"}},{fields}}}}}"#);
    let refused = [
        (container(r#""Configs":[{"Runtime":{},"ConfigID":"x"}]"#), Kind::NotImplemented, "Runtime"),
        (
            container(r#""Privileges":{"CredentialSpec":{"File":"x"}}"#),
            Kind::NotImplemented,
            "CredentialSpec",
        ),
        (container(r#""Hosts":["nonsense"]"#), Kind::InvalidArgument, "nonsense"),
        (template(r#""PluginSpec":{}"#), Kind::NotImplemented, "PluginSpec"),
        (template(r#""Runtime":"plugin""#), Kind::InvalidArgument, "mismatched Runtime"),
        (template(r#""Runtime":"odd""#), Kind::InvalidArgument, "unsupported runtime"),
        (template(r#""Resources":{"SwapBytes":1}"#), Kind::InvalidArgument, "memory limit must be set"),
        (template(r#""Resources":{"MemorySwappiness":101}"#), Kind::InvalidArgument, "memory swappiness"),
        (template(r#""RestartPolicy":{"Condition":"maybe"}"#), Kind::InvalidArgument, "maybe"),
        (
            r#"{"Mode":{"ReplicatedJob":{},"GlobalJob":{}},"TaskTemplate":{"ContainerSpec":{"Image":"web"}}}"#
                .to_owned(),
            Kind::InvalidArgument,
            "only one service mode",
        ),
        (
            r#"{"Mode":{"Replicated":{},"Global":{}},"TaskTemplate":{"ContainerSpec":{"Image":"web"}}}"#
                .to_owned(),
            Kind::InvalidArgument,
            "only one service mode",
        ),
        (r#"{"TaskTemplate":{}}"#.to_owned(), Kind::InvalidArgument, "mismatched Runtime"),
    ];
    for (text, kind, name) in refused {
        let error = spec(&parse(&text), &no_networks()).expect_err(&text);
        assert_eq!(error.kind, kind, "{text}");
        assert!(error.message.contains(name), "{text}: {}", error.message);
    }
}

#[test]
fn security_options_say_what_privileges_say() {
    let text = r#"{"TaskTemplate":{"ContainerSpec":{"Image":"web","Privileges":{"Seccomp":{"Mode":"custom","Profile":"e30="},
        "AppArmor":{"Mode":"disabled"},"SELinuxContext":{"Disable":false,"User":"u","Level":"s0:c1"}}}}}"#;
    let stored = spec(&parse(text), &no_networks()).expect("spec");
    let options = stored
        .task
        .as_ref()
        .and_then(|task| task.container.as_ref())
        .expect("container")
        .security_opt
        .clone();
    assert_eq!(options, ["seccomp={}", "apparmor=unconfined", "label=user:u", "label=level:s0:c1"]);
    let shown = spec_out(&stored).task_template.container_spec.expect("container").privileges;
    assert_eq!(shown, parse(text).task_template.container_spec.expect("container").privileges);
}

#[test]
fn defaults_are_shown_only_when_asked_for() {
    let stored = wire::Service {
        spec: spec(&parse(r#"{"TaskTemplate":{"ContainerSpec":{"Image":"web"}}}"#), &no_networks()).ok(),
        ..wire::Service::default()
    };
    assert_eq!(service(&stored, false).spec.update_config, None);
    let shown = service(&stored, true).spec;
    assert_eq!(shown.update_config.expect("update").parallelism, 1);
    assert_eq!(shown.endpoint_spec, None, "dockerd shows none either");
    let task = shown.task_template;
    assert_eq!(task.restart_policy.expect("restart").delay, Some(5_000_000_000));
    assert_eq!(task.container_spec.expect("container").stop_grace_period, Some(10_000_000_000));
}

#[test]
fn a_services_object_has_dockers_shape() {
    let stored = wire::Service {
        id: "svc".into(),
        meta: Some(wire::Meta { version: 7, created_at: 1_700_000_000_000_000_000, updated_at: 0 }),
        spec: spec(&parse(CREATE), &no_networks()).ok(),
        endpoint: Some(wire::Endpoint {
            virtual_ips: vec![wire::VirtualIp { network_id: "n".into(), address: "10.0.1.2/24".into() }],
            ..wire::Endpoint::default()
        }),
        update_status: Some(wire::UpdateStatus {
            state: update_status::State::Updating.into(),
            started_at: 1_700_000_000_000_000_000,
            message: "update in progress".into(),
            ..wire::UpdateStatus::default()
        }),
        ..wire::Service::default()
    };
    let json = serde_json::to_value(service(&stored, false)).expect("json");
    assert_eq!(json["Version"], serde_json::json!({"Index": 7}));
    assert_eq!(json["CreatedAt"], "2023-11-14T22:13:20Z");
    assert_eq!(
        json["Endpoint"]["VirtualIPs"][0],
        serde_json::json!({"NetworkID": "n", "Addr": "10.0.1.2/24"})
    );
    assert_eq!(json["UpdateStatus"]["State"], "updating");
    assert!(json["UpdateStatus"].get("CompletedAt").is_none() && json.get("PreviousSpec").is_none());
}

#[test]
fn only_tasks_that_run_on_ready_nodes_count() {
    let task = |node: &str, state: wire::TaskState, desired: wire::TaskState| wire::Task {
        service_id: "svc".into(),
        node_id: node.into(),
        status: Some(wire::TaskStatus { state: state.into(), ..wire::TaskStatus::default() }),
        desired_state: desired.into(),
        ..wire::Task::default()
    };
    use wire::TaskState::{Running, Shutdown};
    let tasks =
        [task("up", Running, Running), task("down", Running, Running), task("up", Shutdown, Shutdown)];
    let service = wire::Service {
        id: "svc".into(),
        spec: spec(&parse(CREATE), &no_networks()).ok(),
        ..Default::default()
    };
    let status = status(&service, &tasks, |node| node == "up");
    assert_eq!((status.running_tasks, status.desired_tasks, status.completed_tasks), (1, 3, 0));
}

#[test]
fn jobs_are_read_with_mobys_defaults_and_counted_by_slot() {
    let mode = |mode: &str| {
        let text = format!(r#"{{"Mode":{mode},"TaskTemplate":{{"ContainerSpec":{{"Image":"web"}}}}}}"#);
        let stored = spec(&parse(&text), &no_networks()).expect("spec");
        (stored.mode_or_default(), serde_json::to_value(spec_out(&stored).mode).expect("json"))
    };
    let five = serde_json::json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 5}});
    let job = |concurrent, total| defaults::Mode::ReplicatedJob { concurrent, total };
    assert_eq!(mode(&five.to_string()), (job(2, 5), five));
    assert_eq!(mode(r#"{"ReplicatedJob":{}}"#).0, job(1, 1));
    assert_eq!(mode(r#"{"ReplicatedJob":{"MaxConcurrent":3}}"#).0, job(3, 3));
    let global = serde_json::json!({"GlobalJob": {}});
    assert_eq!(mode(&global.to_string()), (defaults::Mode::GlobalJob, global));

    use wire::TaskState::{Complete, Running};
    let task = |slot: u64, iteration: u64, state: wire::TaskState| wire::Task {
        service_id: "svc".into(),
        slot,
        job_iteration: Some(iteration),
        status: Some(wire::TaskStatus { state: state.into(), ..wire::TaskStatus::default() }),
        desired_state: Running.into(),
        ..wire::Task::default()
    };
    let tasks = [
        task(1, 0, Complete),
        task(1, 1, Complete),
        task(1, 1, Complete),
        task(2, 1, Complete),
        task(3, 1, Running),
    ];
    let text = r#"{"Mode":{"ReplicatedJob":{"MaxConcurrent":2,"TotalCompletions":5}},
        "TaskTemplate":{"ContainerSpec":{"Image":"web"}}}"#;
    let service = wire::Service {
        id: "svc".into(),
        spec: spec(&parse(text), &no_networks()).ok(),
        job_status: Some(wire::JobStatus { iteration: 1, ..wire::JobStatus::default() }),
        ..wire::Service::default()
    };
    let status = status(&service, &tasks, |_| true);
    assert_eq!((status.running_tasks, status.desired_tasks, status.completed_tasks), (1, 2, 2));
    let shown = serde_json::to_value(super::service(&service, true)).expect("json");
    assert_eq!(shown["JobStatus"]["JobIteration"], serde_json::json!({"Index": 1}));
    assert_eq!(shown["Spec"]["UpdateConfig"]["Parallelism"], 1, "dockerd does not ask whether it is a job");
}

#[test]
fn the_runtime_is_ours_by_field_and_by_label() {
    let runtime = |container: &str| {
        let text = format!(r#"{{"TaskTemplate":{{"ContainerSpec":{{"Image":"web"{container}}}}}}}"#);
        let stored = spec(&parse(&text), &no_networks()).expect("spec");
        let shown = serde_json::to_value(spec_out(&stored)).expect("json");
        let chosen = stored.task.and_then(|task| task.container).expect("container").runtime;
        (chosen, shown["TaskTemplate"]["ContainerSpec"].get("Runtime").is_some())
    };
    assert_eq!(runtime(""), (String::new(), false));
    assert_eq!(runtime(r#","Runtime":"crun""#), ("crun".to_owned(), true));
    assert_eq!(runtime(r#","Labels":{"rswarm.runtime":"crun"}"#), ("crun".to_owned(), false));
}
