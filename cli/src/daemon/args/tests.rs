//! The options, from flags and from a file.

use super::*;

fn with_file(text: &str, mut args: DaemonArgs) -> Result<Settings, SettingsError> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("daemon.json");
    std::fs::write(&path, text).expect("write");
    args.config_file = Some(path);
    Settings::merge(args)
}

#[test]
fn flags_file_and_defaults_are_merged() {
    let args = DaemonArgs { exec_root: Some("/x".into()), ..DaemonArgs::default() };
    let settings = with_file(r#"{"labels": ["a=b"], "bridge": "none"}"#, args).expect("valid");
    assert_eq!(settings.hosts, ["unix:///x/rswarm.sock"]);
    assert_eq!(settings.labels, [("a".to_owned(), "b".to_owned())]);
    assert!(!settings.default_bridge);
    assert_eq!(settings.firewall, rswarm_engine::FirewallMode::Open);
    let settings = with_file(r#"{"firewall-mode": "input"}"#, DaemonArgs::default()).expect("valid");
    assert_eq!(settings.firewall, rswarm_engine::FirewallMode::Input);
}

#[test]
fn an_empty_file_has_no_options() {
    assert!(with_file("", DaemonArgs::default()).is_ok());
    let error = with_file("{", DaemonArgs::default()).expect_err("broken");
    assert!(error.to_string().starts_with("unable to configure the Docker daemon with file /"));
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let error = with_file(r#"{"labls": []}"#, DaemonArgs::default()).expect_err("unknown key");
    assert!(rswarm_base::Chain(&error).to_string().contains("labls"));
}

#[test]
fn runtimes_are_named_and_the_default_is_one_of_them() {
    let with = |runtimes: &[&str], default: Option<&str>| {
        let runtimes = runtimes.iter().map(ToString::to_string).collect();
        let default_runtime = default.map(str::to_owned);
        with_file("{}", DaemonArgs { runtimes, default_runtime, ..DaemonArgs::default() })
    };
    let settings = with(&["crun=/usr/bin/crun", "runc=/usr/sbin/runc"], Some("crun")).expect("valid");
    assert_eq!(settings.runtimes["runc"], Path::new("/usr/sbin/runc"));
    assert_eq!(settings.default_runtime, "crun");
    assert!(with(&[], Some("runc")).is_ok());
    assert!(matches!(with(&[], Some("kata")), Err(SettingsError::DefaultRuntime(_))));
    for wrong in ["crun", "crun=", "=/x", "rswarm=/x"] {
        assert!(matches!(with(&[wrong], None), Err(SettingsError::Runtime(_))), "{wrong}");
    }
    let file = r#"{"runtimes": {"crun": {"path": "/usr/bin/crun"}}, "log-driver": "local"}"#;
    let settings = with_file(file, DaemonArgs::default()).expect("valid");
    assert_eq!((settings.runtimes.len(), settings.log_driver.as_str()), (1, "local"));
}

#[test]
fn modes_of_all_containers_are_among_those_there_are() {
    let with = |ipc: &str, file: &str| {
        with_file(file, DaemonArgs { default_ipc_mode: Some(ipc.to_owned()), ..DaemonArgs::default() })
    };
    let settings = with("shareable", r#"{"default-cgroupns-mode": "host"}"#).expect("valid");
    assert_eq!((settings.ipc_mode.as_str(), settings.cgroupns_mode.as_str()), ("shareable", "host"));
    let error = with("host", "{}").expect_err("everybody's").to_string();
    assert_eq!(error, "default IPC mode setting (host) is invalid; use \"shareable\" or \"private\"");
    assert!(with("private", r#"{"default-ipc-mode": "private"}"#).is_err(), "twice");
    assert!(with("private", r#"{"live-restore": true}"#).is_ok());
    assert!(matches!(with("private", r#"{"live-restore": false}"#), Err(SettingsError::LiveRestore)));
}

fn flags(words: &str) -> Result<Settings, SettingsError> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: DaemonArgs,
    }
    let words = std::iter::once("dockerd").chain(words.split_whitespace());
    let line = <Line as clap::Parser>::try_parse_from(words).expect("known flags");
    with_file("{}", line.args)
}

#[test]
fn networks_are_set_up_by_flags_or_by_the_file() {
    let by_flags = flags(
        "--bip 10.9.0.5/24 --fixed-cidr 10.9.0.128/25 --icc=false --mtu 1400 --ip 127.0.0.1 --dns 9.9.9.9 \
         --dns-opt ndots:2 --dns-search lan --default-address-pool base=10.20.0.0/16,size=24",
    );
    let by_file = with_file(
        r#"{"bip": "10.9.0.5/24", "fixed-cidr": "10.9.0.128/25", "icc": false, "mtu": 1400, "ip": "127.0.0.1",
            "dns": ["9.9.9.9"], "dns-opts": ["ndots:2"], "dns-search": ["lan"],
            "default-address-pools": [{"base": "10.20.0.0/16", "size": 24}]}"#,
        DaemonArgs::default(),
    );
    for settings in [by_flags, by_file] {
        let network = settings.expect("valid").network;
        assert_eq!(network.bridge.address, Some(([10, 9, 0, 5].into(), 24)));
        assert_eq!(network.bridge.range, "10.9.0.128/25".parse().ok());
        assert!(!network.bridge.icc && network.bridge.masquerade);
        assert_eq!((network.bridge.mtu, network.bridge.host_binding), (Some(1400), "127.0.0.1".parse().ok()));
        assert_eq!((network.dns.options, network.dns.search), (vec!["ndots:2".into()], vec!["lan".into()]));
        assert_eq!(network.dns.servers.len(), 1);
        assert_eq!((network.pools[0].base.to_string(), network.pools[0].size), ("10.20.0.0/16".into(), 24));
    }
    for wrong in [
        "--bip 10.9.0.0/24",
        "--bip fd00::1/64",
        "--bip 10.9.0.5",
        "--fixed-cidr x",
        "--mtu 10",
        "--default-address-pool base=10.0.0.0/16,size=8",
        "--default-address-pool base=10.0.0.0,size=24",
    ] {
        assert!(matches!(flags(wrong), Err(SettingsError::Invalid { .. })), "{wrong}");
    }
    let both = DaemonArgs { max_concurrent_downloads: Some(1), ..DaemonArgs::default() };
    let error = with_file(r#"{"max-concurrent-downloads": 2}"#, both).expect_err("twice");
    assert!(error.to_string().ends_with("max-concurrent-downloads"));
}

#[test]
fn containers_have_defaults_by_flags_or_by_the_file() {
    let dir = tempfile::tempdir().expect("tempdir");
    let profile = dir.path().join("profile.json");
    std::fs::write(&profile, "{}").expect("write");
    let profile = profile.display();
    let by_flags = flags(&format!(
        "--seccomp-profile {profile} --default-shm-size 8m --default-ulimit nofile=10:20 --no-new-privileges"
    ));
    let by_file = with_file(
        &format!(
            r#"{{"seccomp-profile": "{profile}", "default-shm-size": "8M", "no-new-privileges": true,
                "default-ulimits": {{"nofile": {{"Name": "nofile", "Hard": 20, "Soft": 10}}}}}}"#
        ),
        DaemonArgs::default(),
    );
    for settings in [by_flags, by_file] {
        let defaults = settings.expect("valid").defaults;
        assert_eq!(defaults.seccomp.name(), profile.to_string());
        assert_eq!((defaults.shm_size, defaults.no_new_privileges), (8 << 20, true));
        let limit = &defaults.ulimits[0];
        assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("nofile", 10, 20));
    }
    assert_eq!(flags("--seccomp-profile unconfined").expect("valid").defaults.seccomp.name(), "unconfined");
    assert!(matches!(flags("--seccomp-profile /no/such"), Err(SettingsError::Seccomp(..))));
}

#[test]
fn options_with_one_value_refuse_any_other() {
    for held in [
        "--userland-proxy=false --iptables --ip6tables=true --ip-forward --tls=false",
        "--exec-opt native.cgroupdriver=cgroupfs -s overlay2 --log-level fatal",
    ] {
        assert!(flags(held).is_ok(), "{held}");
    }
    for wrong in [
        "--userland-proxy",
        "--iptables=false",
        "--ip-forward=false",
        "--selinux-enabled",
        "--tlsverify",
        "--userns-remap default",
        "--storage-driver btrfs",
        "--exec-opt native.cgroupdriver=systemd",
    ] {
        assert!(matches!(flags(wrong), Err(SettingsError::Invalid { .. })), "{wrong}");
    }
    let error = with_file(r#"{"userland-proxy": true}"#, DaemonArgs::default()).expect_err("refused");
    assert!(error.to_string().starts_with("invalid userland-proxy `true`: "), "{error}");
}

#[test]
fn one_option_in_two_places_is_refused() {
    let args = DaemonArgs { data_root: Some("/a".into()), ..DaemonArgs::default() };
    let error = with_file(r#"{"data-root": "/b"}"#, args).expect_err("twice");
    assert!(error.to_string().ends_with("data-root"));
}
