//! Docker's JSON bodies as serde structs, both ways: the server writes them, the command line reads them.
//!
//! Reading is as lenient as Go's decoder: unknown fields are ignored, a missing or `null` field is the type's
//! zero value. Writing follows Docker's servers: a field that they leave out when empty carries [`omit`], a
//! list that they write as `null` is an `Option`, one that they write as `[]` is a `Vec`.
//! Times are RFC 3339 text, durations nanoseconds. What a field means is in Docker's API reference.
#![allow(missing_docs, reason = "the field names are Docker's, and its API reference documents them")]

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Declares structs in the conventions above. The fields of `flatten` parts, which come first, are written and read
/// beside the struct's own.
macro_rules! docker {
    ($($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub struct $name {
            $($(#[$field_meta])* #[serde(deserialize_with = "crate::types::lenient")] pub $field: $type,)*
        }
    )*};
    ($(#[$meta:meta])* pub struct $name:ident {
        flatten $part:ident: $part_type:ty,
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name {
            #[serde(flatten)] pub $part: $part_type,
            $($(#[$field_meta])* pub $field: $type,)*
        }

        // By hand: serde's own would take a mistake inside an optional part for its absence, and tells no
        // deserializer which fields it looks for.
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                #[derive(Default, serde::Deserialize)]
                #[serde(rename_all = "PascalCase", default)]
                struct Own {
                    $($(#[$field_meta])* #[serde(deserialize_with = "crate::types::lenient")] $field: $type,)*
                }
                let value = serde_json::Value::deserialize(deserializer)?;
                let $part = crate::types::from_value(value.clone()).map_err(serde::de::Error::custom)?;
                let Own { $($field),* } =
                    crate::types::from_value(value).map_err(serde::de::Error::custom)?;
                Ok($name { $part, $($field),* })
            }
        }
    };
}

mod container;
mod event;
mod exec;
mod fold;
mod image;
mod network;
mod service;
mod spec;
mod stats;
mod swarm;
mod system;
mod task;
mod volume;

pub use container::*;
pub use event::*;
pub use exec::*;
pub use fold::from_value;
pub use image::*;
pub use network::*;
pub use service::*;
pub use spec::*;
pub use stats::*;
pub use swarm::*;
pub use system::*;
pub use task::*;
pub use volume::*;

/// String to string, as labels and options are.
pub type StringMap = BTreeMap<String, String>;

/// Go's `map[string]struct{}`: only the keys count.
pub type KeySet = BTreeMap<String, Empty>;

docker! {
    /// `{}`.
    pub struct Empty {}

    /// The body of every error.
    pub struct ErrorBody {
        #[serde(rename = "message")]
        pub message: String,
        #[serde(rename = "hint", skip_serializing_if = "crate::types::omit")]
        pub hint: Option<String>,
    }
}

/// Reads `null` as the zero value, as Go does.
pub(crate) fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Go's `omitempty`.
pub(crate) fn omit<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A command line: a list, or one string, which is a list of one. Absent is not the same as empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Command(pub Option<Vec<String>>);

impl Command {
    /// The words; none when absent.
    #[must_use]
    pub fn words(&self) -> &[String] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl From<Vec<String>> for Command {
    /// An empty list is absent, as images have it.
    fn from(words: Vec<String>) -> Command {
        Command((!words.is_empty()).then_some(words))
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Command, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(Command(Option::<Either>::deserialize(deserializer)?.map(|either| match either {
            Either::One(word) => vec![word],
            Either::Many(words) => words,
        })))
    }
}
