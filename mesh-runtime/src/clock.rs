//! The only place of the mesh that reads a clock.
//!
//! Wall time is for certificates and for people; everything that waits or
//! measures uses [`monotonic`]. Both follow tokio's clock and therefore also a
//! paused or simulated one: there, a certificate ages with the hours that are
//! waited for, and not with those that the simulation takes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Two readings of one clock, one after the other, differ by less than this.
const ONE_CLOCK: Duration = Duration::from_secs(1);

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "this is the place that reads it")]
pub fn now() -> SystemTime {
    let (wall, machine) = (SystemTime::now(), Instant::now());
    let ours = monotonic().into_std();
    // How far a simulation has moved tokio's clock from the machine's.
    match ours.checked_duration_since(machine) {
        Some(ahead) if ahead >= ONE_CLOCK => wall + ahead,
        None if machine - ours >= ONE_CLOCK => wall - (machine - ours),
        Some(_) | None => wall,
    }
}

/// Time since the Unix epoch; zero on a machine whose clock is before it.
pub fn now_unix() -> Duration {
    now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whole seconds since the Unix epoch, as wires and records carry them.
pub fn unix_seconds() -> i64 {
    i64::try_from(now_unix().as_secs()).unwrap_or(i64::MAX)
}

/// Whole milliseconds since the Unix epoch, as wires carry them.
pub fn unix_millis() -> u64 {
    u64::try_from(now_unix().as_millis()).unwrap_or(u64::MAX)
}

/// A time for people, RFC 3339 in UTC.
pub fn utc(unix_s: u64) -> String {
    let time =
        i64::try_from(unix_s).ok().and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
    let Some(t) = time else { return format!("{unix_s} s after 1970") };
    let (date, clock) = (t.date(), t.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

/// Seconds since the Unix epoch of a date (`2027-03-01`: 00:00 UTC) or of a time
/// as RFC 3339 section 5.6 writes it, without fractions; `None` if it is
/// neither, or before 1970.
pub fn parse_utc(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let month = time::Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = time::Date::from_calendar_date(year.into(), month, u8::try_from(day).ok()?).ok()?;
    let midnight = date.midnight().assume_utc().unix_timestamp();
    if rest.is_empty() {
        return u64::try_from(midnight).ok();
    }
    let (clock, zone) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?.map(i64::from);
    let ahead = match (zone.get(..1)?, zone.get(1..)?) {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), zone) => {
            let [hours, minutes] = numbers(zone, ':', [2, 2])?.map(i64::from);
            let ahead = (hours < 24 && minutes < 60).then_some((hours * 60 + minutes) * 60)?;
            if sign == "+" { ahead } else { -ahead }
        }
        _ => return None,
    };
    // 60 is a leap second.
    let is_time = hour < 24 && minute < 60 && second <= 60;
    let of_day = is_time.then_some((hour * 60 + minute) * 60 + second)?;
    u64::try_from(midnight + of_day - ahead).ok()
}

/// So many numbers with so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u16; N]> {
    let (mut parts, mut numbers) = (text.split(between), [0; N]);
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        let plain = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
        *number = plain.then(|| part.parse().ok())??;
    }
    parts.next().is_none().then_some(numbers)
}

/// What `/proc` counts the starts of processes by; goes on while a machine
/// sleeps.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanoseconds)
}

/// The clock to wait and measure by.
pub fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// What the calling thread has had of its processor's time.
pub fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_readings_agree() {
        let before = now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = u64::try_from(unix_seconds()).unwrap();
        let millis = unix_millis();
        let after = now_unix();
        assert!(before.as_secs() <= seconds && seconds <= after.as_secs());
        assert!(before.as_millis() <= millis.into() && u128::from(millis) <= after.as_millis());
    }

    #[test]
    fn wall_time_follows_a_simulated_clock() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let start = now();
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(3600)).await;
            let passed = now().duration_since(start).unwrap();
            let hour = Duration::from_secs(3590)..Duration::from_secs(3610);
            assert!(hour.contains(&passed), "{passed:?}");
            // The machine's own time does not count.
            let before = now();
            std::thread::sleep(Duration::from_millis(500));
            let passed = now().duration_since(before).unwrap_or_default();
            assert!(passed < Duration::from_millis(400), "{passed:?}");
        });
    }

    #[test]
    fn people_read_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(1_795_226_339), "2026-11-21T01:58:59Z");
        assert_eq!(utc(u64::MAX), "18446744073709551615 s after 1970");
    }

    #[test]
    fn dates_and_times_of_people_are_read() {
        let cases = [
            ("1970-01-01", Some(0)),
            ("2026-11-21", Some(1_795_219_200)),
            ("2026-11-21T01:58:59Z", Some(1_795_226_339)),
            ("2026-11-21t01:58:59z", Some(1_795_226_339)),
            ("2026-11-21T03:28:59+01:30", Some(1_795_226_339)),
            ("2026-11-20T20:58:59-05:00", Some(1_795_226_339)),
            ("2026-12-31T23:59:60Z", Some(1_798_761_600)),
            ("1969-12-31", None),
            ("1970-01-01T00:00:00+00:01", None),
            ("2026-02-29", None),
            ("2026-11-21T01:58:59", None),
            ("2026-11-21T01:58:5912Z", None),
            ("2026-11-21T24:00:00Z", None),
            ("2026-11-21T01:58:59+0130", None),
            ("2026-11-21T01:58:59+24:00", None),
            ("2026-11-21T01:58:59\u{e9}", None),
            ("2026-11-2\u{e9}", None),
            ("+026-11-21", None),
            ("26-11-21", None),
            ("2026-11", None),
            ("", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse_utc(text), wanted, "{text}");
        }
        for unix_s in [0, 951_782_400, 1_795_226_339, 4_102_444_799] {
            assert_eq!(parse_utc(&utc(unix_s)), Some(unix_s));
        }
    }

    #[test]
    fn monotonic_follows_paused_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::time::pause();
            let start = monotonic();
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert_eq!(monotonic() - start, Duration::from_secs(3600));
        });
    }
}
