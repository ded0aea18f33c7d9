//! Access logs as requests to ask again.
//!
//! Each line is recognised by itself, so a log may change its format half-way:
//!
//! - HAProxy's `option httplog` (configuration manual, 8.2.3), with what
//!   `option httpslog` adds;
//! - the common and combined formats of Apache and nginx, with a virtual host in front
//!   (Linkerd 1.x writes the `Host` there) or between time and request;
//! - the default format of Envoy, and what Istio adds;
//! - JSON with names in use, also as a container's log has it.
//!
//! What syslog or a container runtime writes before a line is left out.

mod json;
#[cfg(test)]
mod tests;
mod text;

use std::{collections::BTreeMap, io, io::BufRead};

/// Lines with more bytes are left out.
pub const MAX_LINE: usize = 16 << 10;

/// A request that a proxy has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// As it was sent.
    pub method: String,
    /// Path and query, as they were sent, in ASCII; `*` for `OPTIONS *`.
    pub target: String,
    /// `Host` or `:authority`, with its port, where the log tells it.
    pub host: Option<String>,
    /// What the proxy answered.
    pub status: Option<u16>,
    /// From 1.
    pub line: usize,
}

/// A line that gives no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Skipped {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: Why,
}

/// Why a line gives no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Why {
    /// More than [`MAX_LINE`].
    #[error("is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Another format, or not about a request.
    #[error("is not about a request, or in no format that is known")]
    Unknown,
    /// The proxy itself could not read it.
    #[error("is about something that is no request of HTTP")]
    BadRequest,
    /// Without its end.
    #[error("has a request without a version: the log has cut it, or it is of HTTP/0.9")]
    Cut,
    /// A tunnel: there is nothing to compare.
    #[error("is about CONNECT")]
    Connect,
    /// Not ASCII, or with spaces.
    #[error("has a target that cannot be sent again as it was")]
    Target,
    /// The log ends here.
    #[error("could not be read: {0}")]
    Read(io::ErrorKind),
}

/// The requests of a log, in its order. Blank lines are passed over.
pub fn requests<R: BufRead>(log: R) -> Requests<R> {
    Requests { log, line: 0, text: Vec::new(), skipped: BTreeMap::new(), is_over: false }
}

/// Of one line, without its end.
pub fn request(text: &str, line: usize) -> Result<Logged, Skipped> {
    let fields = match text.len() > MAX_LINE {
        true => Err(Why::TooLong),
        false => parse(text),
    };
    fields.and_then(|fields| fields.logged(line)).map_err(|why| Skipped { line, why })
}

/// What [`requests`] gives: never more than one line in memory.
#[derive(Debug)]
pub struct Requests<R> {
    log: R,
    line: usize,
    text: Vec<u8>,
    skipped: BTreeMap<Why, u64>,
    is_over: bool,
}

impl<R> Requests<R> {
    /// How many lines gave no request so far.
    pub fn skipped(&self) -> &BTreeMap<Why, u64> {
        &self.skipped
    }
}

impl<R: BufRead> Requests<R> {
    /// The next line into `text`; how many bytes it has, with its end.
    fn read(&mut self) -> io::Result<usize> {
        self.text.clear();
        let mut bytes = 0;
        loop {
            let chunk = match self.log.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            let room = (MAX_LINE + 2).saturating_sub(self.text.len());
            self.text.extend_from_slice(&chunk[..taken.min(room)]);
            self.log.consume(taken);
            bytes += taken;
            if end.is_some() || taken == 0 {
                return Ok(bytes);
            }
        }
    }
}

impl<R: BufRead> Iterator for Requests<R> {
    type Item = Result<Logged, Skipped>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            self.line += 1;
            let found = match self.read() {
                Ok(0) => break,
                Ok(bytes) if bytes > MAX_LINE + 2 => {
                    Err(Skipped { line: self.line, why: Why::TooLong })
                }
                Ok(_) => {
                    // User agents are logged in any encoding; a target must be ASCII anyway.
                    let text = String::from_utf8_lossy(&self.text);
                    let text = text.trim_end_matches(['\r', '\n']);
                    if text.trim().is_empty() {
                        continue;
                    }
                    request(text, self.line)
                }
                Err(error) => {
                    self.is_over = true;
                    Err(Skipped { line: self.line, why: Why::Read(error.kind()) })
                }
            };
            if let Err(skipped) = &found {
                *self.skipped.entry(skipped.why).or_default() += 1;
            }
            return Some(found);
        }
        self.is_over = true;
        None
    }
}

/// What a line says, as it says it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    method: String,
    target: String,
    host: Option<String>,
    status: Option<u16>,
}

impl Fields {
    fn logged(self, line: usize) -> Result<Logged, Why> {
        let Self { method, target, host, status } = self;
        if !is_token(&method) || method == "-" {
            return Err(Why::BadRequest);
        }
        if method == "CONNECT" {
            return Err(Why::Connect);
        }
        // The authority of a target in absolute form goes before `Host` (RFC 9112, 3.2.2).
        let (target, host) = match absolute(&target) {
            Some((authority, path)) => (path, Some(authority)),
            None => (target, host.filter(|host| is_host(host))),
        };
        let is_asterisk = target == "*" && method == "OPTIONS";
        if !target.starts_with('/') && !is_asterisk {
            return Err(Why::BadRequest);
        }
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Why::Target);
        }
        Ok(Logged { method, target, host, status, line })
    }
}

fn parse(text: &str) -> Result<Fields, Why> {
    let text = text.trim();
    let text = if text.starts_with(['{', '[']) { text } else { text::without_prefix(text) };
    match text.starts_with('{') {
        true => json::parse(text),
        false => text::parse(text),
    }
}

/// Authority, path and query of `http://…`.
fn absolute(target: &str) -> Option<(String, String)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let slash = if path.starts_with('/') { "" } else { "/" };
    is_host(authority).then(|| (authority.to_owned(), format!("{slash}{path}")))
}

/// Method and target of a request line.
fn request_line(line: &str) -> Result<(String, String), Why> {
    let (method, rest) = line.split_once(' ').ok_or(Why::BadRequest)?;
    if !is_token(method) || method == "-" {
        return Err(Why::BadRequest);
    }
    match rest.rsplit_once(' ') {
        Some((target, version)) if version.starts_with("HTTP/") => {
            Ok((method.to_owned(), target.to_owned()))
        }
        _ => Err(Why::Cut),
    }
}

/// A method (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// A name or an address, perhaps with a port.
fn is_host(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]%~".contains(&byte);
    text != "-" && text != "_" && !text.is_empty() && text.bytes().all(is_part)
}

/// A status of HTTP.
fn status(text: &str) -> Option<u16> {
    text.parse().ok().filter(|status| (100..=999).contains(status))
}
