//! What is wrong with a spec: all of it at once, in Docker's words where it has some. Nothing is stored
//! before its spec has passed here, so everything else may rely on it.

mod cluster;
mod container;
mod content;
mod endpoint;
mod network;
mod service;
mod task;
#[cfg(test)]
mod tests;

use std::fmt;

use prost::Message;
use rswarm_base::{Chain, Classify};

pub use self::cluster::{cluster, node};
pub use self::content::{CONFIG_BYTES_MAX, SECRET_BYTES_MAX, content};
pub use self::network::network;
pub use self::service::{REPLICAS_MAX, service};

/// Encoded bytes of a spec. Every task has a copy of its service's, and some copies must fit one write.
const SPEC_BYTES_MAX: usize = 1 << 20;

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which part of the spec, such as `ContainerSpec`; empty for the spec itself.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
    /// What to do about it, where the reason does not say so.
    pub fix: Option<String>,
}

impl Problem {
    /// What an error says of a spec as a whole.
    pub(crate) fn of(error: &impl Classify) -> Problem {
        Problem { field: "", reason: Chain(error).to_string(), fix: error.hint() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Collects problems.
#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, field: &'static str, reason: impl Into<String>) {
        self.0.push(Problem { field, reason: reason.into(), fix: None });
    }

    fn add_if(&mut self, wrong: bool, field: &'static str, reason: impl Into<String>) {
        if wrong {
            self.add(field, reason);
        }
    }

    /// The same for what people may not know how to mend: Docker's words are kept short, and clients look for them.
    fn add_fixable(&mut self, wrong: bool, field: &'static str, reason: impl Into<String>, fix: &str) {
        if wrong {
            self.0.push(Problem { field, reason: reason.into(), fix: Some(fix.to_owned()) });
        }
    }

    /// What is too large for the raft log.
    fn add_size(&mut self, spec: &impl Message) {
        let bytes = spec.encoded_len();
        let reason = format!("the spec is too large: it has {bytes} bytes and may have {SPEC_BYTES_MAX}");
        self.add_if(bytes > SPEC_BYTES_MAX, "", reason);
    }

    fn result(self) -> Result<(), Vec<Problem>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}
