use std::collections::BTreeMap;

use super::*;

const NOW: i64 = 1_800_000_000;

fn key(kid: &str, from: i64, until: i64) -> JwtKey {
    JwtKey {
        kid: kid.into(),
        p256: vec![4; 65],
        signs_from_unix_s: from,
        signs_until_unix_s: until,
    }
}

fn of(published: &[JwtKey], lost: &[&str]) -> (Vec<String>, Option<i64>) {
    let due = due(published, |kid| !lost.contains(&kid), NOW);
    (due.kept.into_iter().map(|key| key.kid).collect(), due.new_from.map(|from| from - NOW))
}

#[test]
fn the_next_key_is_published_before_the_last_one_ends() {
    let (ahead, last) = (seconds(AHEAD), seconds(LAST));
    let kids = |kids: &[&str]| kids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of(&[], &[]), (kids(&[]), Some(0)), "the first signs at once");
    let ends_in = |left| key("a", NOW - 9, NOW + left);
    assert_eq!(of(&[ends_in(ahead + 1)], &[]), (kids(&["a"]), None));
    assert_eq!(of(&[ends_in(ahead)], &[]), (kids(&["a"]), Some(ahead)));
    let next = key("b", NOW + ahead, NOW + 3 * ahead);
    assert_eq!(of(&[ends_in(ahead), next.clone()], &[]), (kids(&["a", "b"]), None));
    // After its time it stays until its last token has ended.
    assert_eq!(of(&[ends_in(1 - last), next.clone()], &[]), (kids(&["a", "b"]), None));
    assert_eq!(of(&[ends_in(-last), next.clone()], &[]), (kids(&["b"]), None));
    // After a long sleep.
    assert_eq!(of(&[ends_in(-last)], &[]), (kids(&[]), Some(0)));
    assert_eq!(of(&[ends_in(0)], &[]), (kids(&["a"]), Some(0)));
    // Restored without its keys: what they have signed ends as it would.
    let both = [ends_in(2 * ahead), next];
    assert_eq!(of(&both, &["a", "b"]), (kids(&["a", "b"]), Some(0)));
    let lost = due(&both, |_| false, NOW).kept;
    assert!(lost.iter().all(|key| key.signs_until_unix_s <= NOW), "{lost:?}");
}

#[test]
fn the_newest_key_signs_whose_time_has_come() {
    let directory = tempfile::tempdir().unwrap();
    let keys = JwtKeys::open(directory.path()).unwrap();
    let [a, b, c] = [(); 3].map(|()| keys.make().unwrap().kid);
    let published = [key(&a, NOW - 9, NOW), key(&b, NOW, NOW + 9), key(&c, NOW + 9, NOW + 18)];
    for (at, expected) in
        [(NOW - 99, &a), (NOW - 1, &a), (NOW, &b), (NOW + 8, &b), (NOW + 9, &c), (NOW + 99, &c)]
    {
        let signs = signing(&published, &keys, at).map(|key| &key.kid);
        assert_eq!(signs, Some(expected), "at {}", at - NOW);
    }
    keys.keep_only(&[a.as_str()].into()).unwrap();
    assert_eq!(signing(&published, &keys, NOW).map(|key| &key.kid), Some(&a), "what is here");
    assert_eq!(signing(&published[1..], &keys, NOW), None);
}

/// A year of a site, looked at every hour: whoever verifies with the bundle of
/// that hour, or with one of up to nine days before, believes a token of any
/// time; keys come and go.
#[test]
fn no_token_meets_a_bundle_without_its_key() {
    const HOUR: i64 = 3600;
    let directory = tempfile::tempdir().unwrap();
    let keys = JwtKeys::open(directory.path()).unwrap();
    let (mut published, mut seen): (Vec<JwtKey>, BTreeMap<i64, Vec<String>>) = Default::default();
    let mut signed = BTreeSet::new();
    for hour in 0..365 * 24 {
        let now = NOW + hour * HOUR;
        let due = due(&published, |kid| keys.holds(kid), now);
        published = due.kept;
        published.extend(
            due.new_from.map(|from| key(&keys.make().unwrap().kid, from, from + seconds(KEY_LIFE))),
        );
        keys.keep_only(&published.iter().map(|key| key.kid.as_str()).collect()).unwrap();
        let kid = &signing(&published, &keys, now).unwrap().kid;
        signed.insert(kid.clone());
        seen.insert(hour, published.iter().map(|key| key.kid.clone()).collect());
        for days in 0..10 {
            let known = seen.get(&(hour - days * 24)).unwrap_or(&seen[&0]);
            assert!(known.contains(kid), "hour {hour}, bundle of {days} days before");
        }
        // One that was signed just before the last look.
        let before = seen
            .get(&(hour - 1))
            .and_then(|_| signing(&published, &keys, now - 1).map(|key| key.kid.clone()));
        assert!(before.is_none_or(|kid| seen[&hour].contains(&kid)), "hour {hour}");
        assert!(published.len() <= 2, "hour {hour}: {published:?}");
    }
    assert_eq!(signed.len(), 13, "one a month");
}
