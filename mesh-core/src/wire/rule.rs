//! Rules of services: matches, filters, backends.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use mesh_api::v1;

use super::{
    MAX_BACKENDS, MAX_HEADERS, MAX_MATCH_TEXT, MAX_MATCHES, MAX_MIRRORS, MAX_STATUSES, MAX_TEXT,
    WireError, at_most, extension,
    headers::{changes, changes_out},
    host_and_port, host_name, millis, parse, text, to_millis, wrong,
};
use crate::{
    name::{PortName, ServiceName, label},
    rule::{
        Fault, Filters, Fraction, Mirror, PathChange, PathMatch, Pattern, Redirect, RetryPolicy,
        Rewrite, Route, RouteBackend, RouteMatch, TextMatch,
    },
};

/// The longest request method that a match may name.
const MAX_METHOD: usize = 32;
/// Repetitions of one request at most.
const MAX_RETRIES: u32 = 10;
/// Before the first repetition, where nothing is said.
const BACKOFF: Duration = Duration::from_millis(25);
/// `UNAVAILABLE`.
const GRPC_UNAVAILABLE: u32 = 14;

impl TryFrom<&v1::Route> for Route {
    type Error = WireError;

    fn try_from(message: &v1::Route) -> Result<Self, WireError> {
        at_most("routes.matches", &message.matches, MAX_MATCHES)?;
        at_most("routes.backends", &message.backends, MAX_BACKENDS)?;
        let matches: Vec<RouteMatch> =
            message.matches.iter().map(RouteMatch::try_from).collect::<Result<_, _>>()?;
        let filters = message.filters.as_ref().map(Filters::try_from).transpose()?;
        let filters = filters.unwrap_or_default();
        if filters.changes_prefix() && !matches.iter().all(|one| one.prefix().is_some()) {
            return Err(wrong("filters.path.prefix", "needs every match to be a path prefix"));
        }
        let backends: Vec<RouteBackend> =
            message.backends.iter().map(RouteBackend::try_from).collect::<Result<_, _>>()?;
        if filters.redirect.is_some() && (!backends.is_empty() || filters.rewrite.is_some()) {
            return Err(wrong("filters.redirect", "goes with neither backends nor a rewrite"));
        }
        Ok(Self {
            name: text("routes.name", &message.name, MAX_TEXT)?,
            port: optional_port("routes.port", &message.port)?,
            client_namespace: optional_label("routes.client_namespace", &message.client_namespace)?,
            matches,
            filters,
            backends,
            request_timeout: millis(message.request_timeout_ms),
            backend_timeout: millis(message.backend_timeout_ms),
            retry: message.retry.as_ref().map(RetryPolicy::try_from).transpose()?,
            fault: message.fault.as_ref().map(Fault::try_from).transpose()?,
            failures: statuses("routes.failures", &message.failures)?,
            extension: extension::read(message.extension.as_ref())?,
        })
    }
}

impl From<&Route> for v1::Route {
    fn from(route: &Route) -> Self {
        Self {
            name: route.name.to_string(),
            port: route.port.as_ref().map(ToString::to_string).unwrap_or_default(),
            client_namespace: route.client_namespace.as_deref().unwrap_or_default().to_owned(),
            matches: route.matches.iter().map(Into::into).collect(),
            filters: (route.filters != Filters::default()).then(|| (&route.filters).into()),
            backends: route.backends.iter().map(Into::into).collect(),
            request_timeout_ms: to_millis(route.request_timeout),
            backend_timeout_ms: to_millis(route.backend_timeout),
            retry: route.retry.as_ref().map(Into::into),
            fault: route.fault.as_ref().map(Into::into),
            failures: route.failures.iter().map(status_range).collect(),
            extension: route.extension.as_deref().map(Into::into),
        }
    }
}

pub(super) fn optional_port(
    field: &'static str,
    value: &str,
) -> Result<Option<PortName>, WireError> {
    if value.is_empty() { Ok(None) } else { parse(field, value).map(Some) }
}

pub(super) fn optional_label(
    field: &'static str,
    value: &str,
) -> Result<Option<Arc<str>>, WireError> {
    if value.is_empty() {
        return Ok(None);
    }
    label(field, value).map_err(|error| wrong(field, error))?;
    Ok(Some(value.into()))
}

pub(super) fn statuses(
    field: &'static str,
    ranges: &[v1::StatusRange],
) -> Result<Vec<RangeInclusive<u16>>, WireError> {
    at_most(field, ranges, MAX_STATUSES)?;
    let status = |status: u32| u16::try_from(status).ok().filter(|s| (100..1000).contains(s));
    let range = |range: &v1::StatusRange| {
        let both = status(range.from).zip(status(range.to)).filter(|(from, to)| from <= to);
        both.map(|(from, to)| from..=to).ok_or_else(|| wrong(field, "must be within 100 to 999"))
    };
    ranges.iter().map(range).collect()
}

pub(super) fn status_range(range: &RangeInclusive<u16>) -> v1::StatusRange {
    v1::StatusRange { from: (*range.start()).into(), to: (*range.end()).into() }
}

impl TryFrom<&v1::RouteMatch> for RouteMatch {
    type Error = WireError;

    fn try_from(message: &v1::RouteMatch) -> Result<Self, WireError> {
        use v1::route_match::Path;
        const PATH: &str = "matches.path";
        at_most("matches.headers", &message.headers, MAX_HEADERS)?;
        at_most("matches.query", &message.query, MAX_HEADERS)?;
        let path = match &message.path {
            None => None,
            Some(Path::ExactPath(exact)) => Some(PathMatch::Exact(path(PATH, exact)?)),
            Some(Path::PathPrefix(prefix)) => Some(PathMatch::Prefix(path(PATH, prefix)?)),
            Some(Path::PathRegex(regex)) => Some(PathMatch::Regex(pattern(PATH, regex)?)),
        };
        let method = match message.method.as_str() {
            "" => None,
            token if token.len() > MAX_METHOD => {
                return Err(wrong("matches.method", "is too long"));
            }
            token => Some(parse::<Method>("matches.method", token)?),
        };
        let query = message.query.iter().map(|one| {
            let name = text("matches.query", &one.name, MAX_TEXT)?;
            Ok((name, text_match("matches.query", one)?))
        });
        let query = query.collect::<Result<_, WireError>>()?;
        // No name of a header has a percent sign and a brace.
        let (said, headers): (Vec<_>, Vec<_>) =
            message.headers.iter().cloned().partition(|one| one.name.contains("%{"));
        let said = said.iter().map(extension::said_match).collect::<Result<_, _>>()?;
        let headers = header_matches("matches.headers", &headers)?;
        Ok(Self { path, method, headers, said, query })
    }
}

impl From<&RouteMatch> for v1::RouteMatch {
    fn from(route_match: &RouteMatch) -> Self {
        use v1::route_match::Path;
        let path = route_match.path.as_ref().map(|path| match path {
            PathMatch::Exact(path) => Path::ExactPath(path.to_string()),
            PathMatch::Prefix(path) => Path::PathPrefix(path.to_string()),
            PathMatch::Regex(pattern) => Path::PathRegex(pattern.as_str().to_owned()),
        });
        let query = route_match.query.iter().map(|(name, value)| header_match(name, value));
        let said = route_match.said.iter();
        let said = said.map(|(template, value)| header_match(template.as_str(), value));
        Self {
            path,
            method: route_match.method.as_ref().map(ToString::to_string).unwrap_or_default(),
            headers: header_matches_out(&route_match.headers).into_iter().chain(said).collect(),
            query: query.collect(),
        }
    }
}

fn path(field: &'static str, value: &str) -> Result<Arc<str>, WireError> {
    if !value.starts_with('/') {
        return Err(wrong(field, "must begin with '/'"));
    }
    text(field, value, MAX_MATCH_TEXT)
}

fn pattern(field: &'static str, value: &str) -> Result<Pattern, WireError> {
    let value = text(field, value, MAX_MATCH_TEXT)?;
    Pattern::new(&value).map_err(|error| wrong(field, error))
}

type HeaderMatches = Vec<(HeaderName, TextMatch)>;

fn header_matches(
    field: &'static str,
    messages: &[v1::HeaderMatch],
) -> Result<HeaderMatches, WireError> {
    at_most(field, messages, MAX_HEADERS)?;
    let one = |message: &v1::HeaderMatch| {
        if message.name.len() > MAX_TEXT {
            return Err(wrong(field, "name is too long"));
        }
        let _: HeaderValue = parse(field, &message.value)?;
        Ok((parse(field, &message.name)?, text_match(field, message)?))
    };
    messages.iter().map(one).collect()
}

fn header_matches_out(matches: &[(HeaderName, TextMatch)]) -> Vec<v1::HeaderMatch> {
    matches.iter().map(|(name, value)| header_match(name.as_str(), value)).collect()
}

pub(super) fn text_match(
    field: &'static str,
    message: &v1::HeaderMatch,
) -> Result<TextMatch, WireError> {
    if message.value.len() > MAX_MATCH_TEXT {
        return Err(wrong(field, "value is too long"));
    }
    Ok(match message.regex.as_str() {
        "" => TextMatch::Exact(message.value.as_bytes().into()),
        regex => TextMatch::Regex(pattern(field, regex)?),
    })
}

fn header_match(name: &str, value: &TextMatch) -> v1::HeaderMatch {
    let name = name.to_owned();
    match value {
        // A protobuf string; values that came over the wire are UTF-8.
        TextMatch::Exact(bytes) => v1::HeaderMatch {
            name,
            value: String::from_utf8_lossy(bytes).into_owned(),
            ..Default::default()
        },
        TextMatch::Regex(pattern) => {
            v1::HeaderMatch { name, regex: pattern.as_str().to_owned(), ..Default::default() }
        }
    }
}

impl TryFrom<&v1::Backend> for RouteBackend {
    type Error = WireError;

    fn try_from(message: &v1::Backend) -> Result<Self, WireError> {
        let filters = message.filters.as_ref().map(Filters::try_from).transpose()?;
        let Filters { request, response, redirect, rewrite, mirrors } = filters.unwrap_or_default();
        if redirect.is_some() || rewrite.is_some() || !mirrors.is_empty() {
            return Err(wrong("backends.filters", "only header changes are for one backend"));
        }
        let invalid = text("backends.invalid", &message.invalid, MAX_MATCH_TEXT)?;
        Ok(Self {
            service: parse("backends.service", &message.service)?,
            port: optional_port("backends.port", &message.port)?,
            weight: message.weight,
            request,
            response,
            invalid: (!invalid.is_empty()).then_some(invalid),
        })
    }
}

impl From<&RouteBackend> for v1::Backend {
    fn from(backend: &RouteBackend) -> Self {
        let (request, response) = (changes_out(&backend.request), changes_out(&backend.response));
        let filters = v1::Filters { request, response, ..Default::default() };
        Self {
            service: backend.service.to_string(),
            port: backend.port.as_ref().map(ToString::to_string).unwrap_or_default(),
            weight: backend.weight,
            filters: (filters != v1::Filters::default()).then_some(filters),
            invalid: backend.invalid.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

impl Filters {
    fn changes_prefix(&self) -> bool {
        let changed = [
            self.redirect.as_ref().and_then(|redirect| redirect.path.as_ref()),
            self.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()),
        ];
        changed.into_iter().flatten().any(|change| matches!(change, PathChange::Prefix(_)))
    }
}

impl TryFrom<&v1::Filters> for Filters {
    type Error = WireError;

    fn try_from(message: &v1::Filters) -> Result<Self, WireError> {
        at_most("filters.mirrors", &message.mirrors, MAX_MIRRORS)?;
        let mirrors = message.mirrors.iter().map(Mirror::try_from).collect::<Result<_, _>>()?;
        Ok(Self {
            request: changes("filters.request", message.request.as_ref())?,
            response: changes("filters.response", message.response.as_ref())?,
            redirect: message.redirect.as_ref().map(Redirect::try_from).transpose()?,
            rewrite: message.rewrite.as_ref().map(Rewrite::try_from).transpose()?,
            mirrors,
        })
    }
}

impl From<&Filters> for v1::Filters {
    fn from(filters: &Filters) -> Self {
        Self {
            request: changes_out(&filters.request),
            response: changes_out(&filters.response),
            redirect: filters.redirect.as_ref().map(Into::into),
            rewrite: filters.rewrite.as_ref().map(Into::into),
            mirrors: filters.mirrors.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::PathChange> for PathChange {
    type Error = WireError;

    fn try_from(message: &v1::PathChange) -> Result<Self, WireError> {
        use v1::path_change::Change;
        const FIELD: &str = "filters.path";
        match &message.change {
            Some(Change::Full(full)) => Ok(Self::Full(path(FIELD, full)?)),
            Some(Change::Prefix(prefix)) if prefix.is_empty() => Ok(Self::Prefix("".into())),
            Some(Change::Prefix(prefix)) => Ok(Self::Prefix(path(FIELD, prefix)?)),
            None => Err(wrong(FIELD, "needs full or prefix")),
        }
    }
}

impl From<&PathChange> for v1::PathChange {
    fn from(change: &PathChange) -> Self {
        use v1::path_change::Change;
        let change = match change {
            PathChange::Full(full) => Change::Full(full.to_string()),
            PathChange::Prefix(prefix) => Change::Prefix(prefix.to_string()),
        };
        Self { change: Some(change) }
    }
}

impl TryFrom<&v1::Redirect> for Redirect {
    type Error = WireError;

    fn try_from(message: &v1::Redirect) -> Result<Self, WireError> {
        let scheme: Option<Arc<str>> = match message.scheme.as_str() {
            "" => None,
            "http" => Some("http".into()),
            "https" => Some("https".into()),
            _ => return Err(wrong("redirect.scheme", "must be http or https")),
        };
        let status = match message.status {
            0 => StatusCode::FOUND,
            status @ (301 | 302 | 303 | 307 | 308) => u16::try_from(status)
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(StatusCode::FOUND),
            _ => return Err(wrong("redirect.status", "must be 301, 302, 303, 307 or 308")),
        };
        let port = u16::try_from(message.port);
        let port = port.map_err(|_| wrong("redirect.port", "must be at most 65535"))?;
        Ok(Self {
            scheme,
            hostname: host_name("redirect.hostname", &message.hostname)?,
            path: message.path.as_ref().map(PathChange::try_from).transpose()?,
            port: (port != 0).then_some(port),
            status,
        })
    }
}

impl From<&Redirect> for v1::Redirect {
    fn from(redirect: &Redirect) -> Self {
        Self {
            scheme: redirect.scheme.as_deref().unwrap_or_default().to_owned(),
            hostname: redirect.hostname.as_deref().unwrap_or_default().to_owned(),
            path: redirect.path.as_ref().map(Into::into),
            port: redirect.port.unwrap_or_default().into(),
            status: redirect.status.as_u16().into(),
        }
    }
}

impl TryFrom<&v1::Rewrite> for Rewrite {
    type Error = WireError;

    fn try_from(message: &v1::Rewrite) -> Result<Self, WireError> {
        Ok(Self {
            hostname: host_and_port("rewrite.hostname", &message.hostname)?,
            path: message.path.as_ref().map(PathChange::try_from).transpose()?,
        })
    }
}

impl From<&Rewrite> for v1::Rewrite {
    fn from(rewrite: &Rewrite) -> Self {
        Self {
            hostname: rewrite.hostname.as_deref().unwrap_or_default().to_owned(),
            path: rewrite.path.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<&v1::Mirror> for Mirror {
    type Error = WireError;

    fn try_from(message: &v1::Mirror) -> Result<Self, WireError> {
        Ok(Self {
            service: parse::<ServiceName>("mirrors.service", &message.service)?,
            port: optional_port("mirrors.port", &message.port)?,
            fraction: fraction("mirrors.fraction", message.fraction.as_ref())?,
        })
    }
}

impl From<&Mirror> for v1::Mirror {
    fn from(mirror: &Mirror) -> Self {
        Self {
            service: mirror.service.to_string(),
            port: mirror.port.as_ref().map(ToString::to_string).unwrap_or_default(),
            fraction: fraction_out(mirror.fraction),
        }
    }
}

fn fraction(field: &'static str, message: Option<&v1::Fraction>) -> Result<Fraction, WireError> {
    let Some(message) = message else { return Ok(Fraction::ALL) };
    let denominator = if message.denominator == 0 { 100 } else { message.denominator };
    if message.numerator > denominator {
        return Err(wrong(field, "is more than all"));
    }
    Ok(Fraction { numerator: message.numerator, denominator })
}

fn fraction_out(fraction: Fraction) -> Option<v1::Fraction> {
    let Fraction { numerator, denominator } = fraction;
    (fraction != Fraction::ALL).then_some(v1::Fraction { numerator, denominator })
}

impl TryFrom<&v1::RetryPolicy> for RetryPolicy {
    type Error = WireError;

    fn try_from(message: &v1::RetryPolicy) -> Result<Self, WireError> {
        at_most("retry.grpc_codes", &message.grpc_codes, MAX_STATUSES)?;
        if message.attempts > MAX_RETRIES {
            return Err(wrong("retry.attempts", format_args!("must be at most {MAX_RETRIES}")));
        }
        let backoff = millis(message.backoff_ms).unwrap_or(BACKOFF);
        let max_backoff = millis(message.max_backoff_ms).unwrap_or(backoff.saturating_mul(10));
        if max_backoff < backoff {
            return Err(wrong("retry.max_backoff_ms", "is less than backoff_ms"));
        }
        Ok(Self {
            attempts: message.attempts,
            statuses: statuses("retry.statuses", &message.statuses)?,
            grpc_codes: message.grpc_codes.clone(),
            any_method: message.any_method,
            answers_only: message.answers_only,
            backoff,
            max_backoff,
        })
    }
}

impl From<&RetryPolicy> for v1::RetryPolicy {
    fn from(retry: &RetryPolicy) -> Self {
        Self {
            attempts: retry.attempts,
            statuses: retry.statuses.iter().map(status_range).collect(),
            grpc_codes: retry.grpc_codes.clone(),
            any_method: retry.any_method,
            answers_only: retry.answers_only,
            backoff_ms: to_millis(Some(retry.backoff)),
            max_backoff_ms: to_millis(Some(retry.max_backoff)),
        }
    }
}

impl TryFrom<&v1::Fault> for Fault {
    type Error = WireError;

    fn try_from(message: &v1::Fault) -> Result<Self, WireError> {
        let delay_fraction = fraction("fault.delay_fraction", message.delay_fraction.as_ref())?;
        let abort_fraction = fraction("fault.abort_fraction", message.abort_fraction.as_ref())?;
        let abort = match u16::try_from(message.abort_status) {
            Ok(0) => None,
            Ok(status @ 200..=599) => StatusCode::from_u16(status).ok(),
            _ => return Err(wrong("fault.abort_status", "must be 200 to 599")),
        };
        let grpc = message.abort_grpc_status;
        Ok(Self {
            delay: millis(message.delay_ms).map(|delay| (delay, delay_fraction)),
            abort: abort.map(|status| (status, abort_fraction)),
            abort_grpc_status: if grpc == 0 { GRPC_UNAVAILABLE } else { grpc },
            headers: header_matches("fault.headers", &message.headers)?,
        })
    }
}

impl From<&Fault> for v1::Fault {
    fn from(fault: &Fault) -> Self {
        Self {
            delay_ms: to_millis(fault.delay.map(|(delay, _)| delay)),
            delay_fraction: fault.delay.and_then(|(_, fraction)| fraction_out(fraction)),
            abort_status: fault.abort.map_or(0, |(status, _)| status.as_u16().into()),
            abort_grpc_status: fault.abort_grpc_status,
            abort_fraction: fault.abort.and_then(|(_, fraction)| fraction_out(fraction)),
            headers: header_matches_out(&fault.headers),
        }
    }
}
