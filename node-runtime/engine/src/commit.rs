//! A container's configuration as that of the image that is made of it. Pure.

use std::collections::BTreeSet;

use rswarm_image::{Healthcheck, ImageConfig};
use rswarm_proto::model::container as model;

use crate::container::{Container, MountKind};

/// Fills up what `config` leaves open from the container. moby: merge
pub(crate) fn fill_up(config: &mut ImageConfig, container: &Container) {
    let own = config_of(container);
    fill(&mut config.user, own.user);
    fill(&mut config.working_dir, own.working_dir);
    fill(&mut config.stop_signal, own.stop_signal);
    config.stop_timeout = config.stop_timeout.or(own.stop_timeout);
    config.exposed_ports.extend(own.exposed_ports);
    config.volumes.extend(own.volumes);
    let named: BTreeSet<String> = config.env.iter().map(|entry| key_of(entry).to_owned()).collect();
    config.env.extend(own.env.into_iter().filter(|entry| !named.contains(key_of(entry))));
    for (key, value) in own.labels {
        config.labels.entry(key).or_insert(value);
    }
    if config.entrypoint.is_empty() {
        if config.cmd.is_empty() {
            config.cmd = own.cmd;
        }
        config.entrypoint = own.entrypoint;
    }
    config.healthcheck = match (config.healthcheck.take(), own.healthcheck) {
        (Some(asked), Some(own)) => Some(fill_health(asked, own)),
        (asked, own) => asked.or(own),
    };
}

fn key_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

fn fill(asked: &mut String, own: String) {
    if asked.is_empty() {
        *asked = own;
    }
}

fn fill_health(mut asked: Healthcheck, own: Healthcheck) -> Healthcheck {
    if asked.test.is_empty() {
        asked.test = own.test;
    }
    let or = |asked: &mut i64, own: i64| *asked = if *asked == 0 { own } else { *asked };
    or(&mut asked.interval, own.interval);
    or(&mut asked.timeout, own.timeout);
    or(&mut asked.start_period, own.start_period);
    or(&mut asked.start_interval, own.start_interval);
    or(&mut asked.retries, own.retries);
    asked
}

/// What the container itself runs with, its image's share included.
pub(crate) fn config_of(container: &Container) -> ImageConfig {
    let spec = &container.config.spec;
    let anonymous =
        container.mounts.iter().filter(|mount| mount.kind == MountKind::Volume && mount.anonymous);
    ImageConfig {
        user: spec.user.clone(),
        exposed_ports: container.exposed.iter().cloned().collect(),
        env: spec.env.clone(),
        entrypoint: spec.entrypoint.iter().filter(|word| !word.is_empty()).cloned().collect(),
        cmd: spec.args.clone(),
        volumes: anonymous.map(|mount| mount.destination.clone()).collect(),
        working_dir: spec.workdir.clone(),
        labels: spec.labels.clone(),
        stop_signal: spec.stop_signal.clone(),
        healthcheck: spec.healthcheck.as_ref().map(health_of),
        ..ImageConfig::default()
    }
}

fn health_of(own: &model::Healthcheck) -> Healthcheck {
    Healthcheck {
        test: own.test.clone(),
        interval: own.interval,
        timeout: own.timeout,
        start_period: own.start_period,
        start_interval: own.start_interval,
        retries: own.retries.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerConfig;

    #[test]
    fn what_is_asked_for_wins_and_the_container_fills_up_the_rest() {
        let mut own = ContainerConfig::default();
        own.spec.env = vec!["A=container".to_owned(), "B=container".to_owned()];
        own.spec.args = vec!["serve".to_owned()];
        own.spec.user = "web".to_owned();
        own.spec.labels.insert("from".to_owned(), "container".to_owned());
        own.spec.healthcheck = Some(model::Healthcheck {
            test: vec!["CMD".to_owned(), "true".to_owned()],
            interval: 5,
            ..model::Healthcheck::default()
        });
        let container = crate::spec::tests::container(own, Vec::new());
        let mut config = ImageConfig {
            env: vec!["A=asked".to_owned()],
            cmd: vec!["help".to_owned()],
            healthcheck: Some(Healthcheck { interval: 7, ..Healthcheck::default() }),
            ..ImageConfig::default()
        };
        fill_up(&mut config, &container);
        assert_eq!(config.env, ["A=asked", "B=container"]);
        assert_eq!(config.cmd, ["help"]);
        assert_eq!((config.user.as_str(), config.labels["from"].as_str()), ("web", "container"));
        let health = config.healthcheck.expect("merged");
        assert_eq!((health.interval, health.test.len()), (7, 2));
    }

    #[test]
    fn an_entry_point_that_is_asked_for_drops_the_containers_arguments() {
        let mut own = ContainerConfig::default();
        own.spec.args = vec!["serve".to_owned()];
        let container = crate::spec::tests::container(own, Vec::new());
        let mut config = ImageConfig { entrypoint: vec!["/init".to_owned()], ..ImageConfig::default() };
        fill_up(&mut config, &container);
        assert_eq!((config.entrypoint, config.cmd), (vec!["/init".to_owned()], Vec::new()));
    }
}
