use proptest::prelude::*;

use super::*;

/// Everything that a decoder finds in `text`, given in pieces of these sizes:
/// data, trailers, and what follows the body.
fn decode(
    body: Body,
    text: &[u8],
    sizes: &[usize],
) -> Result<(Vec<u8>, Option<Fields>, Option<Vec<u8>>), BadMessage> {
    let (mut decoder, mut data, mut buf) = (Decoder::new(body), Vec::new(), Vec::new());
    let (mut rest, mut sizes) = (text, sizes.iter().cycle());
    loop {
        match decoder.decode(&buf)? {
            Step::Data(range) => {
                data.extend_from_slice(&buf[range.clone()]);
                buf.drain(..range.end);
            }
            Step::More => {
                buf.clear();
                if rest.is_empty() {
                    let ended = decoder.eof().is_ok();
                    return if ended { Ok((data, None, None)) } else { Err(BadMessage::Truncated) };
                }
                let size = *sizes.next().unwrap_or(&usize::MAX);
                let (now, later) = rest.split_at(size.clamp(1, rest.len()));
                buf.extend_from_slice(now);
                rest = later;
            }
            Step::End(passed) => {
                assert!(decoder.is_end());
                let after = [&buf[passed..], rest].concat();
                return Ok((data, decoder.take_trailers(), Some(after)));
            }
        }
    }
}

fn chunked(text: &[u8]) -> Result<(Vec<u8>, Option<Fields>, Option<Vec<u8>>), BadMessage> {
    let whole = decode(Body::Chunked, text, &[]);
    assert_eq!(decode(Body::Chunked, text, &[1]), whole, "{}", text.escape_ascii());
    whole
}

#[test]
fn every_body_ends_where_it_says() {
    let after = |bytes: &[u8]| Some(bytes.to_vec());
    assert_eq!(decode(Body::None, b"x", &[]), Ok((vec![], None, after(b"x"))));
    assert_eq!(decode(Body::Tunnel, b"x", &[]), Ok((vec![], None, after(b"x"))));
    assert_eq!(decode(Body::Length(0), b"x", &[]), Ok((vec![], None, after(b"x"))));
    assert_eq!(decode(Body::Length(3), b"abcd", &[2]), Ok((b"abc".to_vec(), None, after(b"d"))));
    assert_eq!(decode(Body::Close, b"abcd", &[3]), Ok((b"abcd".to_vec(), None, None)));
    assert_eq!(decode(Body::Length(5), b"abcd", &[]), Err(BadMessage::Truncated));
    assert_eq!(Decoder::new(Body::Length(5)).expected(), 5);
}

#[test]
fn chunks_are_joined() {
    let cases: &[(&[u8], &[u8])] = &[
        (b"0\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"3\r\nabc\r\n00A\r\n0123456789\r\n000\r\n\r\n", b"abc0123456789"),
        (b"1;a=b;c=\"\xe9 d\"\r\nx\r\n0;e\r\n\r\n", b"x"),
        (b"1  \r\nx\r\n0\t ;\r\n\r\n", b"x"),
        (b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x"),
        (b"4\r\n\r\n0\n\r\n0\r\n\r\n", b"\r\n0\n"),
    ];
    for (text, data) in cases {
        let text = [text, &b"GET"[..]].concat();
        let wanted = Ok((data.to_vec(), None, Some(b"GET".to_vec())));
        assert_eq!(chunked(&text), wanted, "{}", text.escape_ascii());
    }
}

/// Every way that is known to make two readers see different chunks.
#[test]
fn chunks_that_two_could_read_differently_are_refused() {
    use BadMessage::{Chunk, FieldName, FieldValue, LineEnd};
    let cases: &[(&[u8], BadMessage)] = &[
        (b"\r\n", Chunk),
        (b"x\r\n", Chunk),
        (b" 1\r\nx\r\n", Chunk),
        (b"0x1\r\nx\r\n", Chunk),
        (b"-1\r\nx\r\n", Chunk),
        (b"+1\r\nx\r\n", Chunk),
        (b"1_0\r\n", Chunk),
        (b"1 1\r\n", Chunk),
        (b"1\nx\r\n", Chunk),
        (b"1\rx\r\n", Chunk),
        (b"1\r\r\nx\r\n", Chunk),
        (b";a\r\n", Chunk),
        (b"1;a\nx\r\n", Chunk),
        (b"1;a\rb\r\nx\r\n", Chunk),
        (b"1;a\0\r\nx\r\n", Chunk),
        (b"1\x0b\r\nx\r\n", Chunk),
        (b"10000000000000000\r\n", Chunk),
        (b"00000000000000001\r\n", Chunk),
        (b"fffffffffffffffff\r\n", Chunk),
        (b"1\r\nx\n0\r\n\r\n", Chunk),
        (b"1\r\nx\r0\r\n\r\n", Chunk),
        (b"1\r\nx\rx0\r\n\r\n", Chunk),
        (b"1\r\nxx\n0\r\n\r\n", Chunk),
        (b"1\r\nxy\r\n0\r\n\r\n", Chunk),
        (b"1\r\nx0\r\n\r\n", Chunk),
        (b"0\r\n\n", LineEnd),
        (b"0\r\na: b\n\r\n", LineEnd),
        (b"0\r\na: b\r\n\n", LineEnd),
        (b"0\r\n a: b\r\n\r\n", FieldName),
        (b"0\r\na : b\r\n\r\n", FieldName),
        (b"0\r\na: b\r\n c\r\n\r\n", FieldName),
        (b"0\r\nGET / HTTP/1.1\r\n\r\n", FieldName),
        (b"0\r\na: \0\r\n\r\n", FieldValue),
        (b"0\r\nContent-Length: x\r\n\r\n", BadMessage::LengthInvalid),
    ];
    for (text, wanted) in cases {
        assert_eq!(chunked(text), Err(*wanted), "{}", text.escape_ascii());
    }
    for text in [&b""[..], b"1", b"1\r\nx", b"1\r\nx\r\n", b"0\r\n", b"0\r\na: b\r\n", b"0\r\n\r"] {
        assert_eq!(chunked(text), Err(BadMessage::Truncated), "{}", text.escape_ascii());
    }
}

#[test]
fn trailers_say_only_what_they_may() {
    let text = b"0\r\nGrpc-Status: 0\r\nContent-Length: 7\r\nX-A:  b\r\n\r\nrest";
    let (_, trailers, after) = chunked(text).unwrap();
    let wanted: Fields = [("grpc-status", &b"0"[..]), ("x-a", b"b")].into_iter().collect();
    assert_eq!((trailers, after), (Some(wanted), Some(b"rest".to_vec())));
    let (_, trailers, _) = chunked(b"0\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(trailers, None);
}

#[test]
fn what_means_nothing_is_bounded() {
    let extension = |length| [&b"1;"[..], &vec![b'e'; length], b"\r\nx\r\n0\r\n\r\n"].concat();
    assert!(chunked(&extension(4096)).is_ok());
    assert_eq!(chunked(&extension(4097)), Err(BadMessage::ChunkExtensions));
    // Small ones add up, but data pays for them.
    let many = |text: &str| [text.repeat(5000).as_bytes(), b"0\r\n\r\n"].concat();
    assert!(chunked(&many("1;e\r\nx\r\n")).is_ok());
    assert_eq!(chunked(&many("1;eeee\r\nx\r\n")), Err(BadMessage::ChunkExtensions));
    let trailers = |length| [&b"0\r\na: "[..], &vec![b't'; length], b"\r\n\r\n"].concat();
    assert!(chunked(&trailers(MAX_TRAILERS - 7)).is_ok());
    assert_eq!(chunked(&trailers(MAX_TRAILERS - 6)), Err(BadMessage::TrailersTooLarge));
    let fields = [&b"0\r\n"[..], &b"a: b\r\n".repeat(200), b"\r\n"].concat();
    assert_eq!(chunked(&fields), Err(BadMessage::TooManyFields));
}

#[test]
fn a_body_is_as_long_as_announced() {
    let mut out = Vec::new();
    let mut encoder = Encoder::Length(3);
    encoder.put(b"ab", &mut out).unwrap();
    assert_eq!(encoder.finish(None, &mut out), Err(Mismatch::TooShort));
    assert_eq!(encoder.put(b"cd", &mut out), Err(Mismatch::TooLong));
    encoder.put(b"c", &mut out).unwrap();
    assert!(encoder.is_end());
    encoder.finish(None, &mut out).unwrap();
    assert_eq!(encoder.put(b"x", &mut out), Err(Mismatch::TooLong));
    assert_eq!(out, b"abc");
    assert_eq!(Encoder::Done.put(b"", &mut out), Ok(()));
}

#[test]
fn sizes_are_written_in_hexadecimal() {
    for (length, text) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0xabcd, "abcd\r\n")] {
        let mut out = Vec::new();
        put_size(length, &mut out);
        assert_eq!(out, text.as_bytes());
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_however_split(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10),
        sizes in proptest::collection::vec(1_usize..30, 1..5),
        trailer in proptest::option::of("[a-z]{1,9}"),
    ) {
        let data = pieces.concat();
        let trailers = trailer.map(|value| -> Fields {
            [("x-t", value.as_bytes())].into_iter().collect()
        });
        for body in [Body::Chunked, Body::Length(data.len() as u64)] {
            let mut encoder = match body {
                Body::Chunked => Encoder::Chunked,
                _ => Encoder::Length(data.len() as u64),
            };
            let mut out = Vec::new();
            for piece in &pieces {
                encoder.put(piece, &mut out).unwrap();
            }
            encoder.finish(trailers.as_ref(), &mut out).unwrap();
            out.extend_from_slice(b"next");
            let trailers = trailers.clone().filter(|_| body == Body::Chunked);
            let wanted = (data.clone(), trailers, Some(b"next".to_vec()));
            prop_assert_eq!(decode(body, &out, &sizes), Ok(wanted));
        }
    }

    #[test]
    fn any_split_of_any_bytes_gives_the_same(
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            &b"1"[..], b"a", b"0", b"\r\n", b"\r", b"\n", b";", b" ", b"x: y\r\n", b"\0", b"0\r\n",
        ]), 0..20),
        sizes in proptest::collection::vec(1_usize..8, 1..5),
    ) {
        let text = pieces.concat();
        let whole = decode(Body::Chunked, &text, &[]);
        prop_assert_eq!(decode(Body::Chunked, &text, &sizes), whole);
    }
}
