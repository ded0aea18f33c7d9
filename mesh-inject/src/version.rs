//! Versions of Kubernetes, as far as they matter: `v1.33.4-gke.100`.

use std::{fmt, str::FromStr};

/// Major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1.
    pub major: u16,
    /// 33.
    pub minor: u16,
}

/// No version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of Kubernetes; write e.g. 1.33")]
pub struct InvalidVersion(String);

impl Version {
    /// Containers of `initContainers` may have `restartPolicy: Always` (KEP-753;
    /// beta, and on unless somebody has turned it off).
    pub const NATIVE_SIDECARS: Self = Self { major: 1, minor: 29 };
    /// How many minors a kubelet may be behind its API server
    /// (<https://kubernetes.io/releases/version-skew-policy/>).
    const KUBELET_SKEW: u16 = 3;

    /// The oldest kubelet that an API server of this version may have.
    pub fn oldest_kubelet(self) -> Self {
        Self { minor: self.minor.saturating_sub(Self::KUBELET_SKEW), ..self }
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let number = |part: &str| {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part.get(..end)?.parse().ok()
        };
        let mut parts = text.trim().trim_start_matches('v').split('.');
        let mut read =
            || Some(Self { major: number(parts.next()?)?, minor: number(parts.next()?)? });
        read().ok_or_else(|| InvalidVersion(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_add_what_they_like() {
        for text in ["1.33", "v1.33.4", "v1.33.4-gke.100", "1.33+", "v1.33.0-eks-1a2b", " 1.33 "] {
            let version: Version = text.parse().unwrap();
            assert_eq!(version.to_string(), "1.33", "{text}");
        }
        for text in ["", "1", "v", "one.two", "1.x", "99999999.1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        let server: Version = "1.32".parse().unwrap();
        assert_eq!(server.oldest_kubelet(), Version::NATIVE_SIDECARS);
    }
}
