//! Every rule, by the words that a user reads.

use rswarm_proto::wire::{
    Annotations, ClusterSpec, ContainerSpec, EndpointSpec, ExternalCa, GenericResource, IpamConfig, Mount,
    NetworkSpec, PortConfig, ResourceRequirements, Resources, ServiceSpec, Ulimit, UpdateConfig,
    endpoint_spec, mount, port_config,
};

use super::network::MTU_OPTION;
use super::task::{MEMORY_MIN, NANO_CPUS_MIN};
use super::*;
use crate::world::{World, node, spec};

/// What breaks a rule, and what is said of it.
type Rule = (fn(&mut ServiceSpec), &'static str);

fn problems(change: impl FnOnce(&mut ServiceSpec)) -> Vec<String> {
    let mut spec = spec("web", 1);
    change(&mut spec);
    let found = service(&spec, &World::new(1).state).err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
    spec.task.get_or_insert_default().container.get_or_insert_default()
}

fn named(name: &str) -> Vec<String> {
    problems(|spec| spec.annotations.get_or_insert_default().name = name.to_owned())
}

#[test]
fn a_sound_spec_has_no_problems() {
    assert_eq!(problems(|_| {}), Vec::<String>::new());
    for name in ["a", "web-1", "web_2", "Web"] {
        assert_eq!(named(name), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(|spec| {
        spec.annotations.get_or_insert_default().name = "a.b".to_owned();
        container(spec).image.clear();
        spec.update = Some(UpdateConfig { delay: -1, max_failure_ratio: 2.0, ..UpdateConfig::default() });
    });
    assert_eq!(
        found,
        [
            "name must be valid as a DNS name component",
            "ContainerSpec: image reference must be provided",
            "TaskSpec: update-delay cannot be negative",
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ]
    );
}

#[test]
fn names_are_parts_of_dns_names() {
    assert_eq!(named(""), ["meta: name must be provided"]);
    assert_eq!(named(&"a".repeat(64)), ["name must be 63 characters or fewer"]);
    for name in ["-a", "a-", "a b", "a.b", "ü"] {
        assert_eq!(named(name), ["name must be valid as a DNS name component"], "{name}");
    }
}

#[test]
fn confinement_is_checked_as_far_as_it_can_be() {
    let found = problems(|spec| {
        let container = container(spec);
        container.oom_score_adj = 2000;
        container.ulimits.push(Ulimit { name: "nofile".into(), soft: 5, hard: 4 });
        container.ulimits.push(Ulimit { name: "core".into(), soft: 5, hard: -1 });
        container.sysctls.insert("vm.swappiness".into(), "1".into());
        container.sysctls.insert("net.core.somaxconn".into(), "1".into());
    });
    assert_eq!(
        found,
        [
            "ContainerSpec: Invalid value 2000, range for oom score adj is [-1000, 1000]",
            "ContainerSpec: ulimit soft limit must be less than or equal to hard limit: 5 > 4",
            "ContainerSpec: sysctl 'vm.swappiness' is not allowed: it is not a namespace's own",
        ]
    );
}

#[test]
fn images_are_references() {
    let image = |image: &str| problems(|spec| container(spec).image = image.to_owned());
    let digest = format!("reg.example:5000/a/b@sha256:{}", "0".repeat(64));
    for good in ["web", "web:1", "library/web:v1.2", "reg.example:5000/a/b:t", "localhost/a", &digest] {
        assert_eq!(image(good), Vec::<String>::new(), "{good}");
    }
    for bad in ["UPPER", "a b", "web:", "web:t t", "/web", "web//x", "web@sha256:1"] {
        assert_eq!(image(bad), [format!("ContainerSpec: \"{bad}\" is not a valid repository/tag")]);
    }
}

#[test]
fn mounts_have_targets_of_their_own() {
    let mount = |kind: mount::Type, source: &str, target: &str| Mount {
        r#type: kind.into(),
        source: source.to_owned(),
        target: target.to_owned(),
        ..Mount::default()
    };
    let with = |mounts: Vec<Mount>| problems(|spec| container(spec).mounts = mounts);
    assert_eq!(with(vec![mount(mount::Type::Volume, "data", "/data")]), Vec::<String>::new());
    assert_eq!(
        with(vec![mount(mount::Type::Volume, "a", "/x"), mount(mount::Type::Tmpfs, "", "/x")]),
        ["ContainerSpec: duplicate mount point: /x"]
    );
    assert_eq!(
        with(vec![mount(mount::Type::Bind, "rel", "/x")]),
        ["ContainerSpec: invalid mount path: 'rel' mount path must be absolute"]
    );
    assert_eq!(
        with(vec![mount(mount::Type::Tmpfs, "", "/")]),
        ["ContainerSpec: invalid mount config: destination can't be '/'"]
    );
}

#[test]
fn amounts_have_least_values() {
    let reserve = |reserved: Resources, limits: Resources| {
        problems(|spec| {
            let requirements = ResourceRequirements {
                limits: Some(limits),
                reservations: Some(reserved),
                ..ResourceRequirements::default()
            };
            spec.task.get_or_insert_default().resources = Some(requirements);
        })
    };
    let amount = |nano_cpus, memory| Resources { nano_cpus, memory, pids: 0 };
    assert_eq!(reserve(amount(NANO_CPUS_MIN, MEMORY_MIN), amount(0, 0)), Vec::<String>::new());
    assert_eq!(
        reserve(amount(1000, 1000), amount(0, 0)),
        [
            "invalid cpu value 0.000001: Must be at least 0.001",
            "invalid memory value 1000: Must be at least 4MiB"
        ]
    );
    assert_eq!(
        reserve(amount(0, 2 * MEMORY_MIN), amount(0, MEMORY_MIN)),
        ["Resources: reserved memory cannot be more than the limit"]
    );
}

#[test]
fn ports_are_published_once() {
    let port = |published: u32, mode: port_config::Mode| PortConfig {
        protocol: "tcp".to_owned(),
        target: 80,
        published,
        mode: mode.into(),
        ..PortConfig::default()
    };
    let with = |ports: Vec<PortConfig>, mode: endpoint_spec::Mode| {
        problems(|spec| spec.endpoint = Some(EndpointSpec { mode: mode.into(), ports }))
    };
    use endpoint_spec::Mode::{Dnsrr, Vip};
    use port_config::Mode::{Host, Ingress};
    assert_eq!(with(vec![port(8080, Host), port(8081, Host)], Dnsrr), Vec::<String>::new());
    assert_eq!(
        with(vec![port(8080, Host), port(8080, Host)], Vip),
        ["EndpointSpec: duplicate published ports provided"]
    );
    assert_eq!(
        with(vec![port(8080, Ingress)], Dnsrr),
        ["EndpointSpec: port published with ingress mode can't be used with dnsrr mode"]
    );
    assert_eq!(
        with(vec![port(70_000, Host)], Vip),
        ["EndpointSpec: invalid published port 70000: must be at most 65535"]
    );
}

#[test]
fn ways_to_balance_are_known_or_refused() {
    let with = |label: &str, value: &str| {
        problems(|spec| {
            let annotations = spec.annotations.get_or_insert_default();
            annotations.labels.insert(label.to_owned(), value.to_owned());
        })
    };
    for (label, value) in
        [("rswarm.lb", "sticky"), ("rswarm.local-first", "true"), ("rswarm.publish", "local")]
    {
        assert_eq!(with(label, value), Vec::<String>::new());
    }
    assert_eq!(
        with("rswarm.lb", "fair"),
        ["invalid label rswarm.lb=fair: want random, source-hash or sticky"]
    );
    assert!(with("rswarm.proxy-protocol", "v2")[0].contains("no proxy"));
}

#[test]
fn a_spec_that_does_not_fit_the_log_is_refused() {
    let found = problems(|spec| container(spec).env = vec!["A=".repeat(SPEC_BYTES_MAX)]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("the spec is too large: it has 20"), "{}", found[0]);
    assert_eq!(problems(|spec| container(spec).env = vec!["A=".repeat(1000)]), Vec::<String>::new());
}

#[test]
fn what_the_data_path_cannot_do_is_refused() {
    let check = |change: fn(&mut NetworkSpec)| {
        let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
        let mut spec = NetworkSpec { annotations, ..NetworkSpec::default() };
        change(&mut spec);
        let found = network(&spec, &World::new(1).state).err().unwrap_or_default();
        found.iter().map(|problem| problem.to_string().chars().take(32).collect()).collect::<Vec<String>>()
    };
    assert_eq!(check(|spec| spec.ipv6 = true), Vec::<String>::new());
    let six = |spec: &mut NetworkSpec| {
        let subnet = "fd00:1::/64".to_owned();
        spec.ipam = vec![IpamConfig { subnet, ..IpamConfig::default() }];
    };
    assert_eq!(check(six), ["subnet fd00:1::/64 needs IPv6 to"]);
    let small = |spec: &mut NetworkSpec| {
        spec.ipv6 = true;
        spec.options.insert(MTU_OPTION.to_owned(), "1000".to_owned());
    };
    assert_eq!(check(small), ["invalid MTU number: 1000: IPv6 n"]);
    assert_eq!(
        check(|spec| drop(spec.options.insert("encrypted".to_owned(), String::new()))),
        Vec::<String>::new()
    );
    assert_eq!(
        check(|spec| drop(spec.options.insert("mtu".to_owned(), "1400".to_owned()))),
        Vec::<String>::new(),
        "Docker ignores options that it does not know"
    );
}

#[test]
fn jobs_have_no_updates() {
    let found = problems(|spec| {
        let job = rswarm_proto::wire::GlobalJob {};
        spec.mode = Some(rswarm_proto::wire::service_spec::Mode::GlobalJob(job));
        spec.update = Some(UpdateConfig::default());
        spec.rollback = Some(UpdateConfig::default());
    });
    assert_eq!(found, ["Jobs may not have an update config", "Jobs may not have a rollback config"]);
}

#[test]
fn replicas_have_a_limit() {
    let replicas = |replicas: u64| {
        problems(|spec| {
            let replicated = rswarm_proto::wire::Replicated { replicas };
            spec.mode = Some(rswarm_proto::wire::service_spec::Mode::Replicated(replicated));
        })
    };
    assert_eq!(replicas(REPLICAS_MAX), Vec::<String>::new());
    assert_eq!(replicas(u64::MAX).len(), 1);
}

#[test]
fn subnets_fit_and_do_not_overlap() {
    let mut world = World::new(1);
    world.network("first");
    world.reconcile();
    let check = |config: IpamConfig| {
        let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
        let spec = NetworkSpec { annotations, ipam: vec![config], ..NetworkSpec::default() };
        let found = network(&spec, &world.state).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let subnet = |subnet: &str| IpamConfig { subnet: subnet.to_owned(), ..IpamConfig::default() };
    assert_eq!(check(subnet("10.7.0.0/24")), Vec::<String>::new());
    assert_eq!(
        check(subnet("10.0.1.128/25")),
        ["Pool overlaps with other one on this address space: 10.0.1.128/25 is part of network first"]
    );
    assert_eq!(check(subnet("10.7.0.0/30")), ["subnet 10.7.0.0/30 is too small: /29 is the smallest"]);
    let gateway = IpamConfig { gateway: "10.8.0.1".to_owned(), ..subnet("10.7.0.0/24") };
    assert_eq!(check(gateway), ["no matching subnet for gateway 10.8.0.1"]);
}

#[test]
fn an_absurd_mtu_is_refused() {
    let check = |mtu: &str| {
        let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
        let mut spec = NetworkSpec { annotations, ..NetworkSpec::default() };
        spec.options.insert(MTU_OPTION.to_owned(), mtu.to_owned());
        network(&spec, &World::new(1).state).is_ok()
    };
    assert!(["576", "1400", "9000", "65535"].into_iter().all(check));
    for mtu in ["0", "68", "65536", "-1", "big", "", "99999999999999999999"] {
        assert!(!check(mtu), "{mtu}");
    }
}

#[test]
fn aliases_and_addresses_must_fit_the_network() {
    let mut world = World::new(1);
    let id = world.network("first");
    world.reconcile();
    let check = |alias: &str, address: &str| {
        let mut spec = spec("web", 1);
        spec.task.get_or_insert_default().networks = vec![rswarm_proto::wire::NetworkAttachmentConfig {
            target: id.clone(),
            aliases: vec![alias.to_owned()],
            addresses: vec![address.to_owned()],
            ..Default::default()
        }];
        let found = service(&spec, &world.state).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(check("db.main_1", "10.0.1.9"), Vec::<String>::new());
    for alias in ["", "a b", "a..b", ".", "caf\u{e9}", &"x".repeat(64), &"x.".repeat(127)] {
        assert_eq!(check(alias, "10.0.1.9").len(), 1, "{alias}");
    }
    let outside = check("db", "10.9.9.9");
    assert!(outside[0].contains("address 10.9.9.9 is in none of the subnets of network"), "{outside:?}");
}

#[test]
fn clusters_and_nodes_are_checked_too() {
    assert_eq!(super::node(&node("n1").spec.unwrap_or_default()), Ok(()));
    let named = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
    let spec = ClusterSpec { annotations: named, ..ClusterSpec::default() };
    assert_eq!(cluster(&spec), Ok(()));
    let bad =
        ClusterSpec { annotations: None, election_tick: 2, heartbeat_tick: 2, heartbeat_period: 1, ..spec };
    assert_eq!(cluster(&bad).err().map(|problems| problems.len()), Some(3));
}

/// What is said of a spec that is changed so: each rule by its words, and nothing else.
#[test]
fn every_rule_of_containers_and_tasks_speaks() {
    let rules: Vec<Rule> = vec![
        (|spec| container(spec).env.push("=a".into()), "ContainerSpec: invalid environment variable: \"=a\""),
        (|spec| container(spec).stop_grace = Some(-1), "ContainerSpec: stop-grace-period cannot be negative"),
        (
            |spec| container(spec).healthcheck.get_or_insert_default().interval = 1,
            "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
        ),
        (
            |spec| container(spec).healthcheck.get_or_insert_default().timeout = 1,
            "ContainerSpec: Timeout in HealthConfig cannot be less than 1ms",
        ),
        (
            |spec| container(spec).healthcheck.get_or_insert_default().start_period = 1,
            "ContainerSpec: StartPeriod in HealthConfig cannot be less than 1ms",
        ),
        (
            |spec| container(spec).healthcheck.get_or_insert_default().start_interval = 1,
            "ContainerSpec: StartInterval in HealthConfig cannot be less than 1ms",
        ),
        (
            |spec| container(spec).healthcheck.get_or_insert_default().retries = -1,
            "ContainerSpec: Retries in HealthConfig cannot be negative",
        ),
        (
            |spec| container(spec).ulimits.push(Ulimit { soft: 1, hard: 1, ..Ulimit::default() }),
            "ContainerSpec: invalid ulimit: it has no name",
        ),
        (|spec| spec.task = None, "TaskSpec: a task spec must be provided"),
        (
            |spec| spec.task.get_or_insert_default().container = None,
            "ContainerSpec: a container spec must be provided",
        ),
        (
            |spec| spec.task.get_or_insert_default().restart.get_or_insert_default().delay = Some(-1),
            "TaskSpec: restart-delay cannot be negative",
        ),
        (
            |spec| spec.task.get_or_insert_default().restart.get_or_insert_default().window = Some(-1),
            "TaskSpec: restart-window cannot be negative",
        ),
        (
            |spec| spec.update.get_or_insert_default().monitor = -1,
            "TaskSpec: update-monitor cannot be negative",
        ),
        (
            |spec| spec.rollback.get_or_insert_default().delay = -1,
            "TaskSpec: rollback-delay cannot be negative",
        ),
        (
            |spec| {
                spec.mode = Some(rswarm_proto::wire::service_spec::Mode::Global(Default::default()));
                spec.task.get_or_insert_default().placement.get_or_insert_default().max_replicas = 1;
            },
            "Placement: max replicas per node can only be used in replicated mode",
        ),
    ];
    for (change, said) in rules {
        assert_eq!(problems(change), [said]);
    }
}

#[test]
fn every_rule_of_resources_ports_and_labels_speaks() {
    fn reserve(spec: &mut ServiceSpec, kind: &str, name: &str, count: i64) {
        let own = GenericResource { kind: kind.to_owned(), name: name.to_owned(), count };
        spec.task.get_or_insert_default().resources.get_or_insert_default().generic.push(own);
    }
    fn limit(spec: &mut ServiceSpec) -> &mut Resources {
        let resources = spec.task.get_or_insert_default().resources.get_or_insert_default();
        resources.limits.get_or_insert_default()
    }
    fn port(spec: &mut ServiceSpec, protocol: &str, target: u32) {
        let port = PortConfig { protocol: protocol.to_owned(), target, ..PortConfig::default() };
        spec.endpoint.get_or_insert_default().ports.push(port);
    }
    fn label(spec: &mut ServiceSpec, key: &str, value: &str) {
        let labels = &mut spec.annotations.get_or_insert_default().labels;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let rules: Vec<Rule> = vec![
        (|spec| limit(spec).pids = -5, "invalid pids limit -5: cannot be negative"),
        (
            |spec| {
                limit(spec).nano_cpus = NANO_CPUS_MIN;
                let resources = spec.task.get_or_insert_default().resources.get_or_insert_default();
                resources.reservations.get_or_insert_default().nano_cpus = 2 * NANO_CPUS_MIN;
            },
            "Resources: reserved CPU cannot be more than the limit",
        ),
        (|spec| reserve(spec, "gpu", "a", 0), "invalid argument for resource gpu"),
        (|spec| reserve(spec, "gpu", "", -1), "cannot ask for negative resource gpu: -1"),
        (|spec| reserve(spec, "", "", 1), "Resources: a generic resource needs a kind"),
        (|spec| port(spec, "odd", 80), "EndpointSpec: invalid protocol 'odd'"),
        (
            |spec| {
                port(spec, "tcp", 80);
                spec.endpoint.get_or_insert_default().ports[0].published_end = 90;
            },
            "EndpointSpec: a service publishes a port on one port, not on the first free one of a range",
        ),
        (|spec| port(spec, "tcp", 0), "EndpointSpec: invalid target port 0: must be between 1 and 65535"),
        (
            |spec| label(spec, "rswarm.drain.order", "odd"),
            "invalid label rswarm.drain.order=odd: want start-first or stop-first",
        ),
        (
            |spec| label(spec, "rswarm.rebalance", "odd"),
            "invalid label rswarm.rebalance=odd: want true or false",
        ),
        (
            |spec| label(spec, "rswarm.rebalance.interval", "odd"),
            "label rswarm.rebalance.interval: invalid duration `odd`: give it as in `10s`, `1m30s` or `2h`",
        ),
        (
            |spec| label(spec, "rswarm.node-loss.grace", "odd"),
            "label rswarm.node-loss.grace: invalid duration `odd`: give it as in `10s`, `1m30s` or `2h`",
        ),
        (
            |spec| label(spec, "rswarm.cron.schedule", "@daily"),
            "a schedule needs a job: use mode replicated-job or global-job",
        ),
        (|spec| label(spec, "rswarm.cron.missed", "skip"), "label rswarm.cron.schedule is missing"),
    ];
    for (change, said) in rules {
        assert_eq!(problems(change), [said]);
    }
}

#[test]
fn every_rule_of_attachments_networks_nodes_and_clusters_speaks() {
    let mut world = World::new(1);
    let first = world.network("first");
    world.reconcile();
    let attached = |targets: &[&str]| {
        let mut spec = spec("web", 1);
        targets.iter().for_each(|target| crate::world::attach(&mut spec, target));
        let found = service(&spec, &world.state).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(attached(&["nowhere"]), ["Networks: network nowhere not found"]);
    assert_eq!(attached(&[&first, &first]), [format!("Networks: network {first} is given twice")]);
    assert_eq!(attached(&["host", &first]), ["Networks: network host cannot be combined with others"]);

    let named = |name: &str, change: fn(&mut NetworkSpec)| {
        let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
        let mut spec = NetworkSpec { annotations, ..NetworkSpec::default() };
        change(&mut spec);
        let found = network(&spec, &world.state).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(named("", |_| ()), ["name must be provided"]);
    assert!(named("a b", |_| ())[0].starts_with("a b includes invalid characters for a network name"));
    assert_eq!(named("host", |_| ()), ["host is a pre-defined network and cannot be created"]);
    let both = |spec: &mut NetworkSpec| (spec.ingress, spec.attachable) = (true, true);
    assert_eq!(named("in", both), ["ingress network cannot be attachable"]);
    assert!(named("odd", |spec| spec.driver = "odd".into())[0].starts_with("could not resolve driver odd"));
    let alone = |spec: &mut NetworkSpec| {
        spec.ipam.push(IpamConfig { gateway: "10.7.0.1".into(), ..IpamConfig::default() });
    };
    assert_eq!(named("net", alone), ["a gateway, range or auxiliary address needs a subnet"]);
    let outside = |spec: &mut NetworkSpec| {
        spec.ipam.push(IpamConfig {
            subnet: "10.7.0.0/24".into(),
            ip_range: "10.8.0.0/25".into(),
            aux_addresses: [("a".to_owned(), "10.8.0.1".to_owned())].into(),
            ..IpamConfig::default()
        });
    };
    assert_eq!(
        named("net", outside),
        ["no matching subnet for range 10.8.0.0/25", "no matching subnet for aux-address a=10.8.0.1"]
    );
    let for_two = |spec: &mut NetworkSpec| {
        spec.ipam.push(IpamConfig {
            subnet: "10.7.0.0/24".into(),
            gateway: "10.7.0.1".into(),
            aux_addresses: [("a".to_owned(), "10.7.0.1".to_owned())].into(),
            ..IpamConfig::default()
        });
    };
    assert_eq!(
        named("net", for_two),
        ["aux-address a=10.7.0.1 is the gateway or another aux-address already"]
    );
    let twice = |spec: &mut NetworkSpec| {
        let subnet = IpamConfig { subnet: "10.7.0.0/24".into(), ..IpamConfig::default() };
        spec.ipam = vec![subnet.clone(), subnet];
    };
    assert_eq!(named("net", twice), ["subnet 10.7.0.0/24 overlaps another subnet of the network"]);

    let labelled = |key: &str, value: &str| {
        let mut spec = node("n1").spec.unwrap_or_default();
        spec.annotations.get_or_insert_default().labels.insert(key.to_owned(), value.to_owned());
        let found = super::node(&spec).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(labelled("", "x"), ["a label needs a name"]);
    assert!(labelled("rswarm.drain.deadline", "soon")[0].contains("invalid duration `soon`"));

    let of_cluster = |change: fn(&mut ClusterSpec)| {
        let annotations = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
        let mut spec = ClusterSpec { annotations, ..ClusterSpec::default() };
        change(&mut spec);
        let found = cluster(&spec).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of_cluster(|spec| spec.annotations = None), ["swarm spec name must be \"default\""]);
    assert_eq!(
        of_cluster(|spec| spec.node_cert_expiry = 1),
        ["minimum certificate expiry time must be 1h0m0s"]
    );
    let negative = "heartbeat time period cannot be a negative duration";
    assert_eq!(of_cluster(|spec| spec.heartbeat_period = -1), [negative]);
    assert_eq!(
        of_cluster(|spec| spec.heartbeat_period = 1),
        ["heartbeat time period must be at least 100ms"]
    );
    let hasty = "the keys of encrypted networks can be renewed every 10s at most";
    assert_eq!(of_cluster(|spec| spec.tunnel_key_period = 1), [hasty]);
    let external = |protocol: &str, url: &str, ca_cert: &str| {
        let (protocol, url, ca_cert) = (protocol.to_owned(), url.to_owned(), ca_cert.to_owned());
        let annotations = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
        let external_cas = vec![ExternalCa { protocol, url, ca_cert, ..ExternalCa::default() }];
        let spec = ClusterSpec { annotations, external_cas, ..ClusterSpec::default() };
        cluster(&spec).err().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let url = "https://ca:8888/sign";
    assert_eq!(external("CFSSL", url, ""), Vec::<String>::new());
    assert_eq!(external("acme", url, ""), ["invalid protocol: \"acme\": an external CA speaks cfssl"]);
    let insecure = "invalid URL of an external CA: \"http://ca/sign\": want https://HOST[:PORT]/PATH";
    assert_eq!(external("cfssl", "http://ca/sign", ""), [insecure]);
    let unreadable = format!("the CA certificate of external CA {url} is not PEM");
    assert_eq!(external("cfssl", url, "hello"), [unreadable]);
    let slow = |spec: &mut ClusterSpec| (spec.election_tick, spec.heartbeat_tick) = (2, 2);
    assert_eq!(of_cluster(slow), ["election tick must be more than heartbeat tick: 2 is not more than 2"]);
}
