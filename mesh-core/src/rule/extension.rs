//! What a rule says that Gateway API has no words for: more conditions, an
//! answer of its own, paths by pattern, headers made of the request.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use http::{HeaderName, HeaderValue, StatusCode};

use super::{HeaderChanges, PathPattern, RouteMatch, Template, rewrite::BadRewrite};
use crate::{
    cidr::Cidr,
    message::{Fields, RequestHead},
};

/// Who asks: what of it rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller<'a> {
    /// Namespace of its identity.
    pub namespace: Option<&'a str>,
    /// Where it came from.
    pub address: Option<IpAddr>,
}

impl<'a> From<Option<&'a str>> for Caller<'a> {
    fn from(namespace: Option<&'a str>) -> Self {
        Self { namespace, address: None }
    }
}

/// Of a request and its client; all hold by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions {
    /// All of these must hold.
    pub also: Vec<RouteMatch>,
    /// None of these may.
    pub unless: Vec<RouteMatch>,
    /// Where the client must be; empty is anywhere.
    pub sources: Vec<Cidr>,
    /// Where it must not be.
    pub not_sources: Vec<Cidr>,
}

/// Of one rule; nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extension {
    /// When it takes a request, beside its matches.
    pub conditions: Conditions,
    /// Instead of forwarding.
    pub reply: Option<Reply>,
    /// After other changes of the path, those of a redirect, too.
    pub rewrite: Option<PathPattern>,
    /// Of what is forwarded, and of redirects.
    pub strip_query: bool,
    /// After the header changes of the rule.
    pub request_headers: HeaderTemplates,
    /// In order after those, of requests that the conditions hold for.
    pub conditional_headers: Vec<(Conditions, HeaderTemplates)>,
    /// Of answers of applications, after the header changes of the rule.
    pub response_headers: HeaderChanges,
}

/// An answer of the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub status: StatusCode,
    /// In order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What it says.
    pub body: Arc<str>,
    /// The same, made of the request.
    pub made: Option<Made>,
}

/// Of an answer of the proxy itself, made of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// In order; one that comes out empty is left out.
    pub headers: Vec<(HeaderName, Template)>,
    /// What it says.
    pub body: Template,
}

impl Reply {
    /// The answer to a request.
    ///
    /// # Errors
    ///
    /// Something that is made of the request is too long, or no value of a header.
    pub fn to(
        &self,
        head: &RequestHead,
        client: Option<IpAddr>,
    ) -> Result<Cow<'_, Self>, BadRewrite> {
        let Some(made) = &self.made else { return Ok(Cow::Borrowed(self)) };
        let mut headers = Vec::with_capacity(made.headers.len());
        for (name, template) in &made.headers {
            let value = template.render(head, client)?;
            if !value.is_empty() {
                let value = HeaderValue::from_bytes(&value).map_err(|_| BadRewrite::Value)?;
                headers.push((name.clone(), value));
            }
        }
        let body = String::from_utf8_lossy(&made.body.text(head, client)?).into();
        Ok(Cow::Owned(Self { status: self.status, headers, body, made: None }))
    }
}

/// Changes of headers, with values made of the request: set, add, remove.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderTemplates {
    /// Replace all values.
    pub set: Vec<(HeaderName, Template)>,
    /// Append a value.
    pub add: Vec<(HeaderName, Template)>,
    /// Remove all values.
    pub remove: Vec<HeaderName>,
}

/// Values of [`HeaderTemplates`] for one request, in their order.
#[derive(Debug)]
struct Rendered(Vec<Vec<u8>>);

/// Changes of headers for one request, in their order.
#[derive(Debug, Default)]
pub struct Changing<'e>(Vec<(&'e HeaderTemplates, Rendered)>);

impl Changing<'_> {
    /// Changes `fields`.
    pub fn apply(&self, fields: &mut Fields) {
        self.0.iter().for_each(|(templates, values)| templates.apply(values, fields));
    }
}

impl Conditions {
    /// Whether all hold. Without a head (opaque bytes) no match holds.
    pub fn holds(&self, caller: Caller<'_>, head: Option<&RequestHead>) -> bool {
        let one_has = |blocks: &[Cidr]| {
            caller.address.is_some_and(|client| blocks.iter().any(|block| block.contains(client)))
        };
        let matches = |one: &RouteMatch| head.is_some_and(|head| one.holds(head));
        (self.sources.is_empty() || one_has(&self.sources))
            && !one_has(&self.not_sources)
            && self.also.iter().all(matches)
            && !self.unless.iter().any(matches)
    }
}

impl Extension {
    /// What becomes of the headers of a request, as its client has sent it.
    ///
    /// # Errors
    ///
    /// A value is longer than a header may be.
    pub fn changing(
        &self,
        head: &RequestHead,
        client: Option<IpAddr>,
    ) -> Result<Changing<'_>, BadRewrite> {
        let caller = Caller { namespace: None, address: client };
        let sometimes = self.conditional_headers.iter();
        let sometimes = sometimes.filter(|(when, _)| when.holds(caller, Some(head)));
        let all = std::iter::once(&self.request_headers).chain(sometimes.map(|(_, then)| then));
        let mut changing = Vec::new();
        for templates in all.filter(|templates| !templates.is_empty()) {
            changing.push((templates, templates.render(head, client)?));
        }
        Ok(Changing(changing))
    }

    /// Changes path and query of a target in origin-form; whether its path is
    /// one that was to be changed. `decoded` is [`RequestHead::decoded`].
    ///
    /// # Errors
    ///
    /// What comes out is none.
    pub fn retarget(&self, target: &mut String, decoded: &[u8]) -> Result<bool, BadRewrite> {
        self.strip(target);
        match &self.rewrite {
            Some(rewrite) => rewrite.apply(target, decoded),
            None => Ok(self.strip_query),
        }
    }

    /// The same of where a client is sent.
    ///
    /// # Errors
    ///
    /// As [`retarget`](Self::retarget).
    pub fn relocate(&self, target: &mut String, decoded: &[u8]) -> Result<bool, BadRewrite> {
        self.strip(target);
        match &self.rewrite {
            Some(rewrite) => rewrite.relocate(target, decoded),
            None => Ok(self.strip_query),
        }
    }

    fn strip(&self, target: &mut String) {
        if self.strip_query
            && let Some(at) = target.find('?')
        {
            target.truncate(at);
        }
    }
}

impl HeaderTemplates {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// The values for a request as its client has sent it.
    fn render(&self, head: &RequestHead, client: Option<IpAddr>) -> Result<Rendered, BadRewrite> {
        let templates = self.set.iter().chain(&self.add);
        let values = templates.map(|(_, template)| template.render(head, client));
        values.collect::<Result<_, _>>().map(Rendered)
    }

    /// Changes `fields` in the order set, add, remove. A value that has come
    /// out empty is no header; what `set` would replace goes all the same.
    fn apply(&self, rendered: &Rendered, fields: &mut Fields) {
        let (set, add) = rendered.0.split_at(self.set.len().min(rendered.0.len()));
        for ((name, _), value) in self.set.iter().zip(set) {
            match value.is_empty() {
                true => drop(fields.remove(name.as_str())),
                false => fields.set(name.as_str(), value),
            }
        }
        for ((name, _), value) in self.add.iter().zip(add).filter(|(_, value)| !value.is_empty()) {
            fields.push(name.as_str(), value);
        }
        for name in &self.remove {
            fields.remove(name.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::PathMatch;

    fn get(target: &str) -> RequestHead {
        RequestHead { authority: "A.b:8080".into(), target: target.into(), ..RequestHead::new() }
    }

    fn under(path: &str) -> RouteMatch {
        RouteMatch { path: Some(PathMatch::Prefix(path.into())), ..RouteMatch::default() }
    }

    fn blocks(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn conditions_are_about_the_request_and_its_client() {
        let conditions = Conditions {
            also: vec![under("/a")],
            unless: vec![under("/a/b"), under("/a/c")],
            sources: blocks(&["10.0.0.0/8", "::1"]),
            not_sources: blocks(&["10.9.0.0/16"]),
        };
        let cases = [
            ("/a", "10.1.2.3", true),
            ("/a", "::1", true),
            ("/a", "::ffff:10.1.2.3", true),
            ("/x", "10.1.2.3", false),
            ("/a/b", "10.1.2.3", false),
            ("/a/c/d", "10.1.2.3", false),
            ("/a", "11.1.2.3", false),
            ("/a", "10.9.2.3", false),
        ];
        for (target, client, wanted) in cases {
            let caller = Caller { address: Some(client.parse().unwrap()), namespace: None };
            let head = get(target);
            assert_eq!(conditions.holds(caller, Some(&head)), wanted, "{target} {client}");
            assert!(!conditions.holds(caller, None), "bytes match nothing");
            assert!(!conditions.holds(Caller::default(), Some(&head)), "nobody knows where it is");
        }
        let unless = Conditions { also: vec![], sources: vec![], ..conditions };
        assert!(unless.holds(Caller::default(), None));
        assert!(Conditions::default().holds(Caller::default(), None));
    }

    #[test]
    fn a_query_is_left_out_before_the_path_is_changed() {
        let target = |extension: &Extension| {
            let mut target = "/a?b=c".to_owned();
            extension.retarget(&mut target, &[]).unwrap();
            target
        };
        let rewrite = |to| Some(PathPattern::new("^/a", to, false).unwrap());
        assert_eq!(target(&Extension::default()), "/a?b=c");
        let mut extension = Extension { strip_query: true, ..Extension::default() };
        assert_eq!(target(&extension), "/a");
        extension.rewrite = rewrite("/x?y");
        assert_eq!(target(&extension), "/x?y");
        assert_eq!(target(&Extension { rewrite: rewrite("/x"), ..Extension::default() }), "/x?b=c");
    }

    #[test]
    fn headers_change_where_conditions_hold_for_what_the_client_has_sent() {
        let set = |name: &str, text: &str| HeaderTemplates {
            set: vec![(name.parse().unwrap(), Template::new(text).unwrap())],
            ..HeaderTemplates::default()
        };
        let also = |one| Conditions { also: vec![one], ..Conditions::default() };
        let inside = Conditions { sources: blocks(&["10.0.0.0/8"]), ..Conditions::default() };
        let extension = Extension {
            request_headers: set("x-lane", "none"),
            conditional_headers: vec![
                (also(under("/a")), set("x-lane", "%{path}")),
                (inside, set("x-inside", "%{client_ip}")),
                (also(under("/a/b")), set("x-lane", "%{header:x-lane}")),
            ],
            ..Extension::default()
        };
        let changed = |target, client: &str| {
            let mut head = get(target);
            head.fields.push("x-lane", b"client's");
            let client = Some(client.parse().unwrap());
            extension.changing(&head, client).unwrap().apply(&mut head.fields);
            let value = |name| String::from_utf8_lossy(head.fields.get(name)?).into_owned().into();
            (value("x-lane"), value("x-inside"))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(changed("/", "192.0.2.1"), (some("none"), None));
        assert_eq!(changed("/a", "192.0.2.1"), (some("/a"), None));
        assert_eq!(changed("/a/b", "10.0.0.1"), (some("client's"), some("10.0.0.1")));
        assert!(Extension::default().changing(&get("/"), None).unwrap().0.is_empty());
    }

    #[test]
    fn headers_are_made_of_the_request_and_empty_ones_left_out() {
        let template =
            |name: &str, text: &str| (name.parse().unwrap(), Template::new(text).unwrap());
        let templates = HeaderTemplates {
            set: vec![template("x-real-ip", "%{client_ip}"), template("x-gone", "%{header:none}")],
            add: vec![template("x-via", " %{host}%{path} "), template("x-none", "%{query}")],
            remove: vec!["x-removed".parse().unwrap()],
        };
        let mut head = get("/a");
        for name in ["x-real-ip", "x-gone", "x-via", "x-removed"] {
            head.fields.push(name, b"client's");
        }
        let client = Some("192.0.2.1".parse().unwrap());
        let rendered = templates.render(&head, client).unwrap();
        templates.apply(&rendered, &mut head.fields);
        let all = |name| head.fields.all(name).collect::<Vec<_>>();
        assert_eq!(all("x-real-ip"), [b"192.0.2.1"]);
        assert_eq!(all("x-via"), [&b"client's"[..], b"A.b:8080/a"]);
        assert!(
            all("x-gone").is_empty() && all("x-none").is_empty() && all("x-removed").is_empty()
        );
    }
}
