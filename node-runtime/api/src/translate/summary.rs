//! A container as a row of `GET /containers/json`, with the status sentence that people read.

use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_engine::container::{Container, Health, HealthStatus, Status};

use super::{inspect, ports};
use crate::types;
use crate::version::ApiVersion;

pub(crate) fn container(
    container: &Container,
    now: Timestamp,
    version: ApiVersion,
) -> types::ContainerSummary {
    let networks = container.endpoints.iter().map(|endpoint| {
        (endpoint.network_name.clone(), inspect::endpoint_settings(endpoint, container, version))
    });
    let is_live = container.state.status.is_live();
    types::ContainerSummary {
        id: container.id.clone(),
        names: vec![format!("/{}", container.name)],
        image: container.config.spec.image.clone(),
        image_id: container.image_id.clone(),
        command: command(container),
        created: container.created.as_secs(),
        ports: if is_live { ports::rows_out(container) } else { Vec::new() },
        labels: container.config.spec.labels.clone(),
        state: container.state.status.as_str().to_owned(),
        status: status(container, now),
        host_config: types::SummaryHostConfig {
            network_mode: container.config.network_mode.clone(),
            annotations: container.config.spec.annotations.clone(),
        },
        network_settings: types::SummaryNetworks { networks: networks.collect() },
        mounts: container.mounts.iter().map(inspect::mount_point).collect(),
        ..types::ContainerSummary::default()
    }
}

/// The program and its arguments, those with a space in them quoted.
fn command(container: &Container) -> String {
    let quote = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    let words: Vec<String> = std::iter::once(&container.path).chain(&container.args).map(quote).collect();
    words.join(" ")
}

/// `Up 5 minutes (healthy)`, `Exited (0) 3 hours ago`, …
pub(crate) fn status(container: &Container, now: Timestamp) -> String {
    let state = &container.state;
    let up = || format!("Up {}", human(now.since(state.started_at)));
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            state.health.as_ref().map_or_else(up, |health| format!("{} ({})", up(), verdict(health)))
        }
        Status::Paused => format!("{} (Paused)", up()),
        Status::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, human(now.since(state.finished_at)))
        }
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, human(now.since(state.finished_at))),
    }
}

fn verdict(health: &Health) -> &'static str {
    match health.status {
        HealthStatus::Starting => "health: starting",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
    }
}

/// A duration in the words of Docker's `units.HumanDuration`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Rounded, as Docker rounds hours alone.
    let hours = (duration.as_secs_f64() / 3600.0).round() as u64;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::inspect::tests::sample;
    use crate::version;

    #[test]
    fn durations_are_told_as_docker_tells_them() {
        let told = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (730 * 86_400, "2 years"),
        ];
        for (seconds, text) in told {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_status_says_how_long_and_how_well() {
        let mut container = sample();
        let now = container.state.started_at.after(Duration::from_secs(300));
        assert_eq!(status(&container, now), "Up 5 minutes");
        container.state.health = Some(Health { status: HealthStatus::Healthy, ..Health::default() });
        assert_eq!(status(&container, now), "Up 5 minutes (healthy)");
        container.state.status = Status::Paused;
        assert_eq!(status(&container, now), "Up 5 minutes (Paused)");
        container.state.status = Status::Exited;
        container.state.exit_code = 137;
        container.state.finished_at = container.state.started_at;
        assert_eq!(status(&container, now), "Exited (137) 5 minutes ago");
    }

    #[test]
    fn a_row_has_dockers_shape() {
        let json = serde_json::to_value(container(&sample(), Timestamp(0), version::MAX)).expect("json");
        assert_eq!(json["Names"], serde_json::json!(["/web"]));
        assert_eq!(json["Command"], "sleep '1 000'");
        assert_eq!(json["Ports"][0], serde_json::json!({"PrivatePort": 53, "Type": "udp"}));
        let published =
            serde_json::json!({"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"});
        assert_eq!(json["Ports"][1], published);
        assert!(json.get("SizeRw").is_none());
    }
}
