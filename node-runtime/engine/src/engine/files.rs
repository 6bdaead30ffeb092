//! Files in and out of containers, and images made of them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rswarm_base::Chain;
use rswarm_image::stream::pipe;
use rswarm_image::{Change, CommitOptions, Image, ImageConfig, Reference};
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::Engine;
use crate::blocking::blocking;
use crate::commit;
use crate::container::{Container, MountKind, Request, Status};
use crate::error::Cause;
use crate::filesystem::copy::{self, CHUNKS_MAX, ChunkWriter};
use crate::filesystem::view::{Bind, Extent, View};
use crate::filesystem::{CopyError, PathStat, PutOptions};
use crate::metrics::timed;
use crate::spec::VolumeSource;

/// An archive on its way to a client. An error in it is its end.
pub type Archive = mpsc::Receiver<io::Result<Bytes>>;

/// A container whose file system is being used: until it is dropped, the container is neither started nor
/// removed, so that nobody else mounts its layers or takes them away.
#[derive(Debug)]
pub(crate) struct Access {
    /// The first process of one that runs.
    pub pid: Option<i32>,
    /// Keeps starts and removals waiting.
    pub _hold: OwnedSemaphorePermit,
}

/// How an image is made of a container.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// The name that it gets.
    pub reference: Option<Reference>,
    /// What wins over the container's own configuration; `None` is all of that.
    pub config: Option<ImageConfig>,
    /// Dockerfile instructions that shape the configuration further.
    pub changes: Vec<String>,
    /// Who made it.
    pub author: String,
    /// Free text.
    pub comment: String,
    /// Whether a running container is frozen meanwhile.
    pub pause: bool,
}

impl Engine {
    /// What there is at a path in a container; a link at its end is not followed, unless a slash or a dot
    /// comes after it.
    ///
    /// # Errors
    /// When there is nothing.
    pub async fn stat_path(&self, reference: &str, path: &str) -> Result<PathStat, CopyError> {
        let (path, name) = (path.to_owned(), reference.to_owned());
        let stat = move |root: OwnedFd| copy::stat(&root, &path, &name);
        let (container, view, access) = self.view(reference, "copy from").await?;
        within(container, view, access, Extent::Mounts, stat).await?
    }

    /// Reads what is at a path, as an archive that begins with its last part.
    ///
    /// # Errors
    /// When there is nothing.
    pub async fn get_archive(&self, reference: &str, path: &str) -> Result<(PathStat, Archive), CopyError> {
        let (container, view, access) = self.view(reference, "copy from").await?;
        let (known, stat) = oneshot::channel();
        let (chunks, archive) = mpsc::channel(CHUNKS_MAX);
        let (path, name, shown) = (path.to_owned(), reference.to_owned(), container.clone());
        let engine = self.clone();
        let read = move |root: OwnedFd| {
            let found = copy::stat(&root, &path, &name);
            let exists = found.is_ok();
            // The client may have gone away.
            let _ = known.send(found);
            if exists {
                engine.shared.event(&shown, "archive-path", &[]);
                send(chunks, |out| copy::get(&root, &path, out));
            }
        };
        let id = container.id.clone();
        let reading = within(container, view, access, Extent::Mounts, read);
        let (failed, failure) = oneshot::channel();
        self.shared.scope.spawn(async move {
            if let Err(error) = reading.await {
                let _ = failed.send(error);
            }
        });
        match stat.await {
            Ok(stat) => Ok((stat?, archive)),
            // It could not even be looked at.
            Err(_) => Err(failure.await.unwrap_or_else(|_| CopyError::View {
                container: id,
                source: io::ErrorKind::Interrupted.into(),
            })),
        }
    }

    /// Unpacks an archive (plain, gzip or zstd) into a directory of a container.
    ///
    /// # Errors
    /// When there is no such directory, it is read-only, or the archive cannot be unpacked; what came before
    /// the failure stays.
    pub async fn put_archive(
        &self,
        reference: &str,
        path: &str,
        options: PutOptions,
        archive: impl AsyncRead + Send + Unpin,
    ) -> Result<(), CopyError> {
        let (container, view, access) = self.view(reference, "copy to").await?;
        let (sender, reader) = pipe();
        let (path, name, target) = (path.to_owned(), reference.to_owned(), container.clone());
        let write = move |root: OwnedFd| copy::put(root, &path, &target, &name, options, reader);
        let writing = within(container.clone(), view, access, Extent::Mounts, write);
        let (sent, written) = tokio::join!(sender.send_all(archive), writing);
        written??;
        sent.map_err(CopyError::Read)?;
        self.shared.event(&container, "extract-to-dir", &[]);
        Ok(())
    }

    /// Reads a container's whole file system, without what is mounted in it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn export(&self, reference: &str) -> Result<Archive, CopyError> {
        let (container, view, access) = self.view(reference, "export").await?;
        let (chunks, archive) = mpsc::channel(CHUNKS_MAX);
        let (ready, begun) = oneshot::channel();
        let read = move |root: OwnedFd| {
            let _ = ready.send(());
            send(chunks, |out| copy::export(&root, out));
        };
        let reading = within(container.clone(), view, access, Extent::Root, read);
        let (failed, failure) = oneshot::channel();
        self.shared.scope.spawn(async move {
            if let Err(error) = reading.await {
                let _ = failed.send(error);
            }
        });
        if begun.await.is_err() {
            return Err(failure.await.unwrap_or_else(|_| CopyError::View {
                container: container.id.clone(),
                source: io::ErrorKind::Interrupted.into(),
            }));
        }
        self.shared.event(&container, "export", &[]);
        Ok(archive)
    }

    /// What a container changed in its file system.
    ///
    /// # Errors
    /// When its layers cannot be read.
    pub async fn changes(&self, reference: &str) -> Result<Vec<Change>, CopyError> {
        let container = self.find(reference)?.container();
        let work = self.shared.images.changes(&container.id);
        Ok(timed(&self.shared.instruments.changes, work).await.map_err(Cause::new)?)
    }

    /// Makes an image of a container.
    ///
    /// # Errors
    /// When a change cannot be made, or the image cannot be stored.
    pub async fn commit(&self, reference: &str, request: CommitRequest) -> Result<Image, CopyError> {
        let container = self.find(reference)?.container();
        let mut config = request.config.unwrap_or_else(|| commit::config_of(&container));
        rswarm_image::apply_changes(&mut config, &request.changes).map_err(Cause::new)?;
        commit::fill_up(&mut config, &container);
        let shown = request.reference.as_ref().map(Reference::familiar).unwrap_or_default();
        let options = CommitOptions {
            image: container.image_id.clone(),
            reference: request.reference,
            config,
            author: request.author,
            comment: request.comment.clone(),
        };
        // Frozen first: whoever holds the files must not wait for the container's actor.
        let frozen = request.pause && self.freeze(&container).await;
        let work = self.commit_files(&container.id, options);
        let made = timed(&self.shared.instruments.commit, work).await;
        if frozen {
            self.thaw(&container.id).await;
        }
        let image = made?;
        let attributes =
            [("comment", request.comment), ("imageID", image.id.to_string()), ("imageRef", shown)];
        self.shared.event(&container, "commit", &attributes);
        Ok(image)
    }

    async fn commit_files(&self, id: &str, options: CommitOptions) -> Result<Image, CopyError> {
        let (_, _, _access) = self.view(id, "commit").await?;
        Ok(self.shared.images.commit(id, options).await.map_err(Cause::new)?)
    }

    /// Freezes a container that runs. One that ends meanwhile is still enough; so it is for Docker.
    async fn freeze(&self, container: &Container) -> bool {
        if container.state.status != Status::Running {
            return false;
        }
        let frozen = self.pause(&container.id).await;
        if let Err(error) = &frozen {
            tracing::debug!(container.id = container.id, error = %Chain(error), "committed without a pause");
        }
        frozen.is_ok()
    }

    async fn thaw(&self, id: &str) {
        if let Err(error) = self.unpause(id).await {
            tracing::debug!(container.id = id, error = %Chain(&error), "not thawed: it ended, or somebody did");
        }
    }

    /// How to get at a container's file system.
    async fn view(&self, reference: &str, what: &str) -> Result<(Arc<Container>, View, Access), CopyError> {
        let handle = self.find(reference)?;
        let access = handle.ask(Request::Files).await?;
        let container = handle.container();
        let unreachable = |source| CopyError::View { container: container.id.clone(), source };
        let state = match container.state.status {
            Status::Dead => "which is Dead",
            Status::Removing => "which is being removed",
            Status::Created | Status::Running | Status::Paused | Status::Restarting | Status::Exited => "",
        };
        if !state.is_empty() {
            return Err(CopyError::Conflict(format!("You cannot {what} container {} {state}", container.id)));
        }
        if let Some(pid) = access.pid {
            let namespace = File::open(format!("/proc/{pid}/ns/mnt")).map_err(unreachable)?;
            return Ok((container, View::Running(namespace), access));
        }
        let layers = self.shared.images.layers(&container.id).map_err(Cause::new)?;
        let view = View::Stopped { layers, stage: container.dir.clone(), binds: self.binds(&container) };
        Ok((container, view, access))
    }

    /// What is mounted in a container that does not run: what the engine wrote for its last run, volumes and
    /// binds, parents first. A volume that is a file system of its own is there only while it runs.
    fn binds(&self, container: &Container) -> Vec<Bind> {
        let engines = ["resolv.conf", "hostname", "hosts"].map(|name| Bind {
            source: container.dir.join(name),
            destination: format!("/etc/{name}"),
            writable: true,
        });
        let mut binds: Vec<Bind> = engines.into_iter().filter(|bind| bind.source.exists()).collect();
        for mount in container.mounts.iter() {
            let source = match mount.kind {
                MountKind::Tmpfs => continue,
                MountKind::Bind => mount.source.clone(),
                MountKind::Volume => match self.shared.volumes.get(&mount.name).map(|volume| volume.source())
                {
                    Ok(VolumeSource::Directory(path)) => path,
                    Ok(VolumeSource::Filesystem(..)) | Err(_) => continue,
                },
            };
            binds.retain(|bind| bind.destination != mount.destination);
            binds.push(Bind {
                source: source.into(),
                destination: mount.destination.clone(),
                writable: mount.writable,
            });
        }
        binds.sort_by_key(|bind| bind.destination.matches('/').count());
        binds
    }
}

/// Does `work` with a container's root directory, on a thread that may wait.
async fn within<T: Send + 'static>(
    container: Arc<Container>,
    view: View,
    access: Access,
    extent: Extent,
    work: impl FnOnce(OwnedFd) -> T + Send + 'static,
) -> Result<T, CopyError> {
    let done = blocking(move || {
        let done = view.within(extent, work);
        drop(access);
        done
    });
    done.await.map_err(|source| CopyError::View { container: container.id.clone(), source })
}

/// Writes an archive to a client. What goes wrong on the way is the end of the stream.
fn send(chunks: mpsc::Sender<io::Result<Bytes>>, write: impl FnOnce(ChunkWriter) -> io::Result<()>) {
    if let Err(error) = write(ChunkWriter::new(chunks.clone())) {
        // A client that has gone away needs no explanation.
        let _ = chunks.blocking_send(Err(error));
    }
}
