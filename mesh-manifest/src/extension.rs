//! What a TrafficPolicy says of single rules that Gateway API has no words for.

use mesh_api::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    rule::{HeaderField, HttpMatch},
    traffic::{ConditionalHeaders, RulePolicy},
};

/// Which of several rules that match takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum RuleOrder {
    /// The most specific, as Gateway API says.
    #[default]
    Precedence,
    /// The first: by age and name of the routes, then as they are listed.
    Listed,
}

/// An answer of the caller's proxy itself.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reply {
    /// 200 to 599; gRPC is told the `grpc-status` that stands for it.
    pub status: u16,
    /// Of the answer; without a `content-type` a body is plain text.
    #[serde(default)]
    pub headers: Vec<HeaderField>,
    /// Up to 4096 bytes.
    #[serde(default)]
    pub body: String,
    /// Values of headers and the body are made of the request, as those of
    /// `requestHeaders`; a header that comes out empty is left out.
    #[serde(default)]
    pub templates: bool,
}

/// A change of the path by a pattern.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PatternRewrite {
    /// A regular expression; matches anywhere in the path, without the query.
    pub pattern: String,
    /// Instead of what matched; `$1` and `${name}` are groups, `$$` is a
    /// dollar. A `?` in what comes out replaces the query.
    pub substitution: String,
    /// Every match, not only the first.
    #[serde(default)]
    pub all: bool,
}

impl RulePolicy {
    /// Adds what it says to a rule; what it does not say stays.
    pub(crate) fn extend(&self, route: &mut v1::Route) -> Result<(), String> {
        let mut extension = route.extension.take().unwrap_or_default();
        if !self.also.is_empty() {
            extension.also = matches("also", &self.also)?;
        }
        if !self.unless.is_empty() {
            extension.unless = matches("unless", &self.unless)?;
        }
        if !self.sources.is_empty() {
            extension.sources.clone_from(&self.sources);
        }
        if !self.not_sources.is_empty() {
            extension.not_sources.clone_from(&self.not_sources);
        }
        if let Some(reply) = &self.reply {
            extension.reply = Some(reply.wire());
        }
        if let Some(rewrite) = &self.rewrite {
            extension.rewrite = Some(rewrite.wire());
        }
        extension.strip_query |= self.strip_query;
        if let Some(headers) = &self.request_headers {
            extension.request_headers = Some(headers.wire());
        }
        if !self.conditional_headers.is_empty() {
            let all = self.conditional_headers.iter().map(ConditionalHeaders::wire);
            extension.conditional_headers = all.collect::<Result<_, _>>()?;
        }
        if let Some(headers) = &self.response_headers {
            extension.response_headers = Some(headers.wire());
        }
        route.extension = (extension != v1::RouteExtension::default()).then_some(extension);
        Ok(())
    }
}

impl ConditionalHeaders {
    fn wire(&self) -> Result<v1::ConditionalHeaders, String> {
        Ok(v1::ConditionalHeaders {
            also: matches("conditionalHeaders.also", &self.also)?,
            unless: matches("conditionalHeaders.unless", &self.unless)?,
            sources: self.sources.clone(),
            not_sources: self.not_sources.clone(),
            request_headers: Some(self.request_headers.wire()),
        })
    }
}

fn matches(field: &str, all: &[HttpMatch]) -> Result<Vec<v1::RouteMatch>, String> {
    let wire = all.iter().map(HttpMatch::wire).collect::<Result<_, _>>();
    wire.map_err(|text| format!("{field}.{text}"))
}

impl Reply {
    fn wire(&self) -> v1::Reply {
        let header = |field: &HeaderField| v1::Header {
            name: field.name.clone(),
            value: field.value.clone(),
        };
        v1::Reply {
            status: self.status.into(),
            headers: self.headers.iter().map(header).collect(),
            body: self.body.clone(),
            templates: self.templates,
        }
    }
}

impl PatternRewrite {
    fn wire(&self) -> v1::PatternRewrite {
        let Self { pattern, substitution, all } = self.clone();
        v1::PatternRewrite { pattern, substitution, all }
    }
}
