//! The cluster's events among the engine's, while this node is a manager: each manager tells of all of them, as moby's do.

use std::sync::Arc;

use rswarm_base::{Scope, Timestamp};
use rswarm_engine::Engine;
use rswarm_engine::events::{Event, EventScope};
use rswarm_manager::Manager;
use rswarm_manager_core::announce::{self, Announcement, announcements};

use super::node::Node;

/// Announces until the scope ends.
pub fn start(engine: Engine, node: Arc<Node>, scope: &Scope) {
    let token = scope.token();
    scope.spawn(async move {
        let announce = async {
            let mut states = None;
            while let Some(manager) = node.next_manager(states.as_ref()).await {
                let own = manager.state();
                tokio::select! {
                    () = follow(&manager, &engine) => {}
                    _ = node.next_manager(Some(&own)) => {}
                }
                states = Some(own);
            }
        };
        token.run_until_cancelled(announce).await;
    });
}

/// What the log says at the start has happened before, and is not told again: it is read when there is a leader.
async fn follow(manager: &Manager, engine: &Engine) {
    let (mut states, mut leaders, mut reachable) = (manager.state(), manager.leader(), manager.reachable());
    if leaders.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let publish = |news: Vec<Announcement>| news.into_iter().for_each(|news| engine.publish(event(news)));
    let mut before = Arc::clone(&states.borrow_and_update());
    let mut leader: Option<String> = None;
    let mut reached = None;
    loop {
        // Between two leaders there may be none: the one before is remembered.
        let next = leaders.borrow_and_update().as_ref().map(|leader| leader.node_id.clone());
        if let (Some(old), Some(new)) = (&leader, &next) {
            publish(announce::leadership(&before, old, new));
        }
        leader = next.or(leader);
        let heard = reachable.borrow_and_update().clone();
        if let (Some(old), Some(new)) = (&reached, &heard) {
            publish(announce::reachability(&before, old, new));
        }
        reached = heard;
        let changed = tokio::select! {
            changed = states.changed() => changed,
            changed = leaders.changed() => changed,
            changed = reachable.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        let after = Arc::clone(&states.borrow_and_update());
        publish(announcements(&before, &after));
        before = after;
    }
}

fn event(news: Announcement) -> Event {
    Event {
        kind: news.kind.to_owned(),
        action: news.action.to_owned(),
        id: news.id,
        attributes: news.attributes,
        at: Timestamp::now(),
        scope: EventScope::Swarm,
    }
}
