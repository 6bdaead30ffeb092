//! Logging set-up and the names of span fields, so that one grep follows a request across nodes.

use tracing_subscriber::EnvFilter;

/// Span field: a task's identifier.
pub const TASK_ID: &str = "task.id";
/// Span field: a service's identifier.
pub const SERVICE_ID: &str = "service.id";
/// Span field: a container's identifier.
pub const CONTAINER_ID: &str = "container.id";
/// Span field: a node's identifier.
pub const NODE_ID: &str = "node.id";
/// Span field: the request that an action goes back to.
pub const REQUEST_ID: &str = "request.id";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Sends the process's log to standard error. `filter` is `tracing`'s syntax, e.g. `info,rswarm_manager=debug`;
/// a filter that cannot be parsed is an error that names it.
///
/// # Errors
/// The parse error's text.
pub fn init(filter: &str, format: Format) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("invalid log filter `{filter}`: {error}"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        Format::Text => builder.init(),
        Format::Json => builder.json().init(),
    }
    Ok(())
}
