//! What somebody wants to see of requests, checked.

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

#[cfg(test)]
mod tests {
    use super::*;

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
