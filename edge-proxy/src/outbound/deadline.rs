//! How long a request may take, as it travels: `grpc-timeout`, and
//! `x-isthmus-timeout` (milliseconds) for everything else.

use std::time::Duration;

use mesh_core::message::{Fields, RequestHead};

/// Milliseconds that are left, towards applications and from them.
pub const TIMEOUT: &str = "x-isthmus-timeout";
/// gRPC over HTTP/2, "Requests".
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What the client allows itself; `None` if it says nothing that can be read.
pub fn of_client(head: &RequestHead) -> Option<Duration> {
    let millis = head.fields.get(TIMEOUT).and_then(parse_millis);
    let grpc = head.is_grpc().then(|| head.fields.get(GRPC_TIMEOUT)).flatten().and_then(parse_grpc);
    match (millis, grpc) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// What is left of the deadline, for whoever comes next. A gRPC application
/// gets its own header only if the client sent it.
pub fn write(fields: &mut Fields, left: Duration) {
    let millis = left.as_millis().min(99_999_999);
    if fields.get(GRPC_TIMEOUT).is_some() {
        fields.set(GRPC_TIMEOUT, format!("{millis}m").as_bytes());
    }
    fields.set(TIMEOUT, millis.to_string().as_bytes());
}

/// Milliseconds as `x-isthmus-timeout` has them.
pub fn parse_millis(value: &[u8]) -> Option<Duration> {
    digits(value).map(Duration::from_millis)
}

/// 1 to 8 digits and a unit.
fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, number) = value.split_last()?;
    let number = digits(number)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 8 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new();
        for (name, value) in fields {
            head.fields.push(name, value.as_bytes());
        }
        head
    }

    #[test]
    fn what_clients_say() {
        let grpc = ("content-type", "application/grpc");
        let millis = |n| Some(Duration::from_millis(n));
        let cases: [(&[(&str, &str)], Option<Duration>); 11] = [
            (&[], None),
            (&[("x-isthmus-timeout", "250")], millis(250)),
            (&[("x-isthmus-timeout", "-1")], None),
            (&[("x-isthmus-timeout", "123456789")], None),
            (&[("grpc-timeout", "1S")], None),
            (&[grpc, ("grpc-timeout", "1S")], millis(1000)),
            (&[grpc, ("grpc-timeout", "2M")], millis(120_000)),
            (&[grpc, ("grpc-timeout", "99999999H")], Some(Duration::from_secs(99_999_999 * 3600))),
            (&[grpc, ("grpc-timeout", "5000u")], millis(5)),
            (&[grpc, ("grpc-timeout", "5x")], None),
            (&[grpc, ("grpc-timeout", "1S"), ("x-isthmus-timeout", "250")], millis(250)),
        ];
        for (fields, wanted) in cases {
            assert_eq!(of_client(&head(fields)), wanted, "{fields:?}");
        }
    }

    #[test]
    fn what_is_left_is_told() {
        let mut told = head(&[("grpc-timeout", "1S")]);
        write(&mut told.fields, Duration::from_micros(20_900));
        assert_eq!(told.fields.get("grpc-timeout"), Some(b"20m".as_slice()));
        assert_eq!(told.fields.get(TIMEOUT), Some(b"20".as_slice()));
        let mut plain = head(&[]);
        write(&mut plain.fields, Duration::MAX);
        assert_eq!(plain.fields.get(TIMEOUT), Some(b"99999999".as_slice()));
        assert_eq!(plain.fields.get("grpc-timeout"), None);
    }
}
