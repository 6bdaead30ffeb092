//! The server: a few threads that answer one request per connection.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::fetch;

/// Requests answered at once; more wait in the kernel's queue.
const WORKERS: usize = 16;
/// A request's line and headers may take this much.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts answering on every address, of both families where the kernel has both.
pub fn start(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    for _ in 0..WORKERS {
        let listener = listener.try_clone()?;
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            loop {
                if let Ok((stream, peer)) = listener.accept() {
                    let _ = answer(stream, peer);
                }
            }
        })?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    // An IPv4 client of a socket for both is an IPv4 client.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let mut head = String::new();
    let mut reader = BufReader::new((&stream).take(REQUEST_BYTES_MAX));
    while reader.read_line(&mut head)? > 2 {}
    let (status, body) = respond(&head, peer);
    let _ = writeln!(io::stdout(), "{peer} {} -> {status}", head.lines().next().unwrap_or_default());
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

/// Status line and body for a request's line and headers.
fn respond(head: &str, peer: SocketAddr) -> (&'static str, Vec<u8>) {
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (Some("GET" | "HEAD"), Some(target)) = (words.next(), words.next()) else {
        return ("405 Method Not Allowed", b"only GET is answered\n".to_vec());
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/fetch" => forward(query),
        "/hostname" => ("200 OK", format!("{}\n", hostname()).into_bytes()),
        _ => ("200 OK", describe(head, peer).into_bytes()),
    }
}

/// `/fetch?url=U` answers with what U answers here, in this container's network.
fn forward(query: &str) -> (&'static str, Vec<u8>) {
    let Some(url) = query.split('&').find_map(|pair| pair.strip_prefix("url=")) else {
        return ("400 Bad Request", b"say what to fetch: /fetch?url=http://web/\n".to_vec());
    };
    match fetch::get(&percent_decode_str(url).decode_utf8_lossy(), super::FETCH_TIMEOUT) {
        Ok(body) => ("200 OK", body),
        Err(problem) => ("502 Bad Gateway", format!("{problem}\n").into_bytes()),
    }
}

fn describe(head: &str, peer: SocketAddr) -> String {
    let mut text = format!("Hostname: {}\n", hostname());
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    for address in local_addresses(&table) {
        let _ = writeln!(text, "IP: {address}");
    }
    let _ = writeln!(text, "RemoteAddr: {peer}");
    for line in head.lines().take_while(|line| !line.is_empty()) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The addresses that the kernel's routing table marks as this host's own, each once, loopback last.
fn local_addresses(fib_trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf);
        }
    }
    found.sort_by_key(|address: &Ipv4Addr| (address.is_loopback(), *address));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     +-- 10.0.1.0/24 2 0 2\n        |-- 10.0.1.0\n           /24 link UNICAST\n        |-- 10.0.1.7\n           /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n        |-- 10.0.1.7\n           /32 host LOCAL\n        |-- 10.0.1.255\n           /32 link BROADCAST\n";

    #[test]
    fn own_addresses_are_read_from_the_routing_table() {
        assert_eq!(local_addresses(TRIE), [Ipv4Addr::new(10, 0, 1, 7), Ipv4Addr::LOCALHOST]);
    }

    #[test]
    fn an_answer_names_the_caller_and_repeats_the_request() {
        let peer = SocketAddr::from(([10, 0, 0, 9], 555));
        let (status, body) = respond("GET /x HTTP/1.1\r\nHost: web\r\n\r\n", peer);
        let body = String::from_utf8(body).expect("text");
        assert_eq!(status, "200 OK");
        assert!(body.contains("RemoteAddr: 10.0.0.9:555\nGET /x HTTP/1.1\nHost: web\n"), "{body}");
        assert_eq!(respond("POST / HTTP/1.1\r\n\r\n", peer).0, "405 Method Not Allowed");
        assert_eq!(respond("GET /fetch HTTP/1.1\r\n\r\n", peer).0, "400 Bad Request");
    }
}
