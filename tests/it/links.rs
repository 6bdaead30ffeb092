//! `--link`: what a container knows of others, seen from inside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;

use crate::support::{Check, all_pass};

#[test]
fn linked_containers_know_each_other() -> Result<()> {
    let lab = Lab::start(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    let checks: [Check; 5] = [
        ("hosts and environment", hosts_and_environment),
        ("names and removal", names_and_removal),
        ("addresses that change", addresses_that_change),
        ("networks of one's own", user_defined),
        ("refusals", refusals),
    ];
    all_pass(host, &checks)?;
    lab.finish()
}

fn sleeper(host: &Host, name: &str, more: &[&str]) -> Result<()> {
    let mut args = vec!["run", "-d", "--name", name];
    args.extend(more);
    args.extend(["busybox", "sleep", "1000"]);
    host.docker(&args).map(drop)
}

fn inside(host: &Host, name: &str, script: &str) -> Result<String> {
    Ok(host.docker(&["exec", name, "sh", "-c", script])?.trim().to_owned())
}

fn address(host: &Host, name: &str) -> Result<String> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    Ok(host.docker(&["inspect", "--format", format, name])?.trim().to_owned())
}

fn remove(host: &Host, names: &[&str]) -> Result<()> {
    host.docker(&[&["rm", "-f"], names].concat()).map(drop)
}

/// The line of `/etc/hosts` that begins its names with `alias`.
fn line(host: &Host, name: &str, alias: &str) -> Result<String> {
    inside(host, name, &format!("awk '$2 == \"{alias}\"' /etc/hosts"))
}

fn hosts_and_environment(host: &Host) -> Result<()> {
    sleeper(host, "db", &["--expose", "5432-5433", "-e", "USER=me", "--hostname", "store"])?;
    sleeper(host, "web", &["--link", "db:my-data", "--link", "db", "-e", "DB_NAME=mine"])?;
    let db = address(host, "db")?;
    ensure!(line(host, "web", "my-data")? == format!("{db}\tmy-data store db"));
    ensure!(line(host, "web", "db")? == format!("{db}\tdb store"));
    ensure!(inside(host, "web", "ping -c1 -w5 my-data >/dev/null && echo yes")? == "yes");
    // Of the program itself, and of one that is executed.
    for text in [inside(host, "web", "tr '\\0' '\\n' </proc/1/environ")?, inside(host, "web", "env")?] {
        let has = |entry: String| {
            text.lines().any(|line| line == entry).then_some(()).with_context(|| format!("{entry} in {text}"))
        };
        has(format!("MY_DATA_PORT=tcp://{db}:5432"))?;
        has(format!("MY_DATA_PORT_5433_TCP=tcp://{db}:5433"))?;
        has(format!("MY_DATA_PORT_5433_TCP_ADDR={db}"))?;
        has(format!("MY_DATA_PORT_5432_TCP_END=tcp://{db}:5433"))?;
        has("MY_DATA_NAME=/web/my-data".to_owned())?;
        has("MY_DATA_ENV_USER=me".to_owned())?;
        has("DB_NAME=mine".to_owned())?;
        ensure!(!text.contains("DATA_ENV_PATH"), "{text}");
    }
    remove(host, &["web", "db"])
}

fn names_and_removal(host: &Host) -> Result<()> {
    sleeper(host, "db", &[])?;
    sleeper(host, "web", &["--link", "db:data"])?;
    let links = || host.docker(&["inspect", "--format", "{{json .HostConfig.Links}}", "web"]);
    ensure!(links()?.trim() == r#"["/db:/web/data"]"#, "{}", links()?);
    let names = host.docker(&["ps", "--no-trunc", "--filter", "name=^/db$", "--format", "{{.Names}}"])?;
    ensure!(names.trim() == "db,web/data", "{names}");
    host.docker(&["rename", "web", "site"])?;
    let renamed = host.docker(&["inspect", "--format", "{{json .HostConfig.Links}}", "site"])?;
    ensure!(renamed.trim() == r#"["/db:/site/data"]"#, "{renamed}");
    let said = host.refusal(&["rm", "--link", "db"])?;
    ensure!(said.contains("Conflict, cannot remove the default link name of the container"), "{said}");
    let said = host.refusal(&["rm", "--link", "site/nothing"])?;
    ensure!(said.contains("No such container: site/nothing"), "{said}");
    host.docker(&["rm", "--link", "/site/data"])?;
    ensure!(line(host, "site", "data")?.is_empty(), "the line goes with the link");
    let left = host.docker(&["inspect", "--format", "{{json .HostConfig.Links}}", "site", "db"])?;
    ensure!(left == "null\nnull\n", "{left}");
    remove(host, &["site", "db"])
}

fn addresses_that_change(host: &Host) -> Result<()> {
    sleeper(host, "db", &[])?;
    sleeper(host, "web", &["--link", "db"])?;
    host.docker(&["stop", "-t", "0", "db"])?;
    // Takes the address that was the database's.
    sleeper(host, "other", &[])?;
    host.docker(&["start", "db"])?;
    let moved = address(host, "db")?;
    ensure!(moved != address(host, "other")?);
    eventually(Duration::from_secs(20), "the line follows", || {
        Ok(line(host, "web", "db")?.starts_with(&format!("{moved}\tdb ")))
    })?;
    // What the container starts with is what is there then; without the other it does not start.
    host.docker(&["stop", "-t", "0", "web", "db"])?;
    let said = host.refusal(&["start", "web"])?;
    ensure!(said.contains("Cannot link to a non running container: /db AS /web/db"), "{said}");
    host.docker(&["rm", "db"])?;
    host.docker(&["start", "web"])?;
    ensure!(line(host, "web", "db")?.is_empty(), "a link to what is gone is gone");
    remove(host, &["web", "other"])
}

fn user_defined(host: &Host) -> Result<()> {
    host.docker(&["network", "create", "own"])?;
    sleeper(host, "db", &["--network", "own"])?;
    sleeper(host, "web", &["--network", "own", "--link", "db:data"])?;
    sleeper(host, "other", &["--network", "own"])?;
    let db = address(host, "db")?;
    let found = inside(host, "web", "nslookup data 127.0.0.11")?;
    ensure!(found.contains(&db), "{found}");
    ensure!(inside(host, "web", "ping -c1 -w5 data >/dev/null && echo yes")? == "yes");
    let others = inside(host, "other", "nslookup data 127.0.0.11 || echo unknown")?;
    ensure!(others.ends_with("unknown"), "an alias is its container's own: {others}");
    ensure!(line(host, "web", "data")?.is_empty() && !inside(host, "web", "env")?.contains("DATA_"));
    let format = "{{json .HostConfig.Links}} {{json .NetworkSettings.Networks.own.Links}}";
    let shown = host.docker(&["inspect", "--format", format, "web"])?;
    ensure!(shown.trim() == r#"null ["db:data"]"#, "{shown}");
    // Also of a network that is joined later; the name is looked up when it is asked for.
    host.docker(&["network", "create", "later"])?;
    host.docker(&["network", "connect", "--link", "late:sql", "later", "web"])?;
    sleeper(host, "late", &["--network", "later"])?;
    let found = inside(host, "web", "nslookup sql 127.0.0.11")?;
    ensure!(found.contains(&address(host, "late")?), "{found}");
    remove(host, &["web", "other", "db", "late"])?;
    host.docker(&["network", "rm", "own", "later"]).map(drop)
}

fn refusals(host: &Host) -> Result<()> {
    sleeper(host, "db", &[])?;
    sleeper(host, "open", &["--network", "host"])?;
    let create = |options: &[&str]| host.refusal(&[&["create"], options, &["busybox"]].concat());
    let said = create(&["--link", "nobody"])?;
    ensure!(said.contains("could not get container for nobody: No such container: nobody"), "{said}");
    let said = create(&["--link", "open"])?;
    ensure!(said.contains("host type networking can't be used with links"), "{said}");
    let body = r#"{"Image":"busybox","HostConfig":{"NetworkMode":"host","Links":["db"]}}"#;
    let (code, said) = host.api("POST", "/containers/create", body)?;
    ensure!(code == 400 && said.contains("host type networking can't be used with links"), "{said}");
    let body = r#"{"Image":"busybox","HostConfig":{"NetworkMode":"container:db","Links":["db"]}}"#;
    let (code, said) = host.api("POST", "/containers/create", body)?;
    ensure!(code == 400 && said.contains("container type network can't be used with links"), "{said}");
    let body = r#"{"Image":"busybox","HostConfig":{"Links":["a:b:c"]}}"#;
    let (code, said) = host.api("POST", "/containers/create", body)?;
    ensure!(code == 400 && said.contains("bad format for links: a:b:c"), "{said}");
    host.docker(&["network", "create", "own"])?;
    sleeper(host, "away", &["--network", "own"])?;
    host.docker(&["create", "--name", "web", "--link", "away", "busybox"])?;
    let said = host.refusal(&["start", "web"])?;
    ensure!(said.contains("Cannot link to /away, as it does not belong to the default network"), "{said}");
    remove(host, &["db", "open", "away", "web"])?;
    host.docker(&["network", "rm", "own"]).map(drop)
}
