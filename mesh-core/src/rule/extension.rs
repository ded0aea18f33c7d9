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

/// Of one rule; nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extension {
    /// All of these must hold, too.
    pub also: Vec<RouteMatch>,
    /// None of these may.
    pub unless: Vec<RouteMatch>,
    /// Where the client must be; empty is anywhere.
    pub sources: Vec<Cidr>,
    /// Where it must not be.
    pub not_sources: Vec<Cidr>,
    /// Instead of forwarding.
    pub reply: Option<Reply>,
    /// After other changes of the path, those of a redirect, too.
    pub rewrite: Option<PathPattern>,
    /// Of what is forwarded, and of redirects.
    pub strip_query: bool,
    /// After the header changes of the rule.
    pub request_headers: HeaderTemplates,
    /// The same for answers of applications.
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
pub struct Rendered(Vec<Vec<u8>>);

impl Extension {
    /// Whether the rule holds as far as this says. Without a head (opaque
    /// bytes) no match holds.
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

    /// Changes path and query of a target in origin-form; whether its path is
    /// one that was to be changed. `decoded` is [`RequestHead::decoded`].
    ///
    /// # Errors
    ///
    /// What comes out is none.
    pub fn retarget(&self, target: &mut String, decoded: &[u8]) -> Result<bool, BadRewrite> {
        if self.strip_query
            && let Some(at) = target.find('?')
        {
            target.truncate(at);
        }
        match &self.rewrite {
            Some(rewrite) => rewrite.apply(target, decoded),
            None => Ok(self.strip_query),
        }
    }
}

impl HeaderTemplates {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// The values for a request as its client has sent it; `None` without any
    /// change.
    ///
    /// # Errors
    ///
    /// One is longer than a header may be.
    pub fn render(
        &self,
        head: &RequestHead,
        client: Option<IpAddr>,
    ) -> Result<Option<Rendered>, BadRewrite> {
        if self.is_empty() {
            return Ok(None);
        }
        let templates = self.set.iter().chain(&self.add);
        let values = templates.map(|(_, template)| template.render(head, client));
        values.collect::<Result<_, _>>().map(|values| Some(Rendered(values)))
    }

    /// Changes `fields` in the order set, add, remove. A value that has come
    /// out empty is no header; what `set` would replace goes all the same.
    pub fn apply(&self, rendered: &Rendered, fields: &mut Fields) {
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
        let extension = Extension {
            also: vec![under("/a")],
            unless: vec![under("/a/b"), under("/a/c")],
            sources: blocks(&["10.0.0.0/8", "::1"]),
            not_sources: blocks(&["10.9.0.0/16"]),
            ..Extension::default()
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
            assert_eq!(extension.holds(caller, Some(&head)), wanted, "{target} {client}");
            assert!(!extension.holds(caller, None), "bytes match nothing");
            assert!(!extension.holds(Caller::default(), Some(&head)), "nobody knows where it is");
        }
        let unless = Extension { also: vec![], sources: vec![], ..extension };
        assert!(unless.holds(Caller::default(), None));
        assert!(Extension::default().holds(Caller::default(), None));
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
    fn headers_are_made_of_the_request_and_empty_ones_left_out() {
        let template =
            |name: &str, text: &str| (name.parse().unwrap(), Template::new(text).unwrap());
        let templates = HeaderTemplates {
            set: vec![template("x-real-ip", "%{client_ip}"), template("x-gone", "%{header:none}")],
            add: vec![template("x-via", "%{host}%{path}"), template("x-none", "%{query}")],
            remove: vec!["x-removed".parse().unwrap()],
        };
        let mut head = get("/a");
        for name in ["x-real-ip", "x-gone", "x-via", "x-removed"] {
            head.fields.push(name, b"client's");
        }
        let client = Some("192.0.2.1".parse().unwrap());
        let rendered = templates.render(&head, client).unwrap().unwrap();
        templates.apply(&rendered, &mut head.fields);
        let all = |name| head.fields.all(name).collect::<Vec<_>>();
        assert_eq!(all("x-real-ip"), [b"192.0.2.1"]);
        assert_eq!(all("x-via"), [&b"client's"[..], b"A.b:8080/a"]);
        assert!(
            all("x-gone").is_empty() && all("x-none").is_empty() && all("x-removed").is_empty()
        );
        assert!(HeaderTemplates::default().render(&head, client).unwrap().is_none());
    }
}
