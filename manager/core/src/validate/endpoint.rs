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
        findings.add_if(ingress && spec.mode() == endpoint_spec::Mode::Dnsrr, FIELD, reason);
        check_port(port, findings);
        if port.published != 0 {
            let key = (port.mode, &port.protocol, port.published, &port.host_ip);
            findings.add_if(!published.insert(key), FIELD, "duplicate published ports provided");
        } else {
            let key = (port.mode, &port.protocol, port.target);
            findings.add_if(!targets.insert(key), FIELD, "duplicate published ports provided");
        }
    }
}

fn check_port(port: &PortConfig, findings: &mut Findings) {
    const FIELD: &str = "EndpointSpec";
    let known = matches!(port.protocol.as_str(), "tcp" | "udp" | "sctp");
    findings.add_if(!known, FIELD, format!("invalid protocol '{}'", port.protocol));
    let target = (1..=65535).contains(&port.target);
    findings.add_if(
        !target,
        FIELD,
        format!("invalid target port {}: must be between 1 and 65535", port.target),
    );
    let reason = format!("invalid published port {}: must be at most 65535", port.published);
    findings.add_if(port.published > 65535, FIELD, reason);
}
