//! Removing names and images by Docker's rules, in Docker's words. The decision is pure: from a catalog
//! and who uses what to the next catalog and what to tell.

use rswarm_base::{Classify, Kind, id::short};

use crate::catalog::{Catalog, LookupError, key};
use crate::digest::Digest;
use crate::reference::Reference;

/// A container that uses an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    /// The image's id.
    pub image_id: String,
    /// The container's id.
    pub container_id: String,
    /// Whether it runs (paused and restarting count).
    pub is_running: bool,
}

/// How to remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Go on where a conflict can be overruled.
    pub force: bool,
    /// Keep untagged parents.
    pub no_prune: bool,
}

/// One line of what was removed, in Docker's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A familiar name.
    Untagged(String),
    /// An image id or a layer's chain id.
    Deleted(String),
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such image.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The last name of an image that a container uses.
    #[error(
        "conflict: unable to remove repository reference \"{reference}\" (must force) - container {container} \
         is using its referenced image {image}"
    )]
    NameInUse {
        /// What was to be removed.
        reference: String,
        /// The container's short id.
        container: String,
        /// The image's short id.
        image: String,
    },
    /// The image itself cannot go.
    #[error("conflict: unable to delete {image} ({}) - {reason}", if *.is_hard { "cannot be forced" } else { "must be forced" })]
    ImageInUse {
        /// The image's short id.
        image: String,
        /// Even `force` does not help.
        is_hard: bool,
        /// What it is used by.
        reason: String,
    },
    /// The disk.
    #[error("image could not be removed")]
    Store(#[source] std::io::Error),
}

impl Classify for RemoveError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lookup(error) => error.kind(),
            Self::NameInUse { .. } | Self::ImageInUse { .. } => Kind::Conflict,
            Self::Store(_) => Kind::Internal,
        }
    }
}

/// What a removal does.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) catalog: Catalog,
    pub(crate) removed: Vec<Removed>,
    /// Images that are gone, in order.
    pub(crate) images: Vec<Digest>,
}

/// Decides. `text` is a name or an id.
pub(crate) fn removal(
    catalog: &Catalog,
    text: &str,
    options: RemoveOptions,
    users: &[ImageUser],
) -> Result<Removal, RemoveError> {
    let id = catalog.lookup(text)?.record.id.clone();
    let mut removal = Removal { catalog: catalog.clone(), removed: Vec::new(), images: Vec::new() };
    let names = catalog.names_of(&id);
    let named =
        Reference::parse(text).ok().map(|reference| key(&reference)).filter(|name| names.contains(name));
    match named {
        Some(name) => {
            if !options.force && is_one_repository(&names) {
                check_name(text, &id, users)?;
            }
            removal.untag(&name);
            removal.untag_leftover_digests(&id, &name);
            if !removal.catalog.names_of(&id).is_empty() {
                return Ok(removal);
            }
            // The name is gone either way; the image stays for as long as a container needs it.
            if check_image(&removal.catalog, &id, options.force, users).is_err() {
                return Ok(removal);
            }
        }
        None => {
            if !is_one_repository(&names) && !options.force && !names.is_empty() {
                check_image(catalog, &id, options.force, users)?;
                return Err(conflict(&id, false, "image is referenced in multiple repositories".to_owned()));
            }
            check_image(catalog, &id, options.force, users)?;
        }
    }
    removal.delete(&id, options, users);
    Ok(removal)
}

impl Removal {
    fn untag(&mut self, name: &Reference) {
        self.catalog.names.remove(name);
        self.removed.push(Removed::Untagged(name.familiar()));
    }

    /// Digests of a repository that has no tag left on this image go with the last tag.
    fn untag_leftover_digests(&mut self, id: &Digest, untagged: &Reference) {
        if untagged.digest().is_some() {
            return;
        }
        let left = self.catalog.names_of(id);
        let same: Vec<_> = left.iter().filter(|name| name.same_repository(untagged)).collect();
        if same.iter().all(|name| name.digest().is_some()) {
            for name in same {
                self.untag(name);
            }
        }
    }

    /// Deletes an image with its last names, then its parents that nobody names or uses.
    fn delete(&mut self, id: &Digest, options: RemoveOptions, users: &[ImageUser]) {
        for name in self.catalog.names_of(id) {
            self.untag(&name);
        }
        let Some(image) = self.catalog.images.remove(id) else { return };
        self.removed.push(Removed::Deleted(id.to_string()));
        self.images.push(id.clone());
        let Some(parent) = image.record.parent.clone().filter(|_| !options.no_prune) else { return };
        let is_idle = self.catalog.names_of(&parent).is_empty()
            && check_image(&self.catalog, &parent, false, users).is_ok();
        if is_idle {
            self.delete(&parent, options, users);
        }
    }
}

/// At most one tag, and everything within one repository.
fn is_one_repository(names: &[Reference]) -> bool {
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    tags <= 1 && names.windows(2).all(|pair| pair[0].same_repository(&pair[1]))
}

fn check_name(text: &str, id: &Digest, users: &[ImageUser]) -> Result<(), RemoveError> {
    match users.iter().find(|user| user.image_id == id.as_str()) {
        None => Ok(()),
        Some(user) => Err(RemoveError::NameInUse {
            reference: text.to_owned(),
            container: short(&user.container_id).to_owned(),
            image: id.short().to_owned(),
        }),
    }
}

fn check_image(catalog: &Catalog, id: &Digest, force: bool, users: &[ImageUser]) -> Result<(), RemoveError> {
    if catalog.children(id) > 0 {
        return Err(conflict(id, true, "image has dependent child images".to_owned()));
    }
    let user =
        |is_running| users.iter().find(|user| user.image_id == id.as_str() && user.is_running == is_running);
    if let Some(user) = user(true) {
        let reason = format!("image is being used by running container {}", short(&user.container_id));
        return Err(conflict(id, true, reason));
    }
    if !force && let Some(user) = user(false) {
        let reason = format!("image is being used by stopped container {}", short(&user.container_id));
        return Err(conflict(id, false, reason));
    }
    Ok(())
}

fn conflict(id: &Digest, is_hard: bool, reason: String) -> RemoveError {
    RemoveError::ImageInUse { image: id.short().to_owned(), is_hard, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::catalog;

    const FORCE: RemoveOptions = RemoveOptions { force: true, no_prune: false };

    fn digest_name(repository: &str) -> String {
        format!("{repository}@sha256:{}", "d".repeat(64))
    }

    fn user(prefix: &str, is_running: bool) -> ImageUser {
        let image_id = format!("sha256:{prefix}{}", "0".repeat(64 - prefix.len()));
        ImageUser { image_id, container_id: "c0ffee".repeat(10), is_running }
    }

    fn check(
        names: &[&str],
        text: &str,
        options: RemoveOptions,
        users: &[ImageUser],
    ) -> Result<Vec<String>, String> {
        let catalog = catalog(&[("abc1", names)]);
        let removal = removal(&catalog, text, options, users).map_err(|error| error.to_string())?;
        let print = |line: &Removed| match line {
            Removed::Untagged(name) => format!("-{}", name.split('@').next().unwrap_or_default()),
            Removed::Deleted(id) => format!("!{}", &id[7..11]),
        };
        Ok(removal.removed.iter().map(print).collect())
    }

    #[test]
    fn one_of_several_names_is_just_untagged() {
        let both = ["web:1", "web:2"];
        assert_eq!(
            check(&both, "web:1", RemoveOptions::default(), &[user("abc1", true)]),
            Ok(vec!["-web:1".into()])
        );
    }

    #[test]
    fn the_last_name_takes_digests_and_image_with_it() {
        let digest = digest_name("web");
        let removed = check(&["web:1", &digest], "web:1", RemoveOptions::default(), &[]);
        assert_eq!(removed, Ok(vec!["-web:1".into(), "-web".into(), "!abc1".into()]));
    }

    #[test]
    fn an_id_removes_one_name_freely_and_several_only_by_force() {
        let digest = digest_name("web");
        let removed = check(&["web:1", &digest], "abc1", RemoveOptions::default(), &[]);
        assert_eq!(removed.map(|lines| lines.len()), Ok(3));
        let two = ["web:1", "other:1"];
        assert_eq!(
            check(&two, "abc1", RemoveOptions::default(), &[]),
            Err("conflict: unable to delete abc100000000 (must be forced) - image is referenced in multiple repositories".into())
        );
        assert_eq!(check(&two, "abc1", FORCE, &[]).map(|lines| lines.len()), Ok(3));
    }

    #[test]
    fn an_image_in_use_is_kept_and_the_user_named() {
        let plain = RemoveOptions::default();
        assert_eq!(
            check(&["web:1"], "web:1", plain, &[user("abc1", false)]),
            Err("conflict: unable to remove repository reference \"web:1\" (must force) - container c0ffeec0ffee is using its referenced image abc100000000".into())
        );
        assert_eq!(
            check(&["web:1"], "abc1", plain, &[user("abc1", false)]),
            Err("conflict: unable to delete abc100000000 (must be forced) - image is being used by stopped container c0ffeec0ffee".into())
        );
        assert_eq!(
            check(&["web:1"], "abc1", FORCE, &[user("abc1", true)]),
            Err("conflict: unable to delete abc100000000 (cannot be forced) - image is being used by running container c0ffeec0ffee".into())
        );
        assert_eq!(
            check(&["web:1"], "web:1", FORCE, &[user("abc1", true)]),
            Ok(vec!["-web:1".into()]),
            "the image stays, dangling"
        );
        assert_eq!(check(&["web:1"], "web:1", FORCE, &[user("abc1", false)]).map(|lines| lines.len()), Ok(2));
        assert_eq!(check(&["web:1"], "web:1", plain, &[user("fff", true)]).map(|lines| lines.len()), Ok(2));
    }

    #[test]
    fn a_name_that_is_not_there_is_not_found() {
        assert_eq!(check(&["web:1"], "web:2", FORCE, &[]), Err("No such image: web:2".into()));
    }
}
