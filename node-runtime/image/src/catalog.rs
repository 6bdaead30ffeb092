//! Which images there are and what they are called. An immutable value: readers hold one, a change makes
//! the next. Pure; `store` keeps it on disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rswarm_base::{Classify, Kind};

use crate::digest::Digest;
use crate::image::{Image, StoredImage};
use crate::reference::{Reference, ReferenceError, is_image_id};

/// Images and names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalog {
    pub(crate) images: HashMap<Digest, Arc<StoredImage>>,
    /// Normalised names, each with either a tag or a digest.
    pub(crate) names: BTreeMap<Reference, Digest>,
}

/// Why there is no such image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nothing of that name or id; the text is Docker's.
    #[error("No such image: {0}")]
    NotFound(String),
    /// No image could ever be called so.
    #[error(transparent)]
    Invalid(#[from] ReferenceError),
}

impl Classify for LookupError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) => Kind::NotFound,
            Self::Invalid(error) => error.kind(),
        }
    }
}

/// Why an image did not get a name.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// There is no such image.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// A digest is found, never given.
    #[error("refusing to create a tag with a digest reference")]
    Digest,
    /// `sha256:abc` would read as an image id.
    #[error("refusing to create an ambiguous tag using digest algorithm as name")]
    Ambiguous,
    /// The disk.
    #[error("name could not be recorded")]
    Store(#[source] std::io::Error),
}

impl Classify for TagError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lookup(error) => error.kind(),
            Self::Digest | Self::Ambiguous => Kind::InvalidArgument,
            Self::Store(_) => Kind::Internal,
        }
    }
}

impl Catalog {
    /// An image by name, by id, or by the beginning of its id; names come first.
    pub(crate) fn lookup(&self, text: &str) -> Result<&Arc<StoredImage>, LookupError> {
        let id = if is_image_id(text) { format!("sha256:{text}") } else { text.to_owned() };
        if let Ok(digest) = id.parse::<Digest>() {
            return self.images.get(&digest).ok_or(LookupError::NotFound(id));
        }
        let reference = Reference::parse(text)?.with_default_tag();
        let found = self.names.get(&key(&reference)).and_then(|id| self.images.get(id));
        found.or_else(|| self.by_prefix(text)).ok_or_else(|| LookupError::NotFound(reference.familiar()))
    }

    /// Whether `text` means the image by its id rather than by a name.
    pub(crate) fn is_id_of(image: &Digest, text: &str) -> bool {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        !hex.is_empty() && image.hex().starts_with(hex)
    }

    fn by_prefix(&self, text: &str) -> Option<&Arc<StoredImage>> {
        let mut found = self.images.iter().filter(|(id, _)| Catalog::is_id_of(id, text));
        match (found.next(), found.next()) {
            (Some((_, image)), None) => Some(image),
            _ => None,
        }
    }

    /// All names of an image.
    pub(crate) fn names_of(&self, id: &Digest) -> Vec<Reference> {
        self.names.iter().filter(|(_, named)| *named == id).map(|(name, _)| name.clone()).collect()
    }

    /// The image as callers see it.
    pub(crate) fn view(&self, image: &StoredImage) -> Image {
        let (digests, tags): (Vec<_>, Vec<_>) =
            self.names_of(&image.record.id).into_iter().partition(|name| name.digest().is_some());
        let familiar = |names: Vec<Reference>| {
            let mut names: Vec<String> = names.iter().map(Reference::familiar).collect();
            names.sort();
            names
        };
        image.to_image(familiar(tags), familiar(digests))
    }

    /// Names an image; a name that is taken moves.
    pub(crate) fn name(&mut self, reference: &Reference, id: &Digest) {
        self.names.insert(key(reference), id.clone());
    }

    /// Images that were committed on top of `id` here.
    pub(crate) fn children(&self, id: &Digest) -> usize {
        self.images.values().filter(|image| image.record.parent.as_ref() == Some(id)).count()
    }
}

/// A name is known by its digest when it has one, else by its tag.
pub(crate) fn key(reference: &Reference) -> Reference {
    match reference.digest() {
        Some(digest) => reference.with_digest(digest.clone()),
        None => reference.clone().with_default_tag(),
    }
}

/// What a person may call an image.
pub(crate) fn check_target(target: &Reference) -> Result<(), TagError> {
    if target.digest().is_some() {
        return Err(TagError::Digest);
    }
    if matches!(target.familiar_name().as_str(), "sha256" | "sha384" | "sha512") {
        return Err(TagError::Ambiguous);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::ImageDocument;
    use crate::image::ImageRecord;
    use crate::manifest::Descriptor;

    /// A catalog of images whose ids begin as asked, with names.
    pub(crate) fn catalog(images: &[(&str, &[&str])]) -> Catalog {
        let mut catalog = Catalog::default();
        for (prefix, names) in images {
            let id: Digest = format!("sha256:{prefix}{}", "0".repeat(64 - prefix.len())).parse().expect("id");
            let record = ImageRecord {
                id: id.clone(),
                manifest: Descriptor::of("m", prefix.as_bytes()),
                parent: None,
                last_tagged: rswarm_base::Timestamp::ZERO,
            };
            let image = StoredImage {
                record,
                document: Arc::new(ImageDocument::default()),
                chain: Arc::new([]),
                layer_sizes: Arc::new([]),
                blobs: Arc::new([]),
            };
            catalog.images.insert(id.clone(), Arc::new(image));
            for name in *names {
                catalog.name(&Reference::parse(name).expect("name"), &id);
            }
        }
        catalog
    }

    #[test]
    fn an_image_is_found_by_name_then_by_id_then_by_the_beginning_of_its_id() {
        let catalog = catalog(&[("abc1", &["web", "reg:5000/x:2"]), ("abd2", &["abc1"]), ("fff3", &[])]);
        let find = |text: &str| catalog.lookup(text).map(|image| image.record.id.hex()[..4].to_owned());
        assert_eq!(find("web").as_deref(), Ok("abc1"));
        assert_eq!(find("docker.io/library/web:latest").as_deref(), Ok("abc1"));
        assert_eq!(find("reg:5000/x:2").as_deref(), Ok("abc1"));
        assert_eq!(find("abc1").as_deref(), Ok("abd2"), "a name wins over an id");
        assert_eq!(find("fff").as_deref(), Ok("fff3"));
        assert_eq!(find("sha256:fff3").as_deref(), Ok("fff3"));
        assert_eq!(find(&format!("abc1{}", "0".repeat(60))).as_deref(), Ok("abc1"));
    }

    #[test]
    fn what_is_not_there_is_said_in_dockers_words() {
        let catalog = catalog(&[("abc1", &["web"]), ("abc2", &[])]);
        let message = |text: &str| catalog.lookup(text).expect_err(text).to_string();
        assert_eq!(message("nope"), "No such image: nope:latest");
        assert_eq!(message("web:2"), "No such image: web:2");
        assert_eq!(message("abc"), "No such image: abc:latest", "two ids begin so");
        let id = "e".repeat(64);
        assert_eq!(message(&id), format!("No such image: sha256:{id}"));
        assert_eq!(
            message("Web"),
            "invalid reference format: repository name (library/Web) must be lowercase"
        );
    }
}
