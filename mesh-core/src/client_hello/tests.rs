use proptest::prelude::*;

use super::*;

fn vector16(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector16(data)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector16(&[vec![0], vector16(name)].concat()))
}

/// GREASE and one that there is.
const CIPHERS: &[u8] = &[0x8a, 0x8a, 0x13, 0x01];

/// The body of a ClientHello; `None` has no extensions at all.
fn body(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = before_extensions(4, CIPHERS, &[0]);
    body.extend(extensions.map(|all| vector16(&all.concat())).unwrap_or_default());
    body
}

fn before_extensions(session_id: u8, ciphers: &[u8], compression: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(session_id);
    body.extend((0..session_id).map(|_| 1));
    body.extend(vector16(ciphers));
    body.push(u8::try_from(compression.len()).unwrap());
    body.extend(compression);
    body
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], body].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [vec![22, 3, 1], vector16(part)].concat();
    message.chunks(size).flat_map(record).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&body(Some(extensions))), MAX_RECORD)
}

fn name_in(bytes: &[u8]) -> Result<Option<String>, NotHello> {
    let hello = read(bytes)?.expect("it is whole");
    Ok(hello.server_name.map(Into::into))
}

#[test]
fn names() {
    for (written, wanted) in [
        ("orders.shop", "orders.shop"),
        ("Orders.SHOP.", "orders.shop"),
        ("_a.b-c", "_a.b-c"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
    ] {
        let grease = [extension(0x0a0a, b""), server_name(written.as_bytes())];
        let ech = [extension(0xfe0d, &[1; 300]), server_name(written.as_bytes())];
        for extensions in [&grease[..], &ech, &grease[1..]] {
            assert_eq!(name_in(&hello(extensions)), Ok(Some(wanted.into())), "{written}");
        }
    }
    assert_eq!(name_in(&hello(&[extension(0x0a0a, b"\0")])), Ok(None));
    assert_eq!(name_in(&hello(&[])), Ok(None));
    assert_eq!(name_in(&records(&message(&body(None)), 100)), Ok(None));
}

#[test]
fn what_breaks_the_rules_is_no_hello() {
    let with = |extensions: &[Vec<u8>]| hello(extensions);
    let name = |name: &[u8]| hello(&[server_name(name)]);
    let list = |list: &[u8]| hello(&[extension(0, list)]);
    let a = [vec![0], vector16(b"a")].concat();
    let changed = |at: usize, to: u8| {
        let mut bytes = name(b"a.b");
        bytes[at] = to;
        bytes
    };
    let mut after = message(&body(Some(&[])));
    after.push(0);
    let mut longer = body(Some(&[]));
    longer.push(0);
    let two = [message(&body(None)), message(&body(None))].concat();
    let cases = [
        ("two names", list(&vector16(&[a.clone(), a.clone()].concat()))),
        ("empty list", list(&vector16(b""))),
        ("no list", list(b"")),
        ("more after the list", list(&[vector16(&a), vec![0]].concat())),
        ("another kind", list(&vector16(&[vec![1], vector16(b"a")].concat()))),
        ("twice", with(&[server_name(b"a"), server_name(b"a")])),
        ("empty", name(b"")),
        ("dot", name(b".")),
        ("space", name(b"a b")),
        ("nul", name(b"a\0b")),
        ("not ascii", name("é".as_bytes())),
        ("too long", name(&[b'a'; 255])),
        ("another record", changed(0, 23).into_iter().collect()),
        ("another message", changed(5, 2)),
        ("ends too soon", changed(8, 10)),
        ("a long message", changed(6, 1)),
        ("odd ciphers", changed(9 + 34 + 5 + 1, 3)),
        ("session id", changed(9 + 34, 33)),
        ("after the message", records(&after, 1000)),
        ("after the extensions", records(&message(&longer), 1000)),
        ("two messages", records(&two, 1000)),
        ("after the message, to come", records(&after, 1000).split_last().unwrap().1.to_vec()),
        ("no data", [vec![22, 3, 1, 0, 0], name(b"a")].concat()),
        ("huge record", vec![22, 3, 1, 0x40, 1]),
    ];
    for (what, bytes) in cases {
        assert!(read(&bytes).is_err(), "{what}: {:?}", read(&bytes));
    }
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x02", b"\x80\x2e\x01\x03\x01", b"S"] {
        assert_eq!(read(bytes), Err(NotHello::NotTls));
    }
}

/// Everything else about these messages is right.
#[test]
fn lengths_have_an_end() {
    let cases = [
        ((0, CIPHERS, &[0][..]), None),
        ((32, CIPHERS, &[0]), None),
        ((33, CIPHERS, &[0]), Some("length of the session id")),
        ((34, CIPHERS, &[0]), Some("length of the session id")),
        ((4, &[], &[0]), Some("length of the cipher suites")),
        ((4, &[1, 2, 3], &[0]), Some("length of the cipher suites")),
        ((4, CIPHERS, &[]), Some("no compression method")),
    ];
    for ((session_id, ciphers, compression), refused) in cases {
        let body = before_extensions(session_id, ciphers, compression);
        let wanted = refused.map_or(Ok(None), |why| Err(NotHello::Malformed(why)));
        assert_eq!(name_in(&records(&message(&body), MAX_RECORD)), wanted, "{session_id}");
    }
    let too_long = Err(NotHello::Malformed("longer than 16 KiB"));
    let bad_record = Err(NotHello::Malformed("length of a record"));
    for (bytes, wanted) in [
        (&[22, 3, 1, 0x40, 0][..], Ok(None)),
        (&[22, 3, 1, 0x40, 1], bad_record),
        (&[22, 3, 1, 0, 4, 1, 0, 0x40, 0], Ok(None)),
        (&[22, 3, 1, 0, 4, 1, 0, 0x40, 1], too_long),
    ] {
        assert_eq!(read(bytes), wanted, "{bytes:?}");
    }
}

#[test]
fn what_is_wrong_is_said_to_both_sides() {
    assert_eq!(NotHello::NotTls.to_string(), "the client does not speak TLS");
    assert_eq!(
        NotHello::Malformed("it ends too soon").to_string(),
        "ClientHello: it ends too soon"
    );
    // Level 2 is fatal.
    assert_eq!(Alert::DecodeError.record(), [21, 3, 3, 0, 2, 2, 50]);
    assert_eq!(Alert::UnrecognizedName.record(), [21, 3, 3, 0, 2, 2, 112]);
}

#[test]
fn nobody_is_listened_to_for_ever() {
    let padded = |length: usize| [extension(21, &vec![0; length]), server_name(b"a.b")];
    let fits = hello(&padded(16_000));
    assert_eq!(name_in(&fits), Ok(Some("a.b".into())));
    // One byte of data for each header: the headers count.
    let many = records(&message(&body(Some(&padded(4000)))), 1);
    assert!(many.len() > MAX_LEN);
    assert_eq!(read(&many[..MAX_LEN - 1]), Ok(None));
    assert!(read(&many[..MAX_LEN]).is_err());
    assert!(read(&hello(&padded(16_400))).is_err());
}

/// What noise is put after.
const STARTS: &[&[u8]] = &[&[], &[22, 3, 1, 1, 0], &[22, 3, 3, 0, 60, 1, 0, 0, 56]];

proptest! {
    /// However it is cut into records and reads, the same is read, and not
    /// before all of it is there.
    #[test]
    fn records_and_reads_do_not_matter(
        name in "[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,3}",
        padding in 0usize..600,
        size in 1usize..700,
        cut in any::<prop::sample::Index>(),
    ) {
        let extensions = [extension(21, &vec![0; padding]), server_name(name.as_bytes())];
        let bytes = records(&message(&body(Some(&extensions))), size);
        prop_assert_eq!(name_in(&bytes), Ok(Some(name)));
        prop_assert_eq!(read(&bytes[..cut.index(bytes.len())]), Ok(None));
        let more = [&bytes[..], &[20, 3, 3, 0, 1, 1]].concat();
        prop_assert_eq!(read(&more), read(&bytes));
    }

    /// Any bytes give an answer; what is once refused stays so.
    #[test]
    fn any_bytes(
        start in prop::sample::select(STARTS),
        noise in prop::collection::vec(any::<u8>(), 0..600),
        more in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let bytes = [start, &noise].concat();
        let longer = [&bytes[..], &more].concat();
        match read(&bytes) {
            Ok(None) => {}
            said => {
                prop_assert_eq!(read(&longer).is_err(), said.is_err());
            }
        }
    }

    /// A hello with a byte changed is still read without a panic.
    #[test]
    fn changed_bytes(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = hello(&[server_name(b"orders.shop"), extension(16, b"\0\x03\x02h2")]);
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(Some(ClientHello { server_name: Some(name) })) = read(&bytes) {
            prop_assert!(!name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase()));
        }
    }
}
