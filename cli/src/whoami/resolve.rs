//! Names to addresses: `/etc/hosts`, then one A query over UDP to the servers in `/etc/resolv.conf`.
//!
//! A static glibc cannot be relied on to resolve names inside an image that holds nothing else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

const DNS_PORT: u16 = 53;
const MESSAGE_BYTES_MAX: usize = 4096;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// The addresses of a name; an empty answer is an error.
pub fn lookup(name: &str, timeout: Duration) -> io::Result<Vec<IpAddr>> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let listed = in_hosts(&hosts, name);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let config = std::fs::read_to_string("/etc/resolv.conf")?;
    let mut last = io::Error::other("/etc/resolv.conf names no server");
    for server in nameservers(&config) {
        match query(server, name, timeout) {
            Ok(found) => return Ok(found),
            Err(problem) => last = problem,
        }
    }
    Err(last)
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let entries = hosts.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let matching = |mut words: std::str::SplitWhitespace<'_>| {
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    entries.filter_map(matching).collect()
}

fn nameservers(config: &str) -> Vec<IpAddr> {
    config.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok()).collect()
}

fn query(server: IpAddr, name: &str, timeout: Duration) -> io::Result<Vec<IpAddr>> {
    let local: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0))?;
    socket.set_read_timeout(Some(timeout))?;
    socket.connect((server, DNS_PORT))?;
    let id = rswarm_base::id::random_bytes();
    socket.send(&question(id, name)?)?;
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let length = socket.recv(&mut buffer)?;
    answers(id, &buffer[..length])
}

/// A query for the name's IPv4 addresses, recursion wanted.
fn question(id: [u8; 2], name: &str) -> io::Result<Vec<u8>> {
    let mut message = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length));
        let length = length.ok_or_else(|| io::Error::other(format!("`{name}` is not a host name")))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(TYPE_A.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    Ok(message)
}

/// The addresses in a reply to [`question`].
fn answers(id: [u8; 2], message: &[u8]) -> io::Result<Vec<IpAddr>> {
    let broken = || io::Error::other("the reply is malformed");
    let mut reader = Reader { message, at: 0 };
    let (reply_id, flags) = (reader.word().ok_or_else(broken)?, reader.word().ok_or_else(broken)?);
    if reply_id != u16::from_be_bytes(id) {
        return Err(io::Error::other("the reply is not to our question"));
    }
    match flags & 15 {
        0 => {}
        3 => return Err(io::Error::other("no such name")),
        code => return Err(io::Error::other(format!("the server failed with code {code}"))),
    }
    let (questions, records) = (reader.word().ok_or_else(broken)?, reader.word().ok_or_else(broken)?);
    // The counts of the other two sections, which nobody here reads.
    reader.bytes::<4>().ok_or_else(broken)?;
    let found = reader.addresses(questions, records).ok_or_else(broken)?;
    if found.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(found) }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.message.get(self.at..self.at + N)?.try_into().ok()?;
        self.at += N;
        Some(bytes)
    }

    fn word(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    /// Skips a name: labels up to an empty one, or to a pointer.
    fn name(&mut self) -> Option<()> {
        loop {
            match self.bytes::<1>()?[0] {
                0 => return Some(()),
                pointer if pointer >= 0xc0 => return self.bytes::<1>().map(|_| ()),
                length => self.at += usize::from(length),
            }
        }
    }

    fn addresses(&mut self, questions: u16, records: u16) -> Option<Vec<IpAddr>> {
        for _ in 0..questions {
            self.name()?;
            self.bytes::<4>()?;
        }
        let mut found = Vec::new();
        for _ in 0..records {
            self.name()?;
            let (kind, class) = (self.word()?, self.word()?);
            self.bytes::<4>()?;
            let length = usize::from(self.word()?);
            let next = self.at + length;
            if (kind, class, length) == (TYPE_A, CLASS_IN, 4) {
                found.push(Ipv4Addr::from(self.bytes::<4>()?).into());
            }
            self.at = next;
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: [u8; 2], code: u8, addresses: &[[u8; 4]]) -> Vec<u8> {
        let mut message = question(id, "web").expect("a name");
        message[2] = 0x81;
        message[3] = 0x80 | code;
        message[7] = u8::try_from(addresses.len()).expect("few");
        for address in addresses {
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            message.extend(address);
        }
        message
    }

    #[test]
    fn every_address_of_a_reply_is_found() {
        let found = answers([1, 2], &reply([1, 2], 0, &[[10, 0, 0, 2], [10, 0, 0, 3]])).expect("a reply");
        assert_eq!(found, [IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3])]);
    }

    #[test]
    fn a_reply_that_is_none_is_an_error() {
        assert!(answers([1, 2], &reply([1, 3], 0, &[[10, 0, 0, 2]])).is_err(), "another question's");
        assert_eq!(
            answers([1, 2], &reply([1, 2], 3, &[])).expect_err("NXDOMAIN").to_string(),
            "no such name"
        );
        assert!(answers([1, 2], &reply([1, 2], 0, &[])).is_err(), "empty");
        let whole = reply([1, 2], 0, &[[10, 0, 0, 2]]);
        for length in 0..whole.len() {
            assert!(answers([1, 2], &whole[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn files_are_read_as_the_c_library_reads_them() {
        assert_eq!(
            in_hosts("127.0.0.1 localhost # web\n10.0.0.5\tWEB web.local\n", "web"),
            [IpAddr::from([10, 0, 0, 5])]
        );
        assert_eq!(
            nameservers("search x\nnameserver 127.0.0.11\n# nameserver 1.1.1.1\n"),
            [IpAddr::from([127, 0, 0, 11])]
        );
        assert!(question([0, 0], "a..b").is_err());
    }
}
