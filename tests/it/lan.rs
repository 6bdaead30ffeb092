//! Networks on a host's own link, by Docker's client: macvlan, and words that networks take from another.

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, run};
use rswarm_tests::host::Host;

#[test]
fn containers_are_on_the_hosts_segment_and_networks_take_their_words_from_another() -> Result<()> {
    let mut lab = Lab::start(2)?;
    for host in &lab.hosts {
        host.import_busybox()?;
    }
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
    host.docker(&["network", "rm", "only"])?;
    ensure!(host.docker(&["network", "ls", "-q"])?.lines().count() == 3, "a network is left");
    Ok(())
}
