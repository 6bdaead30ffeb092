//! Networks on a host's own link, by Docker's client: macvlan, and words that networks take from another.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::running_tasks;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn containers_are_on_the_hosts_segment_and_networks_take_their_words_from_another() -> Result<()> {
    let mut lab = Lab::start(2)?;
    lab.every_host(Host::import_busybox)?;
    let [first, second] = [&lab.hosts[0], &lab.hosts[1]];
    refused_as_docker_refuses(first)?;
    let drivers = first.docker(&["info", "--format", "{{.Plugins.Network}}"])?;
    ensure!(drivers.contains("ipvlan macvlan"), "{drivers}");
    for (host, range) in [(first, "10.99.0.64/28"), (second, "10.99.0.128/28")] {
        let words = ["--subnet", "10.99.0.0/24", "--gateway", "10.99.0.254", "--ip-range", range];
        let words = [&words[..], &["--aux-address", "printer=10.99.0.64", "-o", "parent=eth0"]].concat();
        host.docker(&[&["network", "create", "--config-only"], &words[..], &["words"]].concat())?;
        host.docker(&["network", "create", "-d", "macvlan", "--config-from", "words", "lan"])?;
    }
    let format = "{{.Driver}} {{.ConfigFrom.Network}} {{(index .IPAM.Config 0).IPRange}} {{.Options.parent}}";
    let shown = first.docker(&["network", "inspect", "lan", "--format", format])?;
    ensure!(shown.trim() == "macvlan words 10.99.0.64/28 eth0", "{shown}");
    let shown = first.docker(&["network", "inspect", "words", "--format", "{{.Driver}} {{.ConfigOnly}}"])?;
    ensure!(shown.trim() == "null true", "{shown}");

    let (one, address) = start(first, "one")?;
    ensure!(address == "10.99.0.65", "the auxiliary address is left out: {address}");
    let (_, other) = start(second, "other")?;
    start(first, "two")?;
    let ping = |from: &Host, name: &str, to: &str| from.docker(&["exec", name, "ping", "-c1", "-W2", to]);
    ping(first, "one", &other).context("another host's container")?;
    ping(first, "one", "two").context("by name")?;
    ping(first, "one", &second.address.to_string()).context("another host")?;
    run(second.command("busybox").args(["ping", "-c1", "-W2", &address])).context("from another host")?;
    ensure!(ping(first, "one", &first.address.to_string()).is_err(), "its own host is out of reach");
    let link = first.docker(&["exec", "one", "ip", "-o", "addr", "show", "eth0"])?;
    ensure!(link.contains("10.99.0.65/24"), "{link}");
    let route = first.docker(&["exec", "one", "ip", "route"])?;
    ensure!(route.contains("default via 10.99.0.254"), "{route}");

    // The daemon dies: nothing is noticed, and the next one knows all of it.
    lab.hosts[0].restart_hard()?;
    let [first, second] = [&lab.hosts[0], &lab.hosts[1]];
    ping(first, "one", "two").context("after the daemon's death")?;
    let members = first.docker(&["network", "inspect", "lan", "--format", "{{len .Containers}}"])?;
    ensure!(members.trim() == "2", "{members}");
    first.docker(&["network", "disconnect", "lan", "two"])?;
    first.docker(&["network", "connect", "--ip", "10.99.0.70", "lan", "two"])?;
    ping(second, "other", "10.99.0.70").context("connected while it runs")?;
    let refused = first.refusal(&["network", "rm", "words"])?;
    ensure!(refused.contains("configuration network \"words\" is in use"), "{refused}");
    let checked = first.rswarm(&["network", "check", "lan"])?;
    ensure!(checked.contains("parent interface eth0"), "{checked}");
    first.docker(&["rm", "-f", &one, "two"])?;
    second.docker(&["rm", "-f", "other"])?;
    for host in [first, second] {
        host.docker(&["network", "rm", "lan"])?;
        host.docker(&["network", "rm", "words"])?;
    }
    lab.finish()
}

/// Services on the hosts' own segment: every node has its own words for it.
#[test]
fn tasks_are_on_the_hosts_segment_by_each_nodes_own_words() -> Result<()> {
    let mut lab = Lab::start(2)?;
    lab.form_cluster(1)?;
    lab.every_host(Host::import_busybox)?;
    let [first, second] = [&lab.hosts[0], &lab.hosts[1]];
    let words =
        ["network", "create", "--config-only", "--subnet", "10.99.0.0/24", "--gateway", "10.99.0.254"];
    let lan = ["network", "create", "-d", "macvlan", "--scope", "swarm"];
    let refused = first.refusal(&[&lan[..], &["-o", "parent=eth0", "lan"]].concat())?;
    ensure!(refused.contains("needs --config-from"), "{refused}");
    let refused =
        first.refusal(&[&lan[..], &["--config-from", "words", "-o", "parent=eth0", "lan"]].concat())?;
    ensure!(refused.contains("user specified configurations are not supported"), "{refused}");
    first.docker(&[&lan[..], &["--config-from", "words", "--attachable", "lan"]].concat())?;
    let format = "{{.Driver}} {{.Scope}} {{.ConfigFrom.Network}} {{.Attachable}}";
    let shown = first.docker(&["network", "inspect", "lan", "--format", format])?;
    ensure!(shown.trim() == "macvlan swarm words true", "{shown}");
    first.docker(&[&words[..], &["--ip-range", "10.99.0.64/28", "-o", "parent=eth0", "words"]].concat())?;

    // The other node has no words yet: its task says so.
    let create = ["service", "create", "--detach", "--name", "box", "--mode", "global", "--network", "lan"];
    first.docker(&[&create[..], &["busybox:latest", "sleep", "100000"]].concat())?;
    let explained =
        || first.docker(&["service", "ps", "box", "--no-trunc", "--format", "{{.Node}} {{.Error}}"]);
    eventually(PATIENCE, "the task says what its node lacks", || {
        let told = explained()?;
        let wanted = "configuration network \"words\" does not exist";
        ensure!(told.lines().any(|line| line.starts_with("h2") && line.contains(wanted)), "{told}");
        Ok(true)
    })?;
    second.docker(&[&words[..], &["--ip-range", "10.99.0.128/28", "-o", "parent=eth0", "words"]].concat())?;
    eventually(PATIENCE, "a task runs on each", || Ok(running_tasks(first, "box")?.len() == 2))?;
    let task = |host: &Host| -> Result<(String, String)> {
        let id = host.docker(&["ps", "-q", "--filter", "label=com.docker.swarm.service.name=box"])?;
        let format = "{{.NetworkSettings.Networks.lan.IPAddress}}";
        let address = host.docker(&["inspect", "--format", format, id.trim()])?;
        Ok((id.trim().to_owned(), address.trim().to_owned()))
    };
    let ((one, here), (_, there)) = (task(first)?, task(second)?);
    ensure!(here.starts_with("10.99.0.6") && there.starts_with("10.99.0.12"), "{here}, {there}");
    let ping = |host: &Host, id: &str, to: &str| host.docker(&["exec", id, "ping", "-c1", "-W5", to]);
    ping(first, &one, &there).context("the task on the other host")?;
    ping(first, &one, &second.address.to_string()).context("the other host")?;
    second.docker(&["run", "-d", "--name", "own", "--network", "lan", "busybox", "sleep", "1000"])?;
    let own =
        second.docker(&["inspect", "--format", "{{.NetworkSettings.Networks.lan.IPAddress}}", "own"])?;
    ping(first, &one, own.trim()).context("a container of the other node's own")?;
    let refused = first.refusal(&["network", "rm", "lan"])?;
    ensure!(refused.contains("in use"), "{refused}");

    lab.hosts[1].restart_hard()?;
    let [first, second] = [&lab.hosts[0], &lab.hosts[1]];
    ping(first, &one, &there).context("after the other daemon's death")?;
    second.docker(&["rm", "-f", "own"])?;
    first.docker(&["service", "rm", "box"])?;
    eventually(PATIENCE, "the network is removed", || first.docker(&["network", "rm", "lan"]).map(|_| true))?;
    for host in [first, second] {
        eventually(PATIENCE, "nothing of it is left on the nodes", || {
            let names = host.docker(&["network", "ls", "--format", "{{.Name}}"])?;
            ensure!(!names.lines().any(|name| name == "lan"), "{}: {names}", host.name);
            host.docker(&["network", "rm", "words"]).map(|_| true)
        })?;
    }
    lab.finish()
}

/// A container on the network; its id and its address.
fn start(host: &Host, name: &str) -> Result<(String, String)> {
    let id = host.docker(&["run", "-d", "--name", name, "--network", "lan", "busybox", "sleep", "1000"])?;
    let format = "{{.NetworkSettings.Networks.lan.IPAddress}}";
    let address = host.docker(&["inspect", "--format", format, name])?;
    Ok((id.trim().to_owned(), address.trim().to_owned()))
}

fn refused_as_docker_refuses(host: &Host) -> Result<()> {
    let create = ["network", "create", "-d", "macvlan"];
    let parent = |name: &'static str| ["-o", name, "x"];
    let mode = ["-o", "parent=eth0", "-o", "macvlan_mode=l2", "x"];
    let cases: [(&[&str], &str); 5] = [
        (&parent("parent=lo"), "loopback interface is not a valid macvlan parent link"),
        (&parent("parent=eth9"), "invalid subinterface vlan name eth9, example formatting is eth0.10"),
        (&mode, "requested macvlan mode 'l2' is not valid, 'bridge' mode is the macvlan driver default"),
        (&["--config-from", "nothing", "x"], "configuration network \"nothing\" does not exist"),
        (&["--config-from", "nothing", "-o", "parent=eth0", "x"], "network driver options are not supported"),
    ];
    for (args, wanted) in cases {
        let refused = host.refusal(&[&create[..], args].concat())?;
        ensure!(refused.contains(wanted), "{args:?}: {refused}");
    }
    host.docker(&["network", "create", "--config-only", "--subnet", "10.7.0.0/24", "only"])?;
    let refused = host.refusal(&["run", "--rm", "--network", "only", "busybox", "true"])?;
    ensure!(refused.contains("cannot create endpoint on configuration-only network"), "{refused}");
    host.docker(&["network", "prune", "-f"])?;
    // Nothing is on it, and nothing ever will be: it is there for its words.
    host.docker(&["network", "rm", "only"])?;
    ensure!(host.docker(&["network", "ls", "-q"])?.lines().count() == 3, "a network is left");
    Ok(())
}
