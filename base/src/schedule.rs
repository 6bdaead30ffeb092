//! Times that come again and again: cron's five fields in a time zone. Pure: the zones are in the program.

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};

use crate::Timestamp;

/// How far ahead a time is looked for: 29 February may be eight years away.
const DAYS_AHEAD: usize = 8 * 366 + 1;
/// All 24 hours.
const EVERY_HOUR: u64 = (1 << 24) - 1;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Minutes, hours, days of the month, months and days of the week, as in crontab(5), in one time zone.
///
/// A time that the clocks skip counts when they have been put forward. One that comes twice counts once, unless every
/// hour counts.
#[derive(Debug, Clone)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Days of the month and of the week are alternatives when both are restricted.
    either_day: bool,
    zone: TimeZone,
}

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not five fields, and no word either.
    #[error(
        "`{0}` is no schedule: want MINUTE HOUR DAY MONTH WEEKDAY, or @hourly, @daily, @weekly, @monthly, @yearly"
    )]
    Shape(String),
    /// A field that is none.
    #[error("`{text}` is no {field}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// A time zone that there is not.
    #[error("there is no time zone `{0}`")]
    Zone(String),
    /// A date that never comes, such as 31 February.
    #[error("`{0}` never comes")]
    Never(String),
}

impl Schedule {
    /// Reads a schedule; an empty zone is UTC.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, zone: &str) -> Result<Schedule, ScheduleError> {
        let zone = match zone {
            "" | "UTC" => TimeZone::UTC,
            name => {
                TimeZoneDatabase::bundled().get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?
            }
        };
        let fields: Vec<&str> = expanded(text.trim()).split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(ScheduleError::Shape(text.to_owned()));
        };
        let all_weekdays = field("day of the week", weekdays, 0, 7, &WEEKDAYS)?;
        let schedule = Schedule {
            minutes: field("minute", minutes, 0, 59, &[])?,
            hours: field("hour", hours, 0, 23, &[])?,
            days: field("day of the month", days, 1, 31, &[])?,
            months: field("month", months, 1, 12, &MONTHS)?,
            // Sunday is 0 and 7.
            weekdays: all_weekdays | all_weekdays >> 7,
            either_day: !days.starts_with('*') && !weekdays.starts_with('*'),
            zone,
        };
        match schedule.next_after(Timestamp(0)) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never(text.to_owned())),
        }
    }

    /// The first time after `after`; `None` only where none comes in eight years.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let from = jiff::Timestamp::from_nanosecond(after.0.into()).ok()?;
        // What the clocks skip on one day may count on the next.
        let first = from.to_zoned(self.zone.clone()).date().yesterday().ok()?;
        let dates = std::iter::successors(Some(first), |date| date.tomorrow().ok()).take(DAYS_AHEAD);
        let next = dates
            .filter(|date| self.has_date(*date))
            .find_map(|date| self.times_of(date).filter(|time| *time > from).min())?;
        i64::try_from(next.as_nanosecond()).ok().map(Timestamp)
    }

    fn has_date(&self, date: Date) -> bool {
        let has = |set: u64, number: i8| set >> number & 1 == 1;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month()) && if self.either_day { day || weekday } else { day && weekday }
    }

    fn times_of(&self, date: Date) -> impl Iterator<Item = jiff::Timestamp> + '_ {
        let members = |set: u64, end: i8| (0..end).filter(move |number| set >> number & 1 == 1);
        members(self.hours, 24)
            .flat_map(move |hour| members(self.minutes, 60).map(move |minute| (hour, minute)))
            .flat_map(move |(hour, minute)| self.instants(date.at(hour, minute, 0, 0)))
    }

    /// When the zone's clocks show this time.
    fn instants(&self, time: DateTime) -> Vec<jiff::Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(time);
        match ambiguous.offset() {
            AmbiguousOffset::Fold { before, after } if self.hours == EVERY_HOUR => {
                [before, after].into_iter().filter_map(|offset| offset.to_timestamp(time).ok()).collect()
            }
            AmbiguousOffset::Unambiguous { .. }
            | AmbiguousOffset::Fold { .. }
            | AmbiguousOffset::Gap { .. } => ambiguous.compatible().into_iter().collect(),
        }
    }
}

fn expanded(text: &str) -> &str {
    match text {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        text => text,
    }
}

/// `*`, `5`, `1-5`, `*/15`, `1-9/2`, `mon`, and lists of these: a bit for each number.
fn field(name: &'static str, text: &str, min: u32, max: u32, words: &[&str]) -> Result<u64, ScheduleError> {
    let wrong = || ScheduleError::Field { field: name, text: text.to_owned() };
    let number = |word: &str| {
        let named = words.iter().position(|name| word.eq_ignore_ascii_case(name));
        let number = named.map(|position| position as u32 + min).or_else(|| word.parse().ok());
        number.filter(|number| (min..=max).contains(number)).ok_or_else(wrong)
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse().ok().filter(|step| *step > 0).ok_or_else(wrong)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (min, max),
            Some((first, last)) => (number(first)?, number(last)?),
            // As in `5/15`: from there on.
            None if part.contains('/') => (number(range)?, max),
            None => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(wrong());
        }
        (first..=last).step_by(step).for_each(|number| set |= 1 << number);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, zone: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule, zone).expect(schedule);
        let after = Timestamp::parse(after).expect(after);
        schedule.next_after(after).expect("comes").to_string().replace(".000000000", "")
    }

    #[test]
    fn the_next_time_is_the_first_that_fits() {
        for (schedule, after, want) in [
            ("*/15 * * * *", "2026-03-01T10:00:00Z", "2026-03-01T10:15:00Z"),
            ("*/15 * * * *", "2026-03-01T10:14:59Z", "2026-03-01T10:15:00Z"),
            ("30 4 * * *", "2026-03-01T10:00:00Z", "2026-03-02T04:30:00Z"),
            ("0 9-17/4 * * mon-fri", "2026-03-06T17:30:00Z", "2026-03-09T09:00:00Z"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 13 * 5", "2026-03-01T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("0 0 * * 7", "2026-03-02T00:00:00Z", "2026-03-08T00:00:00Z"),
            ("5,35 1 1 jan,jul *", "2026-03-01T00:00:00Z", "2026-07-01T01:05:00Z"),
            ("@monthly", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(schedule, "", after), want, "{schedule}");
        }
    }

    #[test]
    fn clocks_that_are_put_forward_and_back_neither_lose_a_time_nor_count_it_twice() {
        let berlin = |schedule: &str, after: &str| next(schedule, "Europe/Berlin", after);
        assert_eq!(berlin("0 12 * * *", "2026-01-01T12:00:00Z"), "2026-01-02T11:00:00Z");
        // 2:30 does not exist on 29 March 2026: an hour later instead.
        assert_eq!(berlin("30 2 * * *", "2026-03-28T12:00:00Z"), "2026-03-29T01:30:00Z");
        // 2:30 comes twice on 25 October 2026: the first time counts.
        assert_eq!(berlin("30 2 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(berlin("30 2 * * *", "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
        // What comes every hour comes in both.
        assert_eq!(berlin("30 * * * *", "2026-10-25T00:30:00Z"), "2026-10-25T01:30:00Z");
        assert_eq!(berlin("30 * * * *", "2026-10-25T01:30:00Z"), "2026-10-25T02:30:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        let error = |schedule: &str, zone: &str| {
            Schedule::parse(schedule, zone).map(drop).expect_err(schedule).to_string()
        };
        assert!(error("* * * *", "").contains("is no schedule"));
        assert_eq!(error("60 * * * *", ""), "`60` is no minute");
        assert_eq!(error("* 5-1 * * *", ""), "`5-1` is no hour");
        assert_eq!(error("*/0 * * * *", ""), "`*/0` is no minute");
        assert_eq!(error("* * * foo *", ""), "`foo` is no month");
        assert_eq!(error("0 0 31 2 *", ""), "`0 0 31 2 *` never comes");
        assert_eq!(error("* * * * *", "Middle/Earth"), "there is no time zone `Middle/Earth`");
    }
}
