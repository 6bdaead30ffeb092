//! Swarm's own behaviour as the oracle: Debian's dockerd and ours get the same requests, and their answers are compared,
//! but for ids, times, raft indices, and what is ours alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rswarm_tests::dockerd::Dockerd;
use rswarm_tests::harness::{Lab, run};
use serde_json::{Map, Value, json};

/// A Docker Engine API on a socket, and the ids that it gave.
struct Api {
    socket: PathBuf,
    ids: BTreeMap<&'static str, String>,
}

impl Api {
    fn new(socket: &Path) -> Api {
        Api { socket: socket.to_owned(), ids: BTreeMap::new() }
    }

    /// One request: the status and what was answered.
    fn call(&self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        let text = run(Command::new("curl")
            .args(["-sS", "-X", method, "-H", "Content-Type: application/json", "-d", body])
            .args(["-w", "\n%{http_code}", "--unix-socket"])
            .arg(&self.socket)
            .arg(format!("http://localhost/v1.41{path}")))?;
        let (body, status) = text.rsplit_once('\n').context("no status code")?;
        Ok((status.parse()?, serde_json::from_str(body).unwrap_or_else(|_| body.into())))
    }

    fn version(&self, path: &str) -> Result<u64> {
        let (_, object) = self.call("GET", path, "")?;
        object["Version"]["Index"].as_u64().with_context(|| format!("{path} has no version: {object}"))
    }

    /// One step, in which `{version}` and `{NAME}` stand for what this daemon gave. A version that the managers moved
    /// on from in between is read again.
    fn take(&mut self, step: &Step) -> Result<(u16, Value)> {
        let mut body = step.body.clone();
        for (name, id) in &self.ids {
            body = body.replace(&format!("{{{name}}}"), id);
        }
        let mut taken = self.attempt(step, &body)?;
        while step.path.contains("{version}") && taken.1.to_string().contains("update out of sequence") {
            taken = self.attempt(step, &body)?;
        }
        if let (Some(name), Some(id)) = (step.names, taken.1["ID"].as_str()) {
            self.ids.insert(name, id.to_owned());
        }
        Ok(taken)
    }

    fn attempt(&self, step: &Step, body: &str) -> Result<(u16, Value)> {
        let mut path = step.path.to_owned();
        if path.contains("{version}")
            && let Some((object, _)) = step.path.split_once("/update?")
        {
            path = path.replace("{version}", &self.version(object)?.to_string());
        }
        self.call(step.method, &path, body)
    }
}

/// One request to both.
#[derive(Clone)]
struct Step {
    method: &'static str,
    path: &'static str,
    body: String,
    /// What the id that is answered is called further on.
    names: Option<&'static str>,
}

fn get(path: &'static str) -> Step {
    Step { method: "GET", path, body: String::new(), names: None }
}

fn delete(path: &'static str) -> Step {
    Step { method: "DELETE", path, body: String::new(), names: None }
}

fn post(path: &'static str, body: impl ToString) -> Step {
    Step { method: "POST", path, body: body.to_string(), names: None }
}

fn named(names: &'static str, step: Step) -> Step {
    Step { names: Some(names), ..step }
}

/// A service of one task that is never tried again: no daemon here has its image.
fn service(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": { "Image": "nothing:latest", "Args": ["a"] },
            "RestartPolicy": { "Condition": "none" },
        },
        "Mode": { "Replicated": { "Replicas": 1 } },
    });
    change(&mut spec);
    spec
}

fn create(change: impl FnOnce(&mut Value)) -> Step {
    post("/services/create", service("bad", change))
}

#[test]
fn services_are_made_changed_and_refused_as_on_dockerd() -> Result<()> {
    let mut lab = Lab::start(2)?;
    lab.hosts[1].stop()?;
    let (ours, theirs) = (&lab.hosts[0], &lab.hosts[1]);
    let dockerd =
        Dockerd::start(&lab.dir.join("dockerd"), &theirs.netns, &["--bridge=none", "--ip6tables=false"])?;
    ours.docker(&["swarm", "init", "--advertise-addr", &ours.address.to_string()])?;
    dockerd.docker(&["swarm", "init", "--advertise-addr", &theirs.address.to_string()])?;
    let mut ours = Api::new(&ours.dir.join("rswarm.sock"));
    let mut peer = Api::new(&dockerd.socket);
    let mut differences = Vec::new();
    for step in [lives(), contents(), nodes_and_tasks(), bad_specs(), bad_requests()].concat() {
        let (our, their) = (ours.take(&step)?, peer.take(&step)?);
        let (our, their) = ((our.0, comparable(our.1)), (their.0, comparable(their.1)));
        if our != their {
            let (method, path, body) = (step.method, step.path, &step.body);
            differences.push(format!(
                "{method} {path} {body}\n  dockerd {} {}\n  ours    {} {}",
                their.0, their.1, our.0, our.1
            ));
        }
    }
    dockerd.docker(&["swarm", "leave", "--force"])?;
    drop(dockerd);
    // It stays behind when dockerd ends.
    run(lab.hosts[1].command("ip").args(["link", "del", "docker_gwbridge"]))?;
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    lab.finish()
}

/// Without what differs from daemon to daemon, and what is ours alone.
fn comparable(value: Value) -> Value {
    const OURS: [&str; 3] = ["hint", "Deployment", "Warnings"];
    // How far an update is, and when an object was written, is a matter of the moment.
    const MOMENTARY: [&str; 2] = ["UpdateStatus", "Index"];
    // Without resolver settings dockerd shows what the client sent; ours, like docker's CLI, an empty object.
    const EMPTY: [&str; 1] = ["DNSConfig"];
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(key, value)| {
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                !OURS.contains(&key.as_str())
                    && !MOMENTARY.contains(&key.as_str())
                    && !(is_empty && (value.is_null() || EMPTY.contains(&key.as_str())))
            });
            Value::Object(kept.map(|(key, value)| (key, comparable(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(comparable).collect()),
        Value::String(text) => Value::String(without_ids(&text)),
        other => other,
    }
}

/// Ids and times become words; what gRPC puts before a message goes.
fn without_ids(text: &str) -> String {
    let text = match text.strip_prefix("rpc error: code = ") {
        Some(rest) => rest.split_once(" desc = ").map_or(rest, |(_, said)| said),
        None => text,
    };
    let is_id = |word: &str| {
        word.len() == 25 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_time =
        |word: &str| word.len() > 20 && word.ends_with('Z') && word.contains("-") && word.contains("T");
    let words = text.split(' ').map(|word| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if is_id(bare) {
            word.replace(bare, "ID")
        } else if is_time(bare) {
            word.replace(bare, "TIME")
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Services from their first spec to their end.
fn lives() -> Vec<Step> {
    let full = json!({
        "Name": "full",
        "Labels": { "a": "b" },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "nothing:latest", "Command": ["c"], "Args": ["a"], "Labels": { "l": "1" }, "Env": ["A=1"],
                "Hostname": "h-{{.Task.Slot}}", "User": "root", "Dir": "/tmp", "Groups": ["g"], "StopSignal": "SIGINT",
                "StopGracePeriod": 5_000_000_000_u64, "ReadOnly": true, "Init": true, "TTY": true, "OpenStdin": true,
                "Mounts": [
                    { "Type": "volume", "Source": "vol1", "Target": "/v", "VolumeOptions": { "NoCopy": true, "Labels": { "x": "y" } } },
                    { "Type": "bind", "Source": "/srv", "Target": "/b", "ReadOnly": true, "BindOptions": { "Propagation": "rprivate" } },
                    { "Type": "tmpfs", "Target": "/t", "TmpfsOptions": { "SizeBytes": 1_048_576, "Mode": 511 } },
                ],
                "Hosts": ["1.2.3.4 foo"],
                "DNSConfig": { "Nameservers": ["9.9.9.9"], "Search": ["x"], "Options": ["ndots:2"] },
                "Healthcheck": { "Test": ["CMD", "true"], "Interval": 1_000_000_000, "Timeout": 1_000_000_000, "Retries": 3 },
                "Sysctls": { "net.core.somaxconn": "1024" }, "CapabilityAdd": ["NET_ADMIN"], "CapabilityDrop": ["ALL"],
                "Ulimits": [{ "Name": "nofile", "Soft": 100, "Hard": 200 }],
            },
            "Resources": {
                "Limits": { "NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 50 },
                "Reservations": {
                    "NanoCPUs": 100_000_000, "MemoryBytes": 33_554_432,
                    "GenericResources": [{ "DiscreteResourceSpec": { "Kind": "gpu", "Value": 2 } }],
                },
            },
            "RestartPolicy": { "Condition": "on-failure", "Delay": 1_000_000_000, "MaxAttempts": 3, "Window": 60_000_000_000_u64 },
            "Placement": {
                "Constraints": ["node.role==manager"], "MaxReplicas": 2,
                "Preferences": [{ "Spread": { "SpreadDescriptor": "node.labels.z" } }],
                "Platforms": [{ "Architecture": "x86_64", "OS": "linux" }],
            },
            "LogDriver": { "Name": "json-file", "Options": { "max-size": "1m" } },
            "ForceUpdate": 3,
        },
        "Mode": { "Replicated": { "Replicas": 1 } },
        "UpdateConfig": {
            "Parallelism": 2, "Delay": 1_000_000_000, "FailureAction": "rollback", "Monitor": 2_000_000_000,
            "MaxFailureRatio": 0.5, "Order": "start-first",
        },
        "RollbackConfig": { "Parallelism": 1, "FailureAction": "continue", "Order": "stop-first" },
        "EndpointSpec": { "Mode": "vip", "Ports": [{ "Protocol": "udp", "TargetPort": 53, "PublishedPort": 15353, "PublishMode": "host" }] },
    });
    let changed = service("web", |spec| {
        spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["B=2"]);
        spec["Labels"] = json!({ "x": "y" });
    });
    let global = json!({ "Name": "glob", "Mode": { "Global": {} }, "TaskTemplate": service("", |_| ())["TaskTemplate"] });
    let job = json!({ "Name": "job", "Mode": { "ReplicatedJob": { "TotalCompletions": 2 } }, "TaskTemplate": global["TaskTemplate"] });
    let no_mode =
        json!({ "Name": "plain", "TaskTemplate": { "ContainerSpec": { "Image": "nothing:latest" } } });
    vec![
        post("/services/create", service("web", |_| ())),
        get("/services/web"),
        get("/services/web?insertDefaults=true"),
        post("/services/create", service("web", |_| ())),
        post("/services/create", full),
        get("/services/full"),
        get("/services/full?insertDefaults=true"),
        post("/services/create", global),
        get("/services/glob?insertDefaults=true"),
        post("/services/create", job),
        get("/services/job"),
        get("/services/job?insertDefaults=true"),
        post("/services/create", no_mode),
        get("/services/plain"),
        post("/services/web/update?version={version}", &changed),
        get("/services/web"),
        post("/services/web/update?version={version}", service("other", |_| ())),
        post(
            "/services/web/update?version={version}",
            service("web", |spec| spec["Mode"] = json!({ "Global": {} })),
        ),
        post("/services/web/update?version={version}&rollback=previous", &changed),
        get("/services/web"),
        post("/services/plain/update?version={version}&rollback=previous", service("plain", |_| ())),
        delete("/services/web"),
        get("/services/web"),
    ]
}

fn contents() -> Vec<Step> {
    let file = |name: &str| json!({ "Name": name, "UID": "0", "GID": "0", "Mode": 292 });
    let using = |name: &str, twice: bool| {
        let secret = json!({ "SecretID": "{s1}", "SecretName": "s1", "File": file("s1") });
        let config = json!({ "ConfigID": "{c1}", "ConfigName": "c1", "File": file("/c1") });
        service(name, |spec| {
            let container = &mut spec["TaskTemplate"]["ContainerSpec"];
            container["Secrets"] = if twice { json!([secret, secret]) } else { json!([secret]) };
            container["Configs"] = json!([config]);
        })
    };
    vec![
        named("s1", post("/secrets/create", json!({ "Name": "s1", "Labels": { "a": "b" }, "Data": "YQ==" }))),
        get("/secrets/s1"),
        post("/secrets/create", json!({ "Name": "s1", "Data": "YQ==" })),
        post("/secrets/create", json!({ "Name": "a", "Data": "" })),
        post("/secrets/create", json!({ "Name": "a b", "Data": "YQ==" })),
        post("/secrets/s1/update?version={version}", json!({ "Name": "s1", "Labels": { "c": "d" } })),
        get("/secrets/s1"),
        named(
            "c1",
            post(
                "/configs/create",
                json!({ "Name": "c1", "Data": "YQ==", "Templating": { "Name": "golang" } }),
            ),
        ),
        get("/configs/c1"),
        post("/services/create", using("sec", false)),
        get("/services/sec"),
        post("/services/create", using("sec2", true)),
        delete("/secrets/s1"),
        delete("/configs/c1"),
        delete("/services/sec"),
    ]
}

fn nodes_and_tasks() -> Vec<Step> {
    vec![
        get("/tasks?filters=%7B%22service%22%3A%5B%22nobody%22%5D%7D"),
        get("/tasks?filters=%7B%22node%22%3A%5B%22nobody%22%5D%7D"),
        get("/services/nobody"),
        delete("/services/nobody"),
        get("/tasks/nobody"),
        get("/nodes/nobody"),
        delete("/nodes/nobody"),
        get("/secrets/nobody"),
        delete("/secrets/nobody"),
        get("/configs/nobody"),
    ]
}

/// What is refused with the same words. Left out is what dockerd takes and fails at later, on the node.
fn bad_specs() -> Vec<Step> {
    let name = |name: &str| post("/services/create", service(name, |_| ()));
    let template = |field: &'static str, value: Value| create(|spec| spec["TaskTemplate"][field] = value);
    let container = |field: &'static str, value: Value| {
        create(|spec| spec["TaskTemplate"]["ContainerSpec"][field] = value)
    };
    let top = |field: &'static str, value: Value| create(|spec| spec[field] = value);
    let tmpfs = || json!({ "Type": "tmpfs", "Target": "/x" });
    let port = |target: u32| json!({ "Protocol": "tcp", "TargetPort": target, "PublishedPort": 8080 });
    let secret = json!([{ "SecretID": "x", "SecretName": "n", "File": { "Name": "n", "UID": "0", "GID": "0", "Mode": 292 } }]);
    let config = json!([{ "ConfigID": "x", "ConfigName": "n", "File": { "Name": "n", "UID": "0", "GID": "0", "Mode": 292 } }]);
    vec![
        name("a b"),
        name("a.b"),
        name("-a"),
        name(&"a".repeat(64)),
        container("Image", json!("")),
        container("Image", json!("UP per")),
        container("Mounts", json!([tmpfs(), tmpfs()])),
        container("Secrets", secret),
        container("Configs", config),
        template("Resources", json!({ "Limits": { "MemoryBytes": 1000 } })),
        template("RestartPolicy", json!({ "Condition": "maybe" })),
        template("RestartPolicy", json!({ "Delay": -1 })),
        template("RestartPolicy", json!({ "Window": -1 })),
        template("Networks", json!([{ "Target": "ingress" }])),
        template("Runtime", json!("odd")),
        template("Runtime", json!("plugin")),
        top("TaskTemplate", json!({})),
        top("UpdateConfig", json!({ "Delay": -1 })),
        top("UpdateConfig", json!({ "Monitor": -1 })),
        top("UpdateConfig", json!({ "MaxFailureRatio": 2 })),
        top("UpdateConfig", json!({ "FailureAction": "odd" })),
        top("UpdateConfig", json!({ "Order": "odd" })),
        top("EndpointSpec", json!({ "Mode": "odd" })),
        top("EndpointSpec", json!({ "Mode": "dnsrr", "Ports": [port(80)] })),
        top("EndpointSpec", json!({ "Ports": [port(80), port(81)] })),
        top("Mode", json!({ "Replicated": {}, "Global": {} })),
        create(|spec| {
            spec["Mode"] = json!({ "ReplicatedJob": {} });
            spec["UpdateConfig"] = json!({ "Parallelism": 1 });
        }),
    ]
}

fn bad_requests() -> Vec<Step> {
    vec![
        post("/services/nobody/update?version=1", service("nobody", |_| ())),
        post("/services/nobody/update", service("nobody", |_| ())),
        post("/services/nobody/update?version=x", service("nobody", |_| ())),
        post("/nodes/nobody/update?version=x", json!({})),
        post("/swarm/init", json!({ "ListenAddr": "0.0.0.0:2377" })),
        post("/swarm/join", json!({ "RemoteAddrs": ["192.0.2.1"], "JoinToken": "x" })),
        post("/swarm/leave", ""),
        post("/swarm/unlock", json!({ "UnlockKey": "x" })),
    ]
}
