//! What converters make of samples (configuration manual, 7.3.1), maps included.

use super::{
    acl::{self, Method},
    list::{Entry, List},
    matching::{self, Value},
    sample::{self, Call},
    seen::Seen,
};

impl Seen {
    /// A number, or the variable that has one.
    fn number(&self, argument: &str) -> Option<i64> {
        let of_variable = || self.variables.get(argument).and_then(Value::int);
        argument.parse().ok().or_else(of_variable)
    }

    pub(super) fn convert(&mut self, call: &Call, value: Value) -> Option<Value> {
        if let Some(map) = &call.map {
            return mapped(call, map, &value);
        }
        let text = value.to_string();
        let first = call.argument(0);
        let number =
            |f: fn(i64, i64) -> Option<i64>| f(value.int()?, self.number(first)?).map(Value::Int);
        Some(Value::Text(match call.name.as_str() {
            "lower" => text.to_ascii_lowercase(),
            "upper" => text.to_ascii_uppercase(),
            "field" => field(&text, first.parse().ok()?, call.argument(1), call.argument(2))?,
            "word" => word(&text, first.parse().ok()?, call.argument(1), call.argument(2))?,
            "host_only" => host_only(&text).to_ascii_lowercase(),
            "port_only" => {
                let port = text[host_only(&text).len()..].trim_start_matches(':');
                return Some(Value::Int(port.parse().unwrap_or(0)));
            }
            "regsub" => {
                let flags = call.argument(2);
                let pattern = matching::regex(first, flags.contains('i'))?;
                let times = usize::from(!flags.contains('g'));
                let with = sample::substitution(call.argument(1));
                let replaced = pattern.replacen(text.as_bytes(), times, with.as_bytes());
                String::from_utf8_lossy(&replaced).into_owned()
            }
            "concat" => {
                let variable = self.variables.get(call.argument(1)).map(Value::to_string);
                format!("{text}{first}{}{}", variable.unwrap_or_default(), call.argument(2))
            }
            "ltrim" => text.trim_start_matches(|c| first.contains(c)).to_owned(),
            "rtrim" => text.trim_end_matches(|c| first.contains(c)).to_owned(),
            "bytes" => {
                let count = |text| self.number(text).and_then(|n| usize::try_from(n).ok());
                let rest = text.get(count(first)?..)?;
                match call.argument(1) {
                    "" => rest.to_owned(),
                    length => rest.get(..count(length)?).unwrap_or(rest).to_owned(),
                }
            }
            "url_dec" => decoded(&text, first.parse().unwrap_or(0) != 0)?,
            "length" => return Some(Value::Int(text.len() as i64)),
            "bool" => return value.int().map(|value| Value::Bool(value != 0)),
            "not" => return value.int().map(|value| Value::Bool(value == 0)),
            "iif" => call.argument(usize::from(value.int()? == 0)).to_owned(),
            "add" => return number(i64::checked_add),
            "sub" => return number(i64::checked_sub),
            "mul" => return number(i64::checked_mul),
            "div" => return number(i64::checked_div),
            "mod" => return number(i64::checked_rem),
            "str" => text,
            "set-var" => {
                self.variables.insert(first.to_owned(), value.clone());
                return Some(value);
            }
            other => {
                self.unknown.push(format!("what {other} makes of {text:?} is taken as absent"));
                return None;
            }
        }))
    }
}

/// `+` is a space in a form and after a `?`.
fn decoded(text: &str, mut is_form: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' if is_form => out.push(b' '),
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            _ => {
                is_form |= byte == b'?';
                out.push(byte);
            }
        }
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

pub(super) fn host_only(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => text,
    }
}

/// The n-th part between delimiters, from the end where n is negative; `count` parts.
fn field(text: &str, n: i64, delimiters: &str, count: &str) -> Option<String> {
    let cuts = text.char_indices().filter(|(_, c)| delimiters.contains(*c));
    let cuts: Vec<(usize, usize)> = cuts.map(|(at, c)| (at, at + c.len_utf8())).collect();
    let fields = cuts.len() + 1;
    let begin = |field: usize| if field == 0 { 0 } else { cuts[field - 1].1 };
    let end = |field: usize| cuts.get(field).map_or(text.len(), |(at, _)| *at);
    let count: i64 = if count.is_empty() { 1 } else { count.parse().ok()? };
    if n == 0 || n.unsigned_abs() as usize > fields {
        return None;
    }
    let (first, last) = if n > 0 {
        let first = n as usize - 1;
        let last = if count == 0 { fields - 1 } else { first + count.unsigned_abs() as usize - 1 };
        (first, last.min(fields - 1))
    } else {
        let last = fields - n.unsigned_abs() as usize;
        let first =
            if count == 0 { 0 } else { (last + 1).saturating_sub(count.unsigned_abs() as usize) };
        (first, last)
    };
    Some(text[begin(first)..end(last)].to_owned())
}

/// As `field`, empty parts left out.
fn word(text: &str, n: i64, delimiters: &str, count: &str) -> Option<String> {
    let words: Vec<&str> =
        text.split(|c| delimiters.contains(c)).filter(|part| !part.is_empty()).collect();
    if !matches!(count, "" | "1") || n == 0 {
        return None;
    }
    let at = match n {
        1.. => usize::try_from(n - 1).ok()?,
        _ => words.len().checked_sub(n.unsigned_abs() as usize)?,
    };
    words.get(at).map(|word| (*word).to_owned())
}

/// How keys of a map are compared.
pub(super) fn map_method(name: &str) -> Method {
    match name.split('_').nth(1) {
        Some("beg") => Method::Beginning,
        Some("end") => Method::End,
        Some("sub") => Method::Part,
        Some("dir") => Method::Directory,
        Some("dom") => Method::Domain,
        Some("reg" | "regm") => Method::Regex,
        Some("ip") => Method::Ip,
        Some("int") => Method::Int,
        _ => Method::Exact,
    }
}

/// The entry of a map that wins.
pub(super) fn entry<'l>(name: &str, list: &'l List, text: &str) -> Option<&'l Entry> {
    let method = map_method(name);
    let mut hits = list.entries.iter().filter(|entry| match method {
        Method::Ip => {
            let block = acl::block(&entry.key);
            block.zip(text.parse().ok()).is_some_and(|(block, ip)| acl::within(block, ip))
        }
        Method::Int => text.parse().is_ok_and(|number: i64| {
            let ranges = acl::ranges([entry.key.as_str()].into_iter());
            ranges.iter().any(|(low, high)| (*low..=*high).contains(&number))
        }),
        _ => matching::compare(method, text, &entry.key, false),
    });
    match method {
        Method::Beginning => hits.reduce(|a, b| if b.key.len() > a.key.len() { b } else { a }),
        Method::Ip => hits.reduce(|a, b| {
            let length = |entry: &Entry| acl::block(&entry.key).map_or(0, |b| b.1);
            if length(b) > length(a) { b } else { a }
        }),
        _ => hits.next(),
    }
}

fn mapped(call: &Call, list: &List, value: &Value) -> Option<Value> {
    let text = value.to_string();
    let found = match entry(&call.name, list, &text) {
        Some(entry) if call.name == "map_regm" => {
            let pattern = matching::regex(&entry.key, false)?;
            let captures = pattern.captures(text.as_bytes())?;
            let mut out = Vec::new();
            captures.expand(sample::substitution(&entry.value).as_bytes(), &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
        Some(entry) => entry.value.clone(),
        None if call.arguments.len() > 1 => call.argument(1).to_owned(),
        None => return None,
    };
    match call.name.rsplit('_').next() {
        Some("int") if call.name != "map_int" => found.parse().ok().map(Value::Int),
        Some("ip") if call.name != "map_ip" => found.parse().ok().map(Value::Ip),
        _ => Some(Value::Text(found)),
    }
}
