//! Images as clients see them.

use rswarm_image::{Distribution, Image, ImageConfig, Loaded, ProgressEvent, Removed};

use crate::types;
use crate::version::ApiVersion;

/// One row of `GET /images/json`. `containers` counts those that use it.
pub(crate) fn summary(image: &Image, containers: usize, version: ApiVersion) -> types::ImageSummary {
    let labels = &image.config.labels;
    types::ImageSummary {
        containers: if version.at_least(51) { containers as i64 } else { -1 },
        created: image.created.as_secs(),
        id: image.id.to_string(),
        labels: (!labels.is_empty()).then(|| labels.clone()),
        parent_id: image.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        repo_digests: named_or_none(&image.digests, "<none>@<none>", version),
        repo_tags: named_or_none(&image.tags, "<none>:<none>", version),
        shared_size: -1,
        size: image.size as i64,
    }
}

/// Clients before 1.43 want a placeholder where there is no name.
fn named_or_none(names: &[String], none: &str, version: ApiVersion) -> Vec<String> {
    if names.is_empty() && !version.at_least(43) { vec![none.to_owned()] } else { names.to_vec() }
}

pub(crate) fn inspect(image: &Image) -> types::ImageInspect {
    types::ImageInspect {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        parent: image.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        comment: image.comment.clone(),
        created: image.created.to_string(),
        docker_version: image.docker_version.clone(),
        author: image.author.clone(),
        config: Some(config(&image.config)),
        architecture: image.platform.architecture.clone(),
        variant: image.platform.variant.clone(),
        os: image.platform.os.clone(),
        size: image.size as i64,
        graph_driver: types::GraphDriver { name: "overlay2".to_owned(), data: None },
        root_fs: types::RootFs {
            kind: "layers".to_owned(),
            layers: image.layers.iter().map(ToString::to_string).collect(),
        },
        metadata: types::ImageMetadata { last_tag_time: image.last_tagged.to_string() },
    }
}

fn config(config: &ImageConfig) -> types::ContainerConfig {
    let set = |keys: &std::collections::BTreeSet<String>| -> types::KeySet {
        keys.iter().map(|key| (key.clone(), types::Empty {})).collect()
    };
    let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
    types::ContainerConfig {
        user: config.user.clone(),
        exposed_ports: set(&config.exposed_ports),
        env: list(&config.env),
        cmd: config.cmd.clone().into(),
        healthcheck: config.healthcheck.as_ref().map(|check| types::HealthConfig {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: i32::try_from(check.retries).unwrap_or(i32::MAX),
        }),
        volumes: (!config.volumes.is_empty()).then(|| set(&config.volumes)),
        working_dir: config.working_dir.clone(),
        entrypoint: config.entrypoint.clone().into(),
        on_build: list(&config.on_build),
        labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
        stop_signal: config.stop_signal.clone(),
        stop_timeout: config.stop_timeout,
        shell: list(&config.shell),
        ..types::ContainerConfig::default()
    }
}

/// Newest step first. Only the image's own step has an id; the others came with it.
pub(crate) fn history(image: &Image) -> Vec<types::HistoryItem> {
    let mut sizes = image.layer_sizes.iter();
    let mut items: Vec<types::HistoryItem> = image
        .history
        .iter()
        .map(|step| types::HistoryItem {
            id: "<missing>".to_owned(),
            created: step
                .created
                .as_deref()
                .and_then(rswarm_base::Timestamp::parse)
                .unwrap_or_default()
                .as_secs(),
            created_by: step.created_by.clone(),
            tags: None,
            size: if step.empty_layer { 0 } else { sizes.next().copied().unwrap_or_default() as i64 },
            comment: step.comment.clone(),
        })
        .collect();
    items.reverse();
    if let Some(newest) = items.first_mut() {
        newest.id = image.id.to_string();
        newest.tags = (!image.tags.is_empty()).then(|| image.tags.clone());
    }
    items
}

pub(crate) fn removed(removed: Vec<Removed>) -> Vec<types::ImageDeleted> {
    let row = |removed| match removed {
        Removed::Untagged(name) => types::ImageDeleted { untagged: name, ..Default::default() },
        Removed::Deleted(id) => types::ImageDeleted { deleted: id, ..Default::default() },
    };
    removed.into_iter().map(row).collect()
}

pub(crate) fn distribution(found: &Distribution) -> types::DistributionInspect {
    types::DistributionInspect {
        descriptor: types::Descriptor {
            media_type: found.descriptor.media_type.clone(),
            digest: found.descriptor.digest.to_string(),
            size: found.descriptor.size as i64,
        },
        platforms: found
            .platforms
            .iter()
            .map(|platform| types::DistributionPlatform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
                variant: platform.variant.clone(),
            })
            .collect(),
    }
}

/// One line of a progress stream.
pub(crate) fn progress(event: &ProgressEvent) -> types::Progress {
    let detail = event
        .detail()
        .map(|(current, total)| types::ProgressDetail { current: current as i64, total: total as i64 });
    types::Progress {
        status: event.status(),
        id: event.id().unwrap_or_default().to_owned(),
        progress: detail.as_ref().map(bar).unwrap_or_default(),
        progress_detail: detail,
        ..types::Progress::default()
    }
}

/// `[=====>     ]  1.5MB/3MB`: what clients that do not draw their own show.
fn bar(detail: &types::ProgressDetail) -> String {
    const WIDTH: i64 = 50;
    let (current, total) = (detail.current, detail.total);
    if total <= 0 || current > total {
        return size(current);
    }
    let done = (current * WIDTH / total) as usize;
    let rest = WIDTH as usize - done;
    let arrow = if rest > 0 { ">" } else { "" };
    let blank = " ".repeat(rest.saturating_sub(1));
    format!("[{}{arrow}{blank}] {:>8}/{}", "=".repeat(done), size(current), size(total))
}

/// Decimal units, four digits, as Docker prints sizes.
fn size(bytes: i64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1000.0 {
        let Some(next) = units.next() else { break };
        value /= 1000.0;
        unit = next;
    }
    let digits = if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// What `load` says of each image.
pub(crate) fn loaded(loaded: &Loaded) -> Vec<types::Progress> {
    let line = |text: String| types::Progress { stream: text, ..types::Progress::default() };
    if loaded.references.is_empty() {
        return vec![line(format!("Loaded image ID: {}\n", loaded.image.id))];
    }
    loaded.references.iter().map(|name| line(format!("Loaded image: {name}\n"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_how_far_it_is() {
        let detail = types::ProgressDetail { current: 1_500_000, total: 3_000_000 };
        assert_eq!(bar(&detail), format!("[{}>{}]    1.5MB/3MB", "=".repeat(25), " ".repeat(24)));
        let whole = types::ProgressDetail { current: 10, total: 10 };
        assert_eq!(bar(&whole), format!("[{}]      10B/10B", "=".repeat(50)));
        assert_eq!(bar(&types::ProgressDetail { current: 10, total: 0 }), "10B");
    }

    #[test]
    fn sizes_have_four_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.234kB"),
            (12_345_678, "12.35MB"),
            (123_456_789, "123.5MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_progress_line_has_dockers_fields() {
        let event = ProgressEvent::PullingFrom { repository: "library/web".into(), tag: "latest".into() };
        let json = serde_json::to_string(&progress(&event)).expect("json");
        assert_eq!(json, r#"{"status":"Pulling from library/web","id":"latest"}"#);
    }
}
