//! Names and values of headers as rules of ours can write them.

use super::super::{acl::Method, rules::Action};
use super::text::Unsaid;
use crate::{
    objects::headers::{is_ours, why_ours},
    program::Said,
};

/// Why no rule of ours writes or removes a header of this name.
pub(super) fn why_not(name: &str) -> Option<String> {
    if is_ours(name) {
        return Some(why_ours(name));
    }
    (!is_token(name))
        .then(|| format!("{name:?} is no name of a header: this has no effect with us"))
}

/// Why a rule that writes or removes a header does not; `Host` of requests is apart.
pub(super) fn of_action(action: &Action, is_host_apart: bool) -> Option<String> {
    match action {
        Action::SetHeader(name, _)
        | Action::AddHeader(name, _)
        | Action::DelHeader(name, Method::Exact)
            if !is_host_apart || name != "host" =>
        {
            why_not(name)
        }
        _ => None,
    }
}

/// A value as headers of ours have it: blanks around it are none of it (RFC 9110 section
/// 5.5).
pub(super) fn value(name: &str, value: String) -> Result<String, Unsaid> {
    match has_control(&value) {
        true => Err(format!("the value of {name} has line feeds or the like in it")),
        false => Ok(value.trim_matches([' ', '\t']).to_owned()),
    }
}

/// Whether a header can have what is made of the request as its value.
pub(super) fn is_value(said: &Said) -> bool {
    match said {
        Said::Text(text) => !has_control(text),
        Said::Joined(parts) => parts.iter().all(is_value),
        _ => true,
    }
}

fn has_control(value: &str) -> bool {
    value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t')
}

/// Whether it can be the name of a header, or a method (RFC 9110 section 5.6.2).
pub(super) fn is_token(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_good)
}
