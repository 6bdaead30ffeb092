//! Mounts: the same shape in `HostConfig` and in a service spec.

use super::{Empty, StringMap};

docker! {
    pub struct Mount {
        #[serde(rename = "Type", skip_serializing_if = "crate::types::omit")]
        pub kind: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub source: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub target: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub consistency: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub bind_options: Option<BindOptions>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub volume_options: Option<VolumeOptions>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub image_options: Option<ImageOptions>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub tmpfs_options: Option<TmpfsOptions>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cluster_options: Option<Empty>,
    }

    pub struct BindOptions {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub propagation: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub non_recursive: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub create_mountpoint: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub read_only_non_recursive: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub read_only_force_recursive: bool,
    }

    pub struct VolumeOptions {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub no_copy: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub labels: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub subpath: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub driver_config: Option<Driver>,
    }

    pub struct ImageOptions {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub subpath: String,
    }

    pub struct TmpfsOptions {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub size_bytes: i64,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub mode: u32,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub options: Vec<Vec<String>>,
    }

    /// A driver's name and options.
    pub struct Driver {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub name: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub options: StringMap,
    }
}
