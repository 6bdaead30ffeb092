//! Logs of containers, services and tasks: one framing, one set of options.

use std::collections::BTreeMap;

use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rswarm_base::Timestamp;
use rswarm_engine::logs::{LogEntry, LogOptions, LogSource};
use rswarm_proto::wire;

use crate::error::ApiError;
use crate::filters::parse_unix;
use crate::request::Query;
use crate::router::App;
use crate::stream::{Output, content_type, frame, streaming};
use crate::version::ApiVersion;

/// What Go's `url.QueryEscape` leaves alone.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a client asks to see, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub options: LogOptions,
    pub timestamps: bool,
    pub details: bool,
}

impl Wanted {
    pub fn parse(query: &Query) -> Result<Wanted, ApiError> {
        let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
        if !stdout && !stderr {
            return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
        }
        let time = |name: &str| match query.text(name) {
            "" | "0" => Ok(None),
            text => parse_unix(text)
                .or_else(|| Timestamp::parse(text))
                .map(Some)
                .ok_or_else(|| ApiError::invalid(format!("invalid value for \"{name}\": {text}"))),
        };
        let options = LogOptions {
            follow: query.flag("follow"),
            stdout,
            stderr,
            since: time("since")?,
            until: time("until")?,
            // Anything that is no number, a negative one too, is "all".
            tail: query.text("tail").parse().ok(),
        };
        Ok(Wanted { options, timestamps: query.flag("timestamps"), details: query.flag("details") })
    }

    /// The same for a manager. The task is the manager's to fill in.
    pub fn to_wire(self) -> wire::TaskLogsRequest {
        let nanos = |at: Option<Timestamp>| at.unwrap_or(Timestamp::ZERO).0;
        wire::TaskLogsRequest {
            task_id: String::new(),
            follow: self.options.follow,
            stdout: self.options.stdout,
            stderr: self.options.stderr,
            tail: self.options.tail.map_or(-1, |lines| i64::try_from(lines).unwrap_or(i64::MAX)),
            since: nanos(self.options.since),
            until: nanos(self.options.until),
        }
    }

    /// One line as the client gets it: `[timestamp ][details ]line`, framed unless it is a terminal's.
    fn line(
        &self,
        output: Output,
        at: Timestamp,
        details: &BTreeMap<String, String>,
        line: &[u8],
        tty: bool,
    ) -> Bytes {
        let mut bytes = BytesMut::with_capacity(line.len() + 32);
        if self.timestamps {
            bytes.extend_from_slice(at.rfc3339_nano().as_bytes());
            bytes.extend_from_slice(b" ");
        }
        if self.details {
            bytes.extend_from_slice(encode(details).as_bytes());
            bytes.extend_from_slice(b" ");
        }
        bytes.extend_from_slice(line);
        if tty { bytes.freeze() } else { frame(output, &bytes) }
    }

    pub fn entry(&self, entry: &LogEntry, tty: bool) -> Bytes {
        let output = match entry.source {
            LogSource::Stdout => Output::Stdout,
            LogSource::Stderr => Output::Stderr,
        };
        self.line(output, entry.at, &entry.attributes, &entry.line, tty)
    }
}

/// `k=v,k=v`, sorted, encoded as in a query.
fn encode(details: &BTreeMap<String, String>) -> String {
    let escape = |text: &str| utf8_percent_encode(text, KEPT).to_string().replace("%20", "+");
    let pairs: Vec<String> =
        details.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
    pairs.join(",")
}

/// `GET /containers/{id}/logs`.
pub(crate) async fn container(
    app: &App,
    reference: &str,
    query: &Query,
    version: ApiVersion,
) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(query)?;
    let tty = app.engine.inspect(reference)?.config.spec.tty;
    let entries = app.engine.logs(reference, wanted.options).await?;
    let lines = entries.map(move |entry| wanted.entry(&entry, tty));
    Ok(respond(app, lines, tty, version))
}

fn respond<S>(app: &App, lines: S, tty: bool, version: ApiVersion) -> Response
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let head = stream::iter([Bytes::new()]);
    streaming(content_type(version, tty), app.scope.token(), head.chain(lines))
}

/// Logs gathered from the nodes by the managers: of services, or of tasks.
pub(crate) async fn cluster(
    app: &App,
    selector: wire::LogsRequest,
    query: &Query,
    tty: bool,
    version: ApiVersion,
) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(query)?;
    let request = wire::LogsRequest { options: Some(wanted.to_wire()), ..selector };
    let mut client = app.cluster.logs().await?;
    let messages = client.subscribe(request).await.map_err(|status| ApiError::from_status(&status))?;
    let lines = messages.into_inner().map(move |message| match message {
        Ok(message) => cluster_line(&wanted, &message, tty),
        Err(status) => frame(Output::System, status.message().as_bytes()),
    });
    Ok(respond(app, lines, tty, version))
}

fn cluster_line(wanted: &Wanted, message: &wire::LogsMessage, tty: bool) -> Bytes {
    let Some(line) = &message.line else {
        return if tty { Bytes::new() } else { frame(Output::System, message.warning.as_bytes()) };
    };
    let output = match line.stream() {
        wire::log_line::Stream::Stdout => Output::Stdout,
        wire::log_line::Stream::Stderr => Output::Stderr,
    };
    let details = [
        ("com.docker.swarm.node.id", &message.node_id),
        ("com.docker.swarm.service.id", &message.service_id),
        ("com.docker.swarm.task.id", &message.task_id),
    ];
    let details = details.map(|(key, value)| (key.to_owned(), value.clone())).into();
    wanted.line(output, Timestamp(line.timestamp), &details, &line.data, tty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Result<Wanted, ApiError> {
        Wanted::parse(&Query::parse(query))
    }

    #[test]
    fn at_least_one_stream_must_be_chosen() {
        let error = wanted("follow=1").expect_err("no stream");
        assert_eq!(error.message, "Bad parameters: you must choose at least one stream");
    }

    #[test]
    fn tail_is_a_number_or_all_and_times_are_exact() {
        for (tail, expected) in [("", None), ("all", None), ("-3", None), ("0", Some(0)), ("7", Some(7))] {
            assert_eq!(
                wanted(&format!("stdout=1&tail={tail}")).expect("query").options.tail,
                expected,
                "{tail}"
            );
        }
        let times = wanted("stdout=1&since=5.000000007&until=0").expect("query").options;
        assert_eq!((times.since, times.until), (Some(Timestamp(5_000_000_007)), None));
        assert!(wanted("stdout=1&since=soon").is_err());
        assert_eq!(wanted("stderr=1&tail=2").expect("query").to_wire().tail, 2);
        assert_eq!(wanted("stderr=1").expect("query").to_wire().tail, -1);
    }

    #[test]
    fn a_line_carries_its_time_and_its_details_first() {
        let entry = LogEntry {
            source: LogSource::Stderr,
            at: Timestamp(1_700_000_000_000_000_007),
            line: Bytes::from_static(b"hi\n"),
            attributes: [("a b".into(), "c,d".into())].into(),
        };
        let plain = wanted("stderr=1").expect("query");
        assert_eq!(plain.entry(&entry, false), frame(Output::Stderr, b"hi\n"));
        assert_eq!(plain.entry(&entry, true), "hi\n");
        let full = wanted("stderr=1&timestamps=1&details=1").expect("query");
        assert_eq!(full.entry(&entry, true), "2023-11-14T22:13:20.000000007Z a+b=c%2Cd hi\n");
    }

    #[test]
    fn a_node_that_cannot_be_read_is_an_error_frame() {
        let message = wire::LogsMessage { warning: "node n1 is down".into(), ..Default::default() };
        let line = cluster_line(&wanted("stdout=1").expect("query"), &message, false);
        assert_eq!(line, frame(Output::System, b"node n1 is down"));
    }
}
