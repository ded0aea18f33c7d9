//! Quantities of Kubernetes: `100m`, `1.5`, `64Mi`, `1e3`.

use std::{cmp::Ordering, fmt, str::FromStr};

/// As it was written, and what it is worth.
#[derive(Debug, Clone)]
pub struct Quantity {
    text: String,
    /// In billionths; Kubernetes knows nothing smaller.
    nanos: i128,
}

/// No quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no quantity; write a number with a suffix, e.g. 100m or 2 of cpu, 64Mi or 1Gi of memory")]
pub struct InvalidQuantity;

const ONE: i128 = 1_000_000_000;
/// Suffixes with how many units they are, in billionths.
const SUFFIXES: [(&str, i128); 16] = [
    ("", ONE),
    ("n", 1),
    ("u", 1000),
    ("m", 1_000_000),
    ("k", ONE * 1000),
    ("M", ONE * 1_000_000),
    ("G", ONE * 1_000_000_000),
    ("T", ONE * 1_000_000_000_000),
    ("P", ONE * 1_000_000_000_000_000),
    ("E", ONE * 1_000_000_000_000_000_000),
    ("Ki", ONE << 10),
    ("Mi", ONE << 20),
    ("Gi", ONE << 30),
    ("Ti", ONE << 40),
    ("Pi", ONE << 50),
    ("Ei", ONE << 60),
];
/// Digits on either side of the point; more are a mistake and would overflow.
const MAX_DIGITS: usize = 12;
const MAX_EXPONENT: u32 = 9;

impl Quantity {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

impl FromStr for Quantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let digits = [whole, part].concat();
        let is_number = !digits.is_empty()
            && digits.bytes().all(|digit| digit.is_ascii_digit())
            && whole.len().max(part.len()) <= MAX_DIGITS;
        if !is_number {
            return Err(InvalidQuantity);
        }
        let units = units(suffix).ok_or(InvalidQuantity)?;
        let digits: i128 = digits.parse().map_err(|_| InvalidQuantity)?;
        let scale = 10i128.pow(u32::try_from(part.len()).map_err(|_| InvalidQuantity)?);
        let nanos = digits.checked_mul(units).ok_or(InvalidQuantity)? / scale;
        Ok(Self { text: text.to_owned(), nanos })
    }
}

fn units(suffix: &str) -> Option<i128> {
    if let Some((_, units)) = SUFFIXES.iter().find(|(name, _)| *name == suffix) {
        return Some(*units);
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let (exponent, is_negative) = match exponent.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (exponent.strip_prefix('+').unwrap_or(exponent), false),
    };
    let is_number = exponent.bytes().all(|digit| digit.is_ascii_digit());
    let exponent = exponent.parse().ok().filter(|n| is_number && *n <= MAX_EXPONENT)?;
    let power = 10i128.pow(exponent);
    Some(if is_negative { ONE / power } else { ONE * power })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_same_is_written_in_many_ways() {
        let same = [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1Gi", "1024Mi"),
            ("1e3", "1k"),
            ("2E-3", "2m"),
            ("1E", "1000P"),
            (".5", "500000u"),
            ("1.", "1"),
            ("128974848", "123Mi"),
        ];
        for (one, other) in same {
            assert_eq!(quantity(one), quantity(other), "{one} {other}");
            assert_eq!(quantity(one).as_str(), one);
        }
        assert!(quantity("1Ki") > quantity("1k") && quantity("999m") < quantity("1"));
        assert!(quantity("0").is_zero() && !quantity("1n").is_zero());
    }

    #[test]
    fn nonsense_is_refused() {
        let wrong = [
            "",
            ".",
            "m",
            "-1",
            "+1",
            "1 Gi",
            "1gb",
            "1Kb",
            "0x1",
            "1e",
            "1e+",
            "1e1.5",
            "1e99",
            "1..2",
            "1_000",
            "9999999999999",
            "¼",
            "NaN",
        ];
        for text in wrong {
            assert_eq!(text.parse::<Quantity>().err(), Some(InvalidQuantity), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[0-9.eE+\\-mMKGTPEin]{0,24}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
