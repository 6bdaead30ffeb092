//! The cluster object: `GET /swarm`, its spec, and the part that `info` shows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rswarm_proto::tls::issuer_info;
use rswarm_proto::wire;

use super::{meta, refuse};
use crate::error::ApiError;
use crate::types;

const NANOS_PER_DAY: i64 = 86_400_000_000_000;

pub(crate) fn cluster(cluster: &wire::Cluster) -> types::ClusterInfo {
    let (version, created_at, updated_at) = meta(cluster.meta);
    types::ClusterInfo {
        id: cluster.id.clone(),
        version,
        created_at,
        updated_at,
        spec: cluster.spec.as_ref().map(spec_out).unwrap_or_default(),
        tls_info: tls_info(cluster),
        root_rotation_in_progress: cluster.root_ca.as_ref().is_some_and(|root| root.rotation.is_some()),
        default_addr_pool: Some(cluster.default_address_pool.clone()),
        subnet_size: cluster.subnet_size,
        data_path_port: cluster.data_path_port,
    }
}

/// The root that nodes trust, and who signs their certificates from now on: while the root is being replaced, the new
/// one.
pub(crate) fn tls_info(cluster: &wire::Cluster) -> types::TlsInfo {
    let Some(root) = &cluster.root_ca else { return types::TlsInfo::default() };
    let (signer, _, _) = root.signer();
    let (issuer_subject, issuer_public_key) = issuer_info(signer).unwrap_or_default();
    tls_out(wire::TlsInfo { trust_root: root.certificate_pem.clone(), issuer_subject, issuer_public_key })
}

pub(crate) fn tls_out(tls: wire::TlsInfo) -> types::TlsInfo {
    types::TlsInfo {
        trust_root: tls.trust_root,
        cert_issuer_subject: STANDARD.encode(tls.issuer_subject),
        cert_issuer_public_key: STANDARD.encode(tls.issuer_public_key),
    }
}

pub(crate) fn inspect(stored: &wire::Cluster) -> types::SwarmInspect {
    let ca = stored.root_ca.clone().unwrap_or_default();
    types::SwarmInspect {
        cluster: cluster(stored),
        join_tokens: types::JoinTokens { worker: ca.worker_token, manager: ca.manager_token },
    }
}

fn spec_out(spec: &wire::ClusterSpec) -> types::SwarmSpec {
    let annotations = spec.annotations.clone().unwrap_or_default();
    types::SwarmSpec {
        name: annotations.name,
        labels: Some(annotations.labels),
        orchestration: types::OrchestrationConfig {
            task_history_retention_limit: Some(spec.task_history_limit),
        },
        raft: types::RaftConfig {
            snapshot_interval: spec.snapshot_interval,
            keep_old_snapshots: Some(0),
            log_entries_for_slow_followers: spec.log_entries_for_slow_followers,
            election_tick: spec.election_tick.into(),
            heartbeat_tick: spec.heartbeat_tick.into(),
        },
        dispatcher: types::DispatcherConfig { heartbeat_period: spec.heartbeat_period },
        ca_config: types::CaConfig {
            node_cert_expiry: spec.node_cert_expiry,
            force_rotate: spec.force_rotate,
            external_cas: spec.external_cas.iter().map(external_ca_out).collect(),
            // Certificate and key are not shown: what is read is sent back, and would be without its key.
            ..types::CaConfig::default()
        },
        task_defaults: types::TaskDefaults::default(),
        encryption_config: types::EncryptionConfig {
            auto_lock_managers: spec.auto_lock,
            tunnel_key_period: spec.tunnel_key_period,
        },
    }
}

/// Where `init` says nothing. Docker's defaults, but for quicker heartbeats: a lost manager or worker is noticed
/// within about a second.
pub(crate) fn defaults() -> wire::ClusterSpec {
    wire::ClusterSpec {
        annotations: Some(wire::Annotations { name: "default".to_owned(), ..wire::Annotations::default() }),
        task_history_limit: 5,
        snapshot_interval: 10_000,
        log_entries_for_slow_followers: 500,
        heartbeat_tick: 2,
        election_tick: 10,
        heartbeat_period: 1_000_000_000,
        node_cert_expiry: 90 * NANOS_PER_DAY,
        auto_lock: false,
        tunnel_key_period: 0,
        force_rotate: 0,
        external_cas: Vec::new(),
    }
}

/// A spec over `base`: what it does not set stays. `init` lays it over the defaults, `update` over nothing.
pub(crate) fn spec(spec: &types::SwarmSpec, base: wire::ClusterSpec) -> Result<wire::ClusterSpec, ApiError> {
    if !matches!(spec.name.as_str(), "" | "default") {
        return Err(ApiError::invalid("invalid Name: swarm spec must be named \"default\""));
    }
    refuse(spec.task_defaults.log_driver.is_some(), "a log driver for all tasks (TaskDefaults.LogDriver)")?;
    refuse(spec.raft.keep_old_snapshots.is_some_and(|kept| kept != 0), "--max-snapshots (KeepOldSnapshots)")?;
    let tick = |name: &str, value: i64| {
        u32::try_from(value).map_err(|_| ApiError::invalid(format!("invalid {name}: {value}")))
    };
    let expiry = spec.ca_config.node_cert_expiry;
    if expiry != 0 && expiry < 3_600_000_000_000 {
        return Err(ApiError::invalid("minimum certificate expiry time is: 1h0m0s"));
    }
    fn or<T: Default + PartialEq>(value: T, base: T) -> T {
        if value == T::default() { base } else { value }
    }
    Ok(wire::ClusterSpec {
        annotations: Some(wire::Annotations {
            name: "default".to_owned(),
            labels: spec.labels.clone().unwrap_or_default(),
        }),
        task_history_limit: spec
            .orchestration
            .task_history_retention_limit
            .unwrap_or(base.task_history_limit),
        snapshot_interval: or(spec.raft.snapshot_interval, base.snapshot_interval),
        log_entries_for_slow_followers: or(
            spec.raft.log_entries_for_slow_followers,
            base.log_entries_for_slow_followers,
        ),
        heartbeat_tick: or(tick("HeartbeatTick", spec.raft.heartbeat_tick)?, base.heartbeat_tick),
        election_tick: or(tick("ElectionTick", spec.raft.election_tick)?, base.election_tick),
        heartbeat_period: or(spec.dispatcher.heartbeat_period, base.heartbeat_period),
        node_cert_expiry: or(expiry, base.node_cert_expiry),
        auto_lock: spec.encryption_config.auto_lock_managers,
        force_rotate: or(spec.ca_config.force_rotate, base.force_rotate),
        tunnel_key_period: or(spec.encryption_config.tunnel_key_period, base.tunnel_key_period),
        external_cas: spec.ca_config.external_cas.iter().map(external_ca).collect(),
    })
}

fn external_ca(external: &types::ExternalCa) -> wire::ExternalCa {
    wire::ExternalCa {
        protocol: external.protocol.clone(),
        url: external.url.clone(),
        options: external.options.clone().unwrap_or_default(),
        ca_cert: external.ca_cert.clone(),
    }
}

fn external_ca_out(external: &wire::ExternalCa) -> types::ExternalCa {
    types::ExternalCa {
        protocol: external.protocol.clone(),
        url: external.url.clone(),
        options: (!external.options.is_empty()).then(|| external.options.clone()),
        ca_cert: external.ca_cert.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_fills_in_the_defaults_and_keeps_what_is_set() {
        let text = r#"{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},"Dispatcher":{},
            "CAConfig":{"NodeCertExpiry":7776000000000000},"TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}}"#;
        let sent: types::SwarmSpec = serde_json::from_str(text).expect("spec");
        assert_eq!(spec(&sent, defaults()), Ok(defaults()));
        let sent = types::SwarmSpec {
            orchestration: types::OrchestrationConfig { task_history_retention_limit: Some(0) },
            dispatcher: types::DispatcherConfig { heartbeat_period: 1 },
            ..types::SwarmSpec::default()
        };
        let merged = spec(&sent, defaults()).expect("spec");
        assert_eq!((merged.task_history_limit, merged.heartbeat_period), (0, 1));
    }

    #[test]
    fn what_is_read_can_be_sent_back() {
        let external = wire::ExternalCa {
            protocol: "cfssl".to_owned(),
            url: "https://ca/sign".to_owned(),
            ca_cert: "PEM".to_owned(),
            ..wire::ExternalCa::default()
        };
        let given = wire::ClusterSpec { external_cas: vec![external], ..defaults() };
        let stored = wire::Cluster { spec: Some(given.clone()), ..wire::Cluster::default() };
        let shown = cluster(&stored).spec;
        assert_eq!(spec(&shown, wire::ClusterSpec::default()), Ok(given));
    }

    #[test]
    fn a_root_that_is_being_replaced_is_shown_with_the_signer_to_be() {
        let (old, new) = (root(), root());
        let mut stored = wire::Cluster { root_ca: Some(old.clone()), ..wire::Cluster::default() };
        let before = cluster(&stored);
        assert!(!before.root_rotation_in_progress);
        assert_eq!(before.tls_info.trust_root, old.certificate_pem);
        let rotation = wire::RootRotation {
            certificate_pem: new.certificate_pem.clone(),
            key_pem: b"secret key".to_vec(),
            ..wire::RootRotation::default()
        };
        stored.root_ca.as_mut().expect("root").rotation = Some(rotation);
        let during = cluster(&stored);
        assert!(during.root_rotation_in_progress);
        assert_eq!(during.tls_info.trust_root, old.certificate_pem, "until the new one is alone");
        assert_eq!(during.tls_info.cert_issuer_subject, before.tls_info.cert_issuer_subject, "CN=swarm-ca");
        assert_ne!(during.tls_info.cert_issuer_public_key, before.tls_info.cert_issuer_public_key);
        assert!(!serde_json::to_string(&inspect(&stored)).expect("json").contains("secret"));
    }

    fn root() -> wire::RootCa {
        let authority = rswarm_proto::tls::Authority::generate(rswarm_base::Timestamp::now()).expect("root");
        wire::RootCa { certificate_pem: authority.certificate_pem().to_owned(), ..wire::RootCa::default() }
    }

    #[test]
    fn another_name_and_what_cannot_be_honoured_are_refused() {
        let refused = [
            (r#"{"Name":"mine"}"#, "must be named"),
            (r#"{"CAConfig":{"NodeCertExpiry":1}}"#, "minimum certificate expiry"),
            (r#"{"TaskDefaults":{"LogDriver":{"Name":"x"}}}"#, "LogDriver"),
            (r#"{"Raft":{"ElectionTick":-1}}"#, "ElectionTick"),
        ];
        for (text, why) in refused {
            let error = spec(&serde_json::from_str(text).expect("spec"), defaults()).expect_err(text);
            assert!(error.message.contains(why), "{text}: {}", error.message);
        }
    }

    #[test]
    fn tokens_are_shown_by_inspect_alone() {
        let stored = wire::Cluster {
            root_ca: Some(wire::RootCa {
                worker_token: "SWMTKN-1-w".into(),
                key_pem: vec![1],
                ..Default::default()
            }),
            ..wire::Cluster::default()
        };
        let json = serde_json::to_string(&inspect(&stored)).expect("json");
        assert!(json.contains("SWMTKN-1-w"));
        assert!(!serde_json::to_string(&cluster(&stored)).expect("json").contains("SWMTKN"));
    }
}
