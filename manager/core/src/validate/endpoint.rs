//! Published ports.

use std::collections::BTreeSet;

use rswarm_proto::wire::{EndpointSpec, PortConfig, endpoint_spec, port_config};

use super::Findings;

pub(super) fn endpoint(spec: &EndpointSpec, findings: &mut Findings) {
    const FIELD: &str = "EndpointSpec";
    let mut published = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for port in &spec.ports {
        let ingress = port.mode() == port_config::Mode::Ingress;
        let reason = "port published with ingress mode can't be used with dnsrr mode";
        let is_dnsrr = spec.mode() == endpoint_spec::Mode::Dnsrr;
        let fix = "publish with mode=host, or use endpoint mode vip";
        findings.add_fixable(ingress && is_dnsrr, FIELD, reason, fix);
        check_port(port, findings);
        let is_first = if port.published != 0 {
            published.insert((port.mode, &port.protocol, port.published, &port.host_ip))
        } else {
            targets.insert((port.mode, &port.protocol, port.target))
        };
        let reason = "duplicate published ports provided";
        findings.add_fixable(!is_first, FIELD, reason, "publish each port once");
    }
}

fn check_port(port: &PortConfig, findings: &mut Findings) {
    const FIELD: &str = "EndpointSpec";
    let known = matches!(port.protocol.as_str(), "tcp" | "udp" | "sctp");
    let reason = format!("invalid protocol '{}'", port.protocol);
    findings.add_fixable(!known, FIELD, reason, "use tcp, udp or sctp");
    let target = (1..=65535).contains(&port.target);
    findings.add_if(
        !target,
        FIELD,
        format!("invalid target port {}: must be between 1 and 65535", port.target),
    );
    let reason = format!("invalid published port {}: must be at most 65535", port.published);
    findings.add_if(port.published > 65535, FIELD, reason);
    let reason = "a service publishes a port on one port, not on the first free one of a range";
    findings.add_if(port.published_end != 0, FIELD, reason);
}
