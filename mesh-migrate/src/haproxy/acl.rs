//! ACLs and conditions (configuration manual, 7.1 and 7.2).

use std::{net::IpAddr, sync::Arc};

use crate::source::{Place, Problem};

use super::{
    list::{Files, List},
    sample::{Expression, expression},
    words::Word,
};

/// `acl NAME expression flags patterns`, without the name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Test {
    /// Where the expression begins.
    pub(super) place: Place,
    /// What is looked at; its name is the canonical one.
    pub(super) expression: Expression,
    /// How it is compared.
    pub(super) method: Method,
    /// `-i`.
    pub(super) ignores_case: bool,
    /// With what.
    pub(super) patterns: Vec<String>,
    /// `-f`: with what else.
    pub(super) lists: Vec<Arc<List>>,
}

impl Test {
    /// Of the line and of the files.
    pub(super) fn all_patterns(&self) -> impl Iterator<Item = &str> {
        let listed = self.lists.iter().flat_map(|list| list.entries.iter().map(|e| &*e.key));
        self.patterns.iter().map(String::as_str).chain(listed)
    }
}

/// How a sample is compared with patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// There is one.
    Found,
    /// It is true.
    Bool,
    /// Numbers and ranges of them.
    Int,
    /// Addresses and networks.
    Ip,
    /// The same text.
    Exact,
    /// Its beginning.
    Beginning,
    /// Its end.
    End,
    /// A part of it.
    Part,
    /// A part between slashes.
    Directory,
    /// A part between dots.
    Domain,
    /// A regular expression, anywhere in it.
    Regex,
    /// Its length.
    Length,
    /// Bytes in hexadecimal.
    Binary,
}

const METHODS: &[(&str, Method)] = &[
    ("found", Method::Found),
    ("bool", Method::Bool),
    ("int", Method::Int),
    ("ip", Method::Ip),
    ("str", Method::Exact),
    ("beg", Method::Beginning),
    ("end", Method::End),
    ("sub", Method::Part),
    ("dir", Method::Directory),
    ("dom", Method::Domain),
    ("reg", Method::Regex),
    ("len", Method::Length),
    ("bin", Method::Binary),
];

/// Fetches that have other names, too.
const ALIASES: &[(&str, &str)] = &[
    ("hdr", "req.hdr"),
    ("fhdr", "req.fhdr"),
    ("hdr_cnt", "req.hdr_cnt"),
    ("hdr_ip", "req.hdr_ip"),
    ("hdr_val", "req.hdr_val"),
    ("cook", "req.cook"),
    ("cookie", "req.cook"),
    ("cook_cnt", "req.cook_cnt"),
    ("cook_val", "req.cook_val"),
    ("shdr", "res.hdr"),
    ("scook", "res.cook"),
    ("urlp", "url_param"),
    ("urlp_val", "url_param_val"),
    ("req_ssl_sni", "req.ssl_sni"),
    ("req_ssl_hello_type", "req.ssl_hello_type"),
    ("req_ssl_ver", "req.ssl_ver"),
    ("req_proto_http", "req.proto_http"),
    ("req_ver", "req.ver"),
    ("req_len", "req.len"),
    ("req.pathq", "pathq"),
    ("resp_ver", "res.ver"),
];

/// Fetches with forms that end in a method: `path_beg`.
const SUFFIXED: &[&str] =
    &["req.hdr", "req.fhdr", "req.cook", "path", "url", "base", "url_param", "ssl_fc_sni"];

/// The manual's own name of a fetch.
pub(super) fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, own)| own)
}

fn suffixed(name: &str) -> Option<(&'static str, Method)> {
    let (base, suffix) = name.rsplit_once('_')?;
    let (_, method) = METHODS.iter().find(|(known, _)| *known == suffix)?;
    let base = canonical(base);
    SUFFIXED.iter().find(|known| **known == base).map(|known| (*known, *method))
}

/// What a fetch is compared as where nothing is said.
fn usual(expression: &Expression) -> Method {
    let last = expression.converters.last().map(|call| call.name.as_str());
    match last {
        Some("map" | "lower" | "upper" | "field" | "word" | "regsub" | "host_only") => {
            return Method::Exact;
        }
        Some("length" | "port_only" | "div" | "mod" | "add" | "sub" | "mul") => {
            return Method::Int;
        }
        Some("bool" | "not" | "in_table" | "ip.is_private") => return Method::Bool,
        Some("map_str_int") => return Method::Int,
        Some(map) if map.starts_with("map_") => {
            return if map.ends_with("_ip") { Method::Ip } else { Method::Exact };
        }
        Some(_) => return Method::Exact,
        None => {}
    }
    match expression.fetch.name.as_str() {
        "src" | "dst" | "req.hdr_ip" | "url_ip" => Method::Ip,
        "ssl_fc" | "always_true" | "always_false" | "bool" | "http_auth" | "req.proto_http"
        | "ssl_c_used" | "ssl_fc_has_crt" | "ssl_fc_has_sni" | "wait_end" | "srv_is_up"
        | "http_first_req" | "src_is_local" | "dst_is_local" | "is_ssl_fc" => Method::Bool,
        "method" | "str" | "path" | "pathq" | "url" | "base" | "query" | "req.hdr" | "req.fhdr"
        | "req.cook" | "url_param" | "req.ver" | "req.ssl_sni" | "ssl_fc_sni" | "fe_name"
        | "be_name" | "capture.req.uri" | "capture.req.method" | "http_auth_group" | "var"
        | "ssl_c_s_dn" | "ssl_fc_alpn" | "req.ssl_alpn" | "res.hdr" | "hostname" | "env" => {
            Method::Exact
        }
        _ => Method::Int,
    }
}

/// What stands after the name of an ACL, or in braces.
pub(super) fn test(words: &[Word], files: &Files<'_>) -> Result<Test, Problem> {
    let first = &words[0];
    let place = first.place.clone();
    let mut expression = expression(&first.text, &place, files)?;
    let mut method = None;
    if let Some((base, by_name)) = suffixed(&expression.fetch.name) {
        expression.fetch.name = base.to_owned();
        // What a converter makes of it is compared as is usual for that.
        method = Some(by_name).filter(|_| expression.converters.is_empty());
    }
    expression.fetch.name = canonical(&expression.fetch.name).to_owned();
    let mut test = Test {
        place,
        method: Method::Exact,
        expression,
        ignores_case: false,
        patterns: Vec::new(),
        lists: Vec::new(),
    };
    let mut words = words[1..].iter().peekable();
    while let Some(flag) = words.next_if(|word| word.text.starts_with('-')) {
        let mut value = || {
            let problem = || Problem::at(&flag.place, format!("nothing after `{}`", flag.text));
            words.next().ok_or_else(problem)
        };
        match flag.text.as_str() {
            "-i" => test.ignores_case = true,
            "-M" | "-n" => {}
            "-u" => {
                value()?;
            }
            "-f" => {
                let file = value()?;
                test.lists.push(files.patterns(&file.text, &file.place)?);
            }
            "-m" => {
                let named = value()?;
                let known = METHODS.iter().find(|(name, _)| *name == named.text);
                let (_, known) = known.ok_or_else(|| {
                    let problem = format!("{:?} is no method of `-m`", named.text);
                    Problem::at(&named.place, problem)
                })?;
                method = Some(*known);
            }
            "--" => break,
            number if number[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                test.patterns.push(number.to_owned());
                break;
            }
            other => {
                let problem = format!("{other:?}, and expected was -i, -m, -f, -n, -u, -M or --");
                return Err(Problem::at(&flag.place, problem));
            }
        }
    }
    test.patterns.extend(words.map(|word| word.text.clone()));
    test.method = method.unwrap_or_else(|| usual(&test.expression));
    Ok(test)
}

/// An alternative of ANDed literals.
pub(super) type Conjunction = Vec<Literal>;

/// `if …` or `unless …`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    /// Where it begins.
    pub(super) place: Place,
    /// `unless`.
    pub(super) is_unless: bool,
    /// Any of them.
    pub(super) any: Vec<Conjunction>,
}

/// An ACL, or its contrary.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Literal {
    /// Where.
    pub(super) place: Place,
    /// `!`.
    pub(super) is_negated: bool,
    /// Which.
    pub(super) of: Named,
}

/// What a literal refers to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Named {
    /// ACLs of this name.
    Acl(String),
    /// `{ … }`.
    Anonymous(Arc<Test>),
}

/// `if`, `unless` and what follows, up to the end of the line.
pub(super) fn condition(words: &[Word], files: &Files<'_>) -> Result<Condition, Problem> {
    let (first, words) = words.split_first().expect("the caller has seen `if`");
    let is_unless = first.text == "unless";
    let mut any = vec![Vec::new()];
    let mut negated = false;
    let mut rest = words;
    while let Some((word, after)) = rest.split_first() {
        rest = after;
        let bare = word.text.trim_start_matches('!');
        negated ^= (word.text.len() - bare.len()) % 2 == 1;
        let of = match bare {
            "" => continue,
            "or" | "||" => {
                if negated || any.last().is_none_or(Vec::is_empty) {
                    return Err(Problem::at(&word.place, format!("{bare:?} after no ACL")));
                }
                any.push(Vec::new());
                continue;
            }
            "{" => {
                let end = rest.iter().position(|word| word.text == "}");
                let Some(end) = end.filter(|end| *end > 0) else {
                    let problem = "`{` without an expression and ` }` after it";
                    return Err(Problem::at(&word.place, problem));
                };
                let inner = test(&rest[..end], files)?;
                rest = &rest[end + 1..];
                Named::Anonymous(Arc::new(inner))
            }
            name => Named::Acl(name.to_owned()),
        };
        let literal = Literal { place: word.place.clone(), is_negated: negated, of };
        negated = false;
        any.last_mut().expect("there is one from the start").push(literal);
    }
    if negated || any.last().is_none_or(Vec::is_empty) {
        let problem = format!("`{}` without an ACL at its end", first.text);
        return Err(Problem::at(&first.place, problem));
    }
    Ok(Condition { place: first.place.clone(), is_unless, any })
}

/// ACLs that are there without having been written (7.4).
pub(super) fn predefined(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "TRUE" => &["always_true"],
        "FALSE" => &["always_false"],
        "HTTP" => &["req.proto_http"],
        "HTTP_1.0" => &["req.ver", "1.0"],
        "HTTP_1.1" => &["req.ver", "1.1"],
        "HTTP_2.0" => &["req.ver", "2.0"],
        "HTTP_3.0" => &["req.ver", "3.0"],
        "HTTP_CONTENT" => &["req.hdr_val(content-length)", "gt", "0"],
        "HTTP_URL_ABS" => &["url", "-m", "reg", "^[^/:]*://"],
        "HTTP_URL_SLASH" => &["url_beg", "/"],
        "HTTP_URL_STAR" => &["url", "*"],
        "LOCALHOST" => &["src", "127.0.0.1/8", "::1"],
        "METH_CONNECT" => &["method", "CONNECT"],
        "METH_DELETE" => &["method", "DELETE"],
        "METH_GET" => &["method", "GET", "HEAD"],
        "METH_HEAD" => &["method", "HEAD"],
        "METH_OPTIONS" => &["method", "OPTIONS"],
        "METH_POST" => &["method", "POST"],
        "METH_PUT" => &["method", "PUT"],
        "METH_TRACE" => &["method", "TRACE"],
        "RDP_COOKIE" => &["req.rdp_cookie_cnt", "gt", "0"],
        "REQ_CONTENT" => &["req.len", "gt", "0"],
        "WAIT_END" => &["wait_end"],
        _ => return None,
    })
}

/// Numbers that a list of `gt 5` or `80:90` lets through, ends included.
pub(super) fn ranges<'p>(patterns: impl Iterator<Item = &'p str>) -> Vec<(i64, i64)> {
    let mut operator = "eq";
    let mut ranges = Vec::new();
    for pattern in patterns {
        if matches!(pattern, "eq" | "ge" | "gt" | "le" | "lt") {
            operator = pattern;
            continue;
        }
        let (low, high) = pattern.split_once(':').unwrap_or((pattern, pattern));
        let bound = |text: &str, open: i64| match text {
            "" => Some(open),
            text => text.parse().ok(),
        };
        let (Some(low), Some(high)) = (bound(low, i64::MIN), bound(high, i64::MAX)) else {
            continue;
        };
        ranges.push(match operator {
            "ge" => (low, i64::MAX),
            "gt" => (high.saturating_add(1), i64::MAX),
            "le" => (i64::MIN, high),
            "lt" => (i64::MIN, low.saturating_sub(1)),
            _ => (low, high),
        });
    }
    ranges
}

/// `10.0.0.0/8`, `10.0.0.0/255.0.0.0` or an address as a block of CIDR.
pub(super) fn block(pattern: &str) -> Option<(IpAddr, u32)> {
    let (base, length) = match pattern.split_once('/') {
        Some((base, length)) => (base, Some(length)),
        None => (pattern, None),
    };
    let base: IpAddr = base.parse().ok()?;
    let all = if base.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => all,
        Some(mask) if mask.contains('.') => {
            mask.parse::<std::net::Ipv4Addr>().ok()?.to_bits().leading_ones()
        }
        Some(length) => length.parse().ok()?,
    };
    (length <= all).then_some((base, length))
}

/// Whether an address is in a block.
pub(super) fn within((base, length): (IpAddr, u32), address: IpAddr) -> bool {
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            let cut = |bits: u32| bits.checked_shr(32 - length).unwrap_or(0);
            cut(base.to_bits()) == cut(address.to_bits())
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            let cut = |bits: u128| bits.checked_shr(128 - length).unwrap_or(0);
            cut(base.to_bits()) == cut(address.to_bits())
        }
        _ => false,
    }
}
