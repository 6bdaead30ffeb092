//! A few words of rtnetlink(7): one request, and what the kernel answers.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE_NEW: u16 = 0x400 | 0x200;
pub(crate) const IFF_UP: u32 = 1;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// As much as the kernel puts into one answer.
const ANSWER_MAX: usize = 32 << 10;

/// A socket to the kernel, about the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// For the caller's network namespace.
    pub(crate) fn open() -> io::Result<Netlink> {
        // Protocol zero is NETLINK_ROUTE.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Netlink(socket))
    }

    /// Sends a request; returns the bodies of the messages that came before its acknowledgement.
    pub(crate) fn ask(&self, typ: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        rustix::net::send(&self.0, &request(typ, flags, body), SendFlags::empty())?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; ANSWER_MAX]);
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty())?;
            for (typ, body) in messages(&buffer[..length])? {
                match typ {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
                        return match code.ok_or_else(not_understood)? {
                            0 => Ok(answers),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
            }
        }
    }
}

fn request(typ: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("a request is short");
    let mut message = Vec::from(length.to_ne_bytes());
    message.extend(typ.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn not_understood() -> io::Error {
    io::Error::other("the kernel's answer is not understood")
}

/// Types and bodies.
fn messages(mut bytes: &[u8]) -> io::Result<Vec<(u16, &[u8])>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (length, typ) = match bytes {
            [a, b, c, d, e, f, ..] => {
                (u32::from_ne_bytes([*a, *b, *c, *d]) as usize, u16::from_ne_bytes([*e, *f]))
            }
            _ => return Err(not_understood()),
        };
        all.push((typ, bytes.get(HEADER..length).ok_or_else(not_understood)?));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(all)
}

/// Appends an attribute.
// netlink(7), struct nlattr: length and type, and padding to four bytes
pub(crate) fn add_attribute(body: &mut Vec<u8>, typ: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    body.extend(length.to_ne_bytes());
    body.extend(typ.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Types and values of the attributes behind a message's fixed part; what is cut off ends them.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let [a, b, c, d, ..] = bytes {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let Some(value) = bytes.get(4..length) else { break };
        all.push((u16::from_ne_bytes([*c, *d]), value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// `struct ifinfomsg` for an interface: its flags, and which of them change.
pub(crate) fn interface(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut body = Vec::new();
        add_attribute(&mut body, 3, b"eth0\0");
        add_attribute(&mut body, 28, &7_u32.to_ne_bytes());
        assert_eq!(body.len(), 12 + 8);
        assert_eq!(attributes(&body), [(3, b"eth0\0".as_slice()), (28, &7_u32.to_ne_bytes())]);
        assert_eq!(attributes(&[9, 0, 1, 0]), []);
        assert_eq!(attributes(&[0, 0, 0, 0, 1]), []);
    }

    #[test]
    fn answers_are_taken_apart() {
        let mut bytes = request(16, 0, &[1, 2, 3, 4]);
        bytes.extend(request(NLMSG_DONE, 0, &[]));
        let all = messages(&bytes).expect("messages");
        assert_eq!(all, [(16, [1, 2, 3, 4].as_slice()), (NLMSG_DONE, &[])]);
        assert!(messages(&bytes[..10]).is_err() && messages(&[0; 16]).is_err());
    }

    #[test]
    fn the_kernel_knows_lo() {
        let netlink = Netlink::open().expect("socket");
        let answers = netlink.ask(RTM_GETLINK, 0, &interface(1, 0, 0)).expect("lo");
        let name = attributes(&answers[0][16..]).into_iter().find(|(typ, _)| *typ == 3);
        assert_eq!(name.map(|(_, name)| name), Some(b"lo\0".as_slice()));
        assert!(netlink.ask(RTM_GETLINK, 0, &interface(999_999, 0, 0)).is_err());
    }
}
