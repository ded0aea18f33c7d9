//! TLS with certificates of another CA, for people and programs.

use mesh_api::v1;
use serde::Serialize;

use crate::{output::Paint, time};

/// An end that is nearer than this is warned of, as by the proxies themselves.
const WARNING_S: i64 = 14 * 86_400;

/// One listener or service of a proxy, and when its TLS ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TransitionTls {
    /// `listener` or `service`.
    pub(crate) kind: String,
    /// Where it listens, or `<name>.<namespace>`.
    pub(crate) name: String,
    pub(crate) until_unix_s: i64,
}

impl From<v1::TransitionTls> for TransitionTls {
    fn from(told: v1::TransitionTls) -> Self {
        Self { kind: told.kind, name: told.name, until_unix_s: told.until_unix_s }
    }
}

impl TransitionTls {
    /// `2027-03-01T00:00:00Z (in 91d)`, coloured by how soon that is.
    pub(crate) fn end(&self, now_s: i64, paint: Paint) -> String {
        let date = mesh_runtime::clock::utc(u64::try_from(self.until_unix_s).unwrap_or_default());
        let left = self.until_unix_s.saturating_sub(now_s);
        match time::until(self.until_unix_s, now_s) {
            _ if left <= 0 => paint.bad(&format!("{date} (has ended: remove it)")),
            until if left <= WARNING_S => paint.warn(&format!("{date} ({until})")),
            until => format!("{date} ({until})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_date_and_how_far_it_is() {
        let tls = TransitionTls {
            kind: "listener".into(),
            name: "10.0.0.7:443".into(),
            until_unix_s: 1_803_859_200,
        };
        let end = |before: i64| tls.end(tls.until_unix_s - before, Paint::PLAIN);
        assert_eq!(end(91 * 86_400), "2027-03-01T00:00:00Z (in 91d)");
        assert_eq!(end(86_400), "2027-03-01T00:00:00Z (in 1d)");
        assert_eq!(end(0), "2027-03-01T00:00:00Z (has ended: remove it)");
    }
}
