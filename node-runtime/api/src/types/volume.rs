//! Volumes.

use super::{Empty, StringMap};

docker! {
    pub struct Volume {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub created_at: String,
        pub driver: String,
        pub labels: Option<StringMap>,
        pub mountpoint: String,
        pub name: String,
        pub options: Option<StringMap>,
        pub scope: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub status: StringMap,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub usage_data: Option<VolumeUsage>,
    }

    pub struct VolumeUsage {
        pub ref_count: i64,
        pub size: i64,
    }

    pub struct VolumeCreateBody {
        pub name: String,
        pub driver: String,
        pub driver_opts: Option<StringMap>,
        pub labels: Option<StringMap>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub cluster_volume_spec: Option<Empty>,
    }

    pub struct VolumeList {
        pub volumes: Vec<Volume>,
        pub warnings: Option<Vec<String>>,
    }

    pub struct VolumesPruned {
        pub volumes_deleted: Option<Vec<String>>,
        pub space_reclaimed: u64,
    }
}
