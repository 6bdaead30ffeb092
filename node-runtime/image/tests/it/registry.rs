//! Pulling: from Debian's `docker-registry`, and from one of our own that can misbehave.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rswarm_base::{Chain, Classify as _, Kind};
use rswarm_image::{
    Descriptor, Digest, Image, Index, Platform, Progress, PullError, Reference, RegistryAuth,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::samples::{
    LAYER_GZIP, OCI_MANIFEST, Sample, TestStore, assert_swept, files, gzip, store, store_with, tar_of,
    two_layers,
};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// `tester` with the password `secret`.
const HTPASSWD: &str = "tester:$2y$04$4sujQPbvgWTRx1YQlNDDfu.uiO/7GKJcASCb3vdNrFQ5.SAU37z4S";

/// Debian's registry on a port of the kernel's choice; ends with the test.
struct Registry {
    process: Child,
    dir: TempDir,
    address: String,
    password: Option<(&'static str, &'static str)>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// `None` where the program is missing, which is said, and is a failure in CI.
    fn start(password: Option<(&'static str, &'static str)>) -> Option<Registry> {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {root}/data\nhttp:\n  addr: 127.0.0.1:0\n"
        );
        if password.is_some() {
            std::fs::write(dir.path().join("htpasswd"), HTPASSWD).expect("htpasswd");
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n");
        }
        std::fs::write(dir.path().join("config.yml"), config).expect("config");
        let spawned = Command::new("docker-registry")
            .args(["serve", &format!("{root}/config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "docker-registry cannot be started: {error}");
                eprintln!(
                    "skipped: docker-registry cannot be started ({error}); apt-get install docker-registry"
                );
                return None;
            }
        };
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.expect("log");
            let at = line.find("listening on ")? + "listening on ".len();
            Some(line[at..].split(['"', ' ', ',']).next().unwrap_or_default().to_owned())
        });
        let address = address.expect("it says where it listens");
        // Kept empty, or the registry would wait for us.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Registry { process, dir, address, password })
    }

    fn name(&self, repository: &str) -> Reference {
        Reference::parse(&format!("{}/{repository}", self.address)).expect("name")
    }

    async fn push(&self, repository: &str, tag: &str, sample: &Sample) {
        self.push_blob(repository, &sample.config).await;
        for (layer, _) in &sample.layers {
            self.push_blob(repository, layer).await;
        }
        self.push_manifest(repository, tag, OCI_MANIFEST, &sample.manifest).await;
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let start = self.request(reqwest::Method::POST, &format!("{repository}/blobs/uploads/"));
        let started = start.send().await.expect("upload");
        let location = started.headers()["location"].to_str().expect("text").to_owned();
        let location =
            if location.starts_with('/') { format!("http://{}{location}", self.address) } else { location };
        let url = format!("{location}&digest={}", Digest::of(blob));
        let request = self.with_password(reqwest::Client::new().put(url)).body(blob.to_vec());
        assert_eq!(request.send().await.expect("blob").status(), 201);
    }

    async fn push_manifest(&self, repository: &str, tag: &str, kind: &str, manifest: &[u8]) {
        let request = self.request(reqwest::Method::PUT, &format!("{repository}/manifests/{tag}"));
        let answer =
            request.header("content-type", kind).body(manifest.to_vec()).send().await.expect("manifest");
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap_or_default());
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        install_provider();
        self.with_password(
            reqwest::Client::new().request(method, format!("http://{}/v2/{path}", self.address)),
        )
    }

    fn with_password(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self.password {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

/// Only the tests' own clients need it; the store brings its own.
fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn pull(test: &TestStore, name: &Reference) -> Result<Image, PullError> {
    test.store.pull(name, None, Progress::silent()).await
}

async fn pulled(test: &TestStore, name: &Reference) -> Image {
    pull(test, name).await.unwrap_or_else(|error| panic!("{}", Chain(&error)))
}

fn message(error: &PullError) -> String {
    Chain(error).to_string()
}

#[tokio::test]
async fn an_image_is_pulled_and_tells_how_it_goes() {
    let Some(registry) = Registry::start(None) else { return };
    let sample = two_layers();
    registry.push("some/web", "1", &sample).await;
    let test = store();
    let name = registry.name("some/web:1");
    let (progress, mut events) = Progress::channel();
    let image =
        test.store.pull(&name, None, progress).await.unwrap_or_else(|error| panic!("{}", message(&error)));
    assert_eq!(image.id, sample.id());
    assert_eq!(image.tags, [name.familiar()]);
    assert_eq!(image.digests, [format!("{}@{}", name.familiar_name(), sample.manifest_digest())]);
    assert_eq!(test.store.raw_config(image.id.as_str()).await.expect("config"), sample.config);
    assert_eq!(image.layer_sizes.iter().sum::<u64>(), image.size);

    let mut lines: HashMap<String, Vec<String>> = HashMap::new();
    let mut last = String::new();
    while let Some(event) = events.recv().await {
        last = event.status();
        lines.entry(event.id().unwrap_or_default().to_owned()).or_default().push(event.status());
    }
    assert_eq!(lines["1"], ["Pulling from some/web"]);
    for (layer, _) in &sample.layers {
        let seen = &lines[Digest::of(layer).short()];
        assert_eq!((seen[0].as_str(), seen[seen.len() - 1].as_str()), ("Pulling fs layer", "Pull complete"));
        assert!(seen.contains(&"Download complete".to_owned()), "{seen:?}");
    }
    assert_eq!(last, format!("Status: Downloaded newer image for {}", name.familiar()));

    let (progress, mut events) = Progress::channel();
    test.store.pull(&name, None, progress).await.expect("again");
    while let Some(event) = events.recv().await {
        last = event.status();
    }
    assert_eq!(last, format!("Status: Image is up to date for {}", name.familiar()));
    let descriptor = test.store.distribution(&name, None).await.expect("distribution");
    assert_eq!(descriptor.descriptor.digest, sample.manifest_digest());
    assert_eq!(descriptor.platforms[0].to_string(), "linux/amd64");
}

#[tokio::test]
async fn an_index_gives_the_image_for_the_platform() {
    let Some(registry) = Registry::start(None) else { return };
    let samples =
        ["amd64", "arm64"].map(|architecture| Sample::new(&[tar_of(&[("for", architecture)])], architecture));
    let mut manifests = Vec::new();
    for (sample, architecture) in samples.iter().zip(["amd64", "arm64"]) {
        registry.push("web", sample.manifest_digest().as_str(), sample).await;
        let mut entry = Descriptor::of(OCI_MANIFEST, &sample.manifest);
        entry.platform =
            Some(Platform { os: "linux".into(), architecture: architecture.into(), variant: String::new() });
        manifests.push(entry);
    }
    let index = Index { schema_version: 2, media_type: OCI_INDEX.into(), manifests };
    let index = serde_json::to_vec(&index).expect("json");
    registry.push_manifest("web", "latest", OCI_INDEX, &index).await;
    let test = store_with(|config| config.platform = "linux/amd64".parse().expect("platform"));
    let name = registry.name("web");
    let image = pulled(&test, &name).await;
    assert_eq!(
        (image.id, image.digests),
        (samples[0].id(), vec![format!("{}@{}", name.familiar_name(), Digest::of(&index))])
    );
    let arm: Platform = "linux/arm64".parse().expect("platform");
    let image = test.store.pull_platform(&name, &arm, None, Progress::silent()).await.expect("arm64");
    assert_eq!((&image.id, image.architecture()), (&samples[1].id(), "arm64"));
    let s390x: Platform = "linux/s390x".parse().expect("platform");
    let error = test.store.pull_platform(&name, &s390x, None, Progress::silent()).await.expect_err("no such");
    assert_eq!(message(&error), "no matching manifest for linux/s390x in the manifest list entries");
    assert_eq!(error.kind(), Kind::NotFound);
    let by_digest = name.with_digest(samples[0].manifest_digest());
    assert_eq!(pulled(&test, &by_digest).await.id, samples[0].id());
    assert_eq!(test.store.distribution(&name, None).await.expect("distribution").platforms.len(), 2);
}

#[tokio::test]
async fn a_private_registry_wants_a_password() {
    let Some(registry) = Registry::start(Some(("tester", "secret"))) else { return };
    let sample = two_layers();
    registry.push("web", "latest", &sample).await;
    let test = store();
    let name = registry.name("web");
    let denied = format!(
        "pull access denied for {}, repository does not exist or may require 'docker login'",
        name.familiar_name()
    );
    let error = pull(&test, &name).await.expect_err("anonymous");
    assert!(message(&error).starts_with(&denied), "{}", message(&error));
    assert_eq!(error.kind(), Kind::NotFound);
    let auth = |password: &str| RegistryAuth {
        username: "tester".into(),
        password: password.into(),
        ..Default::default()
    };
    let error =
        test.store.pull(&name, Some(auth("wrong")), Progress::silent()).await.expect_err("wrong password");
    assert!(message(&error).starts_with(&denied), "{}", message(&error));
    let image = test.store.pull(&name, Some(auth("secret")), Progress::silent()).await.expect("pulls");
    assert_eq!(image.id, sample.id());
}

#[tokio::test]
async fn what_is_not_there_is_said_in_dockers_words() {
    let Some(registry) = Registry::start(None) else { return };
    registry.push("web", "1", &two_layers()).await;
    let test = store();
    let before = files(&test);
    let name = registry.name("web:2");
    let error = pull(&test, &name).await.expect_err("no such tag");
    let wanted = format!("manifest for {} not found: manifest unknown: manifest unknown", name.familiar());
    assert_eq!((message(&error), error.kind()), (wanted, Kind::NotFound));
    let error = pull(&test, &registry.name("nothing")).await.expect_err("no such repository");
    assert_eq!(error.kind(), Kind::NotFound, "{}", message(&error));
    let scratch = Reference::parse("scratch").expect("name");
    assert_eq!(message(&pull(&test, &scratch).await.expect_err("reserved")), "'scratch' is a reserved name");
    assert_eq!(files(&test), before);
}

#[tokio::test]
async fn a_flipped_byte_is_refused_by_its_digest_and_leaves_nothing() {
    let Some(registry) = Registry::start(None) else { return };
    let noise: String = (0..20_000_u32)
        .map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26))
        .collect();
    for at in [3, 500, 5000] {
        let sample = Sample::new(&[tar_of(&[("a", "1")]), tar_of(&[("noise", &noise)])], "amd64");
        registry.push("web", "1", &sample).await;
        let digest = Digest::of(&sample.layers[1].0);
        let mut bytes = sample.layers[1].0.clone();
        bytes[at] ^= 1;
        std::fs::write(registry.blob_path(&digest), &bytes).expect("flip");
        let test = store();
        let before = files(&test);
        let error = pull(&test, &registry.name("web:1")).await.expect_err("flipped");
        assert!(message(&error).contains(digest.as_str()), "byte {at}: {}", message(&error));
        assert!(matches!(error, PullError::Layer { .. }), "byte {at}: {}", message(&error));
        assert!(test.store.list().is_empty());
        assert_swept(&test, &before).await;
        std::fs::write(registry.blob_path(&digest), &sample.layers[1].0).expect("flip back");
    }
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_good_one_answers() {
    let Some(registry) = Registry::start(None) else { return };
    let sample = two_layers();
    registry.push("library/web", "1", &sample).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let dead_url = format!("http://{}", dead.local_addr().expect("address"));
    drop(dead);
    let lying = Fake::start(|_| Reply::new(200, b"<html>not a registry</html>".to_vec())).await;
    let empty = Fake::start(|_| Reply::new(404, Vec::new())).await;
    let test = store_with(|config| {
        config.mirrors = vec![dead_url, lying.url(), empty.url(), format!("http://{}", registry.address)];
    });
    let started = Instant::now();
    let image = pulled(&test, &Reference::parse("web:1").expect("name")).await;
    assert_eq!((image.id, image.tags), (sample.id(), vec!["web:1".to_owned()]));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(lying.requests() > 0 && empty.requests() > 0);
}

#[tokio::test]
async fn a_dead_registry_is_noticed_at_once_and_named() {
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = dead.local_addr().expect("address");
    drop(dead);
    let test = store();
    let started = Instant::now();
    let name = Reference::parse(&format!("{address}/web")).expect("name");
    let error = pull(&test, &name).await.expect_err("nobody there");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(
        message(&error).starts_with(&format!("Get \"http://{address}/v2/web/manifests/latest\"")),
        "{}",
        message(&error)
    );
    assert!(message(&error).contains("Connection refused"), "{}", message(&error));
}

#[tokio::test]
async fn pulls_of_one_image_at_one_time_share_the_layers() {
    let sample = two_layers();
    let fake = Fake::serving(&sample, |_| None).await;
    let test = store();
    let name = fake.name("web");
    let pulls = (0..6).map(|_| pull(&test, &name));
    let images = futures_util::future::join_all(pulls).await;
    for image in images {
        assert_eq!(image.unwrap_or_else(|error| panic!("{}", message(&error))).id, sample.id());
    }
    for (layer, _) in &sample.layers {
        assert_eq!(fake.asked(&format!("/blobs/{}", Digest::of(layer))), 1);
    }
}

#[tokio::test]
async fn when_the_first_of_two_pulls_is_dropped_the_second_goes_on() {
    let sample = two_layers();
    let fake = Fake::serving(&sample, |request| {
        request.path.contains("/blobs/").then(|| Reply::slow(Duration::from_millis(300)))
    })
    .await;
    let test = store();
    let name = fake.name("web");
    let first = tokio::time::timeout(Duration::from_millis(100), pull(&test, &name));
    let second = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        pull(&test, &name).await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_err(), "given up");
    assert_eq!(second.unwrap_or_else(|error| panic!("{}", message(&error))).id, sample.id());
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let noise: String = (0..200_000_u32)
        .map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26))
        .collect();
    let sample = Sample::new(&[tar_of(&[("noise", &noise)])], "amd64");
    let layer = format!("/blobs/{}", Digest::of(&sample.layers[0].0));
    let cut = layer.clone();
    let fake = Fake::serving(&sample, move |request| {
        (request.path.ends_with(&cut) && request.range.is_none()).then(|| Reply::cut(50_000))
    })
    .await;
    let test = store();
    let image = pulled(&test, &fake.name("web")).await;
    assert_eq!(image.id, sample.id());
    assert_eq!(fake.asked(&layer), 2);
    assert!(
        fake.log()
            .iter()
            .any(|request| request.range.as_deref().is_some_and(|range| range.starts_with("bytes=")))
    );
}

#[tokio::test]
async fn zstd_and_plain_layers_are_unpacked_too() {
    let (a, b) = (tar_of(&[("a", "1")]), tar_of(&[("b", "2")]));
    let zstd = zstd::encode_all(&a[..], 3).expect("zstd");
    let layers = vec![
        (zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (b.clone(), "application/vnd.oci.image.layer.v1.tar"),
        (gzip(&a), LAYER_GZIP),
    ];
    let sample = Sample::of(&[a.clone(), b, a], layers, "amd64");
    let fake = Fake::serving(&sample, |_| None).await;
    let test = store();
    let image = pulled(&test, &fake.name("web")).await;
    assert_eq!((image.id, image.layers.len(), image.size), (sample.id(), 3, 3));
}

#[tokio::test]
async fn tokens_are_fetched_with_what_the_user_has() {
    let sample = two_layers();
    let table = [
        (None, "GET", ""),
        (
            Some(RegistryAuth { username: "u".into(), password: "p".into(), ..Default::default() }),
            "GET",
            "Basic dTpw",
        ),
        (Some(RegistryAuth { identitytoken: "refresh".into(), ..Default::default() }), "POST", ""),
    ];
    for (auth, method, authorization) in table {
        let fake = Fake::serving(&sample, |request| {
            if request.path.starts_with("/token") {
                return Some(Reply::new(200, br#"{"token":"good","expires_in":300}"#.to_vec()));
            }
            (request.authorization != "Bearer good").then(|| Reply::unauthorized(&request.host))
        })
        .await;
        let test = store();
        let name = fake.name("some/web");
        let image = test.store.pull(&name, auth, Progress::silent()).await;
        assert_eq!(image.unwrap_or_else(|error| panic!("{}", message(&error))).id, sample.id());
        let log = fake.log();
        let token = log.iter().find(|request| request.path.starts_with("/token")).expect("asked");
        assert_eq!((token.method.as_str(), token.authorization.as_str()), (method, authorization));
        let asked = format!("{}&{}", token.path, token.body);
        assert!(
            asked.contains("scope=repository%3Asome%2Fweb%3Apull") && asked.contains("service=fake"),
            "{asked}"
        );
        assert_eq!(token.body.contains("refresh_token=refresh"), method == "POST");
        assert_eq!(
            log.iter().filter(|request| request.path.starts_with("/token")).count(),
            1,
            "one token for all"
        );
    }
}

#[tokio::test]
async fn a_stream_without_end_is_broken_off_at_its_promised_size() {
    let sample = two_layers();
    let layer = format!("/blobs/{}", Digest::of(&sample.layers[0].0));
    let fake = Fake::serving(&sample, move |request| {
        request.path.ends_with(&layer).then(|| Reply::new(200, vec![0x1f; 64 << 20]))
    })
    .await;
    let test = store();
    let before = files(&test);
    let error = pull(&test, &fake.name("web")).await.expect_err("refused");
    assert!(message(&error).contains("more than the promised"), "{}", message(&error));
    assert_swept(&test, &before).await;
}

/// What a client asked the fake.
#[derive(Debug, Clone, Default)]
struct Request {
    method: String,
    path: String,
    host: String,
    authorization: String,
    range: Option<String>,
    body: String,
}

/// What the fake answers.
#[derive(Debug, Clone, Default)]
struct Reply {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// Send the real answer's first bytes only.
    cut: Option<usize>,
    /// Send the real answer, later.
    delay: Option<Duration>,
}

impl Reply {
    fn new(status: u16, body: Vec<u8>) -> Reply {
        Reply { status, body, ..Reply::default() }
    }

    fn cut(bytes: usize) -> Reply {
        Reply { cut: Some(bytes), ..Reply::default() }
    }

    fn slow(delay: Duration) -> Reply {
        Reply { delay: Some(delay), ..Reply::default() }
    }

    fn unauthorized(host: &str) -> Reply {
        let headers = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"fake\"\r\n");
        Reply { status: 401, headers, ..Reply::default() }
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// A registry that misbehaves as told. Ends with the test's runtime.
struct Fake {
    address: String,
    log: Arc<Mutex<Vec<Request>>>,
    _serving: JoinSet<()>,
}

impl Fake {
    async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&log));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                connections.spawn(async move { serve(stream, &*answer, &seen).await });
            }
        });
        Fake { address, log, _serving: serving }
    }

    /// Serves an image under every name; `other` may answer something else.
    async fn serving(
        sample: &Sample,
        other: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Fake {
        let mut blobs: HashMap<String, Vec<u8>> = HashMap::new();
        blobs.insert(sample.id().to_string(), sample.config.clone());
        blobs.insert(sample.manifest_digest().to_string(), sample.manifest.clone());
        blobs.extend(sample.layers.iter().map(|(bytes, _)| (Digest::of(bytes).to_string(), bytes.clone())));
        let manifest = sample.manifest_digest().to_string();
        Fake::start(move |request| {
            let last = request.path.rsplit('/').next().unwrap_or_default();
            let key = if request.path.contains("/manifests/") { manifest.as_str() } else { last };
            let mut real =
                blobs.get(key).map_or(Reply::new(404, Vec::new()), |blob| Reply::new(200, blob.clone()));
            if let Some(range) = request.range.as_ref().and_then(|range| range.strip_prefix("bytes=")) {
                let start: usize = range.trim_end_matches('-').parse().expect("range");
                real.status = 206;
                real.body.drain(..start);
            }
            match other(request) {
                None => real,
                Some(change) if change.status == 0 => Reply { cut: change.cut, delay: change.delay, ..real },
                Some(reply) => reply,
            }
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn name(&self, repository: &str) -> Reference {
        Reference::parse(&format!("{}/{repository}", self.address)).expect("name")
    }

    fn log(&self) -> Vec<Request> {
        self.log.lock().expect("log").clone()
    }

    fn requests(&self) -> usize {
        self.log().len()
    }

    fn asked(&self, end: &str) -> usize {
        self.log().iter().filter(|request| request.path.ends_with(end)).count()
    }
}

/// One request, one answer.
async fn serve(mut stream: TcpStream, answer: &Answer, seen: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 || bytes.first() == Some(&0x16) {
            return Ok(()); // a TLS greeting, for one
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
        line.map(|line| line[name.len() + 2..].trim().to_owned())
    };
    let length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() < end + length && stream.read_buf(&mut bytes).await? > 0 {}
    let mut words = head.split_whitespace();
    let request = Request {
        method: words.next().unwrap_or_default().to_owned(),
        path: words.next().unwrap_or_default().to_owned(),
        host: header("host").unwrap_or_default(),
        authorization: header("authorization").unwrap_or_default(),
        range: header("range"),
        body: String::from_utf8_lossy(&bytes[end..]).into_owned(),
    };
    seen.lock().expect("log").push(request.clone());
    let reply = answer(&request);
    if let Some(delay) = reply.delay {
        tokio::time::sleep(delay).await;
    }
    let (status, length) = (reply.status, reply.body.len());
    let head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{}\r\n",
        reply.headers
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(length).min(length)]).await?;
    stream.shutdown().await
}
