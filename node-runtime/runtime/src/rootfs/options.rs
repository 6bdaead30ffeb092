//! Mount options as words, to what the kernel wants. Pure.

use crate::sys::MountAttributes;

/// A spec mount's options, understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// A bind mount; of the whole tree when true.
    pub bind: Option<bool>,
    /// What is mounted there already is changed.
    pub remount: bool,
    /// For the mount itself.
    pub attributes: MountAttributes,
    /// The rules for access times that are named, as `MS_*`; zero where all were taken back again.
    pub times: Option<u64>,
    /// For the mount and all below it.
    pub recursive: MountAttributes,
    /// `MS_SHARED` and so on, and whether for all below too; each in its turn.
    pub propagation: Vec<(u64, bool)>,
    /// Ids are mapped; for all mounts below too when true.
    pub id_map: Option<bool>,
    /// A tmpfs starts with a copy of what it covers.
    pub copy_up: bool,
    /// Flags of every file system, as fsconfig(2) names them.
    pub superblock: Vec<&'static str>,
    /// For the file system: flags and `key=value`.
    pub data: Vec<(String, Option<String>)>,
}

/// Words about one mount, each of which also exists with an `r` in front, for all mounts below too. Those about
/// access times mean this with the `r` only, where what takes back a rule names the kernel's own, `relatime`; for
/// one mount they are [`TIMES`].
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
    ("norelatime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME, libc::MOUNT_ATTR__ATIME),
];

/// Rules for access times of files, of which the last that is named counts.
const RULES: u64 = libc::MS_NOATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;

/// Words about the access times of one mount: what each names and takes back.
const TIMES: &[(&str, u64, u64)] = &[
    ("noatime", libc::MS_NOATIME, RULES),
    ("atime", 0, libc::MS_NOATIME),
    ("relatime", libc::MS_RELATIME, RULES),
    ("norelatime", 0, libc::MS_RELATIME),
    ("strictatime", libc::MS_STRICTATIME, RULES),
    ("nostrictatime", 0, libc::MS_STRICTATIME),
    ("nodiratime", libc::MS_NODIRATIME, 0),
    ("diratime", 0, libc::MS_NODIRATIME),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Words about a file system as a whole, and what each takes back.
const SUPERBLOCK: &[(&str, &str)] = &[
    ("sync", "async"),
    ("async", "sync"),
    ("dirsync", ""),
    ("lazytime", "nolazytime"),
    ("nolazytime", "lazytime"),
    ("mand", "nomand"),
    ("nomand", "mand"),
];

/// Words that say what is so anyway: a new mount has no inode versions of its own accord, and fsopen(2)
/// neither logs nor keeps from logging.
const NEUTRAL: &[&str] = &["defaults", "loud", "silent", "noiversion"];

/// Understands a list of options. A word that is none of ours goes to the file system, which knows best.
pub(super) fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for word in options.iter().map(String::as_str).filter(|word| !word.is_empty()) {
        if !(parsed.take_attribute(word) || parsed.take_propagation(word) || parsed.take_word(word)) {
            let (key, value) = word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v.to_owned())));
            parsed.data.push((key.to_owned(), value));
        }
    }
    if let Some(times) = parsed.times.filter(|times| *times != 0) {
        let times = access_times(times);
        parsed.attributes.add(times.set, times.clear);
    }
    parsed
}

/// What mount(2) makes of rules: those that are named and no others, and `relatime` where there is none for files.
fn access_times(named: u64) -> MountAttributes {
    let files = match named & RULES {
        libc::MS_NOATIME => libc::MOUNT_ATTR_NOATIME,
        libc::MS_STRICTATIME => libc::MOUNT_ATTR_STRICTATIME,
        _ => libc::MOUNT_ATTR_RELATIME,
    };
    let directories = if named & libc::MS_NODIRATIME == 0 { 0 } else { libc::MOUNT_ATTR_NODIRATIME };
    let clear = libc::MOUNT_ATTR__ATIME | (libc::MOUNT_ATTR_NODIRATIME & !directories);
    MountAttributes { set: files | directories, clear, ..MountAttributes::default() }
}

impl Options {
    fn take_attribute(&mut self, word: &str) -> bool {
        let named = |name: &str| ATTRIBUTES.iter().find(|(known, ..)| *known == name);
        if let Some((_, set, clear)) = TIMES.iter().find(|(known, ..)| *known == word) {
            self.times = Some((self.times.unwrap_or(0) & !clear) | set);
        } else if let Some((_, set, clear)) = named(word) {
            self.attributes.add(*set, *clear);
        } else if let Some((_, set, clear)) = word.strip_prefix('r').and_then(named) {
            self.recursive.add(*set, *clear);
        } else {
            return false;
        }
        true
    }

    fn take_propagation(&mut self, word: &str) -> bool {
        let found = propagation(word);
        self.propagation.extend(found);
        found.is_some()
    }

    fn take_word(&mut self, word: &str) -> bool {
        match word {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.id_map = self.id_map.or(Some(false)),
            "ridmap" => self.id_map = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            _ if NEUTRAL.contains(&word) => {}
            _ => {
                let Some((name, opposite)) = SUPERBLOCK.iter().find(|(name, _)| *name == word) else {
                    return false;
                };
                self.superblock.retain(|known| known != opposite);
                self.superblock.push(name);
            }
        }
        true
    }

    /// The first word that means nothing for a bind mount, which has no file system of its own to change.
    pub(super) fn not_for_binds(&self) -> Option<&str> {
        let data = self.data.first().map(|(key, _)| key.as_str());
        data.or(self.superblock.iter().find(|word| !word.starts_with("no") && **word != "async").copied())
    }
}

/// All words that are ours.
pub(super) fn known() -> Vec<String> {
    let both = ATTRIBUTES.iter().map(|(name, ..)| name).chain(PROPAGATION.iter().map(|(name, _)| name));
    let single = ["bind", "rbind", "idmap", "ridmap", "remount", "tmpcopyup"].iter();
    let single = single.chain(NEUTRAL).chain(SUPERBLOCK.iter().map(|(name, _)| name));
    let single = single.map(|name| (*name).to_owned());
    let mut words: Vec<String> =
        single.chain(both.flat_map(|name| [(*name).to_owned(), format!("r{name}")])).collect();
    words.sort();
    words
}

/// `MS_*` of a propagation's name, and whether for all mounts below too.
pub(super) fn propagation(name: &str) -> Option<(u64, bool)> {
    let named = |name: &str| PROPAGATION.iter().find(|(known, _)| *known == name).map(|(_, flag)| *flag);
    named(name)
        .map(|flag| (flag, false))
        .or_else(|| name.strip_prefix('r').and_then(named).map(|flag| (flag, true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Options {
        parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_bind_is_recursive_when_one_word_says_so() {
        assert_eq!(options("bind,ro").bind, Some(false));
        assert_eq!(options("rbind,bind").bind, Some(true));
        assert_eq!(options("nosuid").bind, None);
    }

    #[test]
    fn recursive_words_are_not_mistaken() {
        let parsed = options("rro,rnosuid,rprivate,ro,relatime,rrelatime");
        assert_eq!(parsed.recursive.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert_eq!(parsed.recursive.clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(parsed.attributes.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parsed.propagation, [(libc::MS_PRIVATE, true)]);
        assert_eq!(parsed.data, []);
    }

    #[test]
    fn the_last_word_counts() {
        let parsed = options("ro,rw,exec,noexec,sync,async");
        assert_eq!(parsed.attributes.set, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(parsed.attributes.clear, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parsed.superblock, ["async"]);
        let rules = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
        let times = options("noatime,strictatime").attributes;
        assert_eq!((times.set, times.clear), (libc::MOUNT_ATTR_STRICTATIME, rules));
    }

    #[test]
    fn rules_for_access_times_that_are_taken_back_name_none() {
        for words in ["atime", "norelatime", "diratime", "noatime,atime", "nodiratime,diratime"] {
            let parsed = options(words);
            assert_eq!((parsed.times, parsed.attributes), (Some(0), MountAttributes::default()), "{words}");
        }
        let both = options("nodiratime,norelatime").attributes;
        assert_eq!((both.set, both.clear), (libc::MOUNT_ATTR_NODIRATIME, libc::MOUNT_ATTR__ATIME));
        assert_eq!(options("ro").times, None);
    }

    #[test]
    fn propagation_keeps_its_order() {
        assert_eq!(options("rslave,shared").propagation, [(libc::MS_SLAVE, true), (libc::MS_SHARED, false)]);
    }

    #[test]
    fn a_bind_has_no_file_system_to_change() {
        assert_eq!(options("bind,size=1m,sync").not_for_binds(), Some("size"));
        assert_eq!(options("bind,dirsync").not_for_binds(), Some("dirsync"));
        assert_eq!(options("bind,ro,rprivate,async,nomand,defaults,idmap").not_for_binds(), None);
    }

    #[test]
    fn the_rest_is_for_the_file_system() {
        let parsed = options("nosuid,mode=755,size=65536k,newinstance,relatime");
        let data = [("mode", Some("755")), ("size", Some("65536k")), ("newinstance", None)];
        let data = data.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(parsed.data, data);
        assert_eq!(parsed.times, Some(libc::MS_RELATIME));
    }

    #[test]
    fn every_word_that_is_ours_is_understood() {
        for word in known() {
            assert_eq!(options(&word).data, [], "{word}");
        }
    }
}
