//! Events.

use super::StringMap;

docker! {
    /// One line of `GET /events`. The lower-case fields of old clients are kept for containers and images.
    pub struct EventMessage {
        #[serde(rename = "status", skip_serializing_if = "crate::types::omit")]
        pub status: String,
        #[serde(rename = "id", skip_serializing_if = "crate::types::omit")]
        pub id: String,
        #[serde(rename = "from", skip_serializing_if = "crate::types::omit")]
        pub from: String,
        #[serde(rename = "Type")]
        pub kind: String,
        pub action: String,
        pub actor: EventActor,
        #[serde(rename = "scope", skip_serializing_if = "crate::types::omit")]
        pub scope: String,
        #[serde(rename = "time", skip_serializing_if = "crate::types::omit")]
        pub time: i64,
        #[serde(rename = "timeNano", skip_serializing_if = "crate::types::omit")]
        pub time_nano: i64,
    }

    pub struct EventActor {
        #[serde(rename = "ID")]
        pub id: String,
        pub attributes: StringMap,
    }
}
