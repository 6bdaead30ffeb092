//! Questions and answers as they go over the wire: framing, lengths, codes, records.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::NAME_TTL;

/// The largest UDP answer without EDNS.
pub(super) const UDP_BYTES: u16 = 512;
/// The largest UDP datagram that we read or send.
pub(super) const UDP_BYTES_MAX: u16 = 4096;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What the networks know of a question.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub answers: Vec<Record>,
    /// What the client would ask next.
    pub more: Vec<Record>,
}

pub(super) fn address_record(name: &Name, address: IpAddr, lasts: bool) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name.clone(), seconds(lasts), data)
}

pub(super) fn seconds(lasts: bool) -> u32 {
    if lasts { NAME_TTL.as_secs() as u32 } else { 0 }
}

/// The address in a reverse name: `4.3.2.1.in-addr.arpa.` or its IPv6 kin.
pub(super) fn parse_arpa(name: &str) -> Option<IpAddr> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let bytes: Vec<u8> = labels.rsplit('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        return <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digits: String = labels.rsplit('.').collect();
    let is_whole = digits.len() == 32 && labels.split('.').all(|label| label.len() == 1);
    let bits = u128::from_str_radix(&digits, 16).ok().filter(|_| is_whole)?;
    Some(Ipv6Addr::from_bits(bits).into())
}

pub(super) fn reply(query: &Message, known: Known, transport: Transport) -> Option<Vec<u8>> {
    let mut message = blank_reply(query, ResponseCode::NoError);
    let limit = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => {
            let asked = query.edns.as_ref().map_or(UDP_BYTES, |edns| edns.max_payload());
            usize::from(asked.clamp(UDP_BYTES, UDP_BYTES_MAX))
        }
    };
    message.add_answers(known.answers);
    message.add_additionals(known.more);
    let mut bytes = message.to_vec().ok()?;
    if bytes.len() > limit && !message.additionals.is_empty() {
        message.additionals.clear();
        bytes = message.to_vec().ok()?;
    }
    if bytes.len() > limit {
        // The client asks again by TCP, where all of it fits.
        message.metadata.truncation = true;
        while bytes.len() > limit {
            let keep = message.answers.len() * limit / bytes.len();
            message.answers.truncate(keep.min(message.answers.len().saturating_sub(1)));
            bytes = message.to_vec().ok()?;
        }
    }
    Some(bytes)
}

pub(super) fn blank_reply(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    message
}

/// An answer that is only a code. Of a message that cannot be parsed, only the identifier is known.
pub(super) fn refusal(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    if let Ok(message) = Message::from_vec(query) {
        return blank_reply(&message, code).to_vec().ok();
    }
    let id = u16::from_be_bytes(*query.first_chunk::<2>().filter(|_| query.len() >= 12)?);
    let mut message = Message::new(id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.to_vec().ok()
}

pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub(super) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 512, ..Default::default() })]

        #[test]
        fn any_reverse_name_is_read_or_not(name in "[0-9a-f.]{0,80}(in-addr|ip6)?\\.arpa\\.?") {
            let _ = parse_arpa(&name);
        }
    }

    #[test]
    fn reverse_names_are_read_backwards() {
        assert_eq!(parse_arpa("4.3.2.1.in-addr.arpa."), Some(IpAddr::from([1, 2, 3, 4])));
        assert_eq!(parse_arpa("2.1.in-addr.arpa."), None);
        let six = format!("1.{}ip6.arpa.", "0.".repeat(31));
        assert_eq!(parse_arpa(&six), Some(Ipv6Addr::LOCALHOST.into()));
    }
}
