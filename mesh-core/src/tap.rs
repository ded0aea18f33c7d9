//! What somebody wants to see of requests, checked, and how much of it.

use std::time::Duration;

use mesh_api::v1;

/// What is watched; parts that are empty match all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// As it was asked for.
    pub asked: v1::TapRequest,
    /// The first and the last status that match.
    pub status: Option<(u16, u16)>,
}

/// What matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// Neither way.
    #[error("direction {0:?}: write inbound or outbound")]
    Direction(String),
    /// Neither a status nor a class.
    #[error("status {0:?}: write a number (503) or a class (5xx)")]
    Status(String),
}

impl TryFrom<v1::TapRequest> for Filter {
    type Error = BadFilter;

    fn try_from(asked: v1::TapRequest) -> Result<Self, BadFilter> {
        if !matches!(&*asked.direction, "" | "inbound" | "outbound") {
            return Err(BadFilter::Direction(asked.direction));
        }
        let class = |text: &str| {
            let digit: u16 = text.strip_suffix("xx")?.parse().ok()?;
            (1..=5).contains(&digit).then_some((digit * 100, digit * 100 + 99))
        };
        let exact = |text: &str| text.parse().ok().map(|status: u16| (status, status));
        let status = match &*asked.status {
            "" => None,
            text => match class(text).or_else(|| exact(text)) {
                Some(range) => Some(range),
                None => return Err(BadFilter::Status(asked.status)),
            },
        };
        Ok(Self { asked, status })
    }
}

/// How much one who watches is shown: so many events a second. What is left
/// out is counted, and told before the next that is shown.
#[derive(Debug, Clone)]
pub struct Allowance {
    a_second: u32,
    /// The second that `shown` is of.
    since: Duration,
    shown: u32,
    lost: u64,
}

impl Allowance {
    /// So many a second.
    pub fn new(a_second: u32) -> Self {
        Self { a_second, since: Duration::ZERO, shown: 0, lost: 0 }
    }

    /// One more event, by any clock, for a queue that has room for `room`: how
    /// many were left out since the last that was shown, to be told first where
    /// there are any; `None` leaves this one out, too.
    pub fn take(&mut self, now: Duration, room: usize) -> Option<u64> {
        if now.saturating_sub(self.since) >= Duration::from_secs(1) {
            (self.since, self.shown) = (now, 0);
        }
        let needed = if self.lost > 0 { 2 } else { 1 };
        if self.shown >= self.a_second || room < needed {
            self.lose(1);
            return None;
        }
        self.shown += 1;
        Some(std::mem::take(&mut self.lost))
    }

    /// So many more are left out.
    pub fn lose(&mut self, many: u64) {
        self.lost = self.lost.saturating_add(many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_and_the_rest_is_told() {
        let mut allowance = Allowance::new(2);
        let at = Duration::from_millis;
        let mut take = |now, room| allowance.take(at(now), room);
        assert_eq!([take(0, 9), take(999, 9), take(999, 9)], [Some(0), Some(0), None]);
        // What was lost is told with the next, which needs room for both.
        assert_eq!([take(1000, 1), take(1001, 2), take(1002, 1)], [None, Some(2), Some(0)]);
        assert_eq!(take(1003, 9), None);
        allowance.lose(u64::MAX);
        assert_eq!(allowance.take(at(9000), 2), Some(u64::MAX));
        assert_eq!(allowance.take(at(9000), 0), None);
    }

    #[test]
    fn filters_are_checked() {
        let asked = |direction: &str, status: &str| v1::TapRequest {
            direction: direction.into(),
            status: status.into(),
            ..v1::TapRequest::default()
        };
        let filter = |direction, status| Filter::try_from(asked(direction, status));
        assert_eq!(filter("", "").unwrap().status, None);
        assert_eq!(filter("inbound", "5xx").unwrap().status, Some((500, 599)));
        assert_eq!(filter("outbound", "404").unwrap().status, Some((404, 404)));
        assert_eq!(filter("up", "").unwrap_err(), BadFilter::Direction("up".into()));
        for status in ["6xx", "xx", "abc", "5x"] {
            assert_eq!(filter("", status).unwrap_err(), BadFilter::Status(status.into()));
        }
    }
}
