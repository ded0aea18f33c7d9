//! Texts with variables: `http://$backend/${name}`.

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// By name, in lower case; captures by number.
    Variable(String),
}

/// A text with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(pub(super) Vec<Part>);

impl Template {
    /// As `ngx_http_script_compile` reads it.
    ///
    /// # Errors
    ///
    /// A `$` without a name, which nginx refuses.
    pub(super) fn of(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            if at > 0 {
                parts.push(Part::Text(rest[..at].to_owned()));
            }
            let after = &rest[at + 1..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, left) = match after.strip_prefix('{') {
                Some(inner) => {
                    let end = inner.find('}');
                    let end = end.ok_or_else(|| format!("the brace in {text:?} does not end"))?;
                    (&inner[..end], &inner[end + 1..])
                }
                None if after.starts_with(|c: char| c.is_ascii_digit() && c != '0') => {
                    after.split_at(1)
                }
                None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
            };
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(format!("a `$` in {text:?} has no name of a variable after it"));
            }
            parts.push(Part::Variable(name.to_ascii_lowercase()));
            rest = left;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The text, if it has no variables.
    pub(super) fn constant(&self) -> Option<String> {
        let text = |part: &Part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Variable(_) => None,
        };
        self.0.iter().map(text).collect()
    }

    /// As it may be written.
    pub(super) fn written(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Variable(name) => format!("${{{name}}}"),
        };
        self.0.iter().map(part).collect()
    }

    /// The variable, if it is nothing else.
    pub(super) fn variable(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Variable(name)] => Some(name),
            _ => None,
        }
    }

    /// Names of its variables.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Variable(name) => Some(name.as_str()),
        })
    }
}
