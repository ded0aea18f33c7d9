//! Configuration files: YAML, at most 1 MiB, unknown keys refused with file,
//! line, column and the nearest right key.
//!
//! A file that holds only comments is an empty mapping, so that a type whose
//! fields all have defaults can be read from it. Types say
//! `#[serde(deny_unknown_fields)]`; `flatten` and `untagged` lose positions
//! and are not used. [`Setting`] is a key that was set beside the file.

mod setting;

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

pub use self::setting::{Setting, Step, blame, parse_set};

/// The longest configuration file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// Why a configuration cannot be used. The process ends with
/// [`ConfigError::exit_code`] before any port is bound.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nobody writes a megabyte of configuration by hand.
    #[error("{}: is longer than {limit} bytes; is it the right file?", .path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
        /// What it may have.
        limit: u64,
    },
    /// The text is not what it must be, at a known place.
    #[error("{file}:{line}:{column}: {problem}")]
    Text {
        /// The file's name as it was given.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// The text is well formed and means nothing sensible.
    #[error("{file}: {key}: {problem}")]
    Meaning {
        /// The file's name as it was given.
        file: String,
        /// Which key, dotted.
        key: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
}

impl ConfigError {
    /// The process's exit code: 78, `EX_CONFIG` of `sysexits.h`.
    pub fn exit_code(&self) -> u8 {
        crate::process::EXIT_CONFIG
    }

    /// A well-formed value that makes no sense.
    pub fn meaning(file: &str, key: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::Meaning { file: file.to_owned(), key: key.into(), problem: problem.to_string() }
    }
}

/// Reads and parses a file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    parse(&read(path)?, &path.display().to_string())
}

/// Reads a file of at most [`MAX_FILE`] bytes.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    read_within(path, MAX_FILE)
}

/// The same of one that programs write, too, and that may have more bytes.
pub fn read_within(path: &Path, limit: u64) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    bounded(std::fs::File::open(path).map_err(read)?, path, limit)
}

/// The same of one that is open; `path` is how errors name it.
pub fn read_open(file: std::fs::File, path: &Path) -> Result<String, ConfigError> {
    bounded(file, path, MAX_FILE)
}

fn bounded(file: std::fs::File, path: &Path, limit: u64) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    // One byte more than allowed tells a long file from one that just fits.
    file.take(limit + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > limit {
        return Err(ConfigError::TooLong { path: path.to_owned(), limit });
    }
    Ok(text)
}

/// Parses a text; `file` is how errors name it.
pub fn parse<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, ConfigError> {
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooLong { path: file.into(), limit: MAX_FILE });
    }
    let text = if is_blank(text) { "{}" } else { text };
    serde_yaml_ng::from_str(text).map_err(|error| text_error(file, &error))
}

fn is_blank(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

fn text_error(file: &str, error: &serde_yaml_ng::Error) -> ConfigError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    // The library writes the place, which stands in front already.
    let message = error.to_string().replacen(&format!(" at line {line} column {column}"), "", 1);
    let problem = with_nearest_key(&message);
    ConfigError::Text { file: file.to_owned(), line, column, problem }
}

/// Adds "did you mean" to serde's message about an unknown key or variant.
pub fn with_nearest_key(message: &str) -> String {
    let unknown = ["unknown field", "unknown variant"].iter().any(|kind| message.contains(kind));
    let mut names = message.split('`').skip(1).step_by(2);
    let (true, Some(wrong)) = (unknown, names.next()) else {
        return message.to_owned();
    };
    match nearest(wrong, names) {
        Some(right) => format!("{message}; did you mean `{right}`?"),
        None => message.to_owned(),
    }
}

/// The most similar of `candidates`, if any is similar enough to be meant.
pub fn nearest<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILAR: f64 = 0.6;
    candidates
        .map(|right| (strsim::normalized_damerau_levenshtein(wrong, right), right))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, right)| right)
}

/// A duration as people write it: `250ms`, `5s`, `15m`, `1h`, `30d`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct HumanDuration(pub Duration);

/// Longest first, so that each prints in its largest whole unit.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A duration that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("duration {0:?}: write a number and a unit (ms, s, m, h, d), e.g. 250ms, 5s, 1h30m")]
pub struct InvalidDuration(String);

impl FromStr for HumanDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.chars().take(40).collect());
        let mut rest = text.trim();
        let mut millis: u64 = 0;
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            let number: u64 = number.parse().map_err(|_| invalid())?;
            let part = number.checked_mul(*size).ok_or_else(invalid)?;
            millis = millis.checked_add(part).ok_or_else(invalid)?;
            rest = tail;
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in UNITS {
            let count = rest / size;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
            rest %= size;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = HumanDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with a unit, e.g. 250ms, 5s, 1h30m")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        interval: HumanDuration,
        listen: String,
        nested: Nested,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                interval: HumanDuration(Duration::from_secs(5)),
                listen: "127.0.0.1:1".into(),
                nested: Nested::default(),
            }
        }
    }

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Nested {
        region: String,
        mode: Mode,
    }

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Sidecar,
        Gateway,
    }

    #[test]
    fn comments_alone_mean_defaults() {
        for text in ["", "\n\n", "# nothing\n", "---\n# nothing\n"] {
            assert_eq!(parse::<Sample>(text, "a.yaml").unwrap(), Sample::default(), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_place_and_the_remedy() {
        let cases = [
            ("interval: 5s\nlistn: x\n", "a.yaml:2:1: ", "did you mean `listen`?"),
            ("nested:\n  regoin: x\n", "a.yaml:2:3: ", "did you mean `region`?"),
            ("nested:\n  mode: gatway\n", "a.yaml:2:9: ", "did you mean `gateway`?"),
            ("zzz: 1\n", "a.yaml:1:1: ", "expected one of `interval`, `listen`, `nested`"),
            ("interval: 5\n", "a.yaml:1:11: ", "write a number and a unit"),
            ("interval: [5s]\n", "a.yaml:1:11: ", "a duration with a unit"),
            ("interval: 5 parsecs\n", "a.yaml:1:11: ", "write a number and a unit"),
            ("listen: 'x\n", "a.yaml:2:1: ", "found unexpected end of stream"),
            ("- 1\n", "a.yaml:1:1: ", "invalid type"),
        ];
        for (text, place, remedy) in cases {
            let error = parse::<Sample>(text, "a.yaml").unwrap_err();
            let shown = error.to_string();
            assert!(shown.starts_with(place), "{text:?}: {shown}");
            assert!(shown.contains(remedy), "{text:?}: {shown}");
            assert_eq!(error.exit_code(), 78);
        }
    }

    #[test]
    fn the_place_is_not_written_twice() {
        let shown = parse::<Sample>("interval: 5\n", "a.yaml").unwrap_err().to_string();
        assert!(!shown.contains(" at line "), "{shown}");
    }

    #[test]
    fn a_far_key_gets_no_guess() {
        let shown = parse::<Sample>("zzz: 1\n", "a.yaml").unwrap_err().to_string();
        assert!(!shown.contains("did you mean"), "{shown}");
    }

    #[test]
    fn files_are_read_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let missing = load::<Sample>(&path).unwrap_err().to_string();
        assert!(missing.contains("a.yaml") && missing.contains("cannot be read"), "{missing}");

        std::fs::write(&path, "interval: 1m\n").unwrap();
        assert_eq!(load::<Sample>(&path).unwrap().interval.0, Duration::from_secs(60));

        std::fs::write(&path, "#".repeat(MAX_FILE as usize)).unwrap();
        assert_eq!(load::<Sample>(&path).unwrap(), Sample::default());
        std::fs::write(&path, "#".repeat(MAX_FILE as usize + 1)).unwrap();
        assert!(matches!(load::<Sample>(&path), Err(ConfigError::TooLong { .. })));
    }

    #[test]
    fn durations_round_trip() {
        let cases = [
            ("250ms", 250),
            ("5s", 5000),
            ("15m", 900_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("30d", 2_592_000_000),
            ("1m500ms", 60_500),
        ];
        for (text, millis) in cases {
            let parsed: HumanDuration = text.parse().unwrap();
            assert_eq!(parsed.0, Duration::from_millis(millis), "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!(HumanDuration::default().to_string(), "0s");
        for text in ["", "5", "s", "-5s", "5 s", "1.5s", "5x", "99999999999999999999s", "5s5"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
        assert!("18446744073709551615d".parse::<HumanDuration>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse::<Sample>(&text, "a.yaml");
            let _ = text.parse::<HumanDuration>();
        }

        #[test]
        fn every_duration_survives_printing(millis in 0u64..u64::MAX / 2) {
            let duration = HumanDuration(Duration::from_millis(millis));
            proptest::prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
