//! `state` and `list`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;

use super::args::{Flag, Order};
use super::store::{Entry, Status};
use super::{Call, Command, say};
use crate::failure::{Context, Failure};

pub(super) const STATE: Command = Command {
    name: "state",
    args: "ID",
    about: "print a container's state",
    flags: &[],
    order: Order::Anywhere,
    run: state,
};

pub(super) const LIST: Command = Command {
    name: "list",
    args: "",
    about: "print all containers",
    flags: &[
        Flag::value("format", "FORMAT", "table or json (default table)").or("f"),
        Flag::switch("quiet", "ids only").or("q"),
    ],
    order: Order::Anywhere,
    run: list,
};

/// What callers are told of a container: the specification's fields and runc's.
// spec: oci-runtime runtime.md#state
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: i32,
    status: Status,
    bundle: &'a std::path::Path,
    rootfs: &'a std::path::Path,
    created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
    owner: String,
}

impl Shown<'_> {
    fn of(entry: &Entry, owner: String) -> Result<Shown<'_>, Failure> {
        let record = &entry.record;
        let status = entry.status()?;
        Ok(Shown {
            oci_version: &record.version,
            id: &record.id,
            pid: entry.pid(status),
            status,
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: record.created.to_string(),
            annotations: &record.annotations,
            owner,
        })
    }
}

fn state(call: &Call<'_>) -> Result<i32, Failure> {
    let entry = call.store.find(call.args.only_id()?)?;
    let shown = Shown::of(&entry, String::new())?;
    let text = serde_json::to_string_pretty(&shown).map_err(std::io::Error::from).context("print state")?;
    say(&(text + "\n"))
}

fn list(call: &Call<'_>) -> Result<i32, Failure> {
    call.args.nothing_more()?;
    let format = call.args.value("format").unwrap_or("table");
    if !["table", "json"].contains(&format) {
        return Err(Failure::invalid("invalid format option"));
    }
    if call.root_is_given {
        call.store.check_root()?;
    }
    let mut entries = Vec::new();
    for id in call.store.ids()? {
        match call.store.find(&id) {
            Ok(entry) => entries.push(entry),
            // It was deleted meanwhile, or says itself what is wrong with it.
            Err(failure) => {
                let _ = writeln!(std::io::stderr(), "load container {id}: {failure}");
            }
        }
    }
    if call.args.has("quiet") {
        return say(&entries.iter().map(|entry| entry.record.id.clone() + "\n").collect::<String>());
    }
    let shown = entries.iter().map(|entry| Shown::of(entry, owner(entry))).collect::<Result<Vec<_>, _>>()?;
    if format == "json" {
        let text = serde_json::to_string(&shown).map_err(std::io::Error::from).context("print list")?;
        return say(&(text + "\n"));
    }
    say(&table(&shown))
}

fn table(shown: &[Shown<'_>]) -> String {
    let heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = shown.iter().map(|one| {
        let status = one.status.name().to_owned();
        let bundle = one.bundle.display().to_string();
        [one.id.to_owned(), one.pid.to_string(), status, bundle, one.created.clone(), one.owner.clone()]
    });
    align(&std::iter::once(heads).chain(rows).collect::<Vec<_>>())
}

/// Columns of at least 12, with three spaces between, but for the last: as runc's table writer sets them.
fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let [cells @ .., last] = row.as_slice() else { continue };
        for (cell, width) in cells.iter().zip(&widths) {
            text += &format!("{cell:width$}");
        }
        text += last;
        text.push('\n');
    }
    text
}

/// Who made a container: the name of its directory's owner, or their number.
fn owner(entry: &Entry) -> String {
    let Ok(uid) = fs::metadata(&entry.dir).map(|meta| meta.uid()) else { return String::new() };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_set_as_runc_sets_them() {
        let rows =
            [["ID", "PID", "OWNER"], ["a-long-identifier", "1", "root"]].map(|row| row.map(str::to_owned));
        let wanted = "ID                  PID         OWNER\na-long-identifier   1           root\n";
        assert_eq!(align(&rows), wanted);
    }
}
