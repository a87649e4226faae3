//! Moments as policies see them.

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

/// A moment in a time zone.
pub(crate) struct Moment {
    pub(crate) hour: i64,
    pub(crate) minute_of_day: i64,
    pub(crate) weekday: &'static str,
}

impl Moment {
    /// `None` beyond the years that calendars know here (-9999 to 9999).
    pub(crate) fn of(seconds: i64, zone: &TimeZone) -> Option<Self> {
        let there = Timestamp::from_second(seconds).ok()?.to_zoned(zone.clone());
        let hour = i64::from(there.hour());
        Some(Self {
            hour,
            minute_of_day: hour * 60 + i64::from(there.minute()),
            weekday: match there.weekday() {
                Weekday::Monday => "mon",
                Weekday::Tuesday => "tue",
                Weekday::Wednesday => "wed",
                Weekday::Thursday => "thu",
                Weekday::Friday => "fri",
                Weekday::Saturday => "sat",
                Weekday::Sunday => "sun",
            },
        })
    }
}

/// Milliseconds since 1970 as Cedar reads a `datetime`: with exactly three digits behind the point.
pub(crate) fn text(millis: i64) -> String {
    let moment = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{}.{:03}Z", moment.strftime("%Y-%m-%dT%H:%M:%S"), millis.rem_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_seen_in_its_zone() {
        let zone = TimeZone::get("Europe/Berlin").expect("a zone");
        // 2026-01-04T23:30:00Z, a Sunday in UTC and a Monday there.
        let moment = Moment::of(1_767_569_400, &zone).expect("in range");
        assert_eq!((moment.hour, moment.minute_of_day, moment.weekday), (0, 30, "mon"));
        assert_eq!(text(1_767_569_400_000), "2026-01-04T23:30:00.000Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999Z");
    }
}
