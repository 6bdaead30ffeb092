//! `GET /events`: what happened and what happens, as it happens.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use rswarm_base::Timestamp;
use rswarm_engine::events::Event;
use tokio::sync::broadcast::error::RecvError;

use crate::error::ApiError;
use crate::filters::{self, Filters};
use crate::request::Query;
use crate::router::App;
use crate::stream::{json_line, streaming};
use crate::types;

const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];
/// Filters on an object: by its identifier or its name.
const KINDS: [&str; 9] =
    ["config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"];

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/events", get(events))
}

async fn events(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let filters = query.filters(&FILTERS)?;
    let now = Timestamp::now();
    let since = time(&query, "since", now)?;
    let until = time(&query, "until", now)?;
    let subscription = app.engine.events();
    // Without `since` only what is to come is told.
    let backlog: Vec<Bytes> = subscription
        .backlog
        .iter()
        .filter(|event| since.is_some_and(|since| event.at >= since))
        .filter(|event| until.is_none_or(|until| event.at <= until))
        .filter(|event| matches(event, &filters))
        .map(|event| json_line(&message(event)))
        .collect();
    let past = stream::iter(std::iter::once(Bytes::new()).chain(backlog));
    let live = stream::unfold((subscription.live, filters), |(mut live, filters)| async move {
        loop {
            match live.recv().await {
                Ok(event) if matches(&event, &filters) => {
                    return Some((json_line(&message(&event)), (live, filters)));
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let left = until.map(|until| until.since(now));
    let end = async move {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let chunks = past.chain(live.take_until(Box::pin(end)));
    Ok(streaming("application/json", app.scope.token(), chunks))
}

fn time(query: &Query, name: &str, now: Timestamp) -> Result<Option<Timestamp>, ApiError> {
    match query.text(name) {
        "" => Ok(None),
        text => filters::parse_time(text, now).map(Some).ok_or_else(|| {
            ApiError::invalid(format!("invalid value for '{name}': \"{text}\" is not a time"))
        }),
    }
}

fn matches(event: &Event, filters: &Filters) -> bool {
    let name = event.attributes.get("name").map_or("", String::as_str);
    let is_object = |wanted: &str| {
        wanted == event.id || wanted == name || (wanted.len() >= 4 && event.id.starts_with(wanted))
    };
    // `health_status` stands for `health_status: healthy`, `exec_start` for `exec_start: sh -c …`.
    let is_action = |wanted: &str| {
        event.action == wanted || event.action.split_once(':').is_some_and(|(action, _)| action == wanted)
    };
    filters.any("event", is_action)
        && filters.exact("type", &event.kind)
        && filters.exact("scope", event.scope.as_str())
        && filters.labels("label", &event.attributes)
        && matches_image(event, filters)
        && KINDS
            .iter()
            .all(|kind| !filters.has(kind) || (event.kind == *kind && filters.any(kind, is_object)))
}

/// An image is meant by its name with or without the tag, also in the events of its containers.
fn matches_image(event: &Event, filters: &Filters) -> bool {
    let from = match event.kind.as_str() {
        "image" => [Some(&event.id), event.attributes.get("name")],
        _ => [None, event.attributes.get("image")],
    };
    filters.any("image", |wanted| {
        from.iter()
            .flatten()
            .any(|name| *name == wanted || name.rsplit_once(':').is_some_and(|(base, _)| base == wanted))
    })
}

fn message(event: &Event) -> types::EventMessage {
    let is_legacy = matches!(event.kind.as_str(), "container" | "image");
    let legacy = |text: &str| if is_legacy { text.to_owned() } else { String::new() };
    types::EventMessage {
        status: legacy(&event.action),
        id: legacy(&event.id),
        from: legacy(event.attributes.get("image").map_or("", String::as_str)),
        kind: event.kind.clone(),
        action: event.action.clone(),
        actor: types::EventActor { id: event.id.clone(), attributes: event.attributes.clone() },
        scope: event.scope.as_str().to_owned(),
        time: event.at.as_secs(),
        time_nano: event.at.0,
    }
}

#[cfg(test)]
mod tests {
    use rswarm_engine::events::EventScope;

    use super::*;

    fn event(kind: &str, action: &str) -> Event {
        Event {
            kind: kind.into(),
            action: action.into(),
            id: "0123456789ab".into(),
            attributes: [("name".into(), "web".into()), ("image".into(), "alpine:3".into())].into(),
            at: Timestamp(1_700_000_000_000_000_007),
            scope: EventScope::Local,
        }
    }

    fn check(filters: &str, expected: bool) {
        let parsed = Filters::parse(filters, &FILTERS).expect("filters");
        assert_eq!(matches(&event("container", "health_status: healthy"), &parsed), expected, "{filters}");
    }

    #[test]
    fn events_are_filtered_by_object_action_and_label() {
        check("{}", true);
        check(r#"{"event":["health_status"]}"#, true);
        check(r#"{"event":["health_status: healthy"]}"#, true);
        check(r#"{"event":["health"]}"#, false);
        check(r#"{"container":["web"],"type":["container"]}"#, true);
        check(r#"{"container":["0123"]}"#, true);
        check(r#"{"container":["other"]}"#, false);
        check(r#"{"network":["web"]}"#, false);
        check(r#"{"image":["alpine"]}"#, true);
        check(r#"{"image":["alp"]}"#, false);
        check(r#"{"label":["name=web"]}"#, true);
        check(r#"{"scope":["swarm"]}"#, false);
    }

    #[test]
    fn a_message_keeps_the_old_fields_for_containers_alone() {
        let json = serde_json::to_value(message(&event("container", "start"))).expect("json");
        assert_eq!((json["status"].as_str(), json["from"].as_str()), (Some("start"), Some("alpine:3")));
        assert_eq!(json["timeNano"], 1_700_000_000_000_000_007_i64);
        let json = serde_json::to_value(message(&event("network", "connect"))).expect("json");
        assert!(json.get("status").is_none() && json["Actor"]["ID"] == "0123456789ab");
    }
}
