//! What this node's tasks use, looked at only while the managers want to know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Scope;
use rswarm_proto::wire::TaskUsage;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::executor::Executor;

/// Between two looks: what a person reads changes no faster.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks as long as it is wanted; the latest look is in `latest`, and an empty one when it is not.
pub(crate) async fn watch(
    executor: Arc<dyn Executor>,
    mut wanted: watch::Receiver<bool>,
    latest: watch::Sender<Vec<TaskUsage>>,
    session: Scope,
) {
    let mut rates = Rates::default();
    let looking = async {
        while wanted.wait_for(|wanted| *wanted).await.is_ok() {
            let mut usage = executor.usage().await;
            rates.fill_in(&mut usage, Instant::now());
            latest.send_replace(usage);
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                // Not wanted any more: what was seen is soon old.
                ended = wanted.wait_for(|wanted| !*wanted) => {
                    if ended.is_err() {
                        return;
                    }
                    rates = Rates::default();
                    latest.send_replace(Vec::new());
                }
            }
        }
    };
    tokio::select! {
        () = session.cancelled() => {}
        () = looking => {}
    }
}

/// The processor time of each task at the last look.
#[derive(Default)]
struct Rates {
    before: BTreeMap<String, (u64, Instant)>,
}

impl Rates {
    fn fill_in(&mut self, usage: &mut [TaskUsage], now: Instant) {
        let before = std::mem::take(&mut self.before);
        for task in usage {
            if let Some((time, at)) = before.get(&task.task_id) {
                let passed = now.duration_since(*at).as_nanos().max(1);
                let used = u128::from(task.cpu_time.saturating_sub(*time));
                task.cpu_rate = u64::try_from(used * 1_000_000_000 / passed).unwrap_or(u64::MAX);
            }
            self.before.insert(task.task_id.clone(), (task.cpu_time, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_between_two_looks() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let look = |cpu_time| vec![TaskUsage { task_id: "t".to_owned(), cpu_time, ..TaskUsage::default() }];
        let mut first = look(5_000_000_000);
        rates.fill_in(&mut first, start);
        assert_eq!(first[0].cpu_rate, 0, "one look tells no rate");
        let mut second = look(6_000_000_000);
        rates.fill_in(&mut second, start + Duration::from_secs(2));
        assert_eq!(second[0].cpu_rate, 500_000_000, "half a processor");
        // The counter of a container that was started anew begins anew.
        let mut third = look(1);
        rates.fill_in(&mut third, start + Duration::from_secs(3));
        assert_eq!(third[0].cpu_rate, 0);
    }
}
