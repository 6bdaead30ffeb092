//! Docker's user text, looked up in the container's own `/etc/passwd` and `/etc/group`.

use std::collections::BTreeSet;

use crate::failure::Failure;

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

impl Accounts {
    /// Reads them; called when `/` is the container's.
    pub(crate) fn read() -> Accounts {
        let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        Accounts { passwd: read("/etc/passwd"), group: read("/etc/group") }
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

/// Whether Docker's user text names somebody in the account files of a container.
///
/// # Errors
/// In Docker's words, when it does not.
pub fn check(passwd: String, group: String, text: &str) -> Result<(), Failure> {
    Accounts { passwd, group }.look_up(text).map(drop)
}

/// Adds groups, each once.
pub(crate) fn add_groups(identity: &mut Identity, more: impl IntoIterator<Item = u32>) {
    let all: BTreeSet<u32> = identity.groups.drain(..).chain(more).collect();
    identity.groups = all.into_iter().collect();
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
