//! The server: a thread for each connection, which stays open for as long as its client wants it to.
//!
//! Told to end, it finishes what it was asked, closes what is idle, and takes nothing new.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::fetch;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// With more than this open, each is closed after its answer: idle clients must not keep out busy ones.
const CONNECTIONS_KEPT: usize = 256;
const STACK_BYTES: usize = 256 << 10;
/// A request's line and headers may take this much.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// How long a client may be idle between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a client may take to read an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server that is told to end waits for answers that it has begun.
const ENDING: Duration = Duration::from_secs(2);

/// A server that answers.
pub struct Server(Arc<Connections>);

/// The open connections.
#[derive(Default)]
struct Connections {
    open: Mutex<Open>,
    /// Told of each that ends.
    ended: Condvar,
}

#[derive(Default)]
struct Open {
    ending: bool,
    next: u64,
    streams: BTreeMap<u64, Connection>,
}

struct Connection {
    stream: TcpStream,
    /// Between two requests. A new one is not: it is owed an answer.
    idle: bool,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection in, once there is room for it.
    fn enter(&self, stream: TcpStream) -> u64 {
        let full = |open: &mut Open| open.streams.len() >= CONNECTIONS_MAX;
        let mut open = self.ended.wait_while(self.open(), full).unwrap_or_else(PoisonError::into_inner);
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, Connection { stream, idle: false });
        number
    }

    fn leave(&self, number: u64) {
        self.open().streams.remove(&number);
        self.ended.notify_all();
    }

    /// Whether the connection may wait for another request after this one.
    fn is_kept(&self) -> bool {
        let open = self.open();
        !open.ending && open.streams.len() <= CONNECTIONS_KEPT
    }

    /// Says whether a connection waits for a request. One that would, while the server ends, is refused.
    fn set_idle(&self, number: u64, idle: bool) -> bool {
        let mut open = self.open();
        let ending = open.ending;
        if let Some(connection) = open.streams.get_mut(&number) {
            connection.idle = idle;
        }
        !(idle && ending)
    }
}

impl Server {
    /// Starts answering on every address, of both families where the kernel has both.
    pub fn start(port: u16) -> io::Result<Server> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
        answer_datagrams(port)?;
        let connections = Arc::new(Connections::default());
        let server = Server(Arc::clone(&connections));
        let accept = move || {
            for stream in listener.incoming() {
                // One that could not be had is the client's to ask for again.
                let _ = stream.and_then(|stream| serve(&connections, stream));
            }
        };
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(accept)?;
        Ok(server)
    }

    /// Closes idle connections, and waits until what was asked is answered.
    pub fn end(&self) {
        let mut open = self.0.open();
        open.ending = true;
        for connection in open.streams.values().filter(|connection| connection.idle) {
            // Its thread reads the end, and closes it.
            let _ = connection.stream.shutdown(Shutdown::Read);
        }
        let some = |open: &mut Open| !open.streams.is_empty();
        drop(self.0.ended.wait_timeout_while(open, ENDING, some));
    }
}

/// Answers each datagram with the container's name, on a thread of its own.
fn answer_datagrams(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    let answer = move || {
        let mut question = [0; 1];
        loop {
            // What came back of an earlier answer is no reason to stop.
            let Ok((_, client)) = socket.recv_from(&mut question) else { continue };
            let _ = socket.send_to(hostname().as_bytes(), client);
        }
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(answer).map(drop)
}

/// Serves a connection on a thread of its own.
fn serve(connections: &Arc<Connections>, stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let number = connections.enter(stream.try_clone()?);
    let own = Arc::clone(connections);
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        let _ = converse(&own, number, stream, peer);
        own.leave(number);
    });
    started.map(drop).inspect_err(|_| connections.leave(number))
}

/// Answers one request after the other, until either side has had enough.
fn converse(
    connections: &Connections,
    number: u64,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> io::Result<()> {
    // An IPv4 client of a socket for both is an IPv4 client.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(head) = read_head(&mut reader)? else { return Ok(()) };
        connections.set_idle(number, false);
        let (status, body) = respond(&head, peer);
        let keep = wants_more(&head) && connections.is_kept();
        let _ = writeln!(io::stdout(), "{peer} {} -> {status}", head.lines().next().unwrap_or_default());
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            body.len(),
            if keep { "keep-alive" } else { "close" }
        )
        .into_bytes();
        if !head.starts_with("HEAD ") {
            answer.extend(body);
        }
        stream.write_all(&answer)?;
        // What has been read already is a request that waits for its answer.
        if !keep || (reader.buffer().is_empty() && !connections.set_idle(number, true)) {
            return Ok(());
        }
    }
}

/// A request's line and headers; `None` when the client has said all.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    let mut limited = reader.take(REQUEST_BYTES_MAX);
    while limited.read_line(&mut head)? > 2 {}
    Ok(Some(head).filter(|head| !head.is_empty()))
}

/// Whether the client may ask again on the same connection (RFC 9112, 9.3). Bodies are not read, so one that sends
/// some may not.
fn wants_more(head: &str) -> bool {
    let header = |wanted: &str| {
        let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let is_whole = ["\n\r\n", "\n\n"].iter().any(|end| head.ends_with(end));
    let is_bare = header("content-length").is_none_or(|length| length == "0");
    let says = |word: &str| {
        header("connection")
            .is_some_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word)))
    };
    let is_new = head.lines().next().is_some_and(|line| line.ends_with("HTTP/1.1"));
    is_whole
        && is_bare
        && header("transfer-encoding").is_none()
        && if is_new { !says("close") } else { says("keep-alive") }
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
    fn a_connection_stays_when_its_client_wants_it() {
        let head = |version: &str, more: &str| format!("GET / HTTP/{version}\r\nHost: web\r\n{more}\r\n");
        for (version, more, stays) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "connection: Upgrade, Close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: keep-alive\r\n", true),
            ("1.1", "Content-Length: 5\r\n", false),
            ("1.1", "Content-Length: 0\r\n", true),
        ] {
            assert_eq!(wants_more(&head(version, more)), stays, "{version} {more:?}");
        }
    }

    #[test]
    fn what_was_asked_is_answered_and_what_is_idle_is_closed_at_the_end() {
        let (idle, busy) = (TcpListener::bind("[::1]:0").expect("bind"), Arc::new(Connections::default()));
        let mut client = TcpStream::connect(idle.local_addr().expect("address")).expect("connect");
        let (stream, _) = idle.accept().expect("accept");
        serve(&busy, stream).expect("serve");
        let mut answers = BufReader::new(client.try_clone().expect("clone"));
        for round in 0..3 {
            // Two at once, the last time: the second waits in the server's buffer.
            let request = "GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n".repeat(1 + round / 2);
            client.write_all(request.as_bytes()).expect("ask");
            for _ in 0..=round / 2 {
                let head = read_head(&mut answers).expect("answer").expect("still open");
                assert!(head.contains("Connection: keep-alive"), "{head}");
                let mut name = String::new();
                answers.read_line(&mut name).expect("body");
                assert_eq!(name.trim(), hostname());
            }
        }
        Server(busy).end();
        assert_eq!(read_head(&mut answers).expect("closed, not reset"), None);
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
