//! Mount options as words, to what the kernel wants. Pure.

use crate::sys::MountAttributes;

/// A spec mount's options, understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// A bind mount; of the whole tree when true.
    pub bind: Option<bool>,
    /// For the mount itself.
    pub attributes: MountAttributes,
    /// For the mount and all below it.
    pub recursive: MountAttributes,
    /// `MS_SHARED` and so on, and whether for all below too.
    pub propagation: Option<(u64, bool)>,
    /// For the file system: flags and `key=value`.
    pub data: Vec<(String, Option<String>)>,
}

/// Words about one mount, each of which also exists with an `r` in front, for all mounts below too.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("relatime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("norelatime", libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Understands a list of options. A word that is none of ours goes to the file system, which knows best.
pub(super) fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for word in options.iter().filter(|word| !word.is_empty()) {
        let recursive = word.strip_prefix('r').filter(|_| word != "ro" && word != "rw" && word != "relatime");
        if word == "bind" || word == "rbind" {
            parsed.bind = Some(word == "rbind" || parsed.bind == Some(true));
        } else if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| name == word) {
            add(&mut parsed.attributes, *set, *clear);
        } else if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| Some(*name) == recursive) {
            add(&mut parsed.recursive, *set, *clear);
        } else if let Some((_, flag)) = PROPAGATION.iter().find(|(name, _)| name == word) {
            parsed.propagation = Some((*flag, false));
        } else if let Some((_, flag)) = PROPAGATION.iter().find(|(name, _)| Some(*name) == recursive) {
            parsed.propagation = Some((*flag, true));
        } else if word != "defaults" {
            let (key, value) =
                word.split_once('=').map_or((word.as_str(), None), |(k, v)| (k, Some(v.to_owned())));
            parsed.data.push((key.to_owned(), value));
        }
    }
    parsed
}

/// All words that are ours.
pub(super) fn known() -> Vec<String> {
    let both = ATTRIBUTES.iter().map(|(name, ..)| name).chain(PROPAGATION.iter().map(|(name, _)| name));
    let words = ["bind", "rbind", "defaults"].map(str::to_owned).into_iter();
    words.chain(both.flat_map(|name| [(*name).to_owned(), format!("r{name}")])).collect()
}

/// `MS_*` of a propagation's name, for `linux.rootfsPropagation`, and whether for all below too.
pub(super) fn propagation(name: &str) -> Option<(u64, bool)> {
    let parsed = parse(&[name.to_owned()]);
    parsed.propagation
}

/// A later word overrides an earlier one.
fn add(attributes: &mut MountAttributes, set: u64, clear: u64) {
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !set) | clear;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Options {
        parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_read_only_bind_with_propagation() {
        let parsed = options("rbind,ro,rprivate");
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parsed.recursive, MountAttributes::default());
        assert_eq!(parsed.propagation, Some((libc::MS_PRIVATE, true)));
    }

    #[test]
    fn an_r_in_front_reaches_the_mounts_below() {
        let parsed = options("rbind,rro,rnosuid,slave");
        assert_eq!(parsed.recursive.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert_eq!(parsed.attributes, MountAttributes::default());
        assert_eq!(parsed.propagation, Some((libc::MS_SLAVE, false)));
    }

    #[test]
    fn a_later_word_overrides_an_earlier_one() {
        let parsed = options("ro,noexec,rw");
        assert_eq!(parsed.attributes.set, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(parsed.attributes.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn the_rest_is_for_the_file_system() {
        let parsed = options("nosuid,mode=755,size=65536k,newinstance,relatime");
        let data = [("mode", Some("755")), ("size", Some("65536k")), ("newinstance", None)];
        let data = data.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(parsed.data, data);
        assert_eq!(parsed.attributes.clear, libc::MOUNT_ATTR__ATIME);
    }
}
