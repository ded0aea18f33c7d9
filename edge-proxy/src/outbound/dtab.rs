//! Where a single request says that it shall go, as applications behind Linkerd 1.x
//! say it: `l5d-dtab: /svc/web.shop => /svc/web-canary.shop`, and `l5d-ctx-dtab`, which
//! carries the same from hop to hop. Only to services that `dtab_overrides` names.
//!
//! Of the language only what leads one name to another: what else concerns the name of
//! a request is refused, and what does not concern it is passed on.

use std::borrow::Cow;

use mesh_core::{Reason, ServiceName, Snapshot, message::RequestHead, route::Destination};

use crate::refusal::Refusal;

/// What this request itself says.
pub const USER: &str = "l5d-dtab";
/// What requests before it have said.
pub const CONTEXT: &str = "l5d-ctx-dtab";
/// Of all of it, in bytes.
const MAX_BYTES: usize = 4096;
/// Names that lead to names.
const MAX_DEPTH: usize = 8;
/// Where names of services begin.
const ROOT: &str = "/svc/";

/// A service, or `*.<namespace>`, or `*`, that requests may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Every one.
    All,
    /// Those of a namespace.
    Namespace(String),
    /// This one.
    Service(ServiceName),
}

impl Allowed {
    fn allows(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => service.namespace() == namespace,
            Self::Service(one) => one == service,
        }
    }
}

impl std::str::FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::All);
        }
        if let Some(namespace) = text.strip_prefix("*.") {
            return Ok(Self::Namespace(namespace.to_owned()));
        }
        let service = text.parse().map_err(|_| {
            format!("{text:?} is no service: <name>.<namespace>, *.<namespace>, or *")
        })?;
        Ok(Self::Service(service))
    }
}

/// Where the request goes instead, by its own words; `None` if they do not concern it.
///
/// # Errors
///
/// They cannot be understood, or lead where they must not.
pub fn destination(
    head: &RequestHead,
    allowed: &[Allowed],
    snapshot: &Snapshot,
) -> Result<Option<Destination>, Refusal> {
    if allowed.is_empty() {
        return Ok(None);
    }
    let said = [CONTEXT, USER].map(|name| head.fields.all(name));
    let mut entries = Vec::new();
    let mut bytes = 0;
    for value in said.into_iter().flatten() {
        bytes += value.len();
        if bytes > MAX_BYTES {
            return Err(bad(&format!("more than {MAX_BYTES} bytes")));
        }
        let text = std::str::from_utf8(value).map_err(|_| bad("it is no text"))?;
        for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (prefix, to) = entry.split_once("=>").ok_or_else(|| bad(entry))?;
            entries.push((prefix.trim(), to.trim()));
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let begins = head.authority.to_ascii_lowercase();
    let mut name: Cow<'_, str> = Cow::Borrowed(&begins);
    for _ in 0..MAX_DEPTH {
        // The last that concerns it.
        let next = entries.iter().rev().find(|(prefix, _)| concerns(prefix, &name));
        let Some((_, to)) = next else { break };
        let to = to.strip_prefix(ROOT).filter(|to| is_plain(to));
        let to = to.ok_or_else(|| {
            bad("only /svc/<service> => /svc/<service> is understood of what concerns a request")
        })?;
        name = Cow::Owned(to.to_ascii_lowercase());
    }
    if entries.iter().any(|(prefix, _)| concerns(prefix, &name)) {
        return Err(bad(&format!("names lead to names more than {MAX_DEPTH} times")));
    }
    if *name == *begins {
        return Ok(None);
    }
    let instead = RequestHead { authority: name.into_owned(), ..RequestHead::new() };
    let found = super::target::resolve(&instead, snapshot)?;
    if allowed.iter().any(|one| one.allows(&found.service)) {
        return Ok(Some(found));
    }
    let text = format!("{USER} leads to {}, which dtab_overrides does not name", found.service);
    Err(Refusal::new(Reason::ForbiddenTarget, text))
}

/// `/svc/<name>`, with or without the port that the request names; `*` is any.
fn concerns(prefix: &str, name: &str) -> bool {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    match prefix.strip_prefix(ROOT) {
        Some("*") => true,
        Some(one) => one.eq_ignore_ascii_case(name) || one.eq_ignore_ascii_case(host),
        None => prefix == "/svc" || prefix == "/",
    }
}

/// One segment, and no union, alternative or namer.
fn is_plain(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !name.is_empty() && name.chars().all(is_good)
}

/// What the request has said is what those after it are told.
pub fn hand_on(head: &mut RequestHead) {
    let said: Vec<Vec<u8>> = head.fields.all(USER).map(<[u8]>::to_vec).collect();
    if said.is_empty() {
        return;
    }
    let before = head.fields.get(CONTEXT).map(<[u8]>::to_vec);
    let all: Vec<Vec<u8>> = before.into_iter().chain(said).collect();
    head.fields.remove(USER);
    head.fields.set(CONTEXT, &all.join(&b"; "[..]));
}

fn bad(what: &str) -> Refusal {
    Refusal::new(Reason::BadRequest, format!("{USER} cannot be followed: {what}"))
}

#[cfg(test)]
mod tests {
    use mesh_core::TrustBundles;

    use super::*;
    use crate::files::snapshot;

    fn ask(authority: &str, said: &[(&str, &str)], allowed: &[&str]) -> Result<String, String> {
        let text = "site: west\ntrust_domain: west.example\nservices:\n\
                    \x20 - name: web.shop\n    ports: [{ name: a, port: 80 }, { name: b, port: 81 }]\n\
                    \x20 - name: canary.shop\n    ports: [{ name: a, port: 80 }, { name: b, port: 81 }]\n\
                    \x20 - name: db.prod\n    ports: [{ name: a, port: 80 }]\n";
        let snapshot = snapshot::parse(text, "t.yaml", &TrustBundles::new()).unwrap();
        let fields = said.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let head = RequestHead { authority: authority.into(), fields, ..RequestHead::new() };
        let allowed: Vec<Allowed> = allowed.iter().map(|one| one.parse().unwrap()).collect();
        match destination(&head, &allowed, &snapshot) {
            Ok(None) => Ok("as it says".into()),
            Ok(Some(found)) => Ok(format!("{} {}", found.service, found.port)),
            Err(refusal) => Err(format!("{:?}", refusal.reason)),
        }
    }

    #[test]
    fn a_request_says_where_it_goes() {
        let canary = "/svc/web.shop => /svc/canary.shop";
        let cases: &[(&str, &[(&str, &str)], &str)] = &[
            ("web.shop", &[(USER, canary)], "canary.shop a"),
            ("web.shop:81", &[(USER, "/svc/web.shop:81 => /svc/canary.shop:81")], "canary.shop b"),
            ("web.shop", &[(CONTEXT, canary)], "canary.shop a"),
            ("db.prod", &[(USER, canary)], "as it says"),
            (
                "web.shop",
                &[(USER, "/svc/* => /svc/canary.shop; /svc/canary.shop => /svc/web.shop")],
                "BadRequest",
            ),
            // The user's come last, and the last decides.
            (
                "web.shop",
                &[(USER, canary), (CONTEXT, "/svc/web.shop => /svc/db.prod")],
                "canary.shop a",
            ),
            (
                "web.shop",
                &[(USER, "/svc/web.shop => /svc/x.shop; /svc/x.shop => /svc/canary.shop")],
                "canary.shop a",
            ),
            ("web.shop", &[(USER, "/svc/web.shop => /svc/db.prod")], "ForbiddenTarget"),
            ("web.shop", &[(USER, "/svc/web.shop => /svc/none.shop")], "NoSuchService"),
            ("web.shop", &[(USER, "/svc/web.shop => /#/io.l5d.fs/web")], "BadRequest"),
            ("web.shop", &[(USER, "/svc/web.shop => /svc/a.shop | /svc/b.shop")], "BadRequest"),
            ("web.shop", &[(USER, "/svc => /#/io.l5d.fs")], "BadRequest"),
            ("web.shop", &[(USER, "/host => /#/io.l5d.fs")], "as it says"),
            ("web.shop", &[(USER, "nonsense")], "BadRequest"),
            ("web.shop", &[], "as it says"),
        ];
        for (authority, said, wanted) in cases {
            let got = ask(authority, said, &["*.shop"]).unwrap_or_else(|refused| refused);
            assert_eq!(&got, wanted, "{authority} {said:?}");
        }
        // Who has allowed nothing is not looked at.
        assert_eq!(ask("web.shop", &[(USER, "nonsense")], &[]).unwrap(), "as it says");
        assert_eq!(ask("web.shop", &[(USER, canary)], &["canary.shop"]).unwrap(), "canary.shop a");
        let long = format!("{canary};{}", "a".repeat(MAX_BYTES));
        assert_eq!(ask("web.shop", &[(USER, &long)], &["*"]).unwrap_err(), "BadRequest");
    }

    #[test]
    fn those_after_it_are_told() {
        let fields = [(CONTEXT, &b"/a => /b"[..]), (USER, b"/c => /d"), (USER, b"/e => /f")];
        let mut head = RequestHead { fields: fields.into_iter().collect(), ..RequestHead::new() };
        hand_on(&mut head);
        assert_eq!(head.fields.get(CONTEXT), Some(&b"/a => /b; /c => /d; /e => /f"[..]));
        assert_eq!(head.fields.get(USER), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(value in "[ -~]{0,200}") {
            let _ = ask("web.shop", &[(USER, value.trim())], &["*"]);
        }
    }
}
