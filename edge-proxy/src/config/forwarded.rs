//! What applications are told of where a request came from.

use std::net::IpAddr;

use mesh_core::message::{
    Known, RequestHead,
    forwarded::{Forwarding, Policy},
};
use schemars::JsonSchema;
use serde::Deserialize;

/// What becomes of `X-Forwarded-*` and `Forwarded` (RFC 7239) of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Forwarded {
    /// Of a client on this host, which is the workload itself, they pass as
    /// they are; to those of another host its address is appended.
    #[default]
    Auto,
    /// They pass as they are.
    Keep,
    /// The client's address is appended.
    Append,
    /// They are replaced by the client's address.
    Replace,
    /// They are removed.
    Remove,
}

impl Forwarded {
    /// Applies it to a request from `client`. `Forwarded` is only written
    /// where the client has sent one: otherwise `X-Forwarded-*` says it all.
    pub fn apply(self, head: &mut RequestHead, client: Option<IpAddr>) {
        let Some((policy, client)) = self.policy(client) else { return };
        let sent = head.fields.has(Known::Forwarded);
        let forwarded = if sent { policy } else { Policy::Keep };
        Forwarding { forwarded, x_forwarded: policy }.apply(head, client, &mut String::new());
    }

    /// `None` keeps all. Of whom nobody knows where he is nothing is added.
    fn policy(self, client: Option<IpAddr>) -> Option<(Policy, IpAddr)> {
        let unknown = IpAddr::from([0; 4]);
        match (self, client) {
            (Self::Keep, _) | (Self::Auto | Self::Append, None) => None,
            (Self::Auto, Some(client)) if client.to_canonical().is_loopback() => None,
            (Self::Auto | Self::Append, Some(client)) => Some((Policy::Append, client)),
            (Self::Replace, Some(client)) => Some((Policy::Replace, client)),
            (Self::Replace, None) | (Self::Remove, _) => Some((Policy::Off, unknown)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(policy: Forwarded, client: Option<&str>, sent: &[(&str, &str)]) -> Vec<String> {
        let fields = sent.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let mut head = RequestHead { authority: "a.b".into(), fields, ..RequestHead::new() };
        policy.apply(&mut head, client.map(|client| client.parse().unwrap()));
        let text = |(name, value): (&str, &[u8])| format!("{name}: {}", value.escape_ascii());
        let mut fields: Vec<String> = head.fields.iter().map(text).collect();
        fields.sort();
        fields
    }

    #[test]
    fn who_is_told_of() {
        use Forwarded::{Append, Auto, Keep, Remove, Replace};
        let sent = [("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1")];
        let kept = ["forwarded: for=10.0.0.1", "x-forwarded-for: 10.0.0.1"];
        for (policy, client) in [
            (Keep, Some("192.0.2.1")),
            (Auto, Some("127.0.0.1")),
            (Auto, Some("::1")),
            (Auto, Some("::ffff:127.0.0.1")),
            (Auto, None),
            (Append, None),
        ] {
            assert_eq!(applied(policy, client, &sent), kept, "{policy:?} {client:?}");
        }
        let appended = [
            "forwarded: for=10.0.0.1, for=192.0.2.1;host=a.b;proto=http",
            "x-forwarded-for: 10.0.0.1, 192.0.2.1",
            "x-forwarded-host: a.b",
            "x-forwarded-proto: http",
        ];
        assert_eq!(applied(Auto, Some("192.0.2.1"), &sent), appended);
        assert_eq!(applied(Append, Some("192.0.2.1"), &sent), appended);
        let replaced = [
            "forwarded: for=127.0.0.1;host=a.b;proto=http",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: a.b",
            "x-forwarded-proto: http",
        ];
        assert_eq!(applied(Replace, Some("127.0.0.1"), &sent), replaced);
        assert_eq!(applied(Auto, Some("192.0.2.1"), &[]).len(), 3, "and no Forwarded");
        for (policy, client) in [(Remove, Some("192.0.2.1")), (Remove, None), (Replace, None)] {
            assert_eq!(applied(policy, client, &sent), [""; 0], "{policy:?} {client:?}");
        }
    }
}
