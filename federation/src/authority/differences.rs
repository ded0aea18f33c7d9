//! What differs between two states of a shared map.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

/// Keys whose values are not the same allocation, with both values. Walks both
/// maps, unless they are one.
pub fn differences<'a, K: Ord, V>(
    before: &'a Arc<BTreeMap<K, Arc<V>>>,
    now: &'a Arc<BTreeMap<K, Arc<V>>>,
) -> impl Iterator<Item = (&'a K, [Option<&'a Arc<V>>; 2])> {
    let same = Arc::ptr_eq(before, now);
    let mut before = before.iter().filter(move |_| !same).peekable();
    let mut now = now.iter().filter(move |_| !same).peekable();
    std::iter::from_fn(move || {
        loop {
            let order = match (before.peek(), now.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = order.is_le().then(|| before.next()).flatten();
            let new = order.is_ge().then(|| now.next()).flatten();
            match (old, new) {
                (Some((_, old)), Some((_, new))) if Arc::ptr_eq(old, new) => {}
                _ => {
                    let key = old.or(new).map(|(key, _)| key)?;
                    return Some((key, [old, new].map(|entry| entry.map(|(_, value)| value))));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Map = Arc<BTreeMap<u8, Arc<u8>>>;

    fn found(before: &Map, now: &Map) -> Vec<(u8, Option<u8>, Option<u8>)> {
        let value = |value: Option<&Arc<u8>>| value.map(|value| **value);
        differences(before, now).map(|(key, [old, new])| (*key, value(old), value(new))).collect()
    }

    #[test]
    fn what_came_went_and_changed_is_found() {
        let before: Map = Arc::new((0..6).map(|key| (key, Arc::new(key))).collect());
        assert_eq!(found(&before, &before.clone()), []);
        let mut now = before.clone();
        let changed = Arc::make_mut(&mut now);
        changed.remove(&0);
        changed.remove(&3);
        changed.insert(4, Arc::new(40));
        changed.insert(9, Arc::new(9));
        let all =
            [(0, Some(0), None), (3, Some(3), None), (4, Some(4), Some(40)), (9, None, Some(9))];
        assert_eq!(found(&before, &now), all);
        let back = all.map(|(key, old, new)| (key, new, old));
        assert_eq!(found(&now, &before), back);
        assert_eq!(found(&Map::default(), &before).len(), 6);
    }
}
