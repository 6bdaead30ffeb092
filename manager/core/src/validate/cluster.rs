//! The cluster itself, and its nodes.

use rswarm_base::duration;
use rswarm_proto::tls::issuer_info;
use rswarm_proto::wire::{ClusterSpec, NodeSpec};

use super::{Findings, Problem};
use crate::relocate;

/// Checks a node's spec.
pub fn node(spec: &NodeSpec) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    findings.add_size(spec);
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    let nameless = labels.is_some_and(|labels| labels.keys().any(String::is_empty));
    findings.add_if(nameless, "", "a label needs a name");
    let deadline = labels.and_then(|labels| labels.get(relocate::DEADLINE));
    if let Some(Err(error)) = deadline.map(|text| duration::parse(text)) {
        findings.add("", format!("label {}: {error}", relocate::DEADLINE));
    }
    findings.result()
}

/// Checks a cluster's spec.
pub fn cluster(spec: &ClusterSpec) -> Result<(), Vec<Problem>> {
    const HOUR: i64 = 3_600_000_000_000;
    const MILLISECOND: i64 = 1_000_000;
    // Nodes must have heard of a key before the next one comes.
    const TUNNEL_KEY_PERIOD_MIN: i64 = 10_000 * MILLISECOND;
    let mut findings = Findings::default();
    findings.add_size(spec);
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    findings.add_if(name != "default", "", "swarm spec name must be \"default\"");
    let expiry = spec.node_cert_expiry;
    findings.add_if(expiry != 0 && expiry < HOUR, "", "minimum certificate expiry time must be 1h0m0s");
    let period = spec.heartbeat_period;
    findings.add_if(period < 0, "", "heartbeat time period cannot be a negative duration");
    let hasty = period > 0 && period < 100 * MILLISECOND;
    findings.add_if(hasty, "", "heartbeat time period must be at least 100ms");
    let period = spec.tunnel_key_period;
    let hasty = period != 0 && period < TUNNEL_KEY_PERIOD_MIN;
    findings.add_if(hasty, "", "the keys of encrypted networks can be renewed every 10s at most");
    for external in &spec.external_cas {
        let protocol = external.protocol.as_str();
        findings.add_if(
            !protocol.eq_ignore_ascii_case("cfssl"),
            "",
            format!("invalid protocol: {protocol:?}: an external CA speaks cfssl"),
        );
        // A node's request and its answer decide who is a node.
        let url = external.url.as_str();
        let host = url.strip_prefix("https://").and_then(|rest| rest.split(['/', '?']).next());
        findings.add_if(
            host.is_none_or(str::is_empty),
            "",
            format!("invalid URL of an external CA: {url:?}: want https://HOST[:PORT]/PATH"),
        );
        let certificate = external.ca_cert.trim();
        let unreadable = !certificate.is_empty() && issuer_info(certificate).is_none();
        findings.add_if(unreadable, "", format!("the CA certificate of external CA {url} is not PEM"));
    }
    let (election, heartbeat) = (spec.election_tick, spec.heartbeat_tick);
    let slow = election != 0 && heartbeat != 0 && election <= heartbeat;
    findings.add_if(
        slow,
        "",
        format!("election tick must be more than heartbeat tick: {election} is not more than {heartbeat}"),
    );
    findings.result()
}
