//! The demo image: this very binary, alone in an image made `FROM scratch`.

use std::fs::File;
use std::io;

use bytes::Bytes;
use futures_util::Stream;

/// The image's name.
pub const IMAGE: &str = "rswarm-demo:latest";
/// What its configuration is made of.
pub const CHANGES: [&str; 2] = [r#"ENTRYPOINT ["/rswarm","whoami"]"#, "EXPOSE 80"];

/// The archive of the image's file system.
pub fn archive() -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let exe = File::open("/proc/self/exe")?;
    let header = header(exe.metadata()?.len())?;
    let body = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(exe), 256 << 10);
    let end = futures_util::stream::iter([Ok(end(&header)?)]);
    let header = Bytes::copy_from_slice(header.as_bytes());
    use futures_util::StreamExt;
    Ok(futures_util::stream::iter([Ok(header)]).chain(body).chain(end))
}

fn header(size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path("rswarm")?;
    header.set_size(size);
    header.set_mode(0o755);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

/// Padding to a whole block, then two empty blocks.
fn end(header: &tar::Header) -> io::Result<Bytes> {
    let padding = (512 - header.size()? % 512) % 512;
    Ok(Bytes::from(vec![0; usize::try_from(padding).unwrap_or(0) + 1024]))
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn the_archive_holds_this_binary() {
        let bytes: Vec<Bytes> = archive().expect("opens").try_collect().await.expect("reads");
        let bytes = bytes.concat();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries: Vec<_> =
            archive.entries().expect("entries").map(|entry| entry.expect("an entry")).collect();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].path().expect("a path").to_str(), Some("rswarm"));
        assert_eq!(entries[0].size(), std::fs::metadata("/proc/self/exe").expect("own").len());
    }
}
