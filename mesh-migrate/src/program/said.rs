//! What requests say, as templates of ours have it.

/// Something that a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Address of the client.
    Client,
    /// All values of `X-Forwarded-For`, and the client's address after them.
    ForwardedFor,
    /// `Host` as it is sent.
    Host,
    /// The same without a port, in lower case.
    Hostname,
    /// `http` or `https`.
    Scheme,
    /// Its method.
    Method,
    /// Without the query.
    Path,
    /// With it, as it is sent.
    Target,
    /// The query, without its `?`.
    Query,
    /// The first value of a header, name in lower case.
    Header(String),
    /// All values of a header, with commas between, of cookies with semicolons.
    Headers(String),
    /// The first cookie of this name.
    Cookie(String),
    /// The first parameter of the query of this name, as it was sent.
    Parameter(String),
    /// Changed; never of a text or of several.
    Changed(Box<Said>, SaidChange),
    /// This text.
    Text(String),
    /// One after the other.
    Joined(Vec<Said>),
}

/// What becomes of something that a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaidChange {
    /// In lower case.
    Lower,
    /// As `regex` replaces; what does not match stays.
    Replace {
        /// Unanchored.
        pattern: String,
        /// With references to groups.
        substitution: String,
        /// Every match, or the first one.
        all: bool,
    },
}

impl Said {
    /// Whether it tells the path, in the form in which it is compared.
    pub fn has_path(&self) -> bool {
        self.has(&|part| *part == Self::Path)
    }

    /// Whether it tells the client's address.
    pub fn tells_client(&self) -> bool {
        self.has(&|part| matches!(part, Self::Client | Self::ForwardedFor))
    }

    fn has(&self, is: &dyn Fn(&Self) -> bool) -> bool {
        match self {
            Self::Joined(parts) => parts.iter().any(|part| part.has(is)),
            Self::Changed(said, _) => said.has(is),
            part => is(part),
        }
    }

    /// What it is then; `None` where no template of ours can say it.
    pub fn changed(self, change: SaidChange) -> Option<Said> {
        const MAX_CHANGES: usize = 8;
        if let SaidChange::Replace { pattern, substitution, .. } = &change
            && !(is_written(pattern) && is_written(substitution))
        {
            return None;
        }
        match (self, change) {
            (Self::Text(text), SaidChange::Lower) => Some(Self::Text(text.to_ascii_lowercase())),
            (Self::Joined(parts), SaidChange::Lower) => {
                let parts = parts.into_iter().map(|part| part.changed(SaidChange::Lower));
                parts.collect::<Option<_>>().map(Self::Joined)
            }
            (Self::Text(_) | Self::Joined(_), _) => None,
            (said, change) => {
                let mut depth = 1;
                let mut inner = &said;
                while let Self::Changed(of, _) = inner {
                    (inner, depth) = (of, depth + 1);
                }
                (depth <= MAX_CHANGES).then(|| Self::Changed(Box::new(said), change))
            }
        }
    }
}

/// Whether it can stand between the tildes of a template.
fn is_written(text: &str) -> bool {
    let mut is_escaped = false;
    let fits = text.bytes().all(|byte| {
        let ends = byte == b'~' && !is_escaped || byte.is_ascii_control();
        is_escaped = byte == b'\\' && !is_escaped;
        !ends
    });
    fits && !is_escaped
}
