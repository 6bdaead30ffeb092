//! What all of it takes up on the disk: `system/df`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use rswarm_base::Timestamp;
use rswarm_engine::container::Container;
use rswarm_image::{Digest, Image, chain_ids};

use crate::containers::sizes;
use crate::error::ApiError;
use crate::request::Query;
use crate::router::App;
use crate::translate::{image, summary};
use crate::types;
use crate::version::ApiVersion;

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/system/df", get(disk_usage))
}

/// What is to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    images: bool,
    containers: bool,
    volumes: bool,
    builds: bool,
}

impl Wanted {
    fn of(query: &Query, version: ApiVersion) -> Result<Wanted, ApiError> {
        if !version.at_least(42) || !query.has("type") {
            return Ok(Wanted { images: true, containers: true, volumes: true, builds: true });
        }
        let mut wanted = Wanted { images: false, containers: false, volumes: false, builds: false };
        for kind in query.all("type") {
            match kind {
                "image" => wanted.images = true,
                "container" => wanted.containers = true,
                "volume" => wanted.volumes = true,
                "build-cache" => wanted.builds = true,
                other => return Err(ApiError::invalid(format!("unknown object type: {other}"))),
            }
        }
        Ok(wanted)
    }
}

async fn disk_usage(
    State(app): State<App>,
    query: Query,
    version: ApiVersion,
) -> Result<Json<types::DiskUsage>, ApiError> {
    let wanted = Wanted::of(&query, version)?;
    let containers = app.engine.list();
    let mut usage = types::DiskUsage::default();
    if wanted.images {
        let images = app.engine.images().list();
        let layers = Layers::of(&images);
        usage.layers_size = layers.total();
        usage.images = Some(images.iter().map(|found| row(found, &layers, &containers, version)).collect());
    }
    if wanted.containers {
        usage.containers = Some(container_rows(&app, &containers, version).await?);
    }
    if wanted.volumes {
        usage.volumes = Some(volume_rows(&app, &containers).await?);
    }
    usage.build_cache = wanted.builds.then(Vec::new);
    Ok(Json(usage))
}

/// Every layer once, by chain id: its bytes, and in how many images it is.
struct Layers(HashMap<Digest, (u64, usize)>);

impl Layers {
    fn of(images: &[Image]) -> Layers {
        let mut layers = HashMap::new();
        for image in images {
            for (id, size) in chain_ids(&image.layers).into_iter().zip(&image.layer_sizes) {
                layers.entry(id).or_insert((*size, 0)).1 += 1;
            }
        }
        Layers(layers)
    }

    fn total(&self) -> i64 {
        bytes(self.0.values().map(|(size, _)| size).sum())
    }

    /// Bytes of an image that another one has too.
    fn shared(&self, image: &Image) -> i64 {
        let layers = chain_ids(&image.layers);
        let shared = layers.iter().filter_map(|id| self.0.get(id)).filter(|(_, users)| *users > 1);
        bytes(shared.map(|(size, _)| size).sum())
    }
}

fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn row(
    found: &Image,
    layers: &Layers,
    containers: &[Arc<Container>],
    version: ApiVersion,
) -> types::ImageSummary {
    let users = containers.iter().filter(|container| container.image_id == found.id.as_str()).count();
    types::ImageSummary {
        shared_size: layers.shared(found),
        containers: i64::try_from(users).unwrap_or(i64::MAX),
        ..image::summary(found, users, version)
    }
}

async fn container_rows(
    app: &App,
    containers: &[Arc<Container>],
    version: ApiVersion,
) -> Result<Vec<types::ContainerSummary>, ApiError> {
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for container in containers {
        let mut row = summary::container(container, now, version);
        (row.size_rw, row.size_root_fs) = sizes(app, container).await?;
        rows.push(row);
    }
    Ok(rows)
}

async fn volume_rows(app: &App, containers: &[Arc<Container>]) -> Result<Vec<types::Volume>, ApiError> {
    let mut rows = Vec::new();
    for volume in app.engine.list_volumes() {
        let is_user =
            |container: &&Arc<Container>| container.mounts.iter().any(|mount| mount.name == volume.name);
        let users = containers.iter().filter(is_user).count();
        let usage = types::VolumeUsage {
            ref_count: i64::try_from(users).unwrap_or(i64::MAX),
            size: bytes(app.engine.volume_size(&volume.name).await?),
        };
        rows.push(types::Volume { usage_data: Some(usage), ..crate::volumes::volume(&volume) });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_chosen_by_newer_clients_only() {
        let version = |text| crate::version::check(Some(text)).expect("version");
        let of = |query: &str, text| Wanted::of(&Query::parse(query), version(text));
        let all = Wanted { images: true, containers: true, volumes: true, builds: true };
        assert_eq!(of("", "1.51"), Ok(all));
        assert_eq!(of("type=image", "1.41"), Ok(all));
        let some = Wanted { images: false, containers: true, volumes: true, builds: false };
        assert_eq!(of("type=container&type=volume", "1.42"), Ok(some));
        assert_eq!(of("type=x", "1.42").expect_err("unknown").message, "unknown object type: x");
    }
}
