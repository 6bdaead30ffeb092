//! What tasks use, summed up by service and by node. Pure.

use std::collections::BTreeMap;

use rswarm_proto::model::object::Stored as _;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire;

use crate::types::{ClusterUsage, NodeUsage, ServiceUsage, UsageSum};

/// The sums of what was told, over the tasks that there are.
pub(crate) fn usage(
    told: &wire::UsageResponse,
    tasks: &[wire::Task],
    services: &[wire::Service],
    nodes: &[wire::Node],
) -> ClusterUsage {
    let told: BTreeMap<&str, &wire::TaskUsage> =
        told.nodes.iter().flat_map(|node| &node.tasks).map(|usage| (usage.task_id.as_str(), usage)).collect();
    let (mut by_service, mut by_node) = (BTreeMap::new(), BTreeMap::new());
    let runs = |task: &&wire::Task| matches!(task.observed(), TaskState::Running | TaskState::Draining);
    for task in tasks.iter().filter(runs) {
        let usage = told.get(task.id.as_str()).copied();
        add(by_service.entry(task.service_id.as_str()).or_default(), usage);
        add(by_node.entry(task.node_id.as_str()).or_default(), usage);
    }
    let sum = |sums: &BTreeMap<&str, UsageSum>, id: &str| sums.get(id).copied().unwrap_or_default();
    let mut services: Vec<ServiceUsage> = services
        .iter()
        .map(|service| ServiceUsage {
            id: service.id.clone(),
            name: service.name().to_owned(),
            usage: sum(&by_service, &service.id),
        })
        .collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let mut nodes: Vec<NodeUsage> = nodes.iter().map(|node| of_node(node, sum(&by_node, &node.id))).collect();
    nodes.sort_by(|a, b| (&a.hostname, &a.id).cmp(&(&b.hostname, &b.id)));
    ClusterUsage { services, nodes }
}

fn of_node(node: &wire::Node, usage: UsageSum) -> NodeUsage {
    let description = node.description.clone().unwrap_or_default();
    let memory = description.resources.map_or(0, |resources| resources.memory);
    NodeUsage {
        id: node.id.clone(),
        hostname: description.hostname,
        memory_total: u64::try_from(memory).unwrap_or(0),
        usage,
    }
}

fn add(sum: &mut UsageSum, usage: Option<&wire::TaskUsage>) {
    sum.running += 1;
    let Some(usage) = usage else { return };
    sum.reporting += 1;
    // What a node says is not trusted to be small.
    for (sum, more) in [
        (&mut sum.cpu_rate, usage.cpu_rate),
        (&mut sum.memory, usage.memory),
        (&mut sum.pids, usage.pids),
        (&mut sum.net_received, usage.received),
        (&mut sum.net_sent, usage.sent),
        (&mut sum.block_read, usage.read),
        (&mut sum.block_written, usage.written),
    ] {
        *sum = sum.saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_tasks_are_summed_up_and_those_not_told_of_are_counted() {
        let task = |id: &str, service: &str, state: TaskState| wire::Task {
            id: id.into(),
            service_id: service.into(),
            node_id: "n1".into(),
            status: Some(wire::TaskStatus { state: state.into(), ..wire::TaskStatus::default() }),
            ..wire::Task::default()
        };
        let tasks = [
            task("a", "s1", TaskState::Running),
            task("b", "s1", TaskState::Running),
            task("c", "s1", TaskState::Failed),
            task("d", "s2", TaskState::Running),
        ];
        let tells = |id: &str, memory| wire::TaskUsage {
            task_id: id.into(),
            memory,
            cpu_rate: 10,
            pids: 1,
            ..wire::TaskUsage::default()
        };
        let told = vec![tells("a", 100), tells("d", u64::MAX), tells("gone", 7), tells("c", 7)];
        let told = wire::UsageResponse {
            nodes: vec![wire::NodeUsage { node_id: "n1".into(), tasks: told }],
            silent: Vec::new(),
        };
        let service = |id: &str| wire::Service { id: id.into(), ..wire::Service::default() };
        let services = [service("s1"), service("s2"), service("idle")];
        let nodes = [wire::Node { id: "n1".into(), ..wire::Node::default() }];
        let found = usage(&told, &tasks, &services, &nodes);
        let of = |id: &str| found.services.iter().find(|service| service.id == id).expect("listed").usage;
        let first = of("s1");
        assert_eq!((first.running, first.reporting, first.memory, first.pids), (2, 1, 100, 1));
        assert_eq!(of("idle"), UsageSum::default());
        let node = found.nodes[0].usage;
        assert_eq!((node.running, node.reporting, node.memory, node.cpu_rate), (3, 2, u64::MAX, 20));
    }
}
