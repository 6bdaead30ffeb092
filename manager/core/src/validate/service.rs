//! Services: names, modes, updates, and what their labels ask for.

use rswarm_proto::model::service::Mode;
use rswarm_proto::wire::{Annotations, ServiceSpec, UpdateConfig};

use super::endpoint::endpoint;
use super::task::task;
use super::{Findings, Problem, content};
use crate::enforce;
use crate::publish::balancing;
use crate::rebalance;
use crate::relocate;
use crate::state::State;

/// Tasks that one service may ask for.
pub const REPLICAS_MAX: u64 = 1_000_000;

/// Characters of a name that is a part of DNS names.
const DNS_LABEL_MAX: usize = 63;

/// Checks a service's spec, networks already resolved to ids.
pub fn service(spec: &ServiceSpec, state: &State) -> Result<(), Vec<Problem>> {
    let mut findings = Findings::default();
    findings.add_size(spec);
    dns_name(spec.annotations.as_ref(), &mut findings);
    match &spec.task {
        None => findings.add("TaskSpec", "a task spec must be provided"),
        Some(spec) => task(spec, state, &mut findings),
    }
    content::templates(spec, &mut findings);
    if let Mode::Replicated(replicas) | Mode::ReplicatedJob { total: replicas, .. } = spec.mode_or_default() {
        let reason = format!("number of replicas must be at most {REPLICAS_MAX}, not {replicas}");
        findings.add_if(replicas > REPLICAS_MAX, "", reason);
    } else {
        let placement = spec.task.as_ref().and_then(|task| task.placement.as_ref());
        let max = placement.map_or(0, |placement| placement.max_replicas);
        let reason = "max replicas per node can only be used in replicated mode";
        let fix = "leave the maximum out, or use mode replicated";
        findings.add_fixable(max > 0, "Placement", reason, fix);
    }
    let labels = spec.annotations.as_ref().map(|annotations| annotations.labels.clone()).unwrap_or_default();
    match crate::cron::parse(&labels) {
        Ok(None) => {}
        Ok(Some(_)) => {
            let is_job = spec.mode_or_default().is_job();
            findings.add_if(!is_job, "", "a schedule needs a job: use mode replicated-job or global-job");
        }
        Err(error) => findings.add("", error.to_string()),
    }
    if spec.mode_or_default().is_job() {
        for (config, what) in [(&spec.update, "an update"), (&spec.rollback, "a rollback")] {
            let reason = format!("Jobs may not have {what} config");
            findings.add_fixable(
                config.is_some(),
                "",
                reason,
                "leave it out: a job that changes begins anew",
            );
        }
    } else {
        update(spec.update.as_ref(), "update", &mut findings);
        update(spec.rollback.as_ref(), "rollback", &mut findings);
    }
    if let Some(spec) = &spec.endpoint {
        endpoint(spec, &mut findings);
    }
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    if let Some(Err(reason)) = labels.map(balancing) {
        findings.add("", reason);
    }
    if let Some(Err(reason)) = labels.map(relocate::starts_first) {
        findings.add("", reason);
    }
    if let Some(Err(reason)) = labels.map(rebalance::wish) {
        findings.add("", reason);
    }
    if let Some(Err(reason)) = labels.map(enforce::grace) {
        findings.add("", reason);
    }
    findings.result()
}

fn dns_name(annotations: Option<&Annotations>, findings: &mut Findings) {
    let name = annotations.map_or("", |annotations| annotations.name.as_str());
    if name.is_empty() {
        return findings.add("meta", "name must be provided");
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let valid = inside && edge(name.chars().next()) && edge(name.chars().last());
    let fix = "use letters, digits, `-` and `_`, and begin and end with a letter or digit";
    findings.add_fixable(!valid, "", "name must be valid as a DNS name component", fix);
    findings.add_if(name.len() > DNS_LABEL_MAX, "", "name must be 63 characters or fewer");
}

fn update(config: Option<&UpdateConfig>, which: &str, findings: &mut Findings) {
    let Some(config) = config else { return };
    findings.add_if(config.delay < 0, "TaskSpec", format!("{which}-delay cannot be negative"));
    findings.add_if(config.monitor < 0, "TaskSpec", format!("{which}-monitor cannot be negative"));
    let ratio = (0.0..=1.0).contains(&config.max_failure_ratio);
    let reason = format!("{which}-maxfailureratio cannot be less than 0 or bigger than 1");
    findings.add_fixable(!ratio, "TaskSpec", reason, "0.1 is one task of ten");
}
