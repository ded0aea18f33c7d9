//! What of rules Gateway API has no words for.

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_api::v1;

use super::{
    MAX_CHANGES, MAX_CONDITIONAL, MAX_MATCH_TEXT, MAX_MATCHES, MAX_NETWORKS, MAX_REPLY, WireError,
    at_most,
    headers::{changed_fields, changed_name, changes, changes_out, fields_out},
    parse,
    rule::text_match,
    wrong,
};
use crate::{
    cidr::Cidr,
    rule::{
        Extension, PathPattern, Reply, RouteMatch, Template, TextMatch,
        extension::{Conditions, HeaderTemplates, Made},
        rewrite::BadPattern,
    },
};

/// `None` for one that says nothing.
pub(super) fn read(
    message: Option<&v1::RouteExtension>,
) -> Result<Option<Box<Extension>>, WireError> {
    let Some(message) = message else { return Ok(None) };
    let extension = Extension::try_from(message)?;
    Ok((extension != Extension::default()).then(|| Box::new(extension)))
}

impl TryFrom<&v1::RouteExtension> for Extension {
    type Error = WireError;

    fn try_from(message: &v1::RouteExtension) -> Result<Self, WireError> {
        Ok(Self {
            conditions: Conditions {
                also: matches("also", &message.also)?,
                unless: matches("unless", &message.unless)?,
                sources: blocks("sources", &message.sources)?,
                not_sources: blocks("not_sources", &message.not_sources)?,
            },
            reply: message.reply.as_ref().map(Reply::try_from).transpose()?,
            rewrite: message.rewrite.as_ref().map(PathPattern::try_from).transpose()?,
            strip_query: message.strip_query,
            request_headers: templates("request_headers", message.request_headers.as_ref())?,
            conditional_headers: sometimes(&message.conditional_headers)?,
            response_headers: changes("response_headers", message.response_headers.as_ref())?,
        })
    }
}

impl From<&Extension> for v1::RouteExtension {
    fn from(extension: &Extension) -> Self {
        let Conditions { also, unless, sources, not_sources } = &extension.conditions;
        Self {
            also: also.iter().map(Into::into).collect(),
            unless: unless.iter().map(Into::into).collect(),
            sources: blocks_out(sources),
            not_sources: blocks_out(not_sources),
            reply: extension.reply.as_ref().map(Into::into),
            rewrite: extension.rewrite.as_ref().map(Into::into),
            strip_query: extension.strip_query,
            request_headers: templates_out(&extension.request_headers),
            response_headers: changes_out(&extension.response_headers),
            conditional_headers: extension.conditional_headers.iter().map(sometimes_out).collect(),
        }
    }
}

fn matches(field: &'static str, messages: &[v1::RouteMatch]) -> Result<Vec<RouteMatch>, WireError> {
    at_most(field, messages, MAX_MATCHES)?;
    messages.iter().map(RouteMatch::try_from).collect()
}

/// What is made of the request in place of a header's name.
pub(super) fn said_match(message: &v1::HeaderMatch) -> Result<(Template, TextMatch), WireError> {
    const FIELD: &str = "matches.headers";
    if message.name.len() > MAX_MATCH_TEXT {
        return Err(wrong(FIELD, "name is too long"));
    }
    let template = Template::new(&message.name).map_err(|error| wrong(FIELD, error))?;
    if template.tells_client() {
        return Err(wrong(FIELD, "the client's address is compared by sources"));
    }
    Ok((template, text_match(FIELD, message)?))
}

fn blocks(field: &'static str, texts: &[String]) -> Result<Vec<Cidr>, WireError> {
    at_most(field, texts, MAX_NETWORKS)?;
    texts.iter().map(|text| parse(field, text)).collect()
}

fn blocks_out(blocks: &[Cidr]) -> Vec<String> {
    blocks.iter().map(ToString::to_string).collect()
}

fn sometimes(
    messages: &[v1::ConditionalHeaders],
) -> Result<Vec<(Conditions, HeaderTemplates)>, WireError> {
    const HEADERS: &str = "conditional_headers.request_headers";
    at_most("conditional_headers", messages, MAX_CONDITIONAL)?;
    let one = |message: &v1::ConditionalHeaders| {
        let conditions = Conditions {
            also: matches("conditional_headers.also", &message.also)?,
            unless: matches("conditional_headers.unless", &message.unless)?,
            sources: blocks("conditional_headers.sources", &message.sources)?,
            not_sources: blocks("conditional_headers.not_sources", &message.not_sources)?,
        };
        Ok((conditions, templates(HEADERS, message.request_headers.as_ref())?))
    };
    messages.iter().map(one).collect()
}

fn sometimes_out((when, then): &(Conditions, HeaderTemplates)) -> v1::ConditionalHeaders {
    v1::ConditionalHeaders {
        also: when.also.iter().map(Into::into).collect(),
        unless: when.unless.iter().map(Into::into).collect(),
        sources: blocks_out(&when.sources),
        not_sources: blocks_out(&when.not_sources),
        request_headers: templates_out(then),
    }
}

impl TryFrom<&v1::Reply> for Reply {
    type Error = WireError;

    fn try_from(message: &v1::Reply) -> Result<Self, WireError> {
        const HEADERS: &str = "reply.headers";
        let status =
            u16::try_from(message.status).ok().filter(|status| (200..600).contains(status));
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        if message.body.len() > MAX_REPLY {
            let problem = format_args!("is longer than {MAX_REPLY} bytes");
            return Err(wrong("reply.body", problem));
        }
        let status = status.ok_or_else(|| wrong("reply.status", "must be 200 to 599"))?;
        if message.templates {
            let template =
                |value: &str| Template::new(value).map_err(|error| wrong(HEADERS, error));
            let headers = changed_fields(HEADERS, &message.headers, template)?;
            let body = Template::of_text(&message.body);
            let body = body.map_err(|error| wrong("reply.body", error))?;
            let made = Some(Made { headers, body });
            return Ok(Self { status, headers: Vec::new(), body: "".into(), made });
        }
        let literal = |value: &str| parse::<HeaderValue>(HEADERS, value);
        let headers = changed_fields(HEADERS, &message.headers, literal)?;
        Ok(Self { status, headers, body: message.body.as_str().into(), made: None })
    }
}

impl From<&Reply> for v1::Reply {
    fn from(reply: &Reply) -> Self {
        let status = reply.status.as_u16().into();
        if let Some(made) = &reply.made {
            let header = |(name, value): &(HeaderName, Template)| v1::Header {
                name: name.to_string(),
                value: value.as_str().to_owned(),
            };
            let headers = made.headers.iter().map(header).collect();
            return Self { status, headers, body: made.body.as_str().to_owned(), templates: true };
        }
        let (headers, body) = (fields_out(&reply.headers), reply.body.to_string());
        Self { status, headers, body, templates: false }
    }
}

impl TryFrom<&v1::PatternRewrite> for PathPattern {
    type Error = WireError;

    fn try_from(message: &v1::PatternRewrite) -> Result<Self, WireError> {
        let v1::PatternRewrite { pattern, substitution, all } = message;
        for (field, text) in [("rewrite.pattern", pattern), ("rewrite.substitution", substitution)]
        {
            if text.len() > MAX_MATCH_TEXT {
                let problem = format_args!("is longer than {MAX_MATCH_TEXT} bytes");
                return Err(wrong(field, problem));
            }
        }
        PathPattern::new(pattern, substitution, *all).map_err(|error| match error {
            BadPattern::Pattern(error) => wrong("rewrite.pattern", error),
            error @ BadPattern::NoGroup(_) => wrong("rewrite", error),
        })
    }
}

impl From<&PathPattern> for v1::PatternRewrite {
    fn from(rewrite: &PathPattern) -> Self {
        Self {
            pattern: rewrite.pattern().to_owned(),
            substitution: rewrite.substitution().to_owned(),
            all: rewrite.replaces_all(),
        }
    }
}

fn templates(
    field: &'static str,
    message: Option<&v1::HeaderChanges>,
) -> Result<HeaderTemplates, WireError> {
    let Some(message) = message else { return Ok(HeaderTemplates::default()) };
    at_most(field, &message.remove, MAX_CHANGES)?;
    let template = |value: &str| Template::new(value).map_err(|error| wrong(field, error));
    let removed = message.remove.iter().map(|name| changed_name(field, name));
    Ok(HeaderTemplates {
        set: changed_fields(field, &message.set, template)?,
        add: changed_fields(field, &message.add, template)?,
        remove: removed.collect::<Result<_, _>>()?,
    })
}

fn templates_out(templates: &HeaderTemplates) -> Option<v1::HeaderChanges> {
    let fields = |fields: &[(HeaderName, Template)]| {
        let one = |(name, value): &(HeaderName, Template)| v1::Header {
            name: name.to_string(),
            value: value.as_str().to_owned(),
        };
        fields.iter().map(one).collect()
    };
    (!templates.is_empty()).then(|| v1::HeaderChanges {
        set: fields(&templates.set),
        add: fields(&templates.add),
        remove: templates.remove.iter().map(ToString::to_string).collect(),
    })
}
