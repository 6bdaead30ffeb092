//! Small writes to three managers, each on two disks before it is answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::{Annotations, ClusterSpec, ContentSpec, CreateConfigRequest};
use tonic::transport::Channel;

use crate::figure;
use crate::harness::{leader, trio};
use crate::process::{MANAGER, cpu, median};

/// Calls that are made one after the other.
const ALONE: usize = 500;
/// Calls under way at the same time where throughput is asked for.
const CALLS: usize = 512;
/// Connections that they share.
const CHANNELS: usize = 8;
/// How long writes are counted.
const COUNTED: Duration = Duration::from_secs(10);

pub async fn run() {
    let hosts = trio(ClusterSpec::default()).await;
    let leader = &hosts[leader(&hosts).await];
    let mut control = leader.control().await;
    let mut times = Vec::new();
    for n in 0..ALONE {
        let begin = Instant::now();
        write(&mut control, format!("one-{n}")).await;
        times.push(begin.elapsed());
    }
    figure::within(
        "a control call, one after the other, median",
        median(&mut times),
        Duration::from_millis(5),
    );
    let channels = join_all((0..CHANNELS).map(|_| leader.control())).await;
    let (begin, used, done) = (Instant::now(), cpu(MANAGER), AtomicU64::new(0));
    let callers = (0..CALLS).map(|caller| {
        let (mut control, done) = (channels[caller % CHANNELS].clone(), &done);
        async move {
            for n in 0.. {
                if begin.elapsed() > COUNTED {
                    return;
                }
                write(&mut control, format!("many-{caller}-{n}")).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    join_all(callers).await;
    let (took, used, done) = (begin.elapsed(), cpu(MANAGER) - used, done.into_inner());
    figure::at_least(
        &format!("committed by {CALLS} callers at once"),
        done as f64 / took.as_secs_f64(),
        "writes/s",
        5_000.0,
    );
    let each = used / u32::try_from(done).expect("few");
    println!("CPU: {each:.0?} a write, of callers and three managers together");
}

async fn write(control: &mut ControlClient<Channel>, name: String) {
    let annotations = Some(Annotations { name, ..Annotations::default() });
    let spec = Some(ContentSpec { annotations, data: b"small".to_vec(), ..ContentSpec::default() });
    control.create_config(CreateConfigRequest { spec }).await.expect("written");
}
