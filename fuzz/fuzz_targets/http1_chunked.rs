//! Chunks: the same data however the bytes arrive, and never more of it than
//! bytes.
#![no_main]

use edge_proxy::http1::{
    BadMessage, Body,
    body::{Decoder, Encoder, Step},
};
use libfuzzer_sys::fuzz_target;

type Decoded = Result<(Vec<u8>, Option<usize>, usize), BadMessage>;

/// Data, bytes after the body if it is over, and number of trailers.
fn decode(text: &[u8], size: usize) -> Decoded {
    let (mut decoder, mut data, mut rest) = (Decoder::new(Body::Chunked), Vec::new(), text);
    for piece in text.chunks(size) {
        let mut piece = piece;
        loop {
            match decoder.decode(piece)? {
                Step::Data(range) => {
                    data.extend_from_slice(&piece[range.clone()]);
                    (piece, rest) = (&piece[range.end..], &rest[range.end..]);
                }
                Step::More => {
                    rest = &rest[piece.len()..];
                    break;
                }
                Step::End(passed) => {
                    let trailers = decoder.take_trailers().map_or(0, |trailers| trailers.len());
                    return Ok((data, Some(rest.len() - passed), trailers));
                }
            }
        }
    }
    assert!(decoder.eof().is_err());
    Ok((data, None, 0))
}

fuzz_target!(|data: &[u8]| {
    let whole = decode(data, data.len().max(1));
    for size in [1, 3, 16] {
        assert_eq!(decode(data, size), whole);
    }
    let Ok((found, _, _)) = whole else { return };
    assert!(found.len() <= data.len());
    let (mut encoder, mut out) = (Encoder::Chunked, Vec::new());
    encoder.put(&found, &mut out).expect("chunks have no length");
    encoder.finish(None, &mut out).expect("chunks have no length");
    assert_eq!(decode(&out, 7), Ok((found, Some(0), 0)));
});
