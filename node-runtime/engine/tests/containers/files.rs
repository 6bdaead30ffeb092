//! Files in and out of containers, and images made of them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_base::{Classify, Kind};
use rswarm_engine::engine::WaitCondition;
use rswarm_engine::filesystem::{CopyError, PutOptions};
use rswarm_engine::{Archive, CommitRequest, ContainerConfig, Engine, RemoveOptions};
use rswarm_image::{ChangeKind, Reference};
use rswarm_proto::model::container::{Mount, mount};

use crate::fixture::*;

pub const ALL: &[Test] = &[
    ("files_go_in_and_out_whether_a_container_runs_or_not", in_and_out),
    ("a_links_target_is_looked_up_inside_the_container", links),
    ("files_go_only_where_they_may", refusals),
    ("a_start_waits_for_a_client_that_reads_files", start_waits),
    ("changes_are_listed_exported_and_committed", changes),
];

/// An archive of plain files.
fn packed(files: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(5);
        header.set_gid(6);
        builder.append_data(&mut header, name, content.as_bytes())?;
    }
    Ok(builder.into_inner()?)
}

/// What an archive holds: content by name.
async fn unpacked(mut archive: Archive) -> Result<BTreeMap<String, String>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = archive.recv().await {
        bytes.extend_from_slice(&chunk?);
    }
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&bytes[..]).entries()? {
        let mut entry = entry?;
        let (name, mut content) = (String::from_utf8(entry.path_bytes().into_owned())?, Vec::new());
        entry.read_to_end(&mut content)?;
        files.insert(name, String::from_utf8_lossy(&content).into_owned());
    }
    Ok(files)
}

async fn read(engine: &Engine, name: &str, path: &str) -> Result<BTreeMap<String, String>> {
    let (_, archive) = engine.get_archive(name, path).await?;
    unpacked(archive).await
}

async fn put(engine: &Engine, name: &str, path: &str, files: &[(&str, &str)]) -> Result<(), CopyError> {
    let archive = packed(files).map_err(|error| CopyError::Invalid(error.to_string()))?;
    engine.put_archive(name, path, PutOptions::default(), &archive[..]).await
}

fn with_volume(mut config: ContainerConfig, read_only: bool) -> ContainerConfig {
    config.spec.mounts = vec![Mount {
        r#type: mount::Type::Volume.into(),
        source: "kept".into(),
        target: "/vol".into(),
        read_only,
        ..Mount::default()
    }];
    config
}

fn in_and_out() -> Result<()> {
    Host::new()?.test(async |engine| {
        let script =
            "cat /vol/in /tmp/in; stat -c %u:%g:%a /tmp/in; echo made > /made; echo ready; exec sleep 1000";
        engine.create(Some("web"), with_volume(sh(script), false)).await?;
        // Before its first start.
        put(&engine, "web", "/vol", &[("in", "to the volume\n")]).await?;
        put(&engine, "web", "/tmp", &[("in", "to the root\n")]).await?;
        engine.start("web").await?;
        wait_for_line(&engine, "web", "ready").await?;
        let log = logs(&engine, "web").await?;
        ensure!(log == "to the volume\nto the root\n5:6:640\nready\n", "{log}");
        // While it runs: what it sees, but not what the kernel shows of itself.
        put(&engine, "web", "vol/", &[("later", "x")]).await?;
        let found = read(&engine, "web", "/vol").await?;
        ensure!(found.keys().eq(["vol/", "vol/in", "vol/later"]), "{found:?}");
        let found = read(&engine, "web", "/made").await?;
        ensure!(found["made"] == "made\n", "{found:?}");
        let proc = read(&engine, "web", "/proc/.").await?;
        ensure!(proc.keys().eq(["./"]), "{proc:?}");
        let stat = engine.stat_path("web", "/tmp/").await?;
        ensure!((stat.name.as_str(), stat.mode & 0o7777) == ("tmp", 0o1777), "{stat:?}");
        // After its end.
        engine.kill("web", "KILL").await?;
        engine.wait("web", WaitCondition::NotRunning).await?.await;
        let found = read(&engine, "web", "/vol/.").await?;
        ensure!(found.keys().eq(["./", "./in", "./later"]), "{found:?}");
        ensure!(read(&engine, "web", "/made").await?["made"] == "made\n");
        expect_copies(&engine, "web").await
    })
}

async fn expect_copies(engine: &Engine, name: &str) -> Result<()> {
    let id = engine.inspect(name)?.id.clone();
    let actions = actions(engine, &id);
    for action in ["archive-path", "extract-to-dir"] {
        ensure!(actions.iter().any(|known| known == action), "no {action} in {actions:?}");
    }
    Ok(())
}

fn links() -> Result<()> {
    Host::new()?.test(async |engine| {
        let script = "ln -s /etc /out; ln -s ../../../../etc/passwd /srv/up; echo ready; exec sleep 1000";
        engine.create(Some("web"), sh(script)).await?;
        engine.start("web").await?;
        wait_for_line(&engine, "web", "ready").await?;
        for running in [true, false] {
            if !running {
                engine.kill("web", "KILL").await?;
                engine.wait("web", WaitCondition::NotRunning).await?.await;
            }
            let stat = engine.stat_path("web", "/out").await?;
            ensure!(stat.link_target == "/etc", "{stat:?}");
            ensure!(engine.stat_path("web", "/srv/up").await?.link_target == "/etc/passwd");
            let name = format!("mark-{running}");
            put(&engine, "web", "/out", &[(&name, "inside")]).await?;
            ensure!(read(&engine, "web", &format!("/etc/{name}")).await?[&name] == "inside");
            ensure!(!std::path::Path::new("/etc").join(&name).exists(), "it came out of the container");
            let passwd = read(&engine, "web", "/out/passwd").await?;
            ensure!(passwd["passwd"].contains("web:x:33"), "{passwd:?}");
        }
        Ok(())
    })
}

fn refusals() -> Result<()> {
    Host::new()?.test(async |engine| {
        let mut config = with_volume(sh("exec sleep 1000"), true);
        config.spec.read_only = true;
        engine.create(Some("web"), config).await?;
        for running in [false, true] {
            if running {
                engine.start("web").await?;
            }
            let refused = async |path: &str| {
                let error = put(&engine, "web", path, &[("x", "x")]).await.err().context("accepted")?;
                anyhow::Ok((error.kind(), error.to_string()))
            };
            let invalid = |text: &str| (Kind::InvalidArgument, text.to_owned());
            ensure!(refused("/tmp").await? == invalid("container rootfs is marked read-only"));
            ensure!(refused("/vol").await? == invalid("mounted volume is marked read-only"));
            ensure!(refused("/etc/passwd").await? == invalid("extraction point is not a directory"));
            let slash = refused("/etc/passwd/").await?;
            ensure!(slash.1 == "lstat /etc/passwd/: not a directory", "{slash:?}");
            let missing = refused("/nope").await?;
            let words = "Could not find the file /nope in container web";
            ensure!(missing == (Kind::NotFound, words.to_owned()), "{missing:?}");
            let missing = engine.get_archive("web", "/nope").await.err().context("found")?;
            ensure!(missing.to_string() == words, "{missing}");
        }
        Ok(())
    })
}

fn start_waits() -> Result<()> {
    Host::new()?.test(async |engine| {
        let script = "[ -e /big ] || dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null";
        run_to_end(&engine, "web", sh(script)).await?;
        // More than fits into what lies between us: whoever packs it waits for us.
        let (stat, archive) = engine.get_archive("web", "/big").await?;
        ensure!(stat.size == 8 << 20, "{stat:?}");
        let mut start = Box::pin(engine.start("web"));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut start).await;
        ensure!(early.is_err(), "it started while its layers were in use");
        ensure!(unpacked(archive).await?["big"].len() == 8 << 20);
        start.await?;
        engine.wait("web", WaitCondition::NotRunning).await?.await;
        // A client that goes away lets go too.
        let (_, archive) = engine.get_archive("web", "/big").await?;
        drop(archive);
        Ok(engine.remove("web", RemoveOptions::default()).await?)
    })
}

fn changes() -> Result<()> {
    Host::new()?.test(async |engine| {
        let script = "echo new > /srv/new; rm /srv/data/seed; echo more >> /etc/passwd; echo kept > /vol/x";
        run_to_end(&engine, "web", with_volume(sh(script), false)).await?;
        let changes = engine.changes("web").await?;
        let shown: Vec<String> = changes
            .iter()
            .map(|change| {
                let letter = match change.kind {
                    ChangeKind::Modified => 'C',
                    ChangeKind::Added => 'A',
                    ChangeKind::Deleted => 'D',
                };
                format!("{letter} {}", change.path.display())
            })
            .collect();
        // A directory whose own times and names are as they were is no change: moby, archive.OverlayChanges.
        let expected = ["C /etc/passwd", "C /srv", "C /srv/data", "D /srv/data/seed", "A /srv/new", "A /vol"];
        ensure!(shown == expected, "{shown:?}");
        let exported = unpacked(engine.export("web").await?).await?;
        ensure!(exported["srv/new"] == "new\n" && !exported.contains_key("srv/data/seed"));
        ensure!(!exported.contains_key("vol/x") && exported.contains_key("bin/busybox"));
        let request = CommitRequest {
            reference: Some(Reference::parse("made:1")?),
            changes: vec!["CMD cat /srv/new; ls /srv/data /vol".to_owned(), "ENV ADDED=yes".to_owned()],
            comment: "by a test".to_owned(),
            pause: true,
            ..CommitRequest::default()
        };
        let image = engine.commit("web", request).await?;
        ensure!(image.layers.len() == 2 && image.comment == "by a test", "{image:?}");
        ensure!(image.config.env.contains(&"ADDED=yes".to_owned()), "{:?}", image.config.env);
        let mut config = ContainerConfig { network_mode: "none".into(), ..ContainerConfig::default() };
        config.spec.image = "made:1".into();
        let (code, text) = run_to_end(&engine, "again", config).await?;
        ensure!(code == 0 && text == "new\n/srv/data:\n\n/vol:\n", "{text:?}");
        // Nothing changed: no layer.
        let same = engine.commit("again", CommitRequest::default()).await?;
        ensure!(same.layers == image.layers && same.parent == Some(image.id), "{same:?}");
        Ok(())
    })
}
