//! `start`.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use oci_spec::runtime::ContainerState;
use rustix::event::{PollFd, PollFlags};

use super::args::Order;
use super::store::{Entry, FIFO, Status};
use super::{Call, Command, delete};
use crate::failure::{Context, Failure};
use crate::hooks;

pub(super) const START: Command = Command {
    name: "start",
    args: "ID",
    about: "run the command of a container that was made",
    flags: &[],
    order: Order::Anywhere,
    run: |call: &Call<'_>| start(&call.store.hold(call.args.only_id()?)?).map(|()| 0),
};

/// Lets init run: opening its FIFO is the word, and what comes out of it is why it could not.
pub(super) fn start(entry: &Entry) -> Result<(), Failure> {
    match entry.status()? {
        Status::Created => {}
        Status::Stopped => return Err(Failure::invalid("cannot start a container that has stopped")),
        Status::Running => return Err(Failure::invalid("cannot start an already running container")),
        other => {
            return Err(Failure::invalid(format!("cannot start a container in the {} state", other.name())));
        }
    }
    // Before the word is given: after it, init may be gone at any moment.
    let init = entry.init()?;
    let path = entry.dir.join(FIFO);
    let fifo = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .context("open the start FIFO")?;
    let said = hear(&fifo, &init)?;
    fs::remove_file(&path).context("remove the start FIFO")?;
    if let Ok(failure) = serde_json::from_slice::<Failure>(&said) {
        return Err(failure);
    }
    // spec: oci-runtime runtime.md#lifecycle step 9: stop the container, and go on with its destruction.
    run_hooks(entry).inspect_err(|_| drop(delete::destroy(entry)))
}

fn run_hooks(entry: &Entry) -> Result<(), Failure> {
    if !entry.record.has_hooks {
        return Ok(());
    }
    let spec = entry.spec()?;
    hooks::poststart(&spec, &entry.hook_state(&spec, ContainerState::Running))
}

/// Reads until the writer closes or init ends. What was said is read after the end was seen: one poll may
/// look at the FIFO before the last words and at init after its death.
fn hear(fifo: &File, init: &OwnedFd) -> Result<Vec<u8>, Failure> {
    let mut said = Vec::new();
    loop {
        let mut fds = [PollFd::new(fifo, PollFlags::IN), PollFd::new(init, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.context("wait for init")?,
        };
        let silent = fds[0].revents().contains(PollFlags::HUP) || !fds[1].revents().is_empty();
        match io::Read::read_to_end(&mut &*fifo, &mut said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => drop(read.context("read the start FIFO")?),
        }
        if silent {
            return Ok(said);
        }
    }
}
