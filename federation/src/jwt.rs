//! JWT-SVIDs of the site: which key signs, and when the next one does.
//!
//! The bundle says it all, so that the log holds it: each key has a time from
//! which, and one until which it signs. A new one is published [`AHEAD`] of its
//! time, and the one before it stays for [`LAST`] after its own, when no token
//! that it has signed is believed any more.

use std::{collections::BTreeSet, time::Duration};

use mesh_api::v1::{self, BundleUpdated, JwtKey, authority_record::Event};
use mesh_core::{
    SpiffeId,
    jwt::{self, LEEWAY},
};
use mesh_runtime::drain::Drain;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    authority::{CommitError, State},
    ca::{CaError, jwt::JwtKeys},
    refusal::Never,
    site::Site,
};

/// How long a token is good for.
pub const TOKEN_LIFE: Duration = Duration::from_secs(300);
/// How long a key signs.
pub const KEY_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// How long before its time a key is published: whoever was away for less
/// never meets a token that it cannot verify.
pub const AHEAD: Duration = Duration::from_secs(10 * 86_400);
/// How long a key stays after its time: until its last token has ended, also
/// by a clock that is behind.
pub const LAST: Duration = Duration::from_secs(TOKEN_LIFE.as_secs() + 2 * LEEWAY.as_secs());
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(60);

/// Why keys were not made or published.
#[derive(Debug, thiserror::Error)]
pub enum JwtKeyError {
    /// The disk.
    #[error(transparent)]
    Keys(#[from] CaError),
    /// The log.
    #[error(transparent)]
    Commit(#[from] CommitError<Never>),
}

/// A token with its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// JWS in compact form.
    pub token: String,
    /// The key that has signed it.
    pub kid: String,
    /// Unix seconds.
    pub not_after_unix_s: i64,
}

/// Signs a token by the key whose time it is. `None` if that is not here.
pub fn issue(
    state: &State,
    keys: &JwtKeys,
    id: &SpiffeId,
    audience: &[String],
    now_unix_s: i64,
) -> Option<IssuedToken> {
    let kid = signing(&state.site().bundle.jwt_keys, keys, now_unix_s)?.kid.clone();
    let not_after_unix_s = now_unix_s + seconds(TOKEN_LIFE);
    // Earlier, for clocks that are behind.
    let issued_at = now_unix_s - seconds(LEEWAY);
    let to_sign = jwt::to_sign(&kid, id, audience, issued_at, not_after_unix_s);
    let signature = keys.sign(&kid, to_sign.as_bytes())?;
    Some(IssuedToken { token: jwt::with_signature(&to_sign, &signature), kid, not_after_unix_s })
}

/// The newest key whose time has come. Where the clock was set back, none may
/// have: then the one that is next.
fn signing<'a>(published: &'a [JwtKey], keys: &JwtKeys, now: i64) -> Option<&'a JwtKey> {
    let held = || published.iter().filter(move |key| keys.holds(&key.kid));
    let begun = held().filter(|key| key.signs_from_unix_s <= now);
    begun
        .max_by_key(|key| key.signs_from_unix_s)
        .or_else(|| held().min_by_key(|key| key.signs_from_unix_s))
}

/// What is due at one moment.
#[derive(Debug, Default, PartialEq)]
struct Due {
    /// Keys that stay.
    kept: Vec<JwtKey>,
    /// When the next one that has to be made begins to sign.
    new_from: Option<i64>,
}

fn due(published: &[JwtKey], holds: impl Fn(&str) -> bool, now: i64) -> Due {
    let is_over = |key: &JwtKey| key.signs_until_unix_s + seconds(LAST) <= now;
    let mut kept: Vec<_> = published.iter().filter(|key| !is_over(key)).cloned().collect();
    let last = kept.iter().filter(|key| holds(&key.kid)).map(|key| key.signs_until_unix_s).max();
    let new_from = match last.filter(|until| *until > now) {
        Some(until) => (until - now <= seconds(AHEAD)).then_some(until),
        None => Some(now),
    };
    // What lost its private half signs no more.
    for key in kept.iter_mut().filter(|key| !holds(&key.kid)) {
        key.signs_until_unix_s = key.signs_until_unix_s.min(now);
    }
    Due { kept, new_from }
}

/// Publishes what is due, and removes from the disk what is not published.
pub async fn follow(site: &Site) -> Result<(), JwtKeyError> {
    let _turn = site.ca.jwt_keys().publishing.lock().await;
    // What an attempt that failed has left.
    tidy(site)?;
    let (authority, keys) = (&site.authority, site.ca.jwt_keys());
    let now = authority.clock().unix_s();
    let look = |state: &State| {
        let published = &state.site().bundle.jwt_keys;
        let due = due(published, |kid| keys.holds(kid), now);
        (due.kept != *published || due.new_from.is_some()).then_some(due)
    };
    let Some(Due { new_from, .. }) = look(&authority.state()) else { return Ok(()) };
    let new = new_from.map(|_| keys.make()).transpose()?;
    let publish = |state: &State| -> Result<_, Never> {
        let Some(Due { mut kept, new_from }) = look(state) else { return Ok((vec![], ())) };
        kept.extend(new_from.zip(new).map(|(from, new)| JwtKey {
            kid: new.kid,
            p256: new.point,
            signs_from_unix_s: from,
            signs_until_unix_s: from + seconds(KEY_LIFE),
        }));
        Ok((vec![updated(state, kept)], ()))
    };
    authority.commit("federation", publish).await?;
    log::info!(new = new_from.is_some(); "the keys for JWT-SVIDs have changed");
    tidy(site)
}

fn tidy(site: &Site) -> Result<(), JwtKeyError> {
    let state = site.authority.state();
    let published = &state.site().bundle.jwt_keys;
    let published: BTreeSet<&str> = published.iter().map(|key| key.kid.as_str()).collect();
    Ok(site.ca.jwt_keys().keep_only(&published)?)
}

/// The next bundle of the site, the same but for these keys.
fn updated(state: &State, jwt_keys: Vec<JwtKey>) -> Event {
    let known = state.site().bundle.clone();
    let bundle = v1::Bundle { sequence: known.sequence + 1, jwt_keys, ..known };
    Event::BundleUpdated(BundleUpdated { bundle: Some(bundle) })
}

/// Until the process drains.
pub async fn keep(site: Site, drain: Drain) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drain.draining() => return,
            _ = look.tick() => {}
        }
        if let Err(error) = follow(&site).await {
            log::error!(error:%; "keys for JWT-SVIDs are due and cannot be made or published");
        }
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
