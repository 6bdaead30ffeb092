//! Containers on networks, inside the test's own network namespace.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rswarm_base::{Classify, Kind};
use rswarm_engine::container::Container;
use rswarm_engine::network::NetworkCreate;
use rswarm_engine::{ContainerConfig, EndpointConfig, Engine};
use rswarm_proto::model::container::PortConfig;
use serde_json::{Value, json};

use crate::fixture::*;

pub const ALL: &[Test] = &[
    ("the_default_bridge_gives_an_address_and_publishes_ports", default_bridge),
    ("containers_on_a_users_bridge_find_each_other_by_name", names),
    ("a_running_container_joins_and_leaves_networks", connect),
    ("the_way_out_moves_when_its_network_is_left", way_out),
    ("the_network_of_none_is_left_for_another", none),
    ("a_port_that_is_taken_fails_the_start_and_undoes_it", port_conflict),
    ("the_hosts_network_and_anothers_can_be_shared", shared),
    ("networks_are_kept_and_adopted_with_their_containers", adopted),
];

fn on(network: &str, script: &str) -> ContainerConfig {
    ContainerConfig { network_mode: network.into(), ..sh(script) }
}

fn publish(config: &mut ContainerConfig, target: u32, published: u32) {
    config.ports.push(PortConfig { protocol: "tcp".into(), target, published, ..PortConfig::default() });
}

const SERVE: &str = "while :; do echo \"I am $(hostname)\" | nc -l -p 80; done";

/// What a published port answers.
async fn ask(port: u16) -> Result<String> {
    for _ in 0..100 {
        let answer = tokio::task::spawn_blocking(move || -> Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        match answer.await? {
            Ok(text) if !text.is_empty() => return Ok(text),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    bail!("nobody answers on port {port}")
}

fn bound_port(container: &Container) -> Result<u16> {
    let ports = container.endpoints.iter().flat_map(|endpoint| &endpoint.ports);
    ports.map(|port| port.host_port).next().context("no port is bound")
}

fn default_bridge() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        let mut config = on("default", SERVE);
        publish(&mut config, 80, 0);
        let id = start(&engine, "web", config).await?;
        let container = engine.inspect("web")?;
        let endpoint = container.endpoints.first().context("no endpoint")?;
        ensure!(
            endpoint.network_name == "bridge" && endpoint.address.is_some() && endpoint.gateway.is_some()
        );
        ensure!(ask(bound_port(&container)?).await? == format!("I am {}\n", &id[..12]));
        let (_, members) = engine.inspect_network("bridge")?;
        ensure!(members.len() == 1 && members[0].name == "web" && members[0].endpoint == *endpoint);
        let (_, text) =
            run_to_end(&engine, "look", on("", "cat /etc/hosts /etc/resolv.conf; ip route")).await?;
        ensure!(text.contains(&format!("\t{}\n", &engine.inspect("look")?.id[..12])), "{text}");
        ensure!(text.contains("nameserver") && !text.contains("127.0.0.11"), "{text}");
        ensure!(text.contains(&format!("default via {}", endpoint.gateway.context("gateway")?)), "{text}");
        engine.stop("web", Some(Duration::ZERO), None).await?;
        let stopped = engine.inspect("web")?;
        ensure!(stopped.endpoints[0].address.is_none() && stopped.endpoints[0].network_name == "bridge");
        ensure!(engine.inspect_network("bridge")?.1.is_empty());
        Ok(())
    })
}

async fn net(engine: &Engine, name: &str) -> Result<String> {
    Ok(engine.create_network(NetworkCreate { name: name.into(), ..NetworkCreate::default() }).await?)
}

fn names() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        let id = net(&engine, "app").await?;
        let again = net(&engine, "app").await.expect_err("taken").to_string();
        ensure!(again.contains("already exists"), "{again}");
        let mut config = on("app", SERVE);
        config.endpoints =
            vec![EndpointConfig { network: "app".into(), aliases: vec!["db".into()], ..EndpointConfig::default() }];
        let web = start(&engine, "web", config).await?;
        let script = format!(
            "for name in web db {}; do nslookup $name 127.0.0.11 >/dev/null 2>&1 && ping -c1 -W2 $name >/dev/null && \
             echo found $name; done; cat /etc/resolv.conf",
            &web[..12]
        );
        let (_, text) = run_to_end(&engine, "client", on("app", &script)).await?;
        for name in ["found web\n", "found db\n", &format!("found {}\n", &web[..12]), "127.0.0.11", "ndots:0"] {
            ensure!(text.contains(name), "no {name:?} in {text}");
        }
        engine.rename("web", "renamed").await?;
        let (_, text) = run_to_end(&engine, "later", on("app", "ping -c1 -W2 renamed && ping -c1 -W2 db")).await?;
        ensure!(text.matches("1 packets received").count() == 2, "{text}");
        let error = engine.remove_network("app").await.expect_err("in use");
        ensure!(error.to_string().contains("active endpoints"), "{error}");
        engine.stop("renamed", Some(Duration::ZERO), None).await?;
        engine.remove_network(&id[..10]).await?;
        let error = engine.start("renamed").await.expect_err("its network is gone");
        let text = rswarm_base::Chain(&error).to_string();
        ensure!(text == "failed to set up container networking: network app not found", "{text}");
        ensure!(engine.remove_network("bridge").await.expect_err("predefined").kind() == Kind::PermissionDenied);
        Ok(())
    })
}

fn connect() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        net(&engine, "one").await?;
        net(&engine, "two").await?;
        start(&engine, "web", on("one", "sleep 100")).await?;
        let two = EndpointConfig { network: "two".into(), ..EndpointConfig::default() };
        engine.connect_network("web", two.clone()).await?;
        ensure!(engine.inspect("web")?.endpoints.len() == 2);
        ensure!(engine.connect_network("web", two.clone()).await.is_err(), "it is on it already");
        let (_, text) = run_to_end(&engine, "from-two", on("two", "ping -c1 -W2 web")).await?;
        ensure!(text.contains("1 packets received"), "{text}");
        engine.disconnect_network("web", "two").await?;
        ensure!(engine.disconnect_network("web", "two").await.is_err(), "it is not on it any more");
        ensure!(engine.inspect_network("two")?.1.is_empty());
        let stopped = engine.create(Some("later"), on("one", "ip -o addr | grep -c 'eth[01]'")).await?.id;
        engine.connect_network(&stopped, two).await?;
        let ended = engine.wait(&stopped, rswarm_engine::WaitCondition::NextExit).await?;
        engine.start(&stopped).await?;
        ended.await;
        ensure!(logs(&engine, &stopped).await? == "2\n", "{}", logs(&engine, &stopped).await?);
        Ok(())
    })
}

fn way_out() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        net(&engine, "one").await?;
        net(&engine, "two").await?;
        let mut config =
            on("one", &format!("while ! ip route | grep 'default.*eth1'; do sleep 0.05; done; {SERVE}"));
        publish(&mut config, 80, 18083);
        let web = start(&engine, "web", config).await?;
        let two = EndpointConfig { network: "two".into(), ..EndpointConfig::default() };
        engine.connect_network("web", two).await?;
        engine.disconnect_network("web", "one").await?;
        let container = engine.inspect("web")?;
        let [endpoint] = &container.endpoints[..] else { bail!("{container:?}") };
        ensure!(endpoint.network_name == "two" && bound_port(&container)? == 18083, "{endpoint:?}");
        ask(18083).await.context("it is published by the other network")?;
        let text = logs(&engine, &web).await?;
        let route = format!("default via {} dev eth1", endpoint.gateway.context("gateway")?);
        ensure!(text.contains(&route), "{text}");

        // The first by name takes over, unless another has priority.
        let connect = async |network: &str, gateway_priority| {
            let asked =
                EndpointConfig { network: network.into(), gateway_priority, ..EndpointConfig::default() };
            engine.connect_network("web", asked).await
        };
        let publishes = || -> Result<Vec<(String, usize)>> {
            let endpoints = engine.inspect("web")?.endpoints.clone();
            Ok(endpoints.iter().map(|one| (one.network_name.clone(), one.ports.len())).collect())
        };
        connect("one", 0).await?;
        ensure!(publishes()? == [("two".into(), 0), ("one".into(), 1)], "{:?}", publishes()?);
        ask(18083).await.context("it is published by the first")?;
        engine.disconnect_network("web", "two").await?;
        connect("two", 1).await?;
        ensure!(publishes()? == [("one".into(), 0), ("two".into(), 1)], "{:?}", publishes()?);
        ask(18083).await.context("it is published by the one with priority")?;

        // The port is the other endpoint's now, and goes with it.
        engine.disconnect_network("web", "one").await?;
        engine.disconnect_network("web", "two").await?;
        let mut config = on("two", "sleep 100");
        publish(&mut config, 80, 18083);
        start(&engine, "next", config).await?;
        Ok(())
    })
}

fn none() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        let id = start(
            &engine,
            "alone",
            on("none", "while ! ip route | grep -q default; do sleep 0.05; done; echo out; sleep 100"),
        )
        .await?;
        ensure!(engine.inspect_network("none")?.1[0].container_id == id);
        let bridge = EndpointConfig { network: "bridge".into(), ..EndpointConfig::default() };
        let refused = engine.connect_network("alone", bridge.clone()).await.expect_err("it is alone");
        ensure!(
            refused.to_string().ends_with("with one of the networks in private (none) mode"),
            "{refused}"
        );
        engine.disconnect_network("alone", "none").await?;
        engine.connect_network("alone", bridge).await?;
        wait_for_line(&engine, &id, "out").await?;
        let back = EndpointConfig { network: "none".into(), ..EndpointConfig::default() };
        let refused = engine.connect_network("alone", back.clone()).await.expect_err("it has company");
        ensure!(
            refused.to_string().ends_with("with one of the networks in private (none) mode"),
            "{refused}"
        );
        engine.disconnect_network("alone", "bridge").await?;
        engine.connect_network("alone", back).await?;
        let container = engine.inspect("alone")?;
        ensure!(container.endpoints[0].network_name == "none" && container.endpoints[0].interface.is_empty());
        start(&engine, "open", on("host", "sleep 100")).await?;
        let container = engine.inspect("open")?;
        ensure!(
            container.endpoints[0].network_name == "host" && !container.endpoints[0].endpoint_id.is_empty()
        );
        let refused = engine.disconnect_network("open", "host").await.expect_err("it stays");
        ensure!(
            refused.to_string().starts_with("container cannot be disconnected from host network"),
            "{refused}"
        );
        Ok(())
    })
}

fn port_conflict() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        let mut config = on("default", "sleep 100");
        publish(&mut config, 80, 18080);
        start(&engine, "first", config.clone()).await?;
        engine.create(Some("second"), config).await?;
        let error = engine.start("second").await.expect_err("the port is taken");
        let text = rswarm_base::Chain(&error).to_string();
        let begin = "failed to set up container networking: driver failed programming external connectivity on \
                     endpoint second (";
        let end = "): Bind for 0.0.0.0:18080 failed: port is already allocated";
        ensure!(text.starts_with(begin) && text.ends_with(end), "{text}");
        let container = engine.inspect("second")?;
        ensure!(
            container.endpoints[0].address.is_none() && container.state.exit_code == 128,
            "{container:?}"
        );
        ensure!(engine.inspect_network("bridge")?.1.len() == 1, "its endpoint is gone");
        engine.stop("first", Some(Duration::ZERO), None).await?;
        engine.start("second").await.context("the port is free now")?;

        // Of a range, the first that is free.
        let mut config = on("default", "sleep 100");
        publish(&mut config, 80, 18080);
        config.ports[0].published_end = 18081;
        start(&engine, "third", config.clone()).await?;
        ensure!(engine.inspect("third")?.endpoints[0].ports[0].host_port == 18081);
        engine.create(Some("fourth"), config).await?;
        let error = engine.start("fourth").await.expect_err("both are taken");
        let text = rswarm_base::Chain(&error).to_string();
        ensure!(text.ends_with("): Bind for 0.0.0.0 failed: all ports are allocated"), "{text}");
        Ok(())
    })
}

fn shared() -> Result<()> {
    Host::with_bridge()?.test(async |engine| {
        let mut config = on("host", "readlink /proc/self/ns/net; hostname");
        publish(&mut config, 80, 80);
        let created = engine.create(Some("host"), config).await?;
        ensure!(created.warnings.len() == 1, "{:?}", created.warnings);
        let ended = engine.wait("host", rswarm_engine::WaitCondition::NextExit).await?;
        engine.start("host").await?;
        ended.await;
        let own = std::fs::read_link("/proc/self/ns/net")?.display().to_string();
        let text = logs(&engine, "host").await?;
        ensure!(text.starts_with(&own), "{text} {own}");
        let target = start(&engine, "target", on("default", "readlink /proc/self/ns/net; sleep 100")).await?;
        wait_until(&engine, "target", |container| container.state.pid > 0).await?;
        let (_, text) = run_to_end(
            &engine,
            "joins",
            on("container:target", "readlink /proc/self/ns/net; cat /etc/hosts"),
        )
        .await?;
        let theirs = logs(&engine, &target).await?;
        ensure!(
            !theirs.is_empty() && text.starts_with(&theirs) && text.contains(&target[..12]),
            "{text} {theirs}"
        );
        engine.stop("target", Some(Duration::ZERO), None).await?;
        let error = engine.start("joins").await.expect_err("it does not run");
        ensure!(
            error.kind() == Kind::Conflict && error.to_string().contains("non running container"),
            "{error}"
        );
        Ok(())
    })
}

pub const LIVES: &[Life] = &[("on a bridge", |_, engine| Box::pin(on_a_bridge(engine)))];

async fn on_a_bridge(engine: Engine) -> Result<Value> {
    net(&engine, "app").await?;
    let mut config = on("app", SERVE);
    publish(&mut config, 80, 0);
    start(&engine, "web", config).await?;
    let container = engine.inspect("web")?;
    let port = bound_port(&container)?;
    ask(port).await?;
    Ok(json!({"port": port, "address": container.endpoints[0].address}))
}

fn adopted() -> Result<()> {
    let host = Host::with_bridge()?;
    let before = host.crash("on a bridge")?;
    host.test(async |engine| {
        ensure!(engine.inspect_network("app")?.1.len() == 1);
        ensure!(json!(engine.inspect("web")?.endpoints[0].address) == before["address"]);
        let port = u16::try_from(before["port"].as_u64().context("port")?)?;
        ask(port).await.context("the port is still published")?;
        let (_, text) = run_to_end(&engine, "client", on("app", "ping -c1 -W2 web")).await?;
        ensure!(text.contains("1 packets received"), "{text}");
        Ok(())
    })
}
