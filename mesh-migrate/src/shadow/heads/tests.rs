use proptest::prelude::*;

use super::*;
use crate::testing::same_each_time;

fn flow(port: u16) -> Flow {
    Flow { client: ([10, 0, 0, 1], port).into(), server: ([10, 0, 0, 2], 80).into() }
}

fn data(sequence: u32, payload: &[u8]) -> Segment<'_> {
    Segment { flow: flow(1), sequence, payload, syn: false, fin: false, rst: false }
}

fn syn(sequence: u32) -> Segment<'static> {
    Segment { syn: true, ..data(sequence, b"") }
}

fn flows() -> Flows {
    Flows::new(Limits { body: 16, ..Limits::default() })
}

/// The targets of what is found, in segments that follow each other.
fn targets(flows: &mut Flows, sequence: &mut u32, payloads: &[&[u8]]) -> Vec<String> {
    let mut all = Vec::new();
    for payload in payloads {
        let found = flows.take(&data(*sequence, payload));
        all.extend(found.into_iter().map(|head| head.target));
        *sequence = sequence.wrapping_add(payload.len() as u32);
    }
    all
}

#[test]
fn a_head_is_read() {
    let mut flows = flows();
    flows.take(&syn(7));
    let text = b"\r\nPOST /a?b HTTP/1.0\r\nHost: h:1\r\nX-Odd:\t\xff \r\nHOST: other\ncontent-length: 2\r\n\r\n";
    assert_eq!(flows.take(&data(8, text)), []);
    let found = flows.take(&data(8 + text.len() as u32, b"hi"));
    let headers =
        [("Host", "h:1"), ("X-Odd", "\u{ff}"), ("HOST", "other"), ("content-length", "2")];
    let latin = |text: &str| text.chars().map(|c| c as u8).collect();
    let head = Head {
        method: "POST".into(),
        target: "/a?b".into(),
        is_http10: true,
        headers: headers.map(|(name, value)| (name.into(), latin(value))).into(),
        body: Body::Whole(b"hi".into()),
    };
    assert_eq!(found, [head]);
    assert_eq!(found[0].host(), Some("h:1"));
    assert_eq!(flows.seen(), Seen { requests: 1, ..Seen::default() });
}

#[test]
fn bodies_are_kept_or_passed_over() {
    let table: [(&str, Body); 10] = [
        ("\r\n", Body::Empty),
        ("Content-Length: 0\r\n\r\n", Body::Empty),
        ("Content-Length: 5, 5\r\n\r\nGET /", Body::Whole(b"GET /".into())),
        ("Content-Length: 17\r\n\r\nGET /x HTTP/1.1\r\n", Body::NotKept),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Body::NotKept),
        ("Transfer-Encoding: gzip, Chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n", Body::NotKept),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n00\n\n", Body::NotKept),
        (
            "Transfer-Encoding: chunked\r\n\r\na ;x=\"y\"\r\n0123456789\r\n0\r\nA: b\r\n\r\n",
            Body::NotKept,
        ),
        ("Transfer-Encoding: chunked\r\n\r\n1\n\n\n00;\nA:b\n\n", Body::NotKept),
        ("Connection: close\r\n\r\n", Body::Empty),
    ];
    for (rest, body) in table {
        let mut flows = flows();
        flows.take(&syn(0));
        let text = format!("PUT /1 HTTP/1.1\r\n{rest}GET /2 HTTP/1.1\r\n\r\n");
        let found = flows.take(&data(1, text.as_bytes()));
        let targets: Vec<_> = found.iter().map(|head| head.target.as_str()).collect();
        assert_eq!(targets, ["/1", "/2"], "{rest:?}");
        assert_eq!(found[0].body, body, "{rest:?}");
    }
}

#[test]
fn what_is_no_request_is_counted() {
    let table: [(&str, &[u8], Seen); 13] = [
        ("tls", b"\x16\x03\x01\x02\x00\x01", Seen { tls: 1, ..Seen::default() }),
        ("h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Seen { http2: 1, ..Seen::default() }),
        ("binary", b"\0\0\0\x12", Seen { other: 1, ..Seen::default() }),
        ("0.9", b"GET /\r\n\r\n", Seen { other: 1, ..Seen::default() }),
        ("2.0", b"GET / HTTP/2.0\r\n\r\n", Seen { other: 1, ..Seen::default() }),
        ("space", b"GET /a b HTTP/1.1\r\n\r\n", Seen { other: 1, ..Seen::default() }),
        ("fold", b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Seen { other: 1, ..Seen::default() }),
        ("name", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", Seen { other: 1, ..Seen::default() }),
        (
            "lengths",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            Seen { other: 1, ..Seen::default() },
        ),
        (
            "sign",
            b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            Seen { other: 1, ..Seen::default() },
        ),
        (
            "coding",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            Seen { other: 1, ..Seen::default() },
        ),
        (
            "chunk",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            Seen { requests: 1, other: 1, ..Seen::default() },
        ),
        (
            "tunnel",
            b"CONNECT a:1 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            Seen { requests: 1, tunnels: 1, ..Seen::default() },
        ),
    ];
    for (name, bytes, seen) in table {
        // All at once, and byte by byte.
        let mut flows = flows();
        flows.take(&syn(0));
        flows.take(&data(1, bytes));
        assert_eq!(flows.seen(), seen, "{name}");
        let mut flows = self::flows();
        flows.take(&syn(0));
        for (at, byte) in (1..).zip(bytes) {
            flows.take(&data(at, &[*byte]));
        }
        assert_eq!(flows.seen(), seen, "{name}, byte by byte");
    }
}

#[test]
fn a_flow_given_up_is_let_alone_until_it_begins_anew() {
    let mut flows = flows();
    flows.take(&syn(0));
    let mut at = 1;
    let tls: &[u8] = b"\x16\x03\x01\x02\x00\x01";
    let get: &[u8] = b"GET /a HTTP/1.1\r\n\r\n";
    assert!(targets(&mut flows, &mut at, &[tls, get, get]).is_empty());
    flows.take(&syn(90_000));
    at = 90_001;
    assert_eq!(targets(&mut flows, &mut at, &[get]), ["/a"]);
    assert_eq!(flows.seen().tls, 1);
}

#[test]
fn a_flow_is_met_half_way() {
    let mut flows = flows();
    let mut at = u32::MAX - 10;
    let payloads: [&[u8]; 5] = [
        b"GETTING /0 HTTP/1.1\r\n\r\n",
        b"the end of a body",
        b"PATCH /1 HT",
        b"TP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"get /3 HTTP/1.1\r\n\r\n",
    ];
    assert_eq!(targets(&mut flows, &mut at, &payloads), ["/1", "/2", "/3"]);
    assert_eq!(flows.seen(), Seen { requests: 3, ..Seen::default() });
}

#[test]
fn what_comes_twice_is_read_once() {
    let mut flows = flows();
    flows.take(&syn(u32::MAX - 4));
    flows.take(&syn(u32::MAX - 4));
    let text = b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n";
    let start = u32::MAX - 3;
    let mut found = Vec::new();
    for (from, to) in [(0, 10), (0, 10), (5, 30), (29, 30), (0, 30), (20, 38), (0, 38)] {
        found.extend(flows.take(&data(start.wrapping_add(from), &text[from as usize..to])));
    }
    // A probe that the connection is alive has one byte from before.
    found.extend(flows.take(&data(start.wrapping_add(37), b"\0")));
    found.extend(flows.take(&Segment { fin: true, ..data(start.wrapping_add(38), b"") }));
    found.extend(flows.take(&Segment { fin: true, ..data(start.wrapping_add(19), &text[19..]) }));
    // A SYN that is late is no new connection.
    found.extend(flows.take(&syn(u32::MAX - 4)));
    found.extend(flows.take(&data(start, text)));
    let targets: Vec<_> = found.iter().map(|head| head.target.as_str()).collect();
    assert_eq!(targets, ["/1", "/2"]);
    assert_eq!(flows.seen(), Seen { requests: 2, ..Seen::default() });
}

#[test]
fn after_a_gap_a_segment_must_begin_a_request() {
    let mut flows = flows();
    flows.take(&syn(0));
    assert!(flows.take(&data(1, b"GET /1 HTTP/1.1\r\nA: ")).is_empty());
    assert!(flows.take(&data(900, b"b\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")).is_empty());
    assert_eq!(flows.take(&data(924, b"GET /3 HTTP/1.1\r\n\r\n"))[0].target, "/3");
    // What was missed comes, but too late.
    assert!(flows.take(&data(21, b"GET /4 HTTP/1.1\r\n\r\n")).is_empty());
    // Here a gap ends with a request.
    assert_eq!(flows.take(&data(2000, b"GET /5 HTTP/1.1\r\n\r\n"))[0].target, "/5");
    // The port is used again, and SYN was missed.
    assert_eq!(flows.take(&data(3_000_000_000, b"GET /6 HTTP/1.1\r\n\r\n"))[0].target, "/6");
    assert_eq!(flows.seen(), Seen { requests: 3, gaps: 3, ..Seen::default() });
}

#[test]
fn a_gap_within_a_body_does_not_matter() {
    let mut flows = flows();
    flows.take(&syn(0));
    let head = b"PUT /1 HTTP/1.1\r\nContent-Length: 100000\r\n\r\n";
    assert_eq!(flows.take(&data(1, head))[0].body, Body::NotKept);
    let body = 1 + head.len() as u32;
    assert!(flows.take(&data(body + 50_000, b"GET /no HTTP/1.1\r\n\r\n")).is_empty());
    assert!(flows.take(&data(body + 99_999, b"x")).is_empty());
    assert_eq!(flows.take(&data(body + 100_000, b"get /2 HTTP/1.1\r\n\r\n"))[0].target, "/2");
    assert_eq!(flows.seen().gaps, 0);
    // Nor if the body was to be kept.
    let found =
        flows.take(&data(body + 100_019, b"PUT /3 HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"));
    assert_eq!(found, []);
    let found = flows.take(&data(body + 100_019 + 44, b"hiGET /4 HTTP/1.1\r\n\r\n"));
    let found: Vec<_> = found.iter().map(|head| (head.target.as_str(), &head.body)).collect();
    assert_eq!(found, [("/3", &Body::NotKept), ("/4", &Body::Empty)]);
    assert_eq!(flows.seen().gaps, 0);
}

#[test]
fn the_oldest_flow_makes_room() {
    let mut flows = Flows::new(Limits { flows: 2, ..Limits::default() });
    let from = |port, sequence, payload| Segment { flow: flow(port), ..data(sequence, payload) };
    let start = b"GET /1 HTTP/1.1\r\n";
    for port in [1, 2] {
        flows.take(&Segment { syn: true, ..from(port, 0, start) });
    }
    // 1 says something, so 2 is the one that was silent longest.
    assert!(flows.take(&from(1, 18, b"A: b\r\n")).is_empty());
    assert_eq!(flows.take(&from(3, 0, b"GET /3 HTTP/1.1\r\n\r\n")).len(), 1);
    assert_eq!(flows.take(&from(1, 24, b"\r\n")).len(), 1);
    assert_eq!(flows.take(&from(2, 18, b"\r\n")).len(), 0);
    assert_eq!(flows.seen().forgotten, 2);
    assert_eq!((flows.streams.len(), flows.order.len()), (2, 2));
    // Nothing is kept for flows that say nothing.
    flows.take(&Segment { fin: true, ..from(4, 1, b"") });
    assert_eq!(flows.seen().forgotten, 2);
}

#[test]
fn heads_have_a_limit() {
    let mut flows = Flows::new(Limits { head: 64, ..Limits::default() });
    flows.take(&syn(0));
    let mut at = 1;
    let long = [b"GET /1 HTTP/1.1\r\nA: ", [b'a'; 64].as_slice()].concat();
    assert!(targets(&mut flows, &mut at, &[&long, b"\r\n\r\n"]).is_empty());
    assert_eq!(targets(&mut flows, &mut at, &[b"GET /2 HTTP/1.1\r\n\r\n"]), ["/2"]);
    let chunks =
        [b"GET /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(), b"1;", &[b'x'; 80]];
    assert_eq!(targets(&mut flows, &mut at, &chunks), ["/3"]);
    assert_eq!(flows.seen().other, 2);
}

/// Requests, and the bytes that they are.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..40);
    let one = (0..4, "/[a-z?=/]{0,12}", body).prop_map(|(kind, target, body)| {
        let mut bytes = match kind {
            0 => return format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes(),
            1 => return format!("\r\nGET {target} HTTP/1.0\n\n").into_bytes(),
            2 => {
                let length = body.len();
                format!("POST {target} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").into_bytes()
            }
            _ => {
                format!("PUT {target} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()
            }
        };
        if kind == 2 {
            bytes.extend(body);
            return bytes;
        }
        for chunk in body.chunks(7) {
            bytes.extend(format!("{:X};a=b\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\nT: t\r\n\r\n");
        bytes
    });
    prop::collection::vec(one, 1..8).prop_map(|requests| requests.concat())
}

/// Like traffic more often than chance is.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9),
        prop::sample::select(vec![
            "GET / HTTP/1.1\r\n",
            "POST /x HTTP/1.1\r\n",
            "\r\n",
            "\n",
            "0",
            "a",
            "A: b\r\n",
            "Content-Length: 20\r\n",
            "Content-Length: 18446744073709551615\r\n",
            "Transfer-Encoding: chunked\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "CONNECT a HTTP/1.1\r\n",
            "\x16\x03\x01",
            "ffffffffffffffff\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(same_each_time(1000))]

    #[test]
    fn cuts_do_not_matter(
        bytes in stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        start in any::<u32>(),
    ) {
        let mut whole = flows();
        whole.take(&syn(start));
        let start = start.wrapping_add(1);
        let expected = whole.take(&data(start, &bytes));
        prop_assert!(!expected.is_empty());
        prop_assert_eq!(whole.seen().other, 0);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut cut = flows();
        cut.take(&syn(start.wrapping_sub(1)));
        let mut found = Vec::new();
        for pair in cuts.windows(2) {
            let at = start.wrapping_add(pair[0] as u32);
            found.extend(cut.take(&data(at, &bytes[pair[0]..pair[1]])));
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!(cut.seen(), whole.seen());
    }

    #[test]
    fn nothing_panics_nor_grows(
        segments in prop::collection::vec(
            (0_u16..6, prop_oneof![any::<u32>(), 0_u32..200, Just(u32::MAX)], payload(), 0_u8..32),
            0..60,
        ),
        follow in any::<bool>(),
    ) {
        let limits = Limits { flows: 3, head: 128, body: 32 };
        let mut flows = Flows::new(limits);
        let mut next = [0_u32; 6];
        for (port, sequence, payload, flags) in &segments {
            let sequence = if follow { next[usize::from(*port)] } else { *sequence };
            let (syn, fin, rst) = (flags & 15 == 1, flags & 15 == 2, flags & 15 == 3);
            let flow = flow(*port);
            for head in flows.take(&Segment { flow, sequence, payload, syn, fin, rst }) {
                prop_assert!(!head.method.is_empty() && !head.target.is_empty());
            }
            next[usize::from(*port)] =
                sequence.wrapping_add(payload.len() as u32).wrapping_add(syn.into());
            prop_assert!(flows.streams.len() <= limits.flows);
            prop_assert_eq!(flows.order.len(), flows.streams.len());
            for (_, stream) in flows.streams.values() {
                prop_assert!(stream.held() <= limits.head + limits.body);
            }
        }
    }
}
