//! `logs`, of a container or of a service.

use clap::Args;
use http_body_util::BodyExt;
use rswarm_api::types::ContainerInspect;
use rswarm_base::clock::Timestamp;

use super::session::write_all;
use crate::client::{Call, ClientError, Demux, Output};
use crate::cmd::{CommandError, Context};
use crate::units::parse_duration;

/// What is printed of a log.
#[derive(Debug, Clone, Args)]
pub struct LogOptions {
    /// Go on as more is written
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, default_value = "all", value_name = "N", allow_hyphen_values = true)]
    pub tail: String,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only from this time on, as in `10m` or `2026-01-02T13:23:37Z`
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Print extra attributes
    #[arg(long)]
    pub details: bool,
}

/// `logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    options: LogOptions,
    /// Only before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

impl LogOptions {
    /// Puts the options into a query.
    pub fn apply(&self, call: Call) -> Result<Call, CommandError> {
        let since = self.since.as_deref().map(|text| moment(text, Timestamp::now())).transpose()?;
        let call = call.flag("stdout", true).flag("stderr", true).flag("follow", self.follow);
        let call = call.flag("timestamps", self.timestamps).flag("details", self.details);
        Ok(call.query("tail", &self.tail).maybe("since", since))
    }
}

/// Prints a container's log.
pub async fn container(context: &Context, args: LogsArgs) -> Result<u8, CommandError> {
    let found: ContainerInspect = context.client.json(Call::get(super::inspect_path(&args.name))).await?;
    let until = args.until.as_deref().map(|text| moment(text, Timestamp::now())).transpose()?;
    let call = args.options.apply(Call::get(format!("/containers/{}/logs", found.id)))?.maybe("until", until);
    print(context, call, found.config.tty, |frame| frame).await
}

/// Prints a log's stream; lines of multiplexed ones pass through `decorate`.
pub async fn print(
    context: &Context,
    call: Call,
    raw: bool,
    decorate: impl Fn(String) -> String,
) -> Result<u8, CommandError> {
    let name = call.to_string();
    let mut body = context.client.send(call).await?.into_body();
    let mut demux = Demux::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| ClientError::Exchange { call: name.clone(), source })?;
        let bytes = frame.into_data().unwrap_or_default();
        if raw {
            let text = decorate(String::from_utf8_lossy(&bytes).into_owned());
            write_all(&mut std::io::stdout().lock(), text.as_bytes())?;
        } else {
            demux.push(&bytes);
            decorated(&mut demux, &decorate)?;
        }
    }
    Ok(0)
}

fn decorated(demux: &mut Demux, decorate: &impl Fn(String) -> String) -> Result<(), CommandError> {
    while let Some((output, bytes)) = demux.next() {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match output {
            Output::Stdout => write_all(&mut std::io::stdout().lock(), decorate(text).as_bytes())?,
            Output::Stderr => write_all(&mut std::io::stderr().lock(), decorate(text).as_bytes())?,
            Output::Daemon => return Err(CommandError::Reported(text.trim().to_owned())),
        }
    }
    Ok(())
}

/// A time as the API takes it: seconds, from a duration back from now, RFC 3339 or seconds.
pub fn moment(text: &str, now: Timestamp) -> Result<String, CommandError> {
    if text.parse::<f64>().is_ok() {
        return Ok(text.to_owned());
    }
    let seconds = |time: Timestamp| format!("{}.{:09}", time.as_secs(), time.0.rem_euclid(1_000_000_000));
    if let Ok(back) = parse_duration(text) {
        return Ok(seconds(Timestamp(now.0.saturating_sub(crate::units::nanos(back)))));
    }
    let with_zone = |text: &str| Timestamp::parse(text).or_else(|| Timestamp::parse(&format!("{text}Z")));
    let parsed = with_zone(text).or_else(|| with_zone(&format!("{text}T00:00:00")));
    let wrong = || format!("invalid time `{text}`: write it as `10m` or `2026-01-02T13:23:37Z`");
    parsed.map(seconds).ok_or_else(|| CommandError::Usage(wrong()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_back_or_dates_or_seconds() {
        let now = Timestamp(1_700_000_060_000_000_005);
        for (text, want) in [
            ("1m", "1700000000.000000005"),
            ("1700000000", "1700000000"),
            ("2023-11-14T22:13:20Z", "1700000000.000000000"),
            ("2023-11-14T22:13:20", "1700000000.000000000"),
            ("2023-11-14", "1699920000.000000000"),
        ] {
            assert_eq!(moment(text, now).expect(text), want);
        }
        assert!(moment("yesterday", now).is_err());
    }
}
