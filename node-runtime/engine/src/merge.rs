//! A container's configuration filled up from its image. Pure.

use std::collections::BTreeSet;

use rswarm_image::ImageConfig;
use rswarm_proto::model::container::{ContainerSpec, Healthcheck, Mount, mount};

use crate::config::ContainerConfig;

/// What `PATH` is unless image or user say otherwise.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fills up what the user left open. The user wins, key by key. Returns the exposed ports of both.
pub(crate) fn with_image(config: &mut ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let spec = &mut config.spec;
    merge_command(spec, image);
    merge_env(spec, image);
    for (key, value) in &image.labels {
        spec.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    fill(&mut spec.user, &image.user);
    fill(&mut spec.workdir, &image.working_dir);
    fill(&mut spec.stop_signal, &image.stop_signal);
    if spec.stop_grace.is_none() {
        spec.stop_grace = image.stop_timeout.map(|seconds| seconds.saturating_mul(1_000_000_000));
    }
    merge_health(spec, image);
    let mounted: BTreeSet<String> = spec.mounts.iter().map(|mount| clean_path(&mount.target)).collect();
    for target in image.volumes.iter().filter(|target| !mounted.contains(&clean_path(target))) {
        spec.mounts.push(Mount {
            r#type: mount::Type::Volume.into(),
            target: target.clone(),
            ..Mount::default()
        });
    }
    let exposed: BTreeSet<String> =
        image.exposed_ports.iter().chain(&config.exposed).map(|port| normal_port(port)).collect();
    exposed.into_iter().collect()
}

/// `80` is `80/tcp`.
fn normal_port(port: &str) -> String {
    if port.contains('/') { port.to_ascii_lowercase() } else { format!("{port}/tcp") }
}

fn fill(own: &mut String, image: &str) {
    if own.is_empty() {
        image.clone_into(own);
    }
}

/// An entry point of the user's drops the image's arguments with the image's entry point.
fn merge_command(spec: &mut ContainerSpec, image: &ImageConfig) {
    let own_entrypoint = !spec.entrypoint.is_empty() || spec.entrypoint_cleared;
    if own_entrypoint {
        return;
    }
    spec.entrypoint.clone_from(&image.entrypoint);
    if spec.args.is_empty() {
        spec.args.clone_from(&image.cmd);
    }
}

/// The program and its arguments; empty when there is nothing to execute.
pub(crate) fn command(spec: &ContainerSpec) -> Vec<String> {
    let cleared = spec.entrypoint == [""];
    let entrypoint = if cleared { &[][..] } else { &spec.entrypoint[..] };
    entrypoint.iter().chain(&spec.args).cloned().collect()
}

/// The user's variables, then the image's that the user did not name.
fn merge_env(spec: &mut ContainerSpec, image: &ImageConfig) {
    let own: BTreeSet<String> = spec.env.iter().map(|entry| key_of(entry).to_owned()).collect();
    spec.env.extend(image.env.iter().filter(|entry| !own.contains(key_of(entry))).cloned());
}

fn key_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

/// The process's environment: the defaults, what links tell, then the merged one. `KEY` alone removes a variable;
/// of duplicates the last value wins, at the first one's place.
pub(crate) fn environment(spec: &ContainerSpec, hostname: &str, linked: &[String]) -> Vec<String> {
    let mut defaults = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={hostname}")];
    if spec.tty {
        defaults.push("TERM=xterm".to_owned());
    }
    defaults.extend_from_slice(linked);
    override_env(defaults, &spec.env)
}

/// Lays `over` on top of `base`, by the rule of [`environment`].
pub(crate) fn override_env(base: Vec<String>, over: &[String]) -> Vec<String> {
    let mut result = base;
    for entry in over {
        let key = key_of(entry);
        let place = result.iter().position(|known| key_of(known) == key);
        match (place, entry.contains('=')) {
            (Some(place), true) => result[place].clone_from(entry),
            (Some(place), false) => {
                result.remove(place);
            }
            (None, true) => result.push(entry.clone()),
            (None, false) => {}
        }
    }
    result
}

/// The user's health check wins whole where it has a test; else its figures override the image's.
fn merge_health(spec: &mut ContainerSpec, image: &ImageConfig) {
    let Some(from_image) = &image.healthcheck else { return };
    let own = spec.healthcheck.get_or_insert_with(Healthcheck::default);
    if own.test.is_empty() {
        own.test.clone_from(&from_image.test);
    }
    let or = |own: &mut i64, image: i64| *own = if *own == 0 { image } else { *own };
    or(&mut own.interval, from_image.interval);
    or(&mut own.timeout, from_image.timeout);
    or(&mut own.start_period, from_image.start_period);
    or(&mut own.start_interval, from_image.start_interval);
    if own.retries == 0 {
        own.retries = i32::try_from(from_image.retries).unwrap_or(i32::MAX);
    }
}

/// An absolute path without `.`, `..`, doubled or trailing slashes.
#[must_use]
pub fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn command_of(entrypoint: &[&str], args: &[&str], image: (&[&str], &[&str])) -> Vec<String> {
        let mut config = ContainerConfig::default();
        config.spec.entrypoint = strings(entrypoint);
        config.spec.args = strings(args);
        let image =
            ImageConfig { entrypoint: strings(image.0), cmd: strings(image.1), ..ImageConfig::default() };
        with_image(&mut config, &image);
        command(&config.spec)
    }

    #[test]
    fn a_users_entry_point_drops_the_images_arguments() {
        let image = (&["/init"][..], &["serve"][..]);
        assert_eq!(command_of(&[], &[], image), ["/init", "serve"]);
        assert_eq!(command_of(&[], &["help"], image), ["/init", "help"]);
        assert_eq!(command_of(&["/bin/sh"], &[], image), ["/bin/sh"]);
        assert_eq!(command_of(&["/bin/sh"], &["-c"], image), ["/bin/sh", "-c"]);
        assert_eq!(command_of(&[""], &["ls"], image), ["ls"]);
        assert!(command_of(&[""], &[], image).is_empty());
        assert!(command_of(&[], &[], (&[], &[])).is_empty());
    }

    #[test]
    fn the_environment_has_the_defaults_overridden_by_image_and_user() {
        let mut config = ContainerConfig::default();
        config.spec.tty = true;
        config.spec.env = strings(&["A=user", "HOSTNAME", "B=1", "B=2"]);
        let image =
            ImageConfig { env: strings(&["PATH=/bin", "A=image", "C=image"]), ..ImageConfig::default() };
        with_image(&mut config, &image);
        let env = environment(&config.spec, "abc", &["DB_NAME=/web/db".to_owned(), "B=link".to_owned()]);
        assert_eq!(env, ["PATH=/bin", "TERM=xterm", "DB_NAME=/web/db", "B=2", "A=user", "C=image"]);
    }

    #[test]
    fn the_user_wins_key_by_key() {
        let mut config = ContainerConfig::default();
        config.spec.labels.insert("a".into(), "user".into());
        config.spec.user = "web".into();
        config.exposed = strings(&["81"]);
        config.spec.mounts.push(Mount { target: "/data/".into(), ..Mount::default() });
        let image = ImageConfig {
            user: "root".into(),
            working_dir: "/app".into(),
            labels: [("a".to_owned(), "image".to_owned()), ("b".to_owned(), "image".to_owned())].into(),
            exposed_ports: ["80/tcp".to_owned()].into(),
            volumes: ["/data".to_owned(), "/cache".to_owned()].into(),
            ..ImageConfig::default()
        };
        let exposed = with_image(&mut config, &image);
        assert_eq!(config.spec.labels["a"], "user");
        assert_eq!(config.spec.labels["b"], "image");
        assert_eq!((config.spec.user.as_str(), config.spec.workdir.as_str()), ("web", "/app"));
        assert_eq!(exposed, ["80/tcp", "81/tcp"]);
        let targets: Vec<&str> = config.spec.mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/data/", "/cache"]);
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, clean) in [("/a//b/", "/a/b"), ("/a/../b/.", "/b"), ("/..", "/"), ("", "/")] {
            assert_eq!(clean_path(path), clean);
        }
    }
}
