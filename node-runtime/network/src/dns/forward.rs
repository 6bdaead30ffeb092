//! Questions to the servers that the container was given, from the daemon's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rswarm_base::IdGen;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::wire::{Transport, read_framed, refusal, write_framed};
use crate::model::DnsConfig;

/// All upstream servers together have this long, where nobody says otherwise; clients give up after five seconds.
pub(super) const FORWARD: Duration = Duration::from_secs(2);
/// The longest that a container's own `timeout` and `attempts` can make it: a question takes a turn from others.
const FORWARD_MAX: Duration = Duration::from_secs(15);
/// Upstream servers that are asked, as a resolver would.
const UPSTREAMS: usize = 3;
const DNS_PORT: u16 = 53;

/// Asks the upstream servers in order. One that is silent, refuses or fails is followed by the next.
pub(super) async fn forward(query: &[u8], config: &DnsConfig, transport: Transport) -> Option<Vec<u8>> {
    let others = config.upstream.iter().filter(|server| !config.own.contains(server));
    let servers: Vec<IpAddr> = others.take(UPSTREAMS).copied().collect();
    if servers.is_empty() {
        // The container has nobody to ask but itself, or nobody at all.
        let looped = !config.upstream.is_empty();
        let code = if looped { ResponseCode::ServFail } else { ResponseCode::NXDomain };
        return refusal(query, code);
    }
    let servers: Vec<SocketAddr> =
        servers.into_iter().map(|server| SocketAddr::new(server, DNS_PORT)).collect();
    let share = config.timeout.unwrap_or(FORWARD / servers.len() as u32);
    let asked = ask_in_turn(query, &servers, (share, config.attempts.unwrap_or(1)), transport);
    match timeout(FORWARD_MAX, asked).await {
        Ok(answer) => answer,
        Err(_) => refusal(query, ResponseCode::ServFail),
    }
}

/// Asks each server for so long, and all of them so often.
async fn ask_in_turn(
    query: &[u8],
    servers: &[SocketAddr],
    (share, attempts): (Duration, u32),
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut last = None;
    for server in servers.iter().cycle().take(servers.len() * attempts as usize).copied() {
        let asked = match transport {
            Transport::Udp => timeout(share, ask_udp(server, query)).await,
            Transport::Tcp => timeout(share, ask_tcp(server, query)).await,
        };
        match asked {
            Ok(Ok(answer)) if !is_failure(&answer) => return Some(answer),
            Ok(Ok(answer)) => last = Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "name server could not be asked"),
            Err(_) => tracing::debug!(%server, "name server did not answer"),
        }
    }
    last.or_else(|| refusal(query, ResponseCode::ServFail))
}

/// SERVFAIL and REFUSED are no answers: another server may have one.
fn is_failure(answer: &[u8]) -> bool {
    let code = answer.get(3).map_or(0, |flags| flags & 0x0f);
    [u16::from(ResponseCode::ServFail), u16::from(ResponseCode::Refused)].contains(&u16::from(code))
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    // An identifier of our own: the container must not be able to choose it for a forger.
    let id = (IdGen::from_system().number() as u16).to_be_bytes();
    let mut ours = query.to_vec();
    ours[..2].copy_from_slice(&id);
    socket.send(&ours).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == id {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(&query[..2]);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, query).await?;
    read_framed(&mut stream).await
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use tokio::time::Instant;

    use super::*;
    use crate::dns::tests::well_formed;

    #[tokio::test]
    async fn servers_are_asked_as_often_and_as_long_as_the_options_say() {
        // Nobody answers on this socket: each question ends by its time.
        let silent = std::net::UdpSocket::bind(("127.0.0.9", 0)).expect("bind");
        let port = silent.local_addr().expect("address").port();
        let query = well_formed("outside.", 1);
        let began = Instant::now();
        let each = Duration::from_millis(60);
        let server = SocketAddr::from(([127, 0, 0, 9], port));
        let answer = ask_in_turn(&query, &[server], (each, 3), Transport::Udp).await.expect("an answer");
        let answer = Message::from_vec(&answer).expect("message");
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(began.elapsed() >= each * 3, "{:?}", began.elapsed());
        silent.set_nonblocking(true).expect("nonblocking");
        let mut buffer = [0; 512];
        let questions = std::iter::from_fn(|| silent.recv(&mut buffer).ok()).count();
        assert_eq!(questions, 3);
    }
}
