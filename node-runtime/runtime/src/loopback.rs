//! Brings up `lo` in a network namespace that was just made: one netlink message.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::failure::{Context, Failure};

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
/// `lo` is always the first interface of a namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Brings it up, in the caller's network namespace.
pub(crate) fn up() -> Result<(), Failure> {
    let what = "bring up lo";
    // Protocol zero is NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .context(what)?;
    rustix::net::send(&socket, &request(), SendFlags::empty()).context(what)?;
    let mut answer = [0; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).context(what)?;
    match error_of(&answer[..length]) {
        Some(0) => Ok(()),
        Some(error) => Err(Failure::os(what, std::io::Error::from_raw_os_error(-error))),
        None => Err(Failure::other(format!("{what}: the kernel's answer is not understood"))),
    }
}

/// `struct nlmsghdr` and `struct ifinfomsg`.
fn request() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}

/// The number in an `NLMSG_ERROR`; zero acknowledges.
fn error_of(answer: &[u8]) -> Option<i32> {
    let typ = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (typ == NLMSG_ERROR).then_some(error)
}
