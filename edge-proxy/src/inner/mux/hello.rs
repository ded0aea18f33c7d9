//! The first frame of each side. Nobody waits for it: until it has come, the
//! defaults count, which it can only raise, but for the number of streams,
//! where one too many is refused.

use mesh_api::v1::InnerHello;
use prost::Message;

use super::{MAX_STREAMS, WINDOW, frame::Violation};

/// Versions of the framing that this build speaks.
const VERSIONS: &[u32] = &[1];
/// The widest window of one stream.
pub(super) const MAX_WINDOW: u32 = 1 << 20;

/// What one end allows the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streams that it may have open at once.
    pub max_streams: u32,
    /// What it may send on a new stream before it is told more; 64 KiB to
    /// 1 MiB.
    pub stream_window: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_streams: MAX_STREAMS, stream_window: WINDOW }
    }
}

impl Limits {
    /// Within what the wire allows.
    pub(super) fn checked(self) -> Self {
        Self { stream_window: self.stream_window.clamp(WINDOW, MAX_WINDOW), ..self }
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let message = InnerHello {
            versions: VERSIONS.to_vec(),
            max_streams: self.max_streams,
            stream_window: self.stream_window,
            critical: Vec::new(),
        };
        message.encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let message = InnerHello::decode(bytes)
            .map_err(|error| Violation(format!("a hello that does not decode: {error}").into()))?;
        if !message.versions.iter().any(|version| VERSIONS.contains(version)) {
            let text = format!("versions {:?} here, others at the peer", VERSIONS);
            return Err(Violation(text.into()));
        }
        if let Some(name) = message.critical.first() {
            return Err(Violation(format!("the peer needs {name:.64}, not known here").into()));
        }
        if message.stream_window < WINDOW || message.stream_window > MAX_WINDOW {
            return Err(Violation::new("a hello with an impossible window"));
        }
        Ok(Self { max_streams: message.max_streams, stream_window: message.stream_window })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_travel_and_strangers_are_refused() {
        let limits = Limits { max_streams: 7, stream_window: 100_000 };
        assert_eq!(Limits::decode(&limits.encode()), Ok(limits));
        let good = InnerHello {
            versions: vec![1, 2],
            max_streams: 1,
            stream_window: WINDOW,
            critical: Vec::new(),
        };
        assert!(Limits::decode(&good.encode_to_vec()).is_ok());
        let cases = [
            (InnerHello { versions: vec![2], ..good.clone() }, "versions [1]"),
            (InnerHello { critical: vec!["zip".into()], ..good.clone() }, "zip"),
            (InnerHello { stream_window: WINDOW - 1, ..good.clone() }, "window"),
            (InnerHello { stream_window: MAX_WINDOW + 1, ..good }, "window"),
        ];
        for (message, named) in cases {
            let error = Limits::decode(&message.encode_to_vec()).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn limits_of_ours_are_possible_ones() {
        let tiny = Limits { max_streams: 0, stream_window: 0 };
        assert_eq!(tiny.checked().stream_window, WINDOW);
        let wide = Limits { stream_window: u32::MAX, ..tiny };
        assert_eq!(wide.checked().stream_window, MAX_WINDOW);
    }
}
