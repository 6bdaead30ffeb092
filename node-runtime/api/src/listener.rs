//! Where clients connect.

use std::io;

use tokio::net::{TcpListener, UnixListener};

use crate::connection::Socket;

/// A bound socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket; who may connect is a matter of its file mode.
    Unix(UnixListener),
    /// A TCP port, open to whoever reaches it.
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Socket>> {
        match self {
            Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}
