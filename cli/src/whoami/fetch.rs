//! One GET over plain HTTP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::resolve;

/// More of a body than this is cut off.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// Why a URL could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that we can read.
    #[error("`{0}` is not a URL of the form http://HOST[:PORT]/PATH")]
    Url(String),
    /// The host's name has no address.
    #[error("`{host}` cannot be resolved: {reason}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// No address answered.
    #[error("`{address}` does not answer: {reason}")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// What the last attempt said.
        reason: io::Error,
    },
    /// The answer is not one.
    #[error("`{0}` did not answer with status 200: {1}")]
    Status(String, String),
}

/// The body that the URL answers with.
pub fn get(url: &str, timeout: Duration) -> Result<Vec<u8>, FetchError> {
    let target = Target::parse(url).ok_or_else(|| FetchError::Url(url.to_owned()))?;
    let addresses: Vec<IpAddr> = match target.host.parse() {
        Ok(address) => vec![address],
        Err(_) => resolve::lookup(target.host, timeout).map_err(|reason| FetchError::Resolve {
            host: target.host.to_owned(),
            reason: reason.to_string(),
        })?,
    };
    let mut last = FetchError::Resolve { host: target.host.to_owned(), reason: "it has no address".into() };
    for address in addresses {
        let address = SocketAddr::new(address, target.port);
        match exchange(address, &target, timeout) {
            Ok(answer) => return body(url, answer),
            Err(reason) => last = FetchError::Connect { address, reason },
        }
    }
    Err(last)
}

struct Target<'a> {
    host: &'a str,
    port: u16,
    authority: &'a str,
    path: &'a str,
}

impl<'a> Target<'a> {
    fn parse(url: &'a str) -> Option<Target<'a>> {
        let rest = url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, port) = bracketed.split_once(']')?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(Some(80), |port| port.parse().ok())?;
        let clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        (!host.is_empty() && clean(authority) && clean(path)).then_some(Target {
            host,
            port,
            authority,
            path,
        })
    }
}

fn exchange(address: SocketAddr, target: &Target<'_>, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(
        stream,
        "GET {} HTTP/1.0\r\nHost: {}\r\nUser-Agent: rswarm-whoami\r\n\r\n",
        target.path, target.authority
    )?;
    let mut answer = Vec::new();
    stream.take(BODY_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

fn body(url: &str, mut answer: Vec<u8>) -> Result<Vec<u8>, FetchError> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let body = answer.split_off(end);
    let status = String::from_utf8_lossy(&answer);
    let status = status.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(body);
    }
    let said = String::from_utf8_lossy(&body);
    Err(FetchError::Status(url.to_owned(), format!("{status}: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let parts = |url| Target::parse(url).map(|t| (t.host, t.port, t.path));
        assert_eq!(parts("http://web"), Some(("web", 80, "/")));
        assert_eq!(parts("http://10.0.0.2:8080/a?b=c"), Some(("10.0.0.2", 8080, "/a?b=c")));
        assert_eq!(parts("http://[fd00::1]:81/"), Some(("fd00::1", 81, "/")));
        for wrong in ["https://web/", "web", "http://", "http://a:b/", "http://a/ b", "http://a\r\nX: y/"] {
            assert_eq!(parts(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn only_status_200_is_a_body() {
        assert_eq!(body("u", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nhi".to_vec()).expect("ok"), b"hi");
        assert!(body("u", b"HTTP/1.1 502 Bad Gateway\r\n\r\nno".to_vec()).is_err());
        assert!(body("u", Vec::new()).is_err());
    }
}
