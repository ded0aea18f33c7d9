//! A line as words (configuration manual, 2.2 "Quoting and escaping" and 2.3
//! "Environment variables").

use std::collections::BTreeMap;

use crate::source::{Place, Problem};

/// A word and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// Without quotes and escapes, variables replaced.
    pub(super) text: String,
    /// Where it begins.
    pub(super) place: Place,
}

/// What `$NAME` stands for.
pub(super) struct Variables<'a> {
    pub(super) outside: &'a dyn Fn(&str) -> Option<String>,
    /// By `setenv` and `unsetenv` of the configuration.
    pub(super) set: BTreeMap<String, Option<String>>,
    /// Asked for, and nobody knew.
    pub(super) unknown: Vec<(Place, String)>,
}

impl Variables<'_> {
    pub(super) fn value(&self, name: &str) -> Option<String> {
        match self.set.get(name) {
            Some(set) => set.clone(),
            None => (self.outside)(name),
        }
    }
}

/// Variables in one line: what they expand to is bounded.
const MAX_LINE: usize = 32 << 20;

/// The words of a line, comments left out.
pub(super) fn words(
    line: &str,
    start: &Place,
    variables: &mut Variables<'_>,
) -> Result<Vec<Word>, Problem> {
    let mut reader = Reader {
        rest: line.chars().peekable(),
        place: start.clone(),
        words: Vec::new(),
        word: None,
        length: 0,
    };
    reader.line(variables)?;
    Ok(reader.words)
}

struct Reader<'l> {
    rest: std::iter::Peekable<std::str::Chars<'l>>,
    place: Place,
    words: Vec<Word>,
    word: Option<Word>,
    length: usize,
}

impl Reader<'_> {
    fn line(&mut self, variables: &mut Variables<'_>) -> Result<(), Problem> {
        let mut double: Option<Place> = None;
        while let Some(&next) = self.rest.peek() {
            let at = self.place.clone();
            match next {
                '"' => {
                    self.take();
                    self.begin(&at);
                    double = if double.is_some() { None } else { Some(at) };
                }
                '\'' if double.is_none() => self.single(at)?,
                '#' if double.is_none() => break,
                '\\' => self.escape(at)?,
                '$' if double.is_some() => self.variable(at, variables)?,
                _ if next.is_ascii_whitespace() && double.is_none() => {
                    self.take();
                    self.words.extend(self.word.take());
                }
                _ => {
                    self.take();
                    self.push(&at, next);
                }
            }
        }
        self.words.extend(self.word.take());
        match double {
            Some(at) => Err(Problem::at(&at, "a quote `\"` that does not end on this line")),
            None => Ok(()),
        }
    }

    fn take(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.place.column = self.place.column.saturating_add(1);
        next
    }

    fn begin(&mut self, at: &Place) -> &mut Word {
        self.word.get_or_insert_with(|| Word { text: String::new(), place: at.clone() })
    }

    fn push(&mut self, at: &Place, char: char) {
        self.length += char.len_utf8();
        self.begin(at).text.push(char);
    }

    fn single(&mut self, at: Place) -> Result<(), Problem> {
        self.take();
        self.begin(&at);
        loop {
            match self.take() {
                Some('\'') => return Ok(()),
                Some(char) => self.push(&at, char),
                None => {
                    return Err(Problem::at(&at, "a quote `'` that does not end on this line"));
                }
            }
        }
    }

    fn escape(&mut self, at: Place) -> Result<(), Problem> {
        self.take();
        let Some(&next) = self.rest.peek() else {
            self.push(&at, '\\');
            return Ok(());
        };
        let meant = match next {
            ' ' | '\\' | '#' | '"' | '\'' | '$' => next,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'x' => {
                self.take();
                let digits = [self.take(), self.take()];
                let digits = digits.map(|digit| digit.and_then(|digit| digit.to_digit(16)));
                let [Some(high), Some(low)] = digits else {
                    return Err(Problem::at(&at, "`\\x` without two hexadecimal digits"));
                };
                self.push(&at, char::from_u32(high * 16 + low).unwrap_or('\u{fffd}'));
                return Ok(());
            }
            _ => {
                self.push(&at, '\\');
                return Ok(());
            }
        };
        self.take();
        self.push(&at, meant);
        Ok(())
    }

    /// `$NAME`, `${NAME}`, `${NAME-otherwise}`, `${NAME[*]}`.
    fn variable(&mut self, at: Place, variables: &mut Variables<'_>) -> Result<(), Problem> {
        self.take();
        let braced = self.rest.peek() == Some(&'{');
        if braced {
            self.take();
        }
        let mut name = String::new();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        while let Some(&next) = self.rest.peek().filter(|next| is_name(**next)) {
            name.push(next);
            self.take();
        }
        let mut otherwise = None;
        let mut splits = false;
        if braced {
            let mut rest = String::new();
            loop {
                match self.take() {
                    Some('}') => break,
                    Some(char) => rest.push(char),
                    None => return Err(Problem::at(&at, "`${` without `}` on this line")),
                }
            }
            if let Some(after) = rest.strip_prefix("[*]") {
                (splits, rest) = (true, after.to_owned());
            }
            otherwise = rest.strip_prefix('-').map(str::to_owned);
            if otherwise.is_none() && !rest.is_empty() {
                let problem = format!("{rest:?} in `${{{name}…}}`; `}}` or `-` was expected");
                return Err(Problem::at(&at, problem));
            }
        }
        if name.is_empty() {
            return Err(Problem::at(&at, "`$` without the name of a variable; `\\$` is a `$`"));
        }
        let value = variables.value(&name).or(otherwise).unwrap_or_else(|| {
            variables.unknown.push((at.clone(), name));
            String::new()
        });
        self.length += value.len();
        if self.length > MAX_LINE {
            return Err(Problem::at(&at, format!("a line that expands beyond {MAX_LINE} bytes")));
        }
        for char in value.chars() {
            if splits && char.is_ascii_whitespace() {
                self.words.extend(self.word.take());
            } else {
                self.begin(&at).text.push(char);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Vec<(u32, String)>, String> {
        let outside = |name: &str| match name {
            "HOST" => Some("a b".to_owned()),
            _ => None,
        };
        let mut variables =
            Variables { outside: &outside, set: BTreeMap::new(), unknown: Vec::new() };
        let start = Place::start(&"a.cfg".into());
        let words = words(line, &start, &mut variables).map_err(|problem| problem.to_string())?;
        Ok(words.into_iter().map(|word| (word.place.column, word.text)).collect())
    }

    #[test]
    fn lines_are_words() {
        let table: &[(&str, &[(u32, &str)])] = &[
            ("", &[]),
            ("  # a", &[]),
            ("a  b\tc\r", &[(1, "a"), (4, "b"), (6, "c")]),
            ("a#b", &[(1, "a")]),
            (r"a\#b a\ b \\ \q", &[(1, "a#b"), (6, "a b"), (11, r"\"), (14, r"\q")]),
            (r#"'a "$HOST\' b"c d""#, &[(1, r#"a "$HOST\"#), (13, "bc d")]),
            (r#""${HOST}x" $HOST"#, &[(1, "a bx"), (12, "$HOST")]),
            (r#""${HOST[*]}" "${NO-d}" """#, &[(1, "a"), (2, "b"), (14, "d"), (24, "")]),
            (r"\x41\t", &[(1, "A\t")]),
        ];
        for (line, expected) in table {
            let expected: Vec<_> =
                expected.iter().map(|(column, text)| (*column, (*text).to_owned())).collect();
            assert_eq!(read(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_has_a_column() {
        let table = [
            ("a 'b", "a.cfg:1:3: a quote `'` that"),
            ("a b\"c", "a.cfg:1:4: a quote `\"` that"),
            ("\"${A\"", "a.cfg:1:2: `${` without"),
            ("\"${A!}\"", "a.cfg:1:2: \"!\" in"),
            ("\"$ \"", "a.cfg:1:2: `$` without"),
            ("a \\xg1", "a.cfg:1:3: `\\x` without"),
        ];
        for (line, expected) in table {
            let problem = read(line).unwrap_err();
            assert!(problem.starts_with(expected), "{problem}");
        }
    }
}
