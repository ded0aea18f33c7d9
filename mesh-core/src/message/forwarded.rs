//! What the next hop is told of the client: `Forwarded` (RFC 7239) and
//! `X-Forwarded-For`, `-Proto`, `-Host`.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use super::{RequestHead, known::Known};

/// What becomes of what the client sent, and whether we add to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It passes as it is; nothing is added.
    #[default]
    Keep,
    /// Our element is added at the end of what the client sent.
    Append,
    /// What the client sent goes; our element alone is sent.
    Replace,
    /// What the client sent goes; nothing is sent.
    Off,
}

/// Policies for the two spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarding {
    /// `Forwarded`.
    pub forwarded: Policy,
    /// `X-Forwarded-*`.
    pub x_forwarded: Policy,
}

impl Forwarding {
    /// Applies both to a request that came from `client`. `scratch` is
    /// cleared and keeps its memory for the next request.
    pub fn apply(self, head: &mut RequestHead, client: IpAddr, scratch: &mut String) {
        match self.forwarded {
            Policy::Keep => {}
            Policy::Off => drop(head.fields.remove_known(Known::Forwarded)),
            Policy::Replace => {
                head.fields.remove_known(Known::Forwarded);
                add_forwarded(head, client, scratch);
            }
            Policy::Append => add_forwarded(head, client, scratch),
        }
        match self.x_forwarded {
            Policy::Keep => {}
            Policy::Off => remove_x_forwarded(head),
            Policy::Replace => {
                remove_x_forwarded(head);
                add_x_forwarded(head, client, scratch);
            }
            Policy::Append => add_x_forwarded(head, client, scratch),
        }
    }
}

fn remove_x_forwarded(head: &mut RequestHead) {
    head.fields.remove_set(super::KnownSet::of(&[
        Known::XForwardedFor,
        Known::XForwardedProto,
        Known::XForwardedHost,
        Known::XForwardedPort,
        Known::XRealIp,
    ]));
}

/// `for=192.0.2.1;host=a;proto=http`; IPv6 and ports need quotes (RFC 7239
/// section 4).
fn add_forwarded(head: &mut RequestHead, client: IpAddr, scratch: &mut String) {
    scratch.clear();
    let _infallible = match client.to_canonical() {
        IpAddr::V4(client) => write!(scratch, "for={client}"),
        IpAddr::V6(client) => write!(scratch, "for=\"[{client}]\""),
    };
    // An authority has neither quotes nor backslashes.
    if !head.authority.is_empty() && !head.authority.contains(['"', '\\']) {
        let quote = if is_token(&head.authority) { "" } else { "\"" };
        let _infallible = write!(scratch, ";host={quote}{}{quote}", head.authority);
    }
    let _infallible = write!(scratch, ";proto={}", head.scheme.as_str());
    head.fields.append_element(Known::Forwarded.name(), scratch.as_bytes());
}

fn is_token(text: &str) -> bool {
    super::fields::is_name(text.as_bytes())
}

/// The client joins the list; protocol and host are those of the first hop.
fn add_x_forwarded(head: &mut RequestHead, client: IpAddr, scratch: &mut String) {
    scratch.clear();
    match client.to_canonical() {
        IpAddr::V4(client) => push_address(client, scratch),
        IpAddr::V6(client) => drop(write!(scratch, "{client}")),
    }
    head.fields.append_element(Known::XForwardedFor.name(), scratch.as_bytes());
    if !head.fields.has(Known::XForwardedProto) {
        head.fields.push_known(Known::XForwardedProto, head.scheme.as_str().as_bytes());
    }
    if !head.fields.has(Known::XForwardedHost) && !head.authority.is_empty() {
        head.fields.push_known(Known::XForwardedHost, head.authority.as_bytes());
    }
}

/// As `Display` writes it, which took 1300 instructions of each request.
fn push_address(address: Ipv4Addr, to: &mut String) {
    for (n, octet) in address.octets().into_iter().enumerate() {
        if n > 0 {
            to.push('.');
        }
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let first = usize::from(octet < 100) + usize::from(octet < 10);
        to.extend(digits[first..].iter().map(|digit| char::from(b'0' + digit)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn request(authority: &str, pairs: &[(&str, &str)]) -> RequestHead {
        let fields = pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        RequestHead { authority: authority.into(), fields, ..RequestHead::new() }
    }

    fn applied(policy: Forwarding, client: &str, given: Pairs<'_>, wanted: Pairs<'_>) {
        let mut head = request("a.b:80", given);
        policy.apply(&mut head, client.parse().unwrap(), &mut String::new());
        assert_eq!(head, request("a.b:80", wanted), "{policy:?}");
    }

    #[test]
    fn addresses_are_written_as_everybody_does() {
        for octet in 0..=255 {
            let address = Ipv4Addr::new(octet, 255 - octet, octet / 2, octet);
            let mut text = String::new();
            push_address(address, &mut text);
            assert_eq!(text, address.to_string());
        }
    }

    #[test]
    fn x_forwarded() {
        let sent: Pairs<'_> = &[
            ("X-Forwarded-For", "10.0.0.1"),
            ("a", "b"),
            ("x-forwarded-for", "10.0.0.2,10.0.0.3"),
            ("x-forwarded-proto", "https"),
        ];
        let policy = |x_forwarded| Forwarding { x_forwarded, forwarded: Policy::Keep };
        let host = ("x-forwarded-host", "a.b:80");
        applied(policy(Policy::Keep), "192.0.2.1", sent, sent);
        applied(policy(Policy::Off), "192.0.2.1", sent, &[("a", "b")]);
        applied(
            policy(Policy::Append),
            "192.0.2.1",
            sent,
            &[
                ("x-forwarded-for", "10.0.0.1, 10.0.0.2,10.0.0.3, 192.0.2.1"),
                ("a", "b"),
                ("x-forwarded-proto", "https"),
                host,
            ],
        );
        applied(
            policy(Policy::Replace),
            "::ffff:192.0.2.1",
            sent,
            &[("a", "b"), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "http"), host],
        );
        applied(
            policy(Policy::Append),
            "2001:db8::1",
            &[],
            &[("x-forwarded-for", "2001:db8::1"), ("x-forwarded-proto", "http"), host],
        );
    }

    #[test]
    fn forwarded() {
        let sent: Pairs<'_> = &[("forwarded", "for=_hidden"), ("a", "b")];
        let policy = |forwarded| Forwarding { forwarded, x_forwarded: Policy::Keep };
        applied(policy(Policy::Keep), "192.0.2.1", sent, sent);
        applied(policy(Policy::Off), "192.0.2.1", sent, &[("a", "b")]);
        applied(
            policy(Policy::Append),
            "192.0.2.1",
            sent,
            &[("forwarded", "for=_hidden, for=192.0.2.1;host=\"a.b:80\";proto=http"), ("a", "b")],
        );
        applied(
            policy(Policy::Replace),
            "2001:db8::1",
            sent,
            &[("a", "b"), ("forwarded", "for=\"[2001:db8::1]\";host=\"a.b:80\";proto=http")],
        );
    }

    #[test]
    fn hosts() {
        let both = Forwarding { forwarded: Policy::Append, x_forwarded: Policy::Append };
        let cases = [
            ("a.b", "for=192.0.2.1;host=a.b;proto=http", Some("a.b")),
            ("a.b:80", "for=192.0.2.1;host=\"a.b:80\";proto=http", Some("a.b:80")),
            // HTTP/1.0 without Host.
            ("", "for=192.0.2.1;proto=http", None),
            // Not to be quoted, and no authority.
            ("a\"b", "for=192.0.2.1;proto=http", Some("a\"b")),
        ];
        for (authority, forwarded, host) in cases {
            let mut head = request(authority, &[]);
            both.apply(&mut head, "192.0.2.1".parse().unwrap(), &mut String::new());
            assert_eq!(head.fields.get("forwarded"), Some(forwarded.as_bytes()));
            assert_eq!(head.fields.get("x-forwarded-host"), host.map(str::as_bytes));
        }
        // The first hop's word stands.
        let mut head = request("a.b", &[("x-forwarded-host", "first")]);
        both.apply(&mut head, "192.0.2.1".parse().unwrap(), &mut String::new());
        assert_eq!(head.fields.all("x-forwarded-host").collect::<Vec<_>>(), [b"first"]);
    }
}
