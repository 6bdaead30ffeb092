//! Brings up `lo` in a network namespace that was just made: one netlink message.

use crate::failure::{Context, Failure};
use crate::netlink::{IFF_UP, Netlink, RTM_NEWLINK, interface};

/// `lo` is always the first interface of a namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Brings it up, in the caller's network namespace.
pub(crate) fn up() -> Result<(), Failure> {
    let up = interface(LOOPBACK_INDEX, IFF_UP, IFF_UP);
    let done = Netlink::open().and_then(|netlink| netlink.ask(RTM_NEWLINK, 0, &up));
    done.map(drop).context("bring up lo")
}
