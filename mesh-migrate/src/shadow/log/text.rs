//! Lines that are not JSON.

use super::{Fields, Why, is_host, request_line, status};

/// Without what syslog (RFC 3164, RFC 5424) or a container runtime has put before it.
pub(super) fn without_prefix(text: &str) -> &str {
    syslog(text).or_else(|| tagged(text)).or_else(|| container(text)).unwrap_or(text)
}

/// `<134>1 2026-01-02T03:04:05Z host haproxy 1234 - - …`
fn syslog(text: &str) -> Option<&str> {
    let (priority, rest) = text.strip_prefix('<')?.split_once('>')?;
    priority.parse::<u16>().ok()?;
    let Some(mut rest) = rest.strip_prefix("1 ") else {
        return tagged(rest);
    };
    for _ in 0..5 {
        (_, rest) = rest.split_once(' ')?;
    }
    let message = match rest.strip_prefix("- ") {
        Some(message) => message,
        None => rest.strip_prefix('[')?.split_once("] ")?.1,
    };
    Some(message.trim_start_matches('\u{feff}').trim_start())
}

/// `Feb  6 12:14:14 host haproxy[14389]: …`
fn tagged(text: &str) -> Option<&str> {
    const MOST_BEFORE: usize = 6;
    let mut rest = text;
    for _ in 0..MOST_BEFORE {
        let (word, after) = rest.split_once(' ')?;
        let after = after.trim_start();
        if word.starts_with(['[', '"', '{']) {
            return None;
        }
        // An IPv6 address may end with two.
        if word.len() > 1 && word.ends_with(':') && !word.ends_with("::") {
            return Some(after);
        }
        rest = after;
    }
    None
}

/// `2026-01-02T03:04:05.6Z stdout F …`
fn container(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(' ')?;
    let rest = rest.strip_prefix("stdout ").or_else(|| rest.strip_prefix("stderr "))?;
    rest.strip_prefix("F ").or_else(|| rest.strip_prefix("P "))
}

/// All of them have the time in brackets.
pub(super) fn parse(text: &str) -> Result<Fields, Why> {
    let open = match text.starts_with('[') {
        true => 0,
        false => text.find(" [").ok_or(Why::Unknown)? + 1,
    };
    let (before, rest) = text.split_at(open);
    let (_, after) = rest.split_once("] ").ok_or(Why::Unknown)?;
    if let Some(fields) = haproxy(after) {
        return fields;
    }
    match before.is_empty() {
        true => envoy(after),
        false => common(before, after),
    }
}

/// `frontend backend/server 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 {…} {…} "…"`;
/// `None` if it is not that.
fn haproxy(after: &str) -> Option<Result<Fields, Why>> {
    let mut words = after.split(' ').filter(|word| !word.is_empty());
    let (_frontend, server, times, code) =
        (words.next()?, words.next()?, words.next()?, words.next()?);
    let is_time = |part: &str| part.trim_start_matches(['+', '-']).parse::<u64>().is_ok();
    let are_times = times.contains('/') && times.split('/').all(is_time);
    if !server.contains('/') || !are_times || code.parse::<i32>().is_err() {
        return None;
    }
    Some(haproxy_request(after, status(code)))
}

fn haproxy_request(after: &str, status: Option<u16>) -> Result<Fields, Why> {
    let quote = after.find(" \"").ok_or(Why::Unknown)?;
    let (before, request) = after.split_at(quote);
    let request = &request[2..];
    // HAProxy writes a quote within as `#22`.
    let (request, is_whole) = match request.split_once('"') {
        Some((request, _)) => (request, true),
        None => (request, false),
    };
    let (method, target) = match request_line(request) {
        Ok(found) if is_whole => found,
        Ok(_) => return Err(Why::Cut),
        Err(why) => return Err(why),
    };
    let target = unescaped(&target, '#')?;
    Ok(Fields { method, target, host: captured_host(before), status })
}

/// `Host` among the captured headers of the request. Names are not told, so that is the
/// first value which is like a name with a domain, or else the first of all if it is
/// like a host.
fn captured_host(before: &str) -> Option<String> {
    let (_, block) = before.split_once(" {")?;
    let (block, _) = block.split_once('}')?;
    let has_letter = |value: &str| value.bytes().any(|byte| byte.is_ascii_alphabetic());
    let is_domain = |value: &&str| is_host(value) && has_letter(value) && value.contains('.');
    let is_first = |value: &&str| {
        let is_address = value.contains(['.', ':']);
        is_host(value) && (has_letter(value) || is_address)
    };
    let named = block.split('|').find(is_domain);
    named.or_else(|| block.split('|').next().filter(is_first)).map(str::to_owned)
}

/// `"GET /x HTTP/1.1" 200 - 0 5 1 0 "…" "…" "…" "AUTHORITY" "UPSTREAM" …`
fn envoy(after: &str) -> Result<Fields, Why> {
    let (request, rest) = quoted(after)?;
    let (method, target) = request_line(request)?;
    let quotes = rest.matches('"').count();
    // From the end: a user agent with a quote is not escaped.
    let authority = if quotes >= 10 { rest.rsplit('"').nth(3) } else { None };
    let host = authority.map(str::to_owned);
    Ok(Fields { method, target, host, status: next_status(rest) })
}

/// `HOST? ADDRESS IDENT USER` and `HOST? "GET /x HTTP/1.1" 200 …`
fn common(before: &str, after: &str) -> Result<Fields, Why> {
    let start = after.find('"').ok_or(Why::Unknown)?;
    let (between, from) = after.split_at(start);
    let (request, rest) = quoted(from)?;
    let (method, target) = request_line(request)?;
    // HAProxy's `option httplog clf` has empty quotes where others have a referrer.
    let is_haproxy = rest.split_whitespace().nth(2) == Some("\"\"");
    let target = unescaped(&target, if is_haproxy { '#' } else { '\\' })?;
    let before: Vec<&str> = before.split_whitespace().collect();
    let between: Vec<&str> = between.split_whitespace().collect();
    let host = match (before.as_slice(), between.as_slice()) {
        ([host, _, "-", _], []) => Some(*host),
        (_, [host]) => Some(*host),
        _ => None,
    };
    let host = host.map(str::to_owned);
    Ok(Fields { method, target, host, status: next_status(rest) })
}

/// What is between the quotes that `text` begins with, and what is after them.
fn quoted(text: &str) -> Result<(&str, &str), Why> {
    let text = text.strip_prefix('"').ok_or(Why::Unknown)?;
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return Ok((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    Err(Why::Cut)
}

fn next_status(rest: &str) -> Option<u16> {
    rest.split_whitespace().next().and_then(status)
}

/// With the bytes that `\x22`, `\"` (nginx, Apache) or `#22` (HAProxy) stand for.
fn unescaped(text: &str, escape: char) -> Result<String, Why> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once(escape) {
        out.push_str(plain);
        let digits = match escape {
            '\\' => after.strip_prefix('x').unwrap_or_default(),
            _ => after,
        };
        let byte = digits.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        (rest, out) = match (byte, after.chars().next()) {
            (Some(byte), _) if !byte.is_ascii() => return Err(Why::Target),
            (Some(byte), _) => (&digits[2..], out + char::from(byte).encode_utf8(&mut [0; 4])),
            (None, Some(kept @ ('\\' | '"'))) if escape == '\\' => {
                (&after[1..], out + kept.encode_utf8(&mut [0; 4]))
            }
            (None, _) => (after, out + escape.encode_utf8(&mut [0; 4])),
        };
    }
    out.push_str(rest);
    Ok(out)
}
