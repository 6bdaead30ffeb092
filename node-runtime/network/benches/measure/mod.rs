//! What the benchmarks measure alike.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::Space;

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes per second from a server that sends to whoever connects.
pub fn throughput(client: &Space, to: SocketAddr, round: Duration) -> f64 {
    client.run(move || {
        let mut stream = TcpStream::connect(to).expect("connect");
        let mut buffer = vec![0; 256 << 10];
        let (started, mut bytes) = (Instant::now(), 0);
        while started.elapsed() < round {
            bytes += stream.read(&mut buffer).expect("read");
        }
        bytes as f64 / started.elapsed().as_secs_f64()
    })
}
