//! What `docker run` sends, and what comes of it.

use rswarm_base::Kind;

use super::*;

/// As the docker command line 28 sends for `run -it --rm -p 8080:80 -v data:/data --memory 64m alpine sh`.
const RUN: &str = r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":true,"AttachStdout":true,"AttachStderr":true,
"ExposedPorts":{"80/tcp":{}},"Tty":true,"OpenStdin":true,"StdinOnce":true,"Env":null,"Cmd":["sh"],"Image":"alpine",
"Volumes":{},"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{},
"HostConfig":{"Binds":["data:/data"],"ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},"NetworkMode":"default",
"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"RestartPolicy":{"Name":"no","MaximumRetryCount":0},
"AutoRemove":true,"VolumeDriver":"","VolumesFrom":null,"ConsoleSize":[24,80],"CapAdd":null,"CapDrop":null,
"CgroupnsMode":"","Dns":[],"DnsOptions":[],"DnsSearch":[],"ExtraHosts":null,"GroupAdd":null,"IpcMode":"","Cgroup":"",
"Links":null,"OomScoreAdj":0,"PidMode":"","Privileged":false,"PublishAllPorts":false,"ReadonlyRootfs":false,
"SecurityOpt":null,"UTSMode":"","UsernsMode":"","ShmSize":0,"Isolation":"","CpuShares":0,"Memory":67108864,
"NanoCpus":0,"CgroupParent":"","BlkioWeight":0,"BlkioWeightDevice":[],"BlkioDeviceReadBps":[],
"BlkioDeviceWriteBps":[],"BlkioDeviceReadIOps":[],"BlkioDeviceWriteIOps":[],"CpuPeriod":0,"CpuQuota":0,
"CpuRealtimePeriod":0,"CpuRealtimeRuntime":0,"CpusetCpus":"","CpusetMems":"","Devices":[],"DeviceCgroupRules":null,
"DeviceRequests":null,"MemoryReservation":0,"MemorySwap":0,"MemorySwappiness":-1,"OomKillDisable":false,
"PidsLimit":0,"Ulimits":[],"CpuCount":0,"CpuPercent":0,"IOMaximumIOps":0,"IOMaximumBandwidth":0,
"MaskedPaths":null,"ReadonlyPaths":null},"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,
"Links":null,"Aliases":null,"MacAddress":"","DriverOpts":null,"GwPriority":0,"NetworkID":"","EndpointID":"",
"Gateway":"","IPAddress":"","IPPrefixLen":0,"IPv6Gateway":"","GlobalIPv6Address":"","GlobalIPv6PrefixLen":0,
"DNSNames":null}}}}"#;

fn wanted(text: &str) -> Result<Wanted, ApiError> {
    container(&serde_json::from_str(text).expect("body"), crate::version::MAX)
}

fn with_host(host: &str) -> Result<Wanted, ApiError> {
    wanted(&format!(r#"{{"Image":"alpine","HostConfig":{host}}}"#))
}

#[test]
fn docker_run_is_understood() {
    let wanted = wanted(RUN).expect("container");
    let config = wanted.config;
    assert_eq!(wanted.warnings, [""; 0]);
    assert_eq!((config.spec.image.as_str(), &config.spec.args[..]), ("alpine", &["sh".to_owned()][..]));
    assert!(config.spec.tty && config.spec.open_stdin && config.spec.stdin_once && config.auto_remove);
    assert_eq!(config.console_size, Some((80, 24)));
    assert_eq!((config.ports[0].target, config.ports[0].published), (80, 8080));
    assert_eq!(config.exposed, ["80/tcp"]);
    assert_eq!(config.resources.memory, 64 << 20);
    assert_eq!(
        (config.spec.mounts[0].source.as_str(), config.spec.mounts[0].target.as_str()),
        ("data", "/data")
    );
    assert_eq!(config.endpoints.len(), 1);
    assert_eq!(config.endpoints[0].network, "bridge");
    assert_eq!(config.network_mode, "default");
}

#[test]
fn commands_are_words_or_one_string_and_an_empty_entry_point_clears() {
    let text = r#"{"Image":"a","Cmd":"ls","Entrypoint":[""]}"#;
    let spec = wanted(text).expect("container").config.spec;
    assert_eq!(spec.args, ["ls"]);
    assert!(spec.entrypoint_cleared && spec.entrypoint.is_empty());
    let spec = wanted(r#"{"Image":"a","Cmd":["ls"],"Entrypoint":[]}"#).expect("container").config.spec;
    assert!(!spec.entrypoint_cleared);
}

#[test]
fn known_options_that_cannot_be_honoured_are_refused_by_name() {
    let refused = [
        // moby's kind for it.
        (
            r#"{"StorageOpt":{"size":"1G"}}"#,
            Kind::Internal,
            "--storage-opt is supported only for overlay over xfs",
        ),
    ];
    for (host, kind, name) in refused {
        let error = with_host(host).expect_err(host);
        assert_eq!(error.kind, kind, "{host}");
        assert!(error.message.contains(name), "{host}: {}", error.message);
    }
}

#[test]
fn contradictions_are_invalid() {
    let invalid = [
        (
            r#"{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}"#,
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            r#"{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"ReadOnlyForceRecursive":true}}]}"#,
            "invalid mount config for type \"bind\": mount source is not read-only: ReadOnlyForceRecursive must not be \
             specified",
        ),
        (
            r#"{"RestartPolicy":{"Name":"always","MaximumRetryCount":2}}"#,
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ),
        (r#"{"Binds":["/a:/x","/b:/x"]}"#, "Duplicate mount point: /x"),
        (r#"{"Isolation":"hyperv"}"#, "invalid isolation (\"hyperv\")"),
    ];
    for (host, text) in invalid {
        let error = with_host(host).expect_err(host);
        assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidArgument, text));
    }
}

#[test]
fn unconfined_system_paths_are_two_empty_lists() {
    let config = with_host(r#"{"MaskedPaths":[],"ReadonlyPaths":["/proc/fs"]}"#).expect("container").config;
    assert_eq!(config.masked_paths, Some(Vec::new()));
    assert_eq!(config.readonly_paths, Some(vec!["/proc/fs".to_owned()]));
}

#[test]
fn a_network_of_the_users_gets_its_settings_and_the_mode_is_among_them() {
    let text = r#"{"Image":"a","MacAddress":"02:42:ac:11:00:09","HostConfig":{"NetworkMode":"front"},"NetworkingConfig":{"EndpointsConfig":{
        "back":{"IPAMConfig":{"IPv4Address":"10.9.0.7"},"Aliases":["db"],"GwPriority":5}}}}"#;
    let config = wanted(text).expect("container").config;
    let names: Vec<&str> = config.endpoints.iter().map(|endpoint| endpoint.network.as_str()).collect();
    assert_eq!(names, ["front", "back"]);
    assert_eq!(config.endpoints[0].mac, Some([2, 0x42, 0xac, 0x11, 0, 9]));
    assert_eq!(config.endpoints[1].address, "10.9.0.7".parse().ok());
    assert_eq!(
        (config.endpoints[1].aliases.as_slice(), config.endpoints[1].gateway_priority),
        (&["db".to_owned()][..], 5)
    );
    let text = r#"{"Image":"a","HostConfig":{"NetworkMode":"host"},"NetworkingConfig":{"EndpointsConfig":{"back":{}}}}"#;
    assert!(wanted(text).is_err());
}

#[test]
fn old_clients_mean_what_their_version_meant() {
    let of = |version: &str, host: &str| {
        let body = serde_json::from_str(&format!(r#"{{"Image":"a","HostConfig":{host}}}"#)).expect("body");
        let version = crate::version::check(Some(version)).expect("version");
        container(&body, version).expect("container").config.spec
    };
    use wire::mount::Recursion;
    assert_eq!(of("1.43", r#"{"Binds":["/a:/b:ro"]}"#).mounts[0].recursion(), Recursion::Writable);
    assert_eq!(of("1.44", r#"{"Binds":["/a:/b:ro"]}"#).mounts[0].recursion(), Recursion::Enabled);
    assert_eq!(
        (of("1.40", "{}").cgroupns_mode.as_str(), of("1.41", "{}").cgroupns_mode.as_str()),
        ("host", "")
    );
    assert_eq!((of("1.39", "{}").ipc_mode.as_str(), of("1.40", "{}").ipc_mode.as_str()), ("shareable", ""));
}

#[test]
fn every_limit_and_rule_arrives() {
    let host = r#"{"BlkioWeight":300,"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":7}],"MemorySwappiness":5,
        "OomKillDisable":true,"DeviceCgroupRules":["c 1:1 r"],"CpuRealtimeRuntime":9,"VolumesFrom":["data:ro"]}"#;
    let config = with_host(host).expect("container").config;
    assert_eq!((config.resources.blkio_weight, config.resources.blkio_read_bps[0].rate), (300, 7));
    assert_eq!((config.resources.memory_swappiness, config.resources.oom_kill_disable), (Some(5), true));
    assert_eq!(
        (config.resources.cpu_realtime_runtime, &config.volumes_from[..]),
        (9, &["data:ro".to_owned()][..])
    );
    assert_eq!(config.spec.device_cgroup_rules, ["c 1:1 r"]);
    let gpus = r#"{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}"#;
    let error = with_host(gpus).expect_err("no driver");
    assert_eq!(error.message, "could not select device driver \"\" with capabilities: [[gpu]]");
}
