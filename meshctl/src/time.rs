//! Durations and moments as a person reads and writes them.

use std::time::Duration;

/// Now, in whole seconds since the Unix epoch.
pub fn now_unix_s() -> i64 {
    i64::try_from(mesh_runtime::clock::now_unix().as_secs()).unwrap_or(i64::MAX)
}

/// The two largest units: `23h 59m`, `12s`, `3d 4h`.
pub fn short(duration: Duration) -> String {
    let s = duration.as_secs();
    let parts = [(s / 86_400, "d"), (s / 3600 % 24, "h"), (s / 60 % 60, "m"), (s % 60, "s")];
    let Some(first) = parts.iter().position(|(n, _)| *n > 0) else {
        return "0s".to_owned();
    };
    let shown = parts[first..].iter().take(2).filter(|(n, _)| *n > 0);
    shown.map(|(n, unit)| format!("{n}{unit}")).collect::<Vec<_>>().join(" ")
}

/// `in 23h 59m`, `expired 3m ago`; empty for an unset (zero) moment.
pub fn until(unix_s: i64, now_s: i64) -> String {
    if unix_s == 0 {
        return String::new();
    }
    let distance = Duration::from_secs(unix_s.abs_diff(now_s));
    if unix_s > now_s {
        format!("in {}", short(distance))
    } else {
        format!("expired {} ago", short(distance))
    }
}

/// `0.4s`, `12s ago` style for ages in milliseconds.
pub fn age_ms(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        _ => short(Duration::from_millis(ms)),
    }
}

/// `+3600.0s`, `-0.1s`: how far a clock is ahead.
pub fn ahead_ms(ms: i64) -> String {
    let sign = if ms < 0 { '-' } else { '+' };
    let ms = ms.unsigned_abs();
    format!("{sign}{}.{}s", ms / 1000, ms % 1000 / 100)
}

/// Reads `90`, `90s`, `15m`, `24h`, `7d`, `500ms`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 30s, 15m, 24h or 7d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms_per_unit = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms_per_unit).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_shown_with_their_sign() {
        for (ms, shown) in [(3_600_000, "+3600.0s"), (-140, "-0.1s"), (0, "+0.0s")] {
            assert_eq!(ahead_ms(ms), shown);
        }
    }

    #[test]
    fn durations_are_read() {
        let cases = [
            ("90", 90_000),
            ("20s", 20_000),
            ("15m", 900_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("250ms", 250),
        ];
        for (text, ms) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "s", "1.5s", "-1s", "1 s", "5y", "99999999999999999999d", "184467440737095516d"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3661, "1h 1m"),
            (90_000, "1d 1h"),
            (86_460, "1d"),
        ];
        for (s, text) in cases {
            assert_eq!(short(Duration::from_secs(s)), text);
        }
        assert_eq!(until(0, 5), "");
        assert_eq!(until(100, 40), "in 1m");
        assert_eq!(until(40, 100), "expired 1m ago");
        assert_eq!(age_ms(420), "0.4s");
        assert_eq!(age_ms(61_000), "1m 1s");
    }
}
