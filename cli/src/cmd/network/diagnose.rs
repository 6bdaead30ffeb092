//! `network check` and `network audit`: what is wrong, and what can be reached.

use clap::Args;
use rswarm_api::types::{AuditFilter, AuditPort, NetworkAudit, NetworkCheck, NetworkFinding, NetworkInspect};

use super::super::{CommandError, Context};
use crate::client::Call;
use crate::render::table::{Listing, Row, row};

const CHECKS: Listing = Listing {
    table: "{{.Result}}\t{{.Network}}\t{{.Subject}}\t{{.Found}}",
    headers: &[
        ("Result", "RESULT"),
        ("Network", "NETWORK"),
        ("Subject", "SUBJECT"),
        ("Found", "FOUND"),
        ("Remedy", "REMEDY"),
    ],
    quiet: "Network",
};

const AUDIT: Listing = Listing {
    table: "{{.Kind}}\t{{.What}}\t{{.From}}\t{{.To}}",
    headers: &[("Kind", "KIND"), ("What", "WHAT"), ("From", "REACHED FROM"), ("To", "LEADS TO")],
    quiet: "What",
};

/// What a script asks for: there is trouble.
const TROUBLE: u8 = 1;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print each line by a template, or as `json`
    #[arg(long)]
    format: Option<String>,
    /// Names or IDs; none checks all networks
    #[arg(value_name = "NETWORK")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Print each line by a template, or as `json`
    #[arg(long)]
    format: Option<String>,
}

/// Checks networks on this node; 1 when something is wrong.
pub async fn check(context: &Context, args: CheckArgs) -> Result<u8, CommandError> {
    let is_named = !args.names.is_empty();
    let names = if is_named {
        args.names
    } else {
        let all: Vec<NetworkInspect> = context.client.json(Call::get("/networks")).await?;
        all.into_iter().map(|network| network.id).collect()
    };
    let mut rows = Vec::new();
    let mut remedies = Vec::new();
    for name in names {
        let checked: NetworkCheck = context.client.json(Call::get(format!("/networks/{name}/check"))).await?;
        if !checked.present && is_named {
            let found =
                "holds nothing on this node, so nothing was looked at; ask a node that has a task on it";
            rows.push(line(&checked.name, "-", &finding("network", found)));
        }
        for one in &checked.findings {
            rows.push(line(&checked.name, if one.remedy.is_empty() { "ok" } else { "trouble" }, one));
            if !one.remedy.is_empty() {
                remedies.push(format!(" hint: {}: {}", one.subject, one.remedy));
            }
        }
    }
    remedies.sort();
    remedies.dedup();
    context.terminal.print(&CHECKS.render(args.format.as_deref(), false, &rows)?)?;
    let code = if remedies.is_empty() { 0 } else { TROUBLE };
    for remedy in remedies {
        context.terminal.complain(remedy);
    }
    Ok(code)
}

fn finding(subject: &str, found: &str) -> NetworkFinding {
    NetworkFinding { subject: subject.to_owned(), found: found.to_owned(), remedy: String::new() }
}

fn line(network: &str, result: &str, finding: &NetworkFinding) -> Row {
    row([
        ("Result", result.to_owned()),
        ("Network", network.to_owned()),
        ("Subject", finding.subject.clone()),
        ("Found", finding.found.clone()),
        ("Remedy", finding.remedy.clone()),
    ])
}

/// Lists what can be reached.
pub async fn audit(context: &Context, args: AuditArgs) -> Result<u8, CommandError> {
    let audit: NetworkAudit = context.client.json(Call::post("/networks/audit")).await?;
    context.terminal.print(&AUDIT.render(args.format.as_deref(), false, &audit_rows(&audit))?)?;
    Ok(0)
}

fn audit_rows(audit: &NetworkAudit) -> Vec<Row> {
    let line = |kind: &str, what: String, from: String, to: String| {
        row([("Kind", kind.to_owned()), ("What", what), ("From", from), ("To", to)])
    };
    let port = |port: &AuditPort| {
        let what = format!("{}:{}/{}", port.host_ip, port.host_port, port.protocol);
        let from =
            if port.service.is_empty() { port.from.clone() } else { format!("{}, on every node", port.from) };
        let to = match (port.container.as_str(), port.service.as_str()) {
            ("", "") => format!("{} (its container was not found again yet)", port.target),
            ("", service) => format!("service {service}"),
            (container, _) => format!("container {container} on {}, {}", port.network, port.target),
        };
        line("port", what, from, to)
    };
    let filter = |filter: &AuditFilter| {
        let what = format!("{} {} {}", filter.family, filter.table, filter.chain);
        let (from, reach) = match filter.hook.as_str() {
            "input" => ("what ends at this host", "published ports do not pass it"),
            _ => ("what goes through this host", "published ports pass it"),
        };
        line("filter", what, from.to_owned(), format!("policy {}; {reach}", filter.policy))
    };
    let host = |name: &String| {
        let from = "where the input filters let it".to_owned();
        line("host", "all ports that it listens on".to_owned(), from, format!("container {name} on host"))
    };
    let legacy = |table: &String| {
        let to = "not known: see `iptables-legacy-save`, `ip6tables-legacy-save`".to_owned();
        line("filter", format!("{table} (iptables-legacy)"), "what its rules are for".to_owned(), to)
    };
    let ports = audit.ports.iter().map(port).chain(audit.host_network.iter().map(host));
    ports.chain(audit.filters.iter().map(filter)).chain(audit.legacy_tables.iter().map(legacy)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_says_who_is_reached_from_where() {
        let port = AuditPort {
            host_ip: "0.0.0.0".into(),
            host_port: 8080,
            protocol: "tcp".into(),
            from: "anywhere".into(),
            container: "web".into(),
            network: "bridge".into(),
            target: "172.17.0.2:80".into(),
            ..AuditPort::default()
        };
        let mesh = AuditPort { container: String::new(), service: "api".into(), ..port.clone() };
        let filter = AuditFilter {
            family: "ip".into(),
            table: "filter".into(),
            chain: "INPUT".into(),
            hook: "input".into(),
            policy: "drop".into(),
        };
        let audit = NetworkAudit {
            ports: vec![port, mesh],
            host_network: vec!["dns".into()],
            filters: vec![filter],
            legacy_tables: vec!["ip nat".into()],
        };
        let text = AUDIT.render(None, false, &audit_rows(&audit)).expect("renders");
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].contains("0.0.0.0:8080/tcp")
                && lines[1].ends_with("container web on bridge, 172.17.0.2:80")
        );
        assert!(lines[2].contains("on every node") && lines[2].ends_with("service api"));
        assert!(lines[3].ends_with("container dns on host"));
        assert!(lines[4].ends_with("policy drop; published ports do not pass it"));
        assert!(lines[5].contains("ip nat (iptables-legacy)"), "{}", lines[5]);
    }
}
