//! Rules: `http-request`, `http-response`, `tcp-request` and `redirect`
//! (configuration manual, 4.2).

use crate::source::{Place, Problem};

use super::{
    acl::{self, Condition},
    list::Files,
    sample::{self, Expression, Format},
    tree::Statement,
};

/// What is done, and when.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    /// Where it is written.
    pub(super) place: Place,
    /// What.
    pub(super) action: Action,
    /// When; `None` is always.
    pub(super) when: Option<Condition>,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// `allow`, `accept`: no later rule of this list.
    Allow,
    /// `deny`, `tarpit`, `return`: an answer.
    Answer(Reply),
    /// `redirect`.
    Redirect(Redirect),
    /// `reject`, `silent-drop`: the connection ends.
    Close,
    /// `auth`: 401, with its realm.
    Auth(Option<String>),
    /// `use-service`.
    Service(String),
    /// `set-header`; in lower case.
    SetHeader(String, Format),
    /// `add-header`.
    AddHeader(String, Format),
    /// `del-header`, with its `-m`.
    DelHeader(String, acl::Method),
    /// `replace-header` and `replace-value`, which is of parts between commas.
    ReplaceHeader {
        /// In lower case.
        name: String,
        /// Of what.
        pattern: String,
        /// With what.
        with: Format,
        /// `replace-value`.
        is_value: bool,
    },
    /// `set-method`.
    SetMethod(Format),
    /// `set-path`, `set-pathq`, `set-query`, `set-uri`.
    SetUri(Part, Format),
    /// `replace-path`, `replace-pathq`, `replace-uri`.
    ReplaceUri(Part, String, Format),
    /// `set-var`.
    SetVar(String, Expression),
    /// `set-var-fmt`.
    SetVarFormat(String, Format),
    /// `unset-var`.
    UnsetVar(String),
    /// `disable-l7-retry`: what `retry-on` says does not count.
    Unrepeated,
    /// Anything that changes neither the way of a request nor the request.
    Aside(String),
    /// What may.
    Other(String),
}

/// Part of a URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Without the query.
    Path,
    /// With it.
    PathAndQuery,
    /// It alone.
    Query,
    /// All as it is sent.
    Uri,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    /// Status of HTTP.
    pub(super) status: u16,
    /// `content-type`.
    pub(super) content_type: Option<String>,
    /// `string`, `lf-string`; `None` is HAProxy's own.
    pub(super) body: Option<Format>,
    /// `file`, `errorfile`, `errorfiles`: from a file.
    pub(super) file: Option<String>,
    /// `hdr`.
    pub(super) headers: Vec<(String, Format)>,
    /// `tarpit`: only after a while.
    pub(super) is_late: bool,
    /// `deny`, `tarpit`.
    pub(super) refuses: bool,
}

impl Reply {
    /// Whether HAProxy's own page is answered.
    pub(super) fn is_page(&self) -> bool {
        let is_bare = self.headers.is_empty() && self.content_type.is_none();
        self.refuses && is_bare && self.body.is_none() && self.file.is_none()
    }
}

/// Where a redirect leads.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Redirect {
    /// How.
    pub(super) kind: RedirectKind,
    /// To what.
    pub(super) to: Format,
    /// Status of HTTP.
    pub(super) code: u16,
    /// `drop-query`.
    pub(super) drops_query: bool,
    /// `append-slash`.
    pub(super) appends_slash: bool,
    /// `set-cookie`, `clear-cookie`: the value of `Set-Cookie`.
    pub(super) cookie: Option<String>,
    /// `ignore-empty`.
    pub(super) ignores_empty: bool,
}

/// How a redirect is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RedirectKind {
    /// All of it.
    Location,
    /// What stands before the URI.
    Prefix,
    /// Only the scheme.
    Scheme,
}

/// Splits off `if …` and `unless …` at the end, words from `n` on.
pub(super) fn condition(
    statement: &Statement,
    n: usize,
    files: &Files<'_>,
) -> Result<Option<Condition>, Problem> {
    match statement.at(n) {
        "if" | "unless" => acl::condition(statement.from(n), files).map(Some),
        "" => Ok(None),
        _ => Err(statement.expected(n, "`if`, `unless` or the end of the line")),
    }
}

/// `http-request ACTION …`: the action is the n-th word.
pub(super) fn rule(statement: &Statement, n: usize, files: &Files<'_>) -> Result<Rule, Problem> {
    let mut reader = Reader { statement, next: n, files };
    let action = reader.action()?;
    let when = condition(statement, reader.next, files)?;
    Ok(Rule { place: statement.place.clone(), action, when })
}

struct Reader<'s, 'f, 'o> {
    statement: &'s Statement,
    next: usize,
    files: &'f Files<'o>,
}

impl Reader<'_, '_, '_> {
    fn word(&mut self, what: &str) -> Result<String, Problem> {
        let word = self.statement.words.get(self.next);
        let word = word.ok_or_else(|| self.statement.expected(self.next, what))?;
        self.next += 1;
        Ok(word.text.clone())
    }

    fn name(&mut self) -> Result<String, Problem> {
        self.word("the name of a header").map(|name| name.to_ascii_lowercase())
    }

    fn format(&mut self) -> Result<Format, Problem> {
        let text = self.word("a format")?;
        sample::format(&text, &self.statement.words[self.next - 1].place, self.files)
    }

    fn status(&mut self) -> Result<u16, Problem> {
        let text = self.word("a status")?;
        let status = text.parse().ok().filter(|status| (200..600).contains(status));
        status.ok_or_else(|| self.statement.expected(self.next - 1, "a status, 200 to 599"))
    }

    fn is_over(&self) -> bool {
        matches!(self.statement.at(self.next), "" | "if" | "unless")
    }

    fn pattern(&mut self) -> Result<String, Problem> {
        self.word("a regular expression")
    }

    fn action(&mut self) -> Result<Action, Problem> {
        let written = self.word("an action")?;
        let (name, variable) = match written.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')').unwrap_or(rest).to_owned()),
            None => (written.as_str(), String::new()),
        };
        Ok(match name {
            "allow" | "accept" => Action::Allow,
            "deny" => Action::Answer(self.reply(403, false)?),
            "tarpit" => Action::Answer(self.reply(500, true)?),
            "return" => Action::Answer(self.reply(200, false)?),
            "reject" | "silent-drop" => {
                self.skip();
                Action::Close
            }
            "auth" => {
                let has_realm = self.statement.at(self.next) == "realm";
                let realm = has_realm.then(|| self.statement.at(self.next + 1).to_owned());
                self.skip();
                Action::Auth(realm)
            }
            "redirect" => Action::Redirect(self.redirect()?),
            "use-service" => Action::Service(self.word("the name of a service")?),
            "set-header" => Action::SetHeader(self.name()?, self.format()?),
            "add-header" => Action::AddHeader(self.name()?, self.format()?),
            "del-header" => self.del_header()?,
            "replace-header" | "replace-value" => Action::ReplaceHeader {
                name: self.name()?,
                pattern: self.pattern()?,
                with: self.format()?,
                is_value: name == "replace-value",
            },
            "set-method" => Action::SetMethod(self.format()?),
            "set-path" => Action::SetUri(Part::Path, self.format()?),
            "set-pathq" => Action::SetUri(Part::PathAndQuery, self.format()?),
            "set-query" => Action::SetUri(Part::Query, self.format()?),
            "set-uri" => Action::SetUri(Part::Uri, self.format()?),
            "replace-path" => Action::ReplaceUri(Part::Path, self.pattern()?, self.format()?),
            "replace-pathq" => {
                Action::ReplaceUri(Part::PathAndQuery, self.pattern()?, self.format()?)
            }
            "replace-uri" => Action::ReplaceUri(Part::Uri, self.pattern()?, self.format()?),
            "set-var" => {
                let variable = variable.split(',').next().unwrap_or_default().to_owned();
                let text = self.word("an expression")?;
                let place = &self.statement.words[self.next - 1].place;
                Action::SetVar(variable, sample::expression(&text, place, self.files)?)
            }
            "set-var-fmt" => Action::SetVarFormat(variable, self.format()?),
            "unset-var" => Action::UnsetVar(variable),
            "disable-l7-retry" => Action::Unrepeated,
            _ => {
                self.skip();
                match is_aside(name) {
                    true => Action::Aside(name.to_owned()),
                    false => Action::Other(name.to_owned()),
                }
            }
        })
    }

    /// Whatever stands before `if`.
    fn skip(&mut self) {
        while !self.is_over() {
            self.next += 1;
        }
    }

    fn del_header(&mut self) -> Result<Action, Problem> {
        let name = self.word("the name of a header")?;
        if self.statement.at(self.next) != "-m" {
            return Ok(Action::DelHeader(name.to_ascii_lowercase(), acl::Method::Exact));
        }
        self.next += 1;
        let method = match self.word("a method")?.as_str() {
            "str" => acl::Method::Exact,
            "beg" => acl::Method::Beginning,
            "end" => acl::Method::End,
            "sub" => acl::Method::Part,
            "reg" => acl::Method::Regex,
            _ => return Err(self.statement.expected(self.next - 1, "str, beg, end, sub or reg")),
        };
        Ok(Action::DelHeader(name, method))
    }

    fn reply(&mut self, status: u16, is_late: bool) -> Result<Reply, Problem> {
        let mut reply = Reply {
            status,
            content_type: None,
            body: None,
            file: None,
            headers: Vec::new(),
            is_late,
            refuses: status >= 400,
        };
        let (mut is_text, mut is_format) = (false, false);
        while !self.is_over() {
            match self.word("an argument")?.as_str() {
                "status" | "deny_status" => reply.status = self.status()?,
                "content-type" => reply.content_type = Some(self.word("a media type")?),
                "string" => {
                    let text = self.word("a text")?;
                    reply.body = Some(Format::of(&self.statement.place, &text));
                }
                "lf-string" => reply.body = Some(self.format()?),
                kind @ ("file" | "lf-file" | "errorfile" | "errorfiles") => {
                    is_format = kind == "lf-file";
                    is_text = matches!(kind, "file" | "lf-file");
                    reply.file = Some(self.word("a file")?);
                }
                "default-errorfiles" => {}
                "hdr" => {
                    let name = self.name()?;
                    reply.headers.push((name, self.format()?));
                }
                _ => {
                    let what = "status, content-type, string, lf-string, file, errorfile or hdr";
                    return Err(self.statement.expected(self.next - 1, what));
                }
            }
        }
        let text = reply.file.as_ref().filter(|_| is_text).and_then(|name| self.files.text(name));
        if let Some(text) = text {
            let place = &self.statement.place;
            reply.body = Some(match is_format {
                true => sample::format(&text, place, self.files)?,
                false => Format::of(place, &text),
            });
            reply.file = None;
        }
        Ok(reply)
    }

    fn redirect(&mut self) -> Result<Redirect, Problem> {
        let mut to = None;
        let mut redirect = Redirect {
            kind: RedirectKind::Location,
            to: Format::of(&self.statement.place, ""),
            code: 302,
            drops_query: false,
            appends_slash: false,
            cookie: None,
            ignores_empty: false,
        };
        while !self.is_over() {
            let kind = match self.word("an argument")?.as_str() {
                "location" => RedirectKind::Location,
                "prefix" => RedirectKind::Prefix,
                "scheme" => RedirectKind::Scheme,
                "code" => {
                    redirect.code = self.status()?;
                    continue;
                }
                "drop-query" => {
                    redirect.drops_query = true;
                    continue;
                }
                "append-slash" => {
                    redirect.appends_slash = true;
                    continue;
                }
                "ignore-empty" => {
                    redirect.ignores_empty = true;
                    continue;
                }
                "set-cookie" => {
                    let cookie = self.word("a cookie")?;
                    redirect.cookie = Some(format!("{cookie}; path=/;"));
                    continue;
                }
                "clear-cookie" => {
                    let cookie = self.word("a cookie")?;
                    redirect.cookie = Some(format!("{cookie}; path=/; Max-Age=0;"));
                    continue;
                }
                _ => {
                    let what =
                        "location, prefix, scheme, code, drop-query, append-slash or cookies";
                    return Err(self.statement.expected(self.next - 1, what));
                }
            };
            to = Some((kind, self.format()?));
        }
        let Some((kind, to)) = to else {
            return Err(self.statement.expected(self.next, "location, prefix or scheme"));
        };
        Ok(Redirect { kind, to, ..redirect })
    }
}

/// `redirect …` without `http-request`: what it leads to is a text and no format.
pub(super) fn redirect(statement: &Statement, files: &Files<'_>) -> Result<Rule, Problem> {
    let mut reader = Reader { statement, next: 1, files };
    let mut redirect = reader.redirect()?;
    let to =
        (1..reader.next).find(|n| matches!(statement.at(*n), "location" | "prefix" | "scheme"));
    redirect.to = Format::of(&statement.place, statement.at(to.unwrap_or_default() + 1));
    let action = Action::Redirect(redirect);
    let when = condition(statement, reader.next, files)?;
    Ok(Rule { place: statement.place.clone(), action, when })
}

fn is_aside(name: &str) -> bool {
    const ASIDE: &[&str] = &[
        "add-acl",
        "del-acl",
        "add-map",
        "set-map",
        "del-map",
        "cache-store",
        "capture",
        "early-hint",
        "expect-netscaler-cip",
        "expect-proxy",
        "send-spoe-group",
        "set-bandwidth-limit",
        "set-fc-mark",
        "set-fc-tos",
        "set-log-level",
        "set-mark",
        "set-nice",
        "set-priority-class",
        "set-priority-offset",
        "set-timeout",
        "set-tos",
        "strict-mode",
        "wait-for-body",
        "wait-for-handshake",
    ];
    ASIDE.contains(&name) || name.starts_with("track-sc") || name.starts_with("sc-")
}
