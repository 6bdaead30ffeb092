//! Where a daemon listens.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::ClientError;

/// Docker's plain-text port.
const TCP_PORT: u16 = 2375;

/// A daemon's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A socket on this machine.
    Unix(PathBuf),
    /// `host:port`, without encryption.
    Tcp(String),
}

impl FromStr for Host {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Host, ClientError> {
        let wrong = || ClientError::Host(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Host::Unix(path.into())) };
        }
        let address = match text.split_once("://") {
            Some(("tcp" | "http", address)) => address.trim_end_matches('/'),
            Some(_) => return Err(wrong()),
            None => text,
        };
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        match address {
            "" => Err(wrong()),
            _ if address.contains('/') => Err(wrong()),
            _ if has_port => Ok(Host::Tcp(address.to_owned())),
            _ => Ok(Host::Tcp(format!("{address}:{TCP_PORT}"))),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Unix(path) => write!(f, "unix://{}", path.display()),
            Host::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// What HTTP runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Host {
    /// Opens a connection.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Host::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Host::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    /// What goes into the `Host` header.
    pub(super) fn authority(&self) -> &str {
        match self {
            Host::Unix(_) => "localhost",
            Host::Tcp(address) => address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_docker_reads_them() {
        for (text, host) in [
            ("unix:///run/x.sock", Host::Unix("/run/x.sock".into())),
            ("tcp://h:2376", Host::Tcp("h:2376".into())),
            ("tcp://h", Host::Tcp("h:2375".into())),
            ("10.0.0.1:80", Host::Tcp("10.0.0.1:80".into())),
        ] {
            assert_eq!(text.parse::<Host>().expect(text), host);
        }
        for text in ["", "unix://", "ssh://h", "/run/x.sock", "tcp://"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }
}
