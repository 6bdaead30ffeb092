//! How fast a layer is taken in: hashed twice, decompressed, unpacked, made durable. Needs root.
//!
//! `cargo run --release -p rswarm-image --example unpack [LAYER.tar[.gz|.zst]]`; without a layer it makes one
//! of many small files and a few large ones. The store lies in the directory that `TMPDIR` names.

use std::fs;
use std::io::{self, Write};
use std::time::Instant;

use rswarm_image::{ImageStore, ImportOptions, StoreConfig};

const SMALL_FILES: usize = 10_000;
const LARGE_FILES: usize = 10;
const LARGE_BYTES: usize = 8 << 20;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> io::Result<()> {
    let layer = match std::env::args().nth(1) {
        Some(path) => fs::read(path)?,
        None => sample()?,
    };
    let mut out = io::stdout();
    for _ in 0..ROUNDS {
        let dir = std::env::temp_dir().join(format!("rswarm-unpack-{}", std::process::id()));
        let store = ImageStore::open(StoreConfig::new(dir.clone())).map_err(io::Error::other)?;
        let started = Instant::now();
        let image = store.import(&layer[..], ImportOptions::default()).await.map_err(io::Error::other)?;
        let seconds = started.elapsed().as_secs_f64();
        let megabytes = image.size as f64 / 1e6;
        writeln!(out, "{megabytes:.0} MB in files, {seconds:.2} s, {:.0} MB/s", megabytes / seconds)?;
        drop(store);
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Text-like bytes: neither all alike nor noise.
fn sample() -> io::Result<Vec<u8>> {
    let text: Vec<u8> =
        (0..LARGE_BYTES as u32).map(|i| b' ' + (i.wrapping_mul(2_654_435_761) >> 27) as u8).collect();
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let mut add = |name: String, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data)
    };
    for at in 0..SMALL_FILES {
        add(format!("usr/share/doc/package{}/file{at}", at / 20), &text[at..at + at % 8000])?;
    }
    for at in 0..LARGE_FILES {
        add(format!("usr/lib/large{at}"), &text)?;
    }
    tar.into_inner()?.finish()
}
