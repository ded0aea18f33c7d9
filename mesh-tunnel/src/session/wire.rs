//! Length-prefixed protobuf: an unsigned 16-bit big-endian length, then the
//! message.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes before each message.
pub(super) const PREFIX: usize = 2;

/// The beginning of `text`, at most `limit` bytes and whole characters.
pub(crate) fn shortened(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A message with its length before it.
pub(crate) fn framed(message: &impl Message) -> io::Result<Vec<u8>> {
    let length = message.encoded_len();
    let prefix = u16::try_from(length).map_err(|_| {
        let text = format!("message of {length} bytes; the wire carries {}", mesh_api::MAX_MESSAGE);
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.extend_from_slice(&prefix.to_be_bytes());
    message.encode_raw(&mut bytes);
    Ok(bytes)
}

/// Writes one message.
pub(crate) async fn write<W>(to: &mut W, message: &impl Message) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    to.write_all(&framed(message)?).await?;
    to.flush().await
}

/// Reads one message of at most `limit` bytes and not a byte more. A message
/// that is too long or does not decode is `InvalidData`; what the transport
/// says passes through.
pub(crate) async fn read<M, R>(from: &mut R, limit: usize) -> io::Result<M>
where
    M: Message + Default,
    R: AsyncRead + Unpin,
{
    let length = usize::from(from.read_u16().await?);
    if length > limit {
        let text = format!("message of {length} bytes where at most {limit} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    M::decode(&bytes[..]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{Connect, Ping};
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shortened("abc", 5), "abc");
        assert_eq!(shortened("aüc", 2), "a");
        assert_eq!(shortened("aüc", 3), "aü");
        assert_eq!(shortened("ü", 0), "");
    }

    #[test]
    fn messages_follow_one_another() {
        let mut bytes = framed(&Ping { token: 7 }).unwrap();
        bytes.extend(framed(&Ping { token: 8 }).unwrap());
        let mut from = &bytes[..];
        for token in [7, 8] {
            let ping: Ping = block_on(read(&mut from, 64)).unwrap();
            assert_eq!(ping.token, token);
        }
        assert!(from.is_empty());
    }

    #[test]
    fn what_cannot_be_framed_is_refused() {
        let long = Connect { site: "x".repeat(70_000), ..Connect::default() };
        assert_eq!(framed(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let fits = framed(&Connect { site: "x".repeat(5000), ..Connect::default() }).unwrap();
        let error = block_on(read::<Connect, _>(&mut &fits[..], 4096)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn bytes_of_strangers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = block_on(read::<mesh_api::v1::Control, _>(&mut &bytes[..], 4096));
            let _ = block_on(read::<Connect, _>(&mut &bytes[..], 4096));
        }
    }
}
