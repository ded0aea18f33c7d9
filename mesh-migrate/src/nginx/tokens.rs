//! Statements of nginx' files: `name args ;`, `name args {` and `}`, as
//! `ngx_conf_read_token` reads them.

use std::sync::Arc;

use crate::source::{Place, Problem};

/// nginx reads a file through a buffer of this size, which one argument must fit in.
const MAX_WORD: usize = 4096;
/// Of one statement.
const MAX_WORDS: usize = 4096;

/// What ends a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// `;`.
    Semicolon,
    /// `{`.
    Open,
    /// `}`, alone.
    Close,
    /// Nothing is left.
    File,
}

/// Some words and what ends them.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) words: Vec<String>,
    /// Of the first word, or of what ends it.
    pub(super) place: Place,
    pub(super) end: End,
    /// Where it ends.
    pub(super) last_line: u32,
}

/// Reads one file.
pub(super) struct Tokens<'t> {
    file: Arc<str>,
    text: &'t str,
    at: usize,
    line: u32,
    column: u32,
}

impl<'t> Tokens<'t> {
    pub(super) fn of(file: &Arc<str>, text: &'t str) -> Self {
        Self { file: file.clone(), text, at: 0, line: 1, column: 1 }
    }

    pub(super) fn place(&self) -> Place {
        Place { file: self.file.clone(), line: self.line, column: self.column }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn advance(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        if byte == b'\n' {
            (self.line, self.column) = (self.line.saturating_add(1), 1);
        } else if byte & 0xc0 != 0x80 {
            self.column = self.column.saturating_add(1);
        }
        Some(byte)
    }

    fn skip_blank(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => drop(self.advance()),
                b'#' => while !matches!(self.advance(), Some(b'\n') | None) {},
                _ => return,
            }
        }
    }

    /// The next statement.
    pub(super) fn statement(&mut self) -> Result<Statement, Problem> {
        let mut words = Vec::new();
        let mut first = None;
        loop {
            self.skip_blank();
            let here = self.place();
            let (place, is_empty) = (first.clone().unwrap_or(here.clone()), words.is_empty());
            let end = match self.peek() {
                None if is_empty => End::File,
                None => {
                    let problem = "the file ends within a statement; `;` or `{` was expected";
                    return Err(Problem::at(&here, problem));
                }
                Some(byte @ (b';' | b'{')) if is_empty => {
                    let found = char::from(byte);
                    let problem = format!("found `{found}` where a directive was expected");
                    return Err(Problem::at(&here, problem));
                }
                Some(b'}') if !is_empty => {
                    let problem = format!("found `}}` within {:?}; `;` was expected", words[0]);
                    return Err(Problem::at(&here, problem));
                }
                Some(b';') => End::Semicolon,
                Some(b'{') => End::Open,
                Some(b'}') => End::Close,
                Some(_) => {
                    if words.len() == MAX_WORDS {
                        let problem = format!("more than {MAX_WORDS} arguments");
                        return Err(Problem::at(&here, problem));
                    }
                    first.get_or_insert(here);
                    words.push(self.word()?);
                    continue;
                }
            };
            self.advance();
            return Ok(Statement { words, place, end, last_line: self.line });
        }
    }

    /// A word, quoted or not.
    fn word(&mut self) -> Result<String, Problem> {
        let (begin, from) = (self.place(), self.at);
        let quote = self.peek().filter(|byte| matches!(byte, b'"' | b'\''));
        if quote.is_some() {
            self.advance();
        }
        let start = self.at;
        let mut after_dollar = false;
        loop {
            if self.at - from > MAX_WORD {
                let problem =
                    format!("an argument longer than {MAX_WORD} bytes; does a quote not end?");
                return Err(Problem::at(&begin, problem));
            }
            let Some(byte) = self.peek() else {
                let problem = match quote {
                    Some(quote) => format!("the quote {} does not end", char::from(quote)),
                    None => "the file ends within a statement; `;` or `{` was expected".into(),
                };
                let place = if quote.is_some() { begin } else { self.place() };
                return Err(Problem::at(&place, problem));
            };
            match byte {
                b'{' if after_dollar => after_dollar = false,
                b'\\' => {
                    after_dollar = false;
                    self.advance();
                }
                b'"' | b'\'' if quote == Some(byte) => {
                    let word = unescaped(&self.text[start..self.at]);
                    self.advance();
                    return self.after_quote().map(|()| word);
                }
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' if quote.is_none() => {
                    return Ok(unescaped(&self.text[start..self.at]));
                }
                byte => after_dollar = byte == b'$',
            }
            // After a backslash this takes what it quotes, of several bytes, too: those
            // that continue a character mean nothing.
            self.advance();
        }
    }

    fn after_quote(&mut self) -> Result<(), Problem> {
        match self.peek() {
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')') => Ok(()),
            Some(_) => {
                let found = self.text[self.at..].chars().next().unwrap_or_default();
                let problem = format!(
                    "found {found:?} right after a quote; a space, `;` or `{{` was expected"
                );
                Err(Problem::at(&self.place(), problem))
            }
        }
    }

    /// The body of a `*_by_lua_block`, whose `{` was read, until its `}`: braces
    /// balance there but in strings and comments of Lua. Its last line.
    pub(super) fn lua(&mut self) -> Result<u32, Problem> {
        let begin = self.place();
        let mut depth = 1u32;
        while let Some(byte) = self.advance() {
            match byte {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(self.line);
                    }
                }
                b'"' | b'\'' => self.lua_string(byte),
                b'-' if self.peek() == Some(b'-') => {
                    self.advance();
                    if !self.lua_long() {
                        while !matches!(self.advance(), Some(b'\n') | None) {}
                    }
                }
                b'[' => {
                    (self.at, self.column) = (self.at - 1, self.column - 1);
                    if !self.lua_long() {
                        self.advance();
                    }
                }
                _ => {}
            }
        }
        Err(Problem::at(&begin, "the file ends within this block of Lua; `}` was expected"))
    }

    fn lua_string(&mut self, quote: u8) {
        while let Some(byte) = self.advance() {
            match byte {
                b'\\' => drop(self.advance()),
                b'\n' => return,
                byte if byte == quote => return,
                _ => {}
            }
        }
    }

    /// Skips `[==[ … ]==]` if it is there.
    fn lua_long(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let Some(inner) = rest.strip_prefix('[') else { return false };
        let level = inner.len() - inner.trim_start_matches('=').len();
        if !inner[level..].starts_with('[') {
            return false;
        }
        let end = format!("]{}]", "=".repeat(level));
        let length = rest.find(&end).map_or(rest.len(), |at| at + end.len());
        for _ in 0..length {
            self.advance();
        }
        true
    }
}

/// `\"`, `\'`, `\\`, `\t`, `\r` and `\n`; other backslashes stay.
fn unescaped(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        let meant = match (c, chars.peek()) {
            ('\\', Some(quoted @ ('"' | '\'' | '\\'))) => Some(*quoted),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        match meant {
            Some(meant) => {
                chars.next();
                out.push(meant);
            }
            None => out.push(c),
        }
    }
    out
}
