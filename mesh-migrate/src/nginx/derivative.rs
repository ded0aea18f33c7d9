//! What is left of a pattern when the beginning of a text is known: its derivative
//! (Brzozowski, Derivatives of Regular Expressions, 1964).

use std::collections::BTreeSet;

use regex_automata::{
    Anchored,
    hybrid::{
        LazyStateID,
        dfa::{Cache, DFA},
    },
    nfa::thompson,
    util::{start, syntax},
};

/// What a pattern may take, in bytes.
const MAX_MEMORY: usize = 1 << 20;
/// States that are looked at.
const MAX_STATES: usize = 512;

/// Which ends make a text of the pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    All,
    None,
    /// Those that do so after the other beginning.
    Same,
}

/// The pattern takes whole texts. `None` where it is more than can be said, or looked at.
pub(super) fn ends(pattern: &str, begin: &str, other: Option<&str>) -> Option<Ends> {
    let config = DFA::config()
        .cache_capacity(MAX_MEMORY)
        .skip_cache_capacity_check(true)
        .minimum_cache_clear_count(Some(0));
    let dfa = DFA::builder()
        .configure(config)
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(MAX_MEMORY)))
        .build(&format!(r"\A(?:{pattern})\z"))
        .ok()?;
    let mut cache = dfa.create_cache();
    let begun = after(&dfa, &mut cache, begin)?;
    let bytes: Vec<u8> =
        dfa.byte_classes().representatives(0..=255).filter_map(|unit| unit.as_u8()).collect();
    let (mut seen, mut next) = (BTreeSet::from([begun]), vec![begun]);
    let (mut takes, mut refuses) = (false, false);
    while let Some(state) = next.pop() {
        match dfa.next_eoi_state(&mut cache, state).ok()?.is_match() {
            true => takes = true,
            false => refuses = true,
        }
        if takes && refuses || seen.len() > MAX_STATES {
            let other = other.and_then(|other| after(&dfa, &mut cache, other));
            return (other == Some(begun)).then_some(Ends::Same);
        }
        for byte in &bytes {
            let state = dfa.next_state(&mut cache, state, *byte).ok()?;
            if seen.insert(state) {
                next.push(state);
            }
        }
    }
    Some(if takes { Ends::All } else { Ends::None })
}

fn after(dfa: &DFA, cache: &mut Cache, text: &str) -> Option<LazyStateID> {
    let from = start::Config::new().anchored(Anchored::Yes);
    let state = dfa.start_state(cache, &from).ok()?;
    text.bytes().try_fold(state, |state, byte| dfa.next_state(cache, state, byte).ok())
}

#[cfg(test)]
mod tests {
    use super::{Ends, ends};

    #[test]
    fn what_may_come_after_a_beginning() {
        let any = "(?s:.*)";
        for (pattern, begin, other, expected) in [
            (format!("(?i){any}(?:^/(a|d)/){any}"), "/a/", Some("/old/"), Some(Ends::All)),
            (format!("(?i){any}(?:^/(a|d)/){any}"), "/b/", Some("/old/"), Some(Ends::None)),
            (format!(r"{any}\.(png|css)"), "/a/", Some("/old/"), Some(Ends::Same)),
            (format!(r"{any}\.(png|css)"), "/a/", None, None),
            // The beginning is a part of what is looked for.
            (format!(r"{any}a/\.png"), "/a/", Some("/old/"), None),
            (format!(r"{any}old{any}"), "/a/", Some("/old/"), None),
            (format!(r"{any}old{any}"), "/old/", None, Some(Ends::All)),
            ("/a/[0-9]+".to_owned(), "/a/", Some("/b/"), None),
            ("/a/[0-9]+".to_owned(), "/c", Some("/b/"), Some(Ends::None)),
            (r"/re/(\d+)\n?".to_owned(), "/v1/", Some("/v4/"), Some(Ends::None)),
            // Line feeds, too.
            ("/a.*".to_owned(), "/a", None, None),
            ("(".to_owned(), "/a", None, None),
            ("((((a{99}){99}){99}){99}){99}".to_owned(), "/a", None, None),
        ] {
            assert_eq!(ends(&pattern, begin, other), expected, "{pattern} {begin}");
        }
    }
}
