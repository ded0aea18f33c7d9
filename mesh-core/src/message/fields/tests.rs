use proptest::prelude::*;

use super::*;

fn pairs(fields: &Fields) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    fields.iter().map(|(name, value)| (name.to_owned(), text(value))).collect()
}

fn written(fields: &Fields, skip: &[Known]) -> String {
    let mut out = Vec::new();
    fields.write_without(KnownSet::of(skip), &mut out);
    String::from_utf8(out).unwrap()
}

fn some() -> Fields {
    [("Accept", "*/*"), ("cookie", "a"), ("X-A", "1"), ("Cookie", "b"), ("x-a", "2")]
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect()
}

#[test]
fn names_keep_their_case_and_are_found_in_any() {
    let fields = some();
    assert_eq!(fields.len(), 5);
    assert_eq!(fields.get("accept"), Some(&b"*/*"[..]));
    assert_eq!(fields.all("X-a").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(fields.all_known(Known::Cookie).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(fields.all("COOKIE").count(), 2);
    assert_eq!(fields.known(Known::Cookie), Some(&b"a"[..]));
    assert_eq!(fields.known(Known::Te), None);
    assert_eq!(fields.get("b"), None);
    assert_eq!(fields.iter().next(), Some(("Accept", &b"*/*"[..])));
}

#[test]
fn equal_fields_differ_in_the_case_of_names_alone() {
    let fields = |pairs: &[(&str, &str)]| -> Fields {
        pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
    };
    let one = fields(&[("x-a", "1"), ("via", "b")]);
    assert_eq!(one, fields(&[("X-A", "1"), ("Via", "b")]));
    let others: [&[(&str, &str)]; 5] = [
        &[],
        &[("x-a", "1")],
        &[("x-b", "1"), ("via", "b")],
        &[("x-a", "1"), ("via", "B")],
        &[("via", "b"), ("x-a", "1")],
    ];
    for other in others {
        assert_ne!(one, fields(other), "{other:?}");
    }
}

#[test]
fn names_of_the_mesh_are_many() {
    let mut fields = Fields::new();
    fields.push("isthmus-a", b"1");
    fields.push("isthmus-b", b"2");
    assert_eq!(fields.get("Isthmus-B"), Some(&b"2"[..]));
    assert_eq!(fields.all_known(Known::Mesh).count(), 2);
    fields.set("isthmus-b", b"3");
    assert!(fields.remove("isthmus-a"));
    assert!(!fields.remove("isthmus-c"));
    assert_eq!(pairs(&fields), [("isthmus-b".into(), "3".into())]);
    assert!(fields.has(Known::Mesh));
    assert!(fields.remove_known(Known::Mesh));
    assert!(fields.is_empty() && !fields.has(Known::Mesh));
}

/// The ids of names too, wherever in the block the section lies.
#[test]
fn what_is_copied_is_as_if_pushed() {
    let mut fields = Fields::new();
    assert!(fields.is_empty());
    fields.push("x-first", b"1");
    assert!(!fields.is_empty());
    let section = b"cookie: a\r\nunnamed: b\r\nVia: 1.1 c\r\n";
    let copied = fields.copy_section(section);
    assert_eq!(fields.push_copied(copied, 0, 6, 1), Some(Known::Cookie));
    assert_eq!(fields.push_copied(copied, 23, 3, 5), Some(Known::Via));
    let ids: Vec<_> = fields.iter_known().collect();
    let wanted: [(_, _, &[u8]); 3] = [
        (None, "x-first", b"1"),
        (Some(Known::Cookie), "cookie", b"a"),
        (Some(Known::Via), "Via", b"1.1 c"),
    ];
    assert_eq!(ids, wanted);
    assert_eq!(written(&fields, &[]), "x-first: 1\r\ncookie: a\r\nVia: 1.1 c\r\n");
}

#[test]
fn set_leaves_one_value_at_the_place_of_the_first() {
    let mut fields = some();
    fields.set("COOKIE", b"longer than before");
    fields.set("x-new", b"");
    let wanted = "Accept: */*\r\nCOOKIE: longer than before\r\nX-A: 1\r\nx-a: 2\r\nx-new: \r\n";
    assert_eq!(written(&fields, &[]), wanted);
    assert!(fields.has(Known::Cookie));
    assert_eq!(fields.bytes(), wanted.len());
}

#[test]
fn elements_join_into_one_field() {
    let mut fields = some();
    fields.push("x-a", b"");
    fields.append_element("x-A", b"3");
    fields.append_element("via", b"1.1 isthmus");
    fields.append_element("via", b"1.1 other");
    let wanted = "Accept: */*\r\ncookie: a\r\nx-A: 1, 2, 3\r\nCookie: b\r\n\
                  via: 1.1 isthmus, 1.1 other\r\n";
    assert_eq!(written(&fields, &[]), wanted);
    assert!(fields.has(Known::Via) && fields.has(Known::Cookie));
}

#[test]
fn what_is_removed_is_not_written() {
    let mut fields = some();
    let wanted = "Accept: */*\r\nX-A: 1\r\nx-a: 2\r\n";
    assert_eq!(written(&fields, &[Known::Cookie, Known::Te]), wanted);
    assert!(fields.remove("cookie"));
    assert!(!fields.remove("cookie"));
    assert!(!fields.has(Known::Cookie));
    assert_eq!(written(&fields, &[]), wanted);
    assert!(fields.retain(|name, value| name != "x-a" || value != b"2"));
    assert!(!fields.retain(|_, _| true));
    assert_eq!(written(&fields, &[]), "Accept: */*\r\nX-A: 1\r\n");
}

#[test]
fn a_cleared_block_is_filled_again_without_allocating() {
    let mut fields = some();
    let (block, entries) = (fields.block.capacity(), fields.entries.capacity());
    fields.clear();
    assert!(fields.is_empty() && !fields.has(Known::Cookie) && fields.bytes() == 0);
    for (name, value) in some().iter() {
        fields.push(name, value);
    }
    assert_eq!((fields.block.capacity(), fields.entries.capacity()), (block, entries));
    assert_eq!(fields, some());
}

#[test]
fn only_fields_are_pushed_unseen() {
    let mut fields = Fields::new();
    for name in [&b""[..], b"a b", b"a:", b"a\r", b"\xc3\xa9", b"a\0", b"(a)"] {
        assert_eq!(fields.try_push(name, b"x"), Err(InvalidField::Name), "{name:?}");
    }
    for value in [&b" a"[..], b"a\t", b"a\r\nb: c", b"a\nb", b"a\0", b"\x7f", b"\x1b"] {
        assert_eq!(fields.try_push(b"a", value), Err(InvalidField::Value), "{value:?}");
    }
    assert!(fields.is_empty());
    for value in [&b""[..], b"a\tb c", b"\xff"] {
        assert_eq!(fields.try_push(b"A!#$%&'*+-.^_`|~9", value), Ok(()));
    }
}

#[test]
fn secrets_are_not_printed() {
    let mut fields = some();
    fields.push("authorization", b"Bearer secret");
    let text = format!("{fields:?}");
    assert!(text.contains("*/*") && text.contains("authorization"), "{text}");
    assert!(!text.contains("secret") && !text.contains("\"b\""), "{text}");
}

/// The same operations on a list of pairs.
#[derive(Default)]
struct Model(Vec<(String, Vec<u8>)>);

impl Model {
    fn apply(&mut self, change: &Change, fields: &mut Fields) {
        let is = |present: &str, name: &str| present.eq_ignore_ascii_case(name);
        match change {
            Change::Push(name, value) => {
                fields.push(name, value);
                self.0.push((name.clone(), value.clone()));
            }
            Change::Set(name, value) => {
                fields.set(name, value);
                let place = self.0.iter().position(|(present, _)| is(present, name));
                let at = place.unwrap_or(self.0.len());
                self.0.retain(|(present, _)| !is(present, name));
                self.0.insert(at, (name.clone(), value.clone()));
            }
            Change::Remove(name) => {
                let before = self.0.len();
                self.0.retain(|(present, _)| !is(present, name));
                assert_eq!(fields.remove(name), self.0.len() < before);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Push(String, Vec<u8>),
    Set(String, Vec<u8>),
    Remove(String),
}

fn change() -> impl Strategy<Value = Change> {
    const NAMES: &[&str] = &["a", "A", "te", "Via", "via", "isthmus-a", "isthmus-b", "x-b"];
    let name = || proptest::sample::select(NAMES).prop_map(str::to_owned);
    let value = || "[a-z]{0,8}".prop_map(String::into_bytes);
    prop_oneof![
        (name(), value()).prop_map(|(name, value)| Change::Push(name, value)),
        (name(), value()).prop_map(|(name, value)| Change::Set(name, value)),
        name().prop_map(Change::Remove),
    ]
}

proptest! {
    #[test]
    fn fields_are_a_list_of_pairs(changes in proptest::collection::vec(change(), 0..40)) {
        let (mut model, mut fields) = (Model::default(), Fields::new());
        for change in &changes {
            model.apply(change, &mut fields);
        }
        let pairs: Vec<_> = fields.iter().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
        prop_assert_eq!(&pairs, &model.0);
        let mut wanted = Vec::new();
        for (name, value) in &model.0 {
            wanted.extend_from_slice(format!("{name}: ").as_bytes());
            wanted.extend_from_slice(value);
            wanted.extend_from_slice(b"\r\n");
            let known = Known::of(name.as_bytes());
            prop_assert!(known.is_none_or(|known| fields.has(known)));
        }
        let mut written = Vec::new();
        fields.write_without(KnownSet::EMPTY, &mut written);
        prop_assert_eq!(fields.bytes(), wanted.len());
        prop_assert_eq!(written, wanted);
        for known in [Known::Te, Known::Via, Known::Mesh] {
            prop_assert_eq!(fields.has(known), fields.all_known(known).next().is_some());
        }
    }
}

#[test]
fn what_one_large_message_has_left_is_given_back() {
    let mut fields = some();
    fields.push("x-large", &[b'a'; 10_000]);
    fields.clear();
    assert!(fields.block.capacity() >= 10_000);
    fields.shrink_to(20_000);
    assert!(fields.block.capacity() >= 10_000, "no more than asked for is given back");
    fields.shrink_to(1000);
    assert!((1000..10_000).contains(&fields.block.capacity()));
}
