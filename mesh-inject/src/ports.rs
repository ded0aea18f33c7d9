//! Lists of ports: `25,587,3306-3310`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// Ranges at most; sets of the kernel hold many more.
const MAX_RANGES: usize = 64;

/// Ports from 1 on, sorted, without overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

/// No list of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPorts {
    /// Neither a port nor a range of them.
    #[error("{0:?} is no port; write ports from 1 to 65535 and ranges, e.g. 25,587,3306-3310")]
    NoPort(String),
    /// From high to low.
    #[error("{0:?} ends before it begins; write the lower port first")]
    Reversed(String),
    /// Nobody means that.
    #[error("more than {MAX_RANGES} ports and ranges; write fewer, wider ones")]
    TooMany,
}

impl Ports {
    /// Each of these.
    pub fn each(ports: &[u16]) -> Self {
        Self::sorted(ports.iter().map(|port| *port..=*port).collect())
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a port is among them.
    pub fn has(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// In order, with at least one port between two of them.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = RangeInclusive<u16>> {
        self.0.iter().cloned()
    }

    /// These and others.
    pub fn and(&self, other: &Self) -> Self {
        Self::sorted(self.0.iter().chain(&other.0).cloned().collect())
    }

    fn sorted(mut ranges: Vec<RangeInclusive<u16>>) -> Self {
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl FromStr for Ports {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let ranges: Vec<_> = text.split(',').map(range).collect::<Result<_, _>>()?;
        if ranges.len() > MAX_RANGES {
            return Err(InvalidPorts::TooMany);
        }
        Ok(Self::sorted(ranges))
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, InvalidPorts> {
    let text = text.trim();
    let port = |digits: &str| {
        let digits = digits.trim();
        let port = digits.parse::<u16>().ok().filter(|port| *port > 0 && !digits.starts_with('+'));
        port.ok_or_else(|| InvalidPorts::NoPort(text.chars().take(20).collect()))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(InvalidPorts::Reversed(text.chars().take(20).collect()));
    }
    Ok(first..=last)
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, range) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_joined() {
        let cases = [
            ("", ""),
            (" 25 , 587", "25,587"),
            ("587,25,25", "25,587"),
            ("10-20,15-30,31", "10-31"),
            ("65535,1-65534", "1-65535"),
            ("8080 - 8090", "8080-8090"),
        ];
        for (text, expected) in cases {
            let ports: Ports = text.parse().unwrap();
            assert_eq!(ports.to_string(), expected, "{text}");
            assert_eq!(ports.to_string().parse(), Ok(ports));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["0", "65536", "-1", "http", "25;26", "1,,2", "1-2-3", "+5", "1,", "0x10"] {
            let error = text.parse::<Ports>().unwrap_err();
            assert!(matches!(error, InvalidPorts::NoPort(_)), "{text}: {error}");
        }
        assert_eq!("9-8".parse::<Ports>(), Err(InvalidPorts::Reversed("9-8".into())));
        let many: Vec<String> = (1..=65).map(|port| (port * 2).to_string()).collect();
        assert_eq!(many.join(",").parse::<Ports>(), Err(InvalidPorts::TooMany));
    }

    #[test]
    fn two_lists_are_one() {
        let ports = Ports::each(&[4143, 4191]).and(&"4140-4142".parse().unwrap());
        assert_eq!(ports.to_string(), "4140-4143,4191");
        assert!(ports.has(4142) && !ports.has(4144));
    }
}
