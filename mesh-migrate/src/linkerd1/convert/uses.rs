//! What has become of the entries of a table.

use super::labels::ANYBODY;
use crate::ledger::Verdict;

/// What is known of an entry of the table after all names were tried.
#[derive(Debug, Clone, Default)]
pub(super) struct Use {
    pub is_used: bool,
    pub knows_some: bool,
    pub goes_anywhere: Option<String>,
    pub error: Option<String>,
    pub answers_a_share: bool,
    pub is_rounded: bool,
}

/// What an entry has become.
pub(super) fn verdict(seen: &Use) -> Verdict {
    // The name that stands for all others is no host and port; some of those may be.
    if seen.error.as_ref().is_some_and(|wrong| wrong.contains(ANYBODY)) {
        return Verdict::Decision {
            question: "hosts and ports that clients name go on from here, and those that are not known get 502 here: which are in use?".into(),
            choices: vec![
                "give them and plan again".into(),
                "an egress route for all of them".into(),
            ],
        };
    }
    if let Some(wrong) = &seen.error {
        return Verdict::Dropped {
            meaning: format!("names that come here were answered 502: {wrong}"),
        };
    }
    if let Some(to) = &seen.goes_anywhere {
        return Verdict::Decision {
            question: format!(
                "any name goes to {to}, and names that are not known get 502 here: which are in use?"
            ),
            choices: vec![
                "give them and plan again".into(),
                "an egress route for all of them".into(),
            ],
        };
    }
    if seen.answers_a_share {
        return Verdict::Approximated {
            how: "of a union, the share that Linkerd answers itself (`$`, a status) gets 503 here"
                .into(),
        };
    }
    if seen.is_rounded {
        return Verdict::Approximated { how: "shares are whole parts of ten thousand".into() };
    }
    if seen.knows_some {
        return Verdict::Approximated {
            how: "names that discovery knows now have rules; one that comes later gets 502 until it is planned again"
                .into(),
        };
    }
    if !seen.is_used {
        return Verdict::Dropped {
            meaning: "no name that is known leads here: no rule comes of it".into(),
        };
    }
    Verdict::Exact
}
