//! When an exception ends.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use mesh_runtime::clock;

/// Seconds of a day.
const DAY: u64 = 24 * 3600;
/// People hear of the end so many days before.
const WARNED_BEFORE: u64 = 14;

/// From this moment on there is no handshake any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Until(u64);

/// What people are told of an end.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    Nothing,
    /// So many whole days are left.
    Soon(u64),
    Over,
}

impl Until {
    /// Seconds since the Unix epoch.
    pub fn unix_seconds(self) -> u64 {
        self.0
    }

    /// Whether that moment has come.
    pub fn is_over(self) -> bool {
        self.notice(clock::now_unix().as_secs()) == Notice::Over
    }

    fn notice(self, now: u64) -> Notice {
        match self.0.checked_sub(now) {
            None | Some(0) => Notice::Over,
            Some(left) if left <= WARNED_BEFORE * DAY => Notice::Soon(left / DAY),
            Some(_) => Notice::Nothing,
        }
    }
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no end: write a date, e.g. 2027-03-01, or a time of RFC 3339");
        clock::parse_utc(text).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clock::utc(self.0))
    }
}

/// Tells people once a day of an end that comes or has come.
#[derive(Debug, Default)]
pub(super) struct Reminder {
    /// The day after the last one on which they were told; 0 is never.
    told: AtomicU64,
}

impl Reminder {
    /// `what` is the exception.
    pub(super) fn remind(&self, what: &str, until: Until) {
        let now = clock::now_unix().as_secs();
        let notice = until.notice(now);
        let today = now / DAY + 1;
        if notice == Notice::Nothing || self.told.swap(today, Ordering::Relaxed) == today {
            return;
        }
        match notice {
            Notice::Nothing => {}
            Notice::Soon(days) => {
                log::warn!(what = what, until:% = until, days = days; "transition TLS ends soon: move its peers into the mesh");
            }
            Notice::Over => {
                log::error!(what = what, until:% = until; "transition TLS has ended and every handshake is refused: remove it from the configuration, or write a later `until`");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_comes() {
        let until: Until = "2027-03-01".parse().unwrap();
        assert_eq!(until.to_string(), "2027-03-01T00:00:00Z");
        let end = until.unix_seconds();
        let cases = [
            (end - 14 * DAY - 1, Notice::Nothing),
            (end - 14 * DAY, Notice::Soon(14)),
            (end - DAY + 1, Notice::Soon(0)),
            (end - 1, Notice::Soon(0)),
            (end, Notice::Over),
            (end + 400 * DAY, Notice::Over),
            (0, Notice::Nothing),
        ];
        for (now, wanted) in cases {
            assert_eq!(until.notice(now), wanted, "{now}");
        }
    }

    #[test]
    fn what_is_no_end_is_told_how_to_write_one() {
        for text in ["soon", "2027-13-01", "2027-03-01T00:00", "", "never"] {
            let error = text.parse::<Until>().unwrap_err();
            assert!(error.contains("2027-03-01"), "{error}");
        }
    }
}
