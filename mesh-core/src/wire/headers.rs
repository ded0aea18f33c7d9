//! Changes of headers.

use http::{HeaderName, HeaderValue, header};
use mesh_api::v1;

use super::{MAX_CHANGES, MAX_MATCH_TEXT, WireError, at_most, parse, wrong};
use crate::rule::HeaderChanges;

/// Fields that frame messages or that only proxies may write.
fn is_ours(name: &HeaderName) -> bool {
    let framing = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
    ];
    let name_is = |prefix: &str| name.as_str().starts_with(prefix);
    framing.contains(name) || name_is("isthmus-") || name_is("x-isthmus-")
}

/// The name of a field that rules may change.
pub(super) fn changed_name(field: &'static str, name: &str) -> Result<HeaderName, WireError> {
    let name: HeaderName = parse(field, name)?;
    if is_ours(&name) {
        return Err(wrong(field, format_args!("{name} is not for rules to change")));
    }
    Ok(name)
}

/// Fields that rules may change, each value read by `value`.
pub(super) fn changed_fields<T>(
    field: &'static str,
    headers: &[v1::Header],
    value: impl Fn(&str) -> Result<T, WireError>,
) -> Result<Vec<(HeaderName, T)>, WireError> {
    at_most(field, headers, MAX_CHANGES)?;
    let one = |header: &v1::Header| {
        if header.value.len() > MAX_MATCH_TEXT {
            return Err(wrong(field, "value is too long"));
        }
        Ok((changed_name(field, &header.name)?, value(&header.value)?))
    };
    headers.iter().map(one).collect()
}

pub(super) fn changes(
    field: &'static str,
    message: Option<&v1::HeaderChanges>,
) -> Result<HeaderChanges, WireError> {
    let Some(message) = message else { return Ok(HeaderChanges::default()) };
    at_most(field, &message.remove, MAX_CHANGES)?;
    // Blanks around it are no part of a value (RFC 9110 section 5.5).
    let literal = |value: &str| parse::<HeaderValue>(field, value.trim_matches([' ', '\t']));
    let removed = message.remove.iter().map(|name| changed_name(field, name));
    Ok(HeaderChanges {
        set: changed_fields(field, &message.set, literal)?,
        add: changed_fields(field, &message.add, literal)?,
        remove: removed.collect::<Result<_, _>>()?,
    })
}

pub(super) fn fields_out(fields: &[(HeaderName, HeaderValue)]) -> Vec<v1::Header> {
    let one = |(name, value): &(HeaderName, HeaderValue)| v1::Header {
        name: name.to_string(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    fields.iter().map(one).collect()
}

pub(super) fn changes_out(changes: &HeaderChanges) -> Option<v1::HeaderChanges> {
    (!changes.is_empty()).then(|| v1::HeaderChanges {
        set: fields_out(&changes.set),
        add: fields_out(&changes.add),
        remove: changes.remove.iter().map(ToString::to_string).collect(),
    })
}
