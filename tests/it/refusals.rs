//! Bad input: a clear error with Docker's status code, and nothing changed.

use anyhow::{Result, ensure};
use rswarm_tests::harness::Lab;
use rswarm_tests::host::Host;

fn refused(host: &Host, method: &str, path: &str, body: &str, status: u16, words: &str) -> Result<()> {
    let (code, answer) = host.api(method, path, body)?;
    ensure!(code == status, "{method} {path} {body}: {code}, want {status}: {answer}");
    ensure!(answer.contains("\"message\""), "{method} {path}: no message in {answer}");
    ensure!(answer.contains(words), "{method} {path}: `{words}` is not in {answer}");
    Ok(())
}

#[test]
fn an_engine_refuses_bad_input() -> Result<()> {
    let lab = Lab::start(1)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    refused(host, "POST", "/containers/create", r#"{"Image":"nothing:1"}"#, 404, "No such image: nothing:1")?;
    refused(host, "POST", "/containers/create", r#"{"Image":"#, 400, "")?;
    refused(
        host,
        "POST",
        "/containers/create?name=a%2Fb",
        r#"{"Image":"busybox"}"#,
        400,
        "Invalid container name",
    )?;
    refused(host, "GET", "/containers/nobody/json", "", 404, "No such container: nobody")?;
    refused(host, "GET", "/nowhere", "", 404, "page not found")?;
    refused(host, "GET", "/v1.999/info", "", 400, "is too new")?;
    refused(host, "GET", "/services", "", 503, "This node is not a swarm manager")?;
    host.docker(&["create", "--name", "taken", "busybox", "sh"])?;
    refused(
        host,
        "POST",
        "/containers/create?name=taken",
        r#"{"Image":"busybox"}"#,
        409,
        "is already in use by container",
    )?;
    ensure!(host.docker(&["ps", "-aq"])?.lines().count() == 1, "a refused container was created");
    lab.finish()
}

#[test]
fn a_cluster_refuses_bad_input() -> Result<()> {
    let lab = Lab::start(2)?;
    let host = &lab.hosts[0];
    lab.form_cluster(1)?;
    host.import_demo()?;
    host.docker(&["service", "create", "--detach", "--name", "web", "demo:latest"])?;
    let spec = |name: &str, replicas: &str| {
        format!(
            r#"{{"Name":"{name}","TaskTemplate":{{"ContainerSpec":{{"Image":"demo:latest"}}}},"Mode":{{"Replicated":{{"Replicas":{replicas}}}}}}}"#
        )
    };
    refused(
        host,
        "POST",
        "/services/create",
        &spec("web", "1"),
        409,
        "name conflicts with an existing object",
    )?;
    refused(host, "POST", "/services/create", &spec("minus", "-1"), 400, "")?;
    refused(host, "POST", "/services/create", &spec("absurd", "99999999999"), 400, "")?;
    refused(host, "POST", "/services/create", &spec("bad name!", "1"), 400, "")?;
    refused(host, "POST", "/services/create", "{\"Name\":", 400, "")?;
    refused(host, "GET", "/services/nothing", "", 404, "service nothing not found")?;
    refused(host, "POST", "/swarm/init", "{}", 503, "already part of a swarm")?;
    refused(host, "POST", "/swarm/leave", "", 503, "Removing the last manager")?;
    let worker = host.docker(&["node", "ls", "--filter", "role=worker", "-q"])?;
    refused(
        host,
        "DELETE",
        &format!("/nodes/{}", worker.trim()),
        "",
        400,
        "is not down and can't be removed",
    )?;
    let services = host.docker(&["service", "ls", "-q"])?;
    ensure!(services.lines().count() == 1, "a refused service was created: {services}");
    lab.finish()
}
