//! Exec: processes added to a running container.

use super::Command;

docker! {
    /// The body of `POST /containers/{id}/exec`.
    pub struct ExecCreateBody {
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub user: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub privileged: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub tty: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub console_size: Option<[u32; 2]>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub attach_stdin: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub attach_stdout: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub attach_stderr: bool,
        // docker-py spells it so, and Go does not mind.
        #[serde(alias = "detachKeys", skip_serializing_if = "crate::types::omit")]
        pub detach_keys: String,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub env: Vec<String>,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub working_dir: String,
        pub cmd: Command,
    }

    /// `{"Id": …}`.
    pub struct IdBody {
        pub id: String,
    }

    /// The body of `POST /exec/{id}/start`.
    pub struct ExecStartBody {
        pub detach: bool,
        pub tty: bool,
        #[serde(skip_serializing_if = "crate::types::omit")]
        pub console_size: Option<[u32; 2]>,
    }

    /// The reply to `GET /exec/{id}/json`.
    pub struct ExecInspect {
        #[serde(rename = "ID")]
        pub id: String,
        pub running: bool,
        pub exit_code: Option<i64>,
        pub process_config: ExecProcess,
        pub open_stdin: bool,
        pub open_stderr: bool,
        pub open_stdout: bool,
        pub can_remove: bool,
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        pub detach_keys: String,
        pub pid: i64,
    }

    pub struct ExecProcess {
        #[serde(rename = "tty")]
        pub tty: bool,
        #[serde(rename = "entrypoint")]
        pub entrypoint: String,
        #[serde(rename = "arguments")]
        pub arguments: Vec<String>,
        #[serde(rename = "privileged", skip_serializing_if = "crate::types::omit")]
        pub privileged: Option<bool>,
        #[serde(rename = "user", skip_serializing_if = "crate::types::omit")]
        pub user: String,
    }
}
