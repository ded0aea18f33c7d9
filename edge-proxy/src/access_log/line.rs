//! How lines of the access log are written.

use std::{net::IpAddr, time::Duration};

use mesh_core::{PortName, Reason, ServiceName, SpiffeId};
use serde::Serialize;

use super::{AccessLogFormat, Entry};

/// One line, without its end. Neither form holds a control character.
pub(super) fn written(entry: &Entry, format: AccessLogFormat) -> Result<String, serde_json::Error> {
    match format {
        AccessLogFormat::Json => serde_json::to_string(&Line::of(entry)),
        AccessLogFormat::Common => Ok(common(entry)),
    }
}

/// Apache's common format: client, peer, user (never known), time, request,
/// status, bytes; then reason and connection, quoted.
fn common(entry: &Entry) -> String {
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let request = match &entry.asked {
        Some(asked) => {
            let version = if entry.protocol == "http2" { "HTTP/2.0" } else { "HTTP/1.1" };
            format!("{} {} {version}", asked.method, escaped(&asked.path))
        }
        None => {
            let service = entry.service.as_ref().map_or("-", ServiceName::as_str);
            format!("TCP {service} {}", entry.port.as_ref().map_or("-", PortName::as_str))
        }
    };
    let status = (entry.status != 0).then(|| entry.status.to_string());
    format!(
        "{} {} - [{}] \"{request}\" {} {} \"{}\" \"{}\"",
        dash(entry.client.map(|client| client.to_string())),
        entry.peer.as_ref().map_or("-", SpiffeId::as_str),
        apache_time(entry.time),
        dash(status),
        entry.sent,
        entry.reason.map_or("-", Reason::code),
        entry.connection.as_deref().unwrap_or("-"),
    )
}

/// Quotes, backslashes and what is no printable ASCII, as Apache writes them.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => escaped.extend(['\\', char::from(byte)]),
            0x21..=0x7e => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

/// An entry as it is written. Empty parts are left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    port: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    authority: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u32>,
    received: u64,
    sent: u64,
    duration_us: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    via: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    site: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    peer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    connection: &'a str,
    #[serde(skip_serializing_if = "is_one")]
    attempts: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(attempts: &u32) -> bool {
    *attempts <= 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(status: &u16) -> bool {
    *status == 0
}

impl<'a> Line<'a> {
    fn of(entry: &'a Entry) -> Self {
        let asked = entry.asked.as_deref();
        Self {
            time: timestamp(entry.time),
            direction: entry.direction.as_str(),
            protocol: entry.protocol,
            service: entry.service.as_ref().map_or("", ServiceName::as_str),
            port: entry.port.as_ref().map_or("", PortName::as_str),
            client: entry.client,
            method: asked.map_or("", |asked| asked.method.as_str()),
            authority: asked.map_or("", |asked| &asked.authority),
            path: asked.map_or("", |asked| &asked.path),
            user_agent: asked.map_or("", |asked| &asked.user_agent),
            trace_id: asked.map_or("", |asked| &asked.trace_id),
            status: entry.status,
            grpc_status: entry.grpc_status,
            received: entry.received,
            sent: entry.sent,
            duration_us: u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX),
            via: entry.path_kind,
            site: entry.endpoint.as_ref().map_or("", |endpoint| endpoint.site.as_str()),
            endpoint: entry.endpoint.as_ref().map_or("", |endpoint| endpoint.id.as_str()),
            peer: entry.peer.as_ref().map_or("", SpiffeId::as_str),
            route: entry.route.as_deref().unwrap_or_default(),
            reason: entry.reason.map_or("", Reason::code),
            connection: entry.connection.as_deref().unwrap_or_default(),
            attempts: entry.attempts,
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since_epoch.subsec_millis()
    )
}

/// `10/Oct/2000:13:55:36 +0000`.
fn apache_time(since_epoch: Duration) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let month = usize::try_from(month).ok().and_then(|month| MONTHS.get(month - 1)).unwrap_or(&"");
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar,
/// counted in eras of 400 years that begin on the first of March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_where_calendars_are_odd() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, wanted) in cases {
            assert_eq!(timestamp(Duration::from_secs(seconds)), wanted);
        }
        assert_eq!(timestamp(Duration::from_millis(1_042)), "1970-01-01T00:00:01.042Z");
    }

    #[test]
    fn paths_break_no_line() {
        assert_eq!(escaped("/a\"b\\c d\u{e9}"), "/a\\\"b\\\\c\\x20d\\xc3\\xa9");
        assert_eq!(apache_time(Duration::from_secs(971_186_136)), "10/Oct/2000:13:55:36 +0000");
    }
}
