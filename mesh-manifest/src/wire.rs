//! Parts of rules as they travel.

use mesh_api::v1::{self, path_change::Change, route_match::Path};

use crate::rule::{
    GrpcMatch, GrpcMethod, GrpcRule, HeaderField, HeaderModifier, HttpMatch, HttpRule,
    PathModifier, PathType, Redirect, Rewrite, ValueMatch, ValueType,
};

impl HttpMatch {
    /// As it travels.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn wire(&self) -> Result<v1::RouteMatch, String> {
        let path = self.path.as_ref().map(|path| {
            let value = path.value.clone();
            match path.r#type {
                PathType::Exact => Path::ExactPath(value),
                PathType::PathPrefix => Path::PathPrefix(value),
                PathType::RegularExpression => Path::PathRegex(value),
            }
        });
        Ok(v1::RouteMatch {
            path,
            method: self.method.clone().unwrap_or_default(),
            headers: first_of_each(&self.headers, |a, b| a.eq_ignore_ascii_case(b)),
            query: first_of_each(&self.query_params, |a, b| a == b),
        })
    }
}

/// Gateway API: of several entries with one name the first counts.
fn first_of_each(
    entries: &[ValueMatch],
    same: impl Fn(&str, &str) -> bool,
) -> Vec<v1::HeaderMatch> {
    let first = |(index, entry): &(usize, &ValueMatch)| {
        !entries[..*index].iter().any(|earlier| same(&earlier.name, &entry.name))
    };
    entries.iter().enumerate().filter(first).map(|(_, entry)| entry.wire()).collect()
}

impl ValueMatch {
    pub(crate) fn wire(&self) -> v1::HeaderMatch {
        let (name, value) = (self.name.clone(), self.value.clone());
        match self.r#type {
            ValueType::Exact => v1::HeaderMatch { name, value, regex: String::new() },
            ValueType::RegularExpression => {
                v1::HeaderMatch { name, value: String::new(), regex: value }
            }
        }
    }
}

impl GrpcRule {
    /// gRPC is HTTP/2: its methods are paths.
    pub(crate) fn http(&self) -> Result<HttpRule, String> {
        Ok(HttpRule {
            name: self.name.clone(),
            matches: self.matches.iter().map(GrpcMatch::http).collect(),
            filters: self.filters.clone(),
            backend_refs: self.backend_refs.clone(),
            ..HttpRule::default()
        })
    }
}

impl GrpcMatch {
    fn http(&self) -> HttpMatch {
        let path = self.method.as_ref().map(GrpcMethod::path);
        HttpMatch { path, headers: self.headers.clone(), ..HttpMatch::default() }
    }
}

impl GrpcMethod {
    fn path(&self) -> crate::rule::PathMatch {
        let exact = self.r#type == ValueType::Exact;
        let written = |text: &str| if exact { literal(text) } else { text.to_owned() };
        let (r#type, value) = match (self.service.as_deref(), self.method.as_deref()) {
            (Some(service), Some(method)) if exact => {
                (PathType::Exact, format!("/{service}/{method}"))
            }
            (Some(service), None) if exact => (PathType::PathPrefix, format!("/{service}/")),
            (None, None) => (PathType::PathPrefix, "/".into()),
            (service, method) => {
                let part = |part: Option<&str>| part.map_or("[^/]+".into(), written);
                (PathType::RegularExpression, format!("/{}/{}", part(service), part(method)))
            }
        };
        crate::rule::PathMatch { r#type, value }
    }
}

/// A pattern that matches just `text`; names of methods have no other special
/// characters.
fn literal(text: &str) -> String {
    text.replace('.', "\\.")
}

impl HeaderModifier {
    pub(crate) fn wire(&self) -> v1::HeaderChanges {
        let fields = |fields: &[HeaderField]| {
            let one = |field: &HeaderField| v1::Header {
                name: field.name.clone(),
                value: field.value.clone(),
            };
            fields.iter().map(one).collect()
        };
        v1::HeaderChanges {
            set: fields(&self.set),
            add: fields(&self.add),
            remove: self.remove.clone(),
        }
    }
}

impl PathModifier {
    pub(crate) fn wire(&self) -> v1::PathChange {
        let change = match self {
            Self::ReplaceFullPath { replace_full_path: full } => Change::Full(full.clone()),
            Self::ReplacePrefixMatch { replace_prefix_match: prefix } => {
                Change::Prefix(prefix.clone())
            }
        };
        v1::PathChange { change: Some(change) }
    }
}

impl Redirect {
    pub(crate) fn wire(&self) -> v1::Redirect {
        v1::Redirect {
            scheme: self.scheme.clone().unwrap_or_default(),
            hostname: self.hostname.clone().unwrap_or_default(),
            path: self.path.as_ref().map(PathModifier::wire),
            port: self.port.unwrap_or_default().into(),
            status: self.status_code.unwrap_or_default().into(),
        }
    }
}

impl Rewrite {
    pub(crate) fn wire(&self) -> v1::Rewrite {
        v1::Rewrite {
            hostname: self.hostname.clone().unwrap_or_default(),
            path: self.path.as_ref().map(PathModifier::wire),
        }
    }
}
