//! Network namespaces: made, opened, entered, pinned. A thread is made for each visit, so that no thread
//! of the runtime ever changes its namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use rswarm_base::ipam::Family;
use tokio::sync::oneshot;

use crate::error::{KernelError, NetnsError};
use crate::link::Route;

/// `statfs` type of a namespace file; a pin that is a plain file lost its mount to a reboot.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace held open. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct Netns(Arc<OwnedFd>);

impl Netns {
    /// A path by which any process of this machine opens the namespace, while this value lives.
    #[must_use]
    pub fn fd_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// The namespace of the calling thread.
    pub(crate) fn current() -> io::Result<Netns> {
        Netns::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new namespace with its loopback up.
    pub(crate) async fn create() -> Result<Netns, NetnsError> {
        let made = on_thread(None, || -> Result<Netns, NetnsError> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NetnsError::Create(errno.into()))?;
            let netns = Netns::current().map_err(NetnsError::Create)?;
            let up = Route::open().and_then(|mut route| route.set_up("lo"));
            up.map_err(|source| KernelError { action: "loopback could not be brought up".into(), source })?;
            Ok(netns)
        });
        made.await.map_err(NetnsError::Create)?
    }

    /// The namespace of a process.
    pub(crate) fn of_process(pid: i32) -> Result<Netns, NetnsError> {
        Netns::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
            .map_err(|source| NetnsError::Open { pid, source })
    }

    fn open(path: &Path) -> io::Result<Netns> {
        Ok(Netns(Arc::new(File::open(path)?.into())))
    }

    /// Whether both are the same namespace.
    pub(crate) fn is_same(&self, other: &Netns) -> bool {
        let identity = |netns: &Netns| rustix::fs::fstat(netns).map(|stat| (stat.st_dev, stat.st_ino));
        identity(self).is_ok_and(|ours| identity(other) == Ok(ours))
    }

    /// The raw descriptor, for netlink attributes.
    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Runs blocking work on a thread inside the namespace. Sockets that it opens stay in the namespace.
    pub(crate) async fn run<R, F>(&self, work: F) -> io::Result<R>
    where
        R: Send + 'static,
        F: FnOnce() -> R + Send + 'static,
    {
        on_thread(Some(self.clone()), work).await
    }

    /// [`Netns::run`] for work that fails: names what was tried.
    pub(crate) async fn act<R, F>(&self, action: impl Into<String>, work: F) -> Result<R, KernelError>
    where
        R: Send + 'static,
        F: FnOnce() -> io::Result<R> + Send + 'static,
    {
        let done = self.run(work).await.and_then(std::convert::identity);
        done.map_err(|source| KernelError { action: action.into(), source })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `work` on a thread of its own, inside `netns` if there is one.
async fn on_thread<R, F>(netns: Option<Netns>, work: F) -> io::Result<R>
where
    R: Send + 'static,
    F: FnOnce() -> R + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let body = move || {
        let entered = match &netns {
            Some(netns) => nix::sched::setns(netns, CloneFlags::CLONE_NEWNET),
            None => Ok(()),
        };
        // The caller may have gone away; the work was done all the same.
        let _ = reply.send(entered.map(|()| work()).map_err(io::Error::from));
    };
    std::thread::Builder::new().name("netns".to_owned()).spawn(body)?;
    answer.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
}

/// The directory of pinned namespaces; a mount of its own from the first pin on.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    dir: PathBuf,
    /// Held while the directory is made a mount.
    mounting: Arc<Mutex<()>>,
}

impl Pins {
    /// Makes the directory.
    pub(crate) fn open(dir: &Path) -> io::Result<Pins> {
        fs::create_dir_all(dir)?;
        Ok(Pins { dir: dir.canonicalize()?, mounting: Arc::default() })
    }

    /// A private bind mount of itself: what is pinned below spreads to no other mount namespace.
    fn be_private(&self) -> io::Result<()> {
        let _one_at_a_time = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_mount_point(&self.dir)? {
            mount(Some(&self.dir), &self.dir, MsFlags::MS_BIND)?;
        }
        mount(None, &self.dir, MsFlags::MS_PRIVATE)
    }

    /// The pin of that name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The namespace pinned under that name, if there is one.
    pub(crate) fn find(&self, name: &str) -> io::Result<Option<Netns>> {
        match Netns::open(&self.path(name)) {
            Ok(netns) if rustix::fs::fstatfs(&netns)?.f_type == NSFS_MAGIC => Ok(Some(netns)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pins a namespace.
    pub(crate) fn pin(&self, name: &str, netns: &Netns) -> io::Result<()> {
        self.be_private()?;
        let path = self.path(name);
        File::create(&path)?;
        mount(Some(&netns.fd_path()), &path, MsFlags::MS_BIND)
    }

    /// Lets go of a pinned namespace, in every mount namespace: removing the file detaches it there too.
    pub(crate) fn unpin(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        match nix::mount::umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The names of all pins, but those that are no network's: they begin with a dot.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.filter(|name| !name.as_ref().is_ok_and(|name: &String| name.starts_with('.'))).collect()
    }

    /// Removes the directory and its mount; the directory must be empty.
    pub(crate) fn close(&self) -> io::Result<()> {
        match nix::mount::umount2(&self.dir, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn mount(source: Option<&Path>, target: &Path, flags: MsFlags) -> io::Result<()> {
    Ok(nix::mount::mount(source, target, None::<&str>, flags, None::<&str>)?)
}

/// Whether something is mounted on the path, by `/proc/self/mountinfo` (a bind mount of a directory on
/// itself cannot be told by device numbers).
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let escaped = path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(escaped.as_str())))
}

/// The families that the kernel has: one that was started without IPv6 shows none of its settings.
pub(crate) fn families() -> Vec<Family> {
    let has_v6 = Path::new("/proc/sys/net/ipv6").exists();
    Family::ALL.into_iter().filter(|family| *family == Family::V4 || has_v6).collect()
}

/// Has an interface in the calling thread's namespace speak IPv6, or not. What it has is what it is given: it
/// listens to no router, and waits for nobody to object to an address.
pub(crate) fn set_ipv6(interface: &str, on: bool) {
    if !families().contains(&Family::V6) {
        return;
    }
    let set = |key: &str, value| set_sysctl(&format!("ipv6/conf/{interface}/{key}"), value);
    if on {
        set("accept_ra", "0");
        set("accept_redirects", "0");
        set("accept_dad", "0");
    }
    set("disable_ipv6", if on { "0" } else { "1" });
}

/// Lets the calling thread's namespace forward IPv6. Interfaces that listen to routers go on doing so, as they
/// otherwise would not: the host would lose its own default route.
/// spec: kernel Documentation/networking/ip-sysctl.rst accept_ra
pub(crate) fn forward_ipv6() {
    const CONF: &str = "/proc/sys/net/ipv6/conf";
    if fs::read_to_string(format!("{CONF}/all/forwarding")).is_ok_and(|now| now.trim() == "1") {
        return;
    }
    for entry in fs::read_dir(CONF).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let listens =
            || fs::read_to_string(entry.path().join("accept_ra")).is_ok_and(|now| now.trim() == "1");
        if name != "all" && listens() {
            set_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "2");
        }
    }
    set_sysctl("ipv6/conf/default/forwarding", "1");
    set_sysctl("ipv6/conf/all/forwarding", "1");
}

/// Writes a setting of the calling thread's network namespace, such as `ipv4/ip_forward`. One that the
/// namespace lacks, or that may not be written, is skipped with a warning: traffic may still flow.
pub(crate) fn set_sysctl(key: &str, value: &str) {
    let path = format!("/proc/sys/net/{key}");
    // Read first: under a read-only /proc a setting that is right already needs no write.
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return;
    }
    if let Err(error) = fs::write(&path, value) {
        tracing::warn!(setting = key, value, %error, "network setting skipped");
    }
}
