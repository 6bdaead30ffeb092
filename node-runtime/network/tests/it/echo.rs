//! Servers that say who they are and whom they see, and clients that stay.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::{PATIENCE, Space};

/// A TCP and a UDP server on the same port. To each connection and datagram it says `name client`, and to
/// each line on a connection the line again. Ends with the value.
pub struct Echo {
    space: Space,
    port: u16,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    pub fn start(space: &Space, name: &'static str, port: u16) -> Echo {
        Echo::start_at(space, name, Ipv4Addr::UNSPECIFIED.into(), port)
    }

    /// The same on both families' addresses.
    pub fn start_dual(space: &Space, name: &'static str, port: u16) -> Echo {
        Echo::start_at(space, name, Ipv6Addr::UNSPECIFIED.into(), port)
    }

    fn start_at(space: &Space, name: &'static str, any: IpAddr, port: u16) -> Echo {
        let (tcp, udp) = space.run(move || {
            let any = (any, port);
            (TcpListener::bind(any).expect("tcp"), UdpSocket::bind(any).expect("udp"))
        });
        let ended = Arc::new(AtomicBool::new(false));
        let (tcp_ended, udp_ended) = (Arc::clone(&ended), Arc::clone(&ended));
        let tcp = std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let stream = stream.expect("accept");
                if tcp_ended.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::spawn(move || echo(stream, name));
            }
        });
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = udp.recv_from(&mut buffer) {
                if udp_ended.load(Ordering::SeqCst) {
                    return;
                }
                // A client that has gone is its own affair.
                let _ = udp.send_to(format!("{name} {}", client.ip().to_canonical()).as_bytes(), client);
            }
        });
        Echo { space: space.clone(), port, ended, threads: vec![tcp, udp] }
    }
}

/// Until the client has gone.
fn echo(mut stream: TcpStream, name: &str) -> Option<()> {
    let peer = stream.peer_addr().ok()?.ip().to_canonical();
    stream.write_all(format!("{name} {peer}\n").as_bytes()).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    while lines.read_line(&mut line).ok()? > 0 {
        stream.write_all(line.as_bytes()).ok()?;
        line.clear();
    }
    Some(())
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let to = SocketAddr::from(([127, 0, 0, 1], self.port));
        self.space.run(move || {
            let _ = TcpStream::connect_timeout(&to, Duration::from_secs(1));
            let socket = UdpSocket::bind("127.0.0.1:0").expect("udp");
            let _ = socket.send_to(b"x", to);
        });
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A connection to an [`Echo`].
pub struct Talk {
    stream: BufReader<TcpStream>,
    /// Who answered.
    pub server: String,
    /// The client's address as the server sees it.
    pub client: String,
}

impl Talk {
    pub fn start(space: &Space, address: impl Into<IpAddr>, port: u16) -> io::Result<Talk> {
        let to = SocketAddr::new(address.into(), port);
        let stream = space.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(3)))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut said = String::new();
        stream.read_line(&mut said)?;
        let (server, client) = said.trim_end().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        let (server, client) = (server.to_owned(), client.to_owned());
        Ok(Talk { stream, server, client })
    }

    /// Says something and hears it again.
    pub fn goes_on(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(b"still there?\n")?;
        if self.hears()? == "still there?\n" { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Waits for what the server says of its own accord; says nothing itself.
    pub fn hears(&mut self) -> io::Result<String> {
        let mut said = String::new();
        self.stream.read_line(&mut said)?;
        Ok(said)
    }
}

/// Talks to as many servers as it takes to have met all of `names` (no others); what each saw as its client.
pub fn meets(space: &Space, address: IpAddr, port: u16, names: &[&str]) -> Vec<(String, String)> {
    meets_all(names, || {
        let talk = Talk::start(space, address, port).expect("connection");
        (talk.server, talk.client)
    })
}

/// The same by UDP, each time from another socket.
pub fn meets_udp(
    space: &Space,
    address: impl Into<IpAddr>,
    port: u16,
    names: &[&str],
) -> Vec<(String, String)> {
    let address = address.into();
    meets_all(names, || {
        let answer = space.asks_udp(address, port, b"?").expect("answer");
        let answer = String::from_utf8(answer).expect("text");
        let (server, client) = answer.split_once(' ').expect("two words");
        (server.to_owned(), client.to_owned())
    })
}

fn meets_all(names: &[&str], mut meet: impl FnMut() -> (String, String)) -> Vec<(String, String)> {
    let mut met = std::collections::BTreeMap::new();
    // Of two equal chances both come up within 64 tries, but once in 2^63 times.
    for _ in 0..64 {
        let (server, client) = meet();
        assert!(names.contains(&server.as_str()), "{server} is none of {names:?}");
        met.insert(server, client);
        if met.len() == names.len() {
            return met.into_iter().collect();
        }
    }
    panic!("only {met:?} of {names:?} answered");
}
