//! Conditions on what a request says, fetch by fetch.

use crate::program::{Condition, Said, Text};

use super::super::{
    acl::{self, Method},
    sample::Call,
};
use super::{
    addresses,
    fetches::{base, base_pattern, cookie, header, numbers, numbers_of},
    logic::{NEVER, all, constant, not},
    names, said,
    state::{Front, SERVER_NAME},
    text::{Leaf, Unsaid, text},
};

/// Fetches of one header, which is named.
const OF_HEADER: [&str; 6] =
    ["req.hdr", "req.fhdr", "req.hdr_val", "req.hdr_ip", "req.hdr_cnt", "req.fhdr_cnt"];

/// A condition of the request for a pattern of a fetch.
pub(super) fn of_request(front: &Front, call: &Call, leaf: &Leaf) -> Result<Condition, Unsaid> {
    let name = call.name.as_str();
    let first = call.argument(0).to_ascii_lowercase();
    let unsaid = || Err(format!("`{name}` compared so has no counterpart"));
    if front.is_tcp && !matches!(name, "req.ssl_sni" | "src") {
        return Err(format!("`{name}` has no counterpart for connections"));
    }
    match name {
        _ if OF_HEADER.contains(&name) && first.is_empty() => unsaid(),
        _ if OF_HEADER.contains(&name) && !names::is_token(&first) => no_header(name, leaf),
        "path" => match leaf.method {
            Method::Found => Ok(Condition::Always),
            Method::Beginning if leaf.pattern.is_empty() => Ok(Condition::Always),
            // What has another form is no path, as the `*` of OPTIONS.
            Method::Exact | Method::Beginning if !leaf.pattern.starts_with('/') => Ok(NEVER),
            _ => Ok(Condition::Path(text(leaf)?)),
        },
        "method" => match leaf.method {
            Method::Exact if !names::is_token(&leaf.pattern) => Ok(NEVER),
            Method::Exact => Ok(Condition::Method(vec![leaf.pattern.clone()])),
            _ => unsaid(),
        },
        "req.fhdr" if leaf.method == Method::Int => {
            let pattern = format!("{}(?:[^0-9](?s:.*))?", numbers(leaf)?);
            Ok(Condition::Header(first, Text::Pattern(pattern)))
        }
        "req.hdr" if leaf.method == Method::Int && call.argument(1).is_empty() => {
            numbers_of(first, leaf, false)
        }
        "req.hdr" | "req.fhdr" if first == "host" || name == "req.fhdr" => {
            Ok(Condition::Header(first, text(leaf)?))
        }
        "req.hdr" if !call.argument(1).is_empty() => unsaid(),
        "req.hdr" => header(&first, leaf),
        "req.hdr_cnt" | "req.fhdr_cnt" if leaf.method == Method::Int => {
            counted(first, leaf).map_or_else(unsaid, Ok)
        }
        "req.hdr_val" if leaf.method == Method::Int && call.argument(1).is_empty() => {
            numbers_of(first, leaf, true)
        }
        "req.body_size" if leaf.method == Method::Int => {
            Ok(Condition::Header("content-length".to_owned(), Text::Pattern(numbers(leaf)?)))
        }
        "req.cook" => cookie(call.argument(0), leaf),
        "url_param" if call.argument(1).is_empty() => of_parameter(call.argument(0), leaf),
        "src" => addresses::of_client(leaf),
        "url" | "pathq" | "capture.req.uri"
            if leaf.method == Method::Beginning
                && leaf.pattern.starts_with('/')
                && !leaf.pattern.contains('?') =>
        {
            Ok(Condition::Path(text(leaf)?))
        }
        "base" | "pathq" | "url" if leaf.method == Method::Found => Ok(Condition::Always),
        "query" if leaf.method == Method::Found => Ok(has_query()),
        "base" if leaf.method == Method::Regex => base_pattern(leaf),
        "base" => base(leaf),
        "req.ssl_sni" => match leaf.method {
            Method::Exact => Ok(server_name(leaf.pattern.to_ascii_lowercase())),
            Method::End if leaf.pattern.starts_with('.') => {
                Ok(server_name(format!("*{}", leaf.pattern.to_ascii_lowercase())))
            }
            _ => unsaid(),
        },
        _ => unsaid(),
    }
}

/// No header has such a name: it is not there, or there are none.
fn no_header(name: &str, leaf: &Leaf) -> Result<Condition, Unsaid> {
    if leaf.method == Method::Int && name.ends_with("_cnt") {
        let ranges = acl::ranges(leaf.pattern.split(' '));
        return Ok(constant(ranges.iter().any(|(low, high)| (*low..=*high).contains(&0))));
    }
    Ok(NEVER)
}

/// There is one, maybe empty.
fn has_query() -> Condition {
    Condition::Said(Said::Target, Text::Pattern(r"(?s:[^?]*\?.*)".to_owned()))
}

fn server_name(name: String) -> Condition {
    Condition::Header(SERVER_NAME.to_owned(), Text::Exact(name))
}

/// One of the parameters of this name, as it is sent; `;` divides them, too.
fn parameter(name: &str, inner: &str) -> Condition {
    let name = regex::escape(name);
    let pattern = format!("(?s)(?:.*[&;])?{name}=(?:{inner})(?:[&;].*)?");
    Condition::Said(Said::Query, Text::Pattern(pattern))
}

/// How many values a header has: between commas, of all lines.
fn counted(name: String, leaf: &Leaf) -> Option<Condition> {
    let present = Condition::Header(name.clone(), Text::Present);
    match acl::ranges(leaf.pattern.split(' ')).as_slice() {
        [(1 | i64::MIN..=0, i64::MAX)] => Some(present),
        [(i64::MIN..=0, 0)] => Some(not(present)),
        [(low @ 1.., high)] if *high == i64::MAX || *high < 100 => {
            let low = low - 1;
            let high = if *high == i64::MAX { String::new() } else { (high - 1).to_string() };
            let pattern = format!("[^,]*(?:,[^,]*){{{low},{high}}}");
            let lines = Condition::Said(Said::Headers(name), Text::Pattern(pattern));
            Some(all([present, lines]))
        }
        _ => None,
    }
}

/// Of the parameters of this name one is so.
fn of_parameter(name: &str, leaf: &Leaf) -> Result<Condition, Unsaid> {
    if leaf.method == Method::Int {
        // What stands behind a number is not read.
        let number = numbers(leaf)?;
        return Ok(parameter(name, &format!("(?:{number})(?:[^0-9&;][^&;]*)?")));
    }
    let text = text(leaf)?;
    let inner = match &text {
        Text::Exact(text) => regex::escape(text),
        Text::Prefix(text) => format!("{}[^&;]*", regex::escape(text)),
        Text::Present => "[^&;]*".to_owned(),
        Text::Pattern(pattern) => pattern.replace("(?s:.*)", "[^&;]*"),
    };
    // What else may take several of them is compared with the first.
    let is_open = matches!(text, Text::Pattern(_)) && inner.contains(['.', '\\'])
        || inner.matches("[^").count() != inner.matches("[^&;]").count();
    if is_open && !said::is_name(name) {
        return Err(format!("the parameter {name:?} compared so has no counterpart"));
    }
    Ok(match is_open {
        true => Condition::Query(name.to_owned(), text),
        false => parameter(name, &inner),
    })
}
