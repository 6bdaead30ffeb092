//! Images: pulled, loaded or imported, verified while they stream, unpacked once, ready to be mounted.
//!
//! Is not: containers, mounts (the shim makes them), the HTTP face. Everything is on disk under one root and
//! found again after a crash; an image is visible only when all of it is there.
//! Start at [`ImageStore`], then [`Reference`] (names) and [`Image`] (what callers get). Inside: `content`
//! keeps blobs, `layers` keeps unpacked trees, `unpack` makes them, `catalog` says which name is which image.

mod auth;
mod catalog;
mod changes;
mod commit;
mod config;
mod content;
mod diff;
mod digest;
mod extract;
mod flight;
mod image;
mod import;
mod layers;
mod load;
mod manifest;
mod pack;
mod places;
mod platform;
mod progress;
mod pull;
mod push;
mod reference;
mod registry;
mod remove;
mod save;
mod snapshot;
mod store;
pub mod stream;
mod tree;
mod unpack;

pub use auth::RegistryAuth;
pub use catalog::{LookupError, TagError};
pub use changes::{ChangeError, apply_changes};
pub use commit::{CommitError, CommitOptions};
pub use config::{Healthcheck, History, ImageConfig, ImageDocument, RootFs};
pub use diff::{Change, ChangeKind};
pub use digest::{Digest, DigestError, Hasher, chain_id, chain_ids};
pub use extract::{ExtractError, ExtractRules, extract};
pub use image::Image;
pub use import::{ImportError, ImportOptions};
pub use load::{LoadError, Loaded};
pub use manifest::{Descriptor, Index, Manifest, ManifestError};
pub use pack::Packer;
pub use platform::{Platform, PlatformError};
pub use progress::{LayerState, Progress, ProgressEvent};
pub use pull::{Distribution, PullError};
pub use push::{LoginError, PushError};
pub use reference::{Reference, ReferenceError};
pub use remove::{ImageUser, RemoveError, RemoveOptions, Removed};
pub use save::SaveError;
pub use snapshot::{Layers, SnapshotError};
pub use store::{ImageStore, OpenError, StoreConfig};
