//! What a pull, a load or an import tells while it works, in Docker's words.

use tokio::sync::mpsc;

/// Events that wait for a slow reader. Beyond half of it byte counts are left out, statuses never.
const EVENTS_MAX: usize = 4096;

/// One line of progress. The three accessors give what Docker's JSON stream carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgressEvent {
    /// A pull begins; the id is the tag or digest.
    PullingFrom {
        /// `library/web`.
        repository: String,
        /// `latest`.
        tag: String,
    },
    /// One layer moved on.
    Layer {
        /// The first twelve digits of its digest.
        id: String,
        /// How far it is.
        state: LayerState,
    },
    /// A push begins: to which repository.
    PushRefersTo(String),
    /// A push ended.
    PushedTag {
        /// `latest`.
        tag: String,
        /// The manifest's digest.
        digest: String,
        /// The manifest's bytes.
        size: u64,
    },
    /// The manifest's digest.
    Digest(String),
    /// The pull changed nothing.
    UpToDate(String),
    /// The pull brought a new image.
    Downloaded(String),
    /// A whole line for people: a warning, or what was loaded.
    Message(String),
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// It is going to be fetched.
    PullingFsLayer,
    /// Others are first.
    Waiting,
    /// Bytes come in, and are unpacked while they do.
    Downloading {
        /// Bytes so far.
        current: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The connection broke; the next attempt comes in so many seconds.
    Retrying(u64),
    /// All bytes are here.
    DownloadComplete,
    /// Unpacking from local bytes.
    Extracting {
        /// Bytes so far.
        current: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Downloaded, verified and unpacked.
    PullComplete,
    /// Nothing to do.
    AlreadyExists,
    /// It is going to be sent.
    Preparing,
    /// Bytes go out.
    Pushing {
        /// Bytes so far.
        current: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The registry has all of it.
    Pushed,
    /// The registry had it.
    LayerAlreadyExists,
    /// Read from an archive (`docker load`).
    Loading {
        /// Bytes so far.
        current: u64,
        /// Bytes in all.
        total: u64,
    },
}

impl ProgressEvent {
    /// Docker's `status`.
    #[must_use]
    pub fn status(&self) -> String {
        match self {
            Self::PullingFrom { repository, .. } => format!("Pulling from {repository}"),
            Self::Layer { state, .. } => state.status(),
            Self::PushRefersTo(name) => format!("The push refers to repository [{name}]"),
            Self::PushedTag { tag, digest, size } => format!("{tag}: digest: {digest} size: {size}"),
            Self::Digest(digest) => format!("Digest: {digest}"),
            Self::UpToDate(reference) => format!("Status: Image is up to date for {reference}"),
            Self::Downloaded(reference) => format!("Status: Downloaded newer image for {reference}"),
            Self::Message(text) => text.clone(),
        }
    }

    /// Docker's `id`.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::PullingFrom { tag, .. } => Some(tag),
            Self::Layer { id, .. } => Some(id),
            Self::PushRefersTo(_)
            | Self::PushedTag { .. }
            | Self::Digest(_)
            | Self::UpToDate(_)
            | Self::Downloaded(_)
            | Self::Message(_) => None,
        }
    }

    /// Docker's `progressDetail`: current and total.
    #[must_use]
    pub fn detail(&self) -> Option<(u64, u64)> {
        let Self::Layer { state, .. } = self else { return None };
        match *state {
            LayerState::Downloading { current, total }
            | LayerState::Extracting { current, total }
            | LayerState::Pushing { current, total }
            | LayerState::Loading { current, total } => Some((current, total)),
            LayerState::PullingFsLayer
            | LayerState::Waiting
            | LayerState::Retrying(_)
            | LayerState::DownloadComplete
            | LayerState::PullComplete
            | LayerState::Preparing
            | LayerState::Pushed
            | LayerState::LayerAlreadyExists
            | LayerState::AlreadyExists => None,
        }
    }
}

impl LayerState {
    fn status(self) -> String {
        match self {
            Self::PullingFsLayer => "Pulling fs layer".to_owned(),
            Self::Waiting => "Waiting".to_owned(),
            Self::Downloading { .. } => "Downloading".to_owned(),
            Self::Retrying(1) => "Retrying in 1 second".to_owned(),
            Self::Retrying(seconds) => format!("Retrying in {seconds} seconds"),
            Self::DownloadComplete => "Download complete".to_owned(),
            Self::Extracting { .. } => "Extracting".to_owned(),
            Self::PullComplete => "Pull complete".to_owned(),
            Self::AlreadyExists => "Already exists".to_owned(),
            Self::Preparing => "Preparing".to_owned(),
            Self::Pushing { .. } => "Pushing".to_owned(),
            Self::Pushed => "Pushed".to_owned(),
            Self::LayerAlreadyExists => "Layer already exists".to_owned(),
            Self::Loading { .. } => "Loading layer".to_owned(),
        }
    }
}

/// Where progress goes. Never blocks the work: a reader that stands still loses events, not the pull.
#[derive(Debug, Clone, Default)]
pub struct Progress(Option<mpsc::Sender<ProgressEvent>>);

impl Progress {
    /// A sender and the receiver that the caller reads until it ends.
    #[must_use]
    pub fn channel() -> (Progress, mpsc::Receiver<ProgressEvent>) {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        (Progress(Some(sender)), receiver)
    }

    /// For callers that do not look.
    #[must_use]
    pub fn silent() -> Progress {
        Progress(None)
    }

    pub(crate) fn send(&self, event: ProgressEvent) {
        let Some(sender) = &self.0 else { return };
        if event.detail().is_none() || sender.capacity() > EVENTS_MAX / 2 {
            let _ = sender.try_send(event);
        }
    }

    pub(crate) fn layer(&self, id: &str, state: LayerState) {
        self.send(ProgressEvent::Layer { id: id.to_owned(), state });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_dockers() {
        let event = ProgressEvent::Layer {
            id: "0123456789ab".to_owned(),
            state: LayerState::Downloading { current: 1, total: 2 },
        };
        assert_eq!(
            (event.status().as_str(), event.id(), event.detail()),
            ("Downloading", Some("0123456789ab"), Some((1, 2)))
        );
        let event = ProgressEvent::Downloaded("web:latest".to_owned());
        assert_eq!(event.status(), "Status: Downloaded newer image for web:latest");
    }

    #[test]
    fn a_reader_that_stands_still_loses_byte_counts_but_no_status() {
        let (progress, mut receiver) = Progress::channel();
        for current in 0..EVENTS_MAX as u64 {
            progress.layer("x", LayerState::Downloading { current, total: 9 });
        }
        progress.layer("x", LayerState::PullComplete);
        let mut last = None;
        while let Ok(event) = receiver.try_recv() {
            last = Some(event);
        }
        assert_eq!(last.map(|event| event.status()).as_deref(), Some("Pull complete"));
    }
}
