//! Docker's user text, looked up in the container's own `/etc/passwd` and `/etc/group`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::failure::{Context, Failure};
use crate::init::{environment, identity};
use crate::procfs::Proc;

/// Tens of thousands of accounts.
const LENGTH_MAX: u64 = 4 << 20;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The container's account files; missing ones are empty.
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Fills in whom a process runs as, and its home, for a runtime that knows numbers only: `user` and `groups` are
/// looked up in the account files below `root`, which no link in them leads out of.
///
/// # Errors
/// A name that is not there, in Docker's words.
pub fn fill_in(
    root: &Path,
    process: &mut Process,
    user: Option<&str>,
    groups: &[String],
) -> Result<(), Failure> {
    let root = File::open(root).with_context(|| format!("open `{}`", root.display()))?;
    let accounts =
        Accounts { passwd: read_below(&root, "etc/passwd"), group: read_below(&root, "etc/group") };
    let identity = identity(process, user, groups, &accounts)?;
    let env = environment(process, &accounts, &identity);
    let mut numbers = process.user().clone();
    numbers.set_uid(identity.uid).set_gid(identity.gid).set_additional_gids(Some(identity.groups));
    process.set_user(numbers).set_env(Some(env));
    Ok(())
}

fn read_below(root: &File, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut text = Vec::new();
    if let Ok(file) = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        // Unreadable is as good as missing, as it is to the built-in runtime.
        let _ = File::from(file).take(LENGTH_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

impl Accounts {
    /// Reads what a process needs of them; called when `/` is the container's.
    pub(crate) fn read(
        process: &Process,
        user: Option<&str>,
        groups: &[String],
        proc: &Proc,
    ) -> Result<Accounts, Failure> {
        let mut homes = process.env().iter().flatten().rev().filter(|entry| entry.starts_with("HOME="));
        let has_home = homes.next().is_some_and(|entry| entry != "HOME=");
        let read = |needed: bool, path: &str| match needed {
            true => read_regular(path, proc).with_context(|| format!("read the container's {path}")),
            false => Ok(String::new()),
        };
        Ok(Accounts {
            passwd: read(user.is_some() || !has_home, "/etc/passwd")?,
            group: read(user.is_some() || !groups.is_empty(), "/etc/group")?,
        })
    }

    /// `name`, `uid`, `name:group` or `uid:gid`. Without a group, the account's own and those that list it.
    pub(crate) fn look_up(&self, text: &str) -> Result<Identity, Failure> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let number = user.parse::<u32>().ok();
        let account = self.accounts().find(|account| account.name == user || Some(account.uid) == number);
        let (uid, own_gid) = match (&account, number) {
            (Some(account), _) => (account.uid, account.gid),
            (None, Some(uid)) => (uid, 0),
            (None, None) if user.is_empty() => (0, 0),
            (None, None) => {
                return Err(Failure::invalid(format!(
                    "unable to find user {user}: no matching entries in passwd file"
                )));
            }
        };
        if !group.is_empty() {
            return Ok(Identity { uid, gid: self.group(group)?, groups: Vec::new() });
        }
        let listed = |group: &Group<'_>| {
            account
                .as_ref()
                .is_some_and(|account| group.members.split(',').any(|member| member == account.name))
        };
        Ok(Identity {
            uid,
            gid: own_gid,
            groups: self.groups().filter(listed).map(|group| group.gid).collect(),
        })
    }

    /// A group's number, from its name or number.
    pub(crate) fn group(&self, text: &str) -> Result<u32, Failure> {
        let number = text.parse::<u32>().ok();
        let found = self.groups().find(|group| group.name == text || Some(group.gid) == number);
        found.map(|group| group.gid).or(number).ok_or_else(|| {
            Failure::invalid(format!("unable to find group {text}: no matching entries in group file"))
        })
    }

    /// The home directory of a user, `/` for one without an account.
    pub(crate) fn home(&self, uid: u32) -> &str {
        let account = self.accounts().find(|account| account.uid == uid);
        account.map(|account| account.home).filter(|home| !home.is_empty()).unwrap_or("/")
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some(Group { name, gid, members: fields.next().unwrap_or_default() })
        })
    }
}

/// Whom Docker's user text names in the account files of a container: user and group.
///
/// # Errors
/// In Docker's words, when it names nobody.
pub fn numbers(passwd: String, group: String, text: &str) -> Result<(u32, u32), Failure> {
    Accounts { passwd, group }.look_up(text).map(|identity| (identity.uid, identity.gid))
}

/// Adds groups, each once.
pub(crate) fn add_groups(identity: &mut Identity, more: impl IntoIterator<Item = u32>) {
    let all: BTreeSet<u32> = identity.groups.drain(..).chain(more).collect();
    identity.groups = all.into_iter().collect();
}

/// A file that whoever made the image could choose freely: nothing but a regular file is opened (opening a
/// FIFO waits, opening a device does whatever it does), and not more than [`LENGTH_MAX`] is read. What is not
/// there, and what is no file, is empty.
fn read_regular(path: &str, proc: &Proc) -> io::Result<String> {
    let found = rustix::fs::openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let found = match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        found => found?,
    };
    let stat = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let file = File::from(proc.reopen(&found, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
    file.take(LENGTH_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LENGTH_MAX {
        return Err(io::Error::other(format!("it is longer than {LENGTH_MAX} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n".to_owned(),
            group: "root:x:0:\nweb:x:34:\naudio:x:63:web,other\nvideo:x:44:other\n".to_owned(),
        }
    }

    fn look_up(text: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let found = accounts().look_up(text).map_err(|failure| failure.message)?;
        Ok((found.uid, found.gid, found.groups))
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(look_up("web"), Ok((33, 34, vec![63])));
        assert_eq!(look_up("33"), Ok((33, 34, vec![63])));
        assert_eq!(look_up("web:video"), Ok((33, 44, vec![])));
        assert_eq!(look_up("1000"), Ok((1000, 0, vec![])));
        assert_eq!(look_up("1000:1000"), Ok((1000, 1000, vec![])));
        assert_eq!(look_up(""), Ok((0, 0, vec![])));
    }

    #[test]
    fn unknown_names_are_dockers_errors() {
        assert_eq!(
            look_up("nix").expect_err("user"),
            "unable to find user nix: no matching entries in passwd file"
        );
        assert_eq!(
            look_up("web:nix").expect_err("group"),
            "unable to find group nix: no matching entries in group file"
        );
    }

    #[test]
    fn everyone_has_a_home() {
        assert_eq!((accounts().home(33), accounts().home(7)), ("/srv", "/"));
    }
}
