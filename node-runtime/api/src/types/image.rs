//! Images, and the progress lines of pull, load and import.

use super::{ContainerConfig, GraphDriver, StringMap};

docker! {
    /// One row of `GET /images/json`.
    pub struct ImageSummary {
        pub containers: i64,
        pub created: i64,
        pub id: String,
        pub labels: Option<StringMap>,
        pub parent_id: String,
        pub repo_digests: Vec<String>,
        pub repo_tags: Vec<String>,
        pub shared_size: i64,
        pub size: i64,
    }

    /// The reply to `GET /images/{name}/json`.
    pub struct ImageInspect {
        pub id: String,
        pub repo_tags: Vec<String>,
        pub repo_digests: Vec<String>,
        pub parent: String,
        pub comment: String,
        pub created: String,
        pub docker_version: String,
        pub author: String,
        pub config: Option<ContainerConfig>,
        pub architecture: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub variant: String,
        pub os: String,
        pub size: i64,
        pub graph_driver: GraphDriver,
        #[serde(rename = "RootFS")]
        pub root_fs: RootFs,
        pub metadata: ImageMetadata,
    }

    pub struct ImageMetadata {
        pub last_tag_time: String,
    }

    pub struct RootFs {
        #[serde(rename = "Type")]
        pub kind: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub layers: Vec<String>,
    }

    /// One row of `GET /images/{name}/history`.
    pub struct HistoryItem {
        pub id: String,
        pub created: i64,
        pub created_by: String,
        pub tags: Option<Vec<String>>,
        pub size: i64,
        pub comment: String,
    }

    /// One row of the reply to `DELETE /images/{name}`.
    pub struct ImageDeleted {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub untagged: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub deleted: String,
    }

    pub struct ImagesPruned {
        pub images_deleted: Option<Vec<ImageDeleted>>,
        pub space_reclaimed: u64,
    }

    /// One line of a progress stream.
    pub struct Progress {
        #[serde(rename = "stream", skip_serializing_if = "crate::types::omit")]
        pub stream: String,
        #[serde(rename = "status", skip_serializing_if = "crate::types::omit")]
        pub status: String,
        #[serde(rename = "progressDetail", skip_serializing_if = "crate::types::omit")]
        pub progress_detail: Option<ProgressDetail>,
        #[serde(rename = "progress", skip_serializing_if = "crate::types::omit")]
        pub progress: String,
        #[serde(rename = "id", skip_serializing_if = "crate::types::omit")]
        pub id: String,
        #[serde(rename = "errorDetail", skip_serializing_if = "crate::types::omit")]
        pub error_detail: Option<ErrorDetail>,
        #[serde(rename = "error", skip_serializing_if = "crate::types::omit")]
        pub error: String,
    }

    pub struct ProgressDetail {
        #[serde(rename = "current", skip_serializing_if = "crate::types::omit")]
        pub current: i64,
        #[serde(rename = "total", skip_serializing_if = "crate::types::omit")]
        pub total: i64,
    }

    pub struct ErrorDetail {
        #[serde(rename = "code", skip_serializing_if = "crate::types::omit")]
        pub code: i64,
        #[serde(rename = "message", skip_serializing_if = "crate::types::omit")]
        pub message: String,
    }

    /// The reply to `GET /distribution/{name}/json`.
    pub struct DistributionInspect {
        pub descriptor: Descriptor,
        pub platforms: Vec<DistributionPlatform>,
    }

    pub struct Descriptor {
        #[serde(rename = "mediaType")]
        pub media_type: String,
        #[serde(rename = "digest")]
        pub digest: String,
        #[serde(rename = "size")]
        pub size: i64,
    }

    pub struct DistributionPlatform {
        #[serde(rename = "architecture")]
        pub architecture: String,
        #[serde(rename = "os")]
        pub os: String,
        #[serde(rename = "variant", skip_serializing_if = "crate::types::omit")]
        pub variant: String,
    }

    pub struct BuildCachePruned {
        pub caches_deleted: Option<Vec<String>>,
        pub space_reclaimed: u64,
    }

    /// Credentials of a registry: the body of `POST /auth`, and what `X-Registry-Auth` decodes to.
    pub struct AuthConfig {
        #[serde(rename = "username", skip_serializing_if = "crate::types::omit")]
        pub username: String,
        #[serde(rename = "password", skip_serializing_if = "crate::types::omit")]
        pub password: String,
        #[serde(rename = "auth", skip_serializing_if = "crate::types::omit")]
        pub auth: String,
        #[serde(rename = "email", skip_serializing_if = "crate::types::omit")]
        pub email: String,
        #[serde(rename = "serveraddress", skip_serializing_if = "crate::types::omit")]
        pub serveraddress: String,
        #[serde(rename = "identitytoken", skip_serializing_if = "crate::types::omit")]
        pub identitytoken: String,
        #[serde(rename = "registrytoken", skip_serializing_if = "crate::types::omit")]
        pub registrytoken: String,
    }

    pub struct AuthReply {
        pub status: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub identity_token: String,
    }
}
