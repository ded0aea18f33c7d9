//! The ways to other sites, apart from the endpoints behind them: a way that
//! failed spares its endpoints and blames none.

use std::{collections::BTreeMap, time::Duration};

use crate::name::SiteName;

/// How long a way that failed is left alone the first time; twice as long each
/// further time.
const FIRST: Duration = Duration::from_secs(3);
/// And at most.
const LONGEST: Duration = Duration::from_secs(60);

/// What one worker has seen of the ways to other sites. `now` values are
/// durations since any fixed moment of the caller's.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    failed: BTreeMap<SiteName, Failed>,
    version: u64,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    until: Duration,
    pause: Duration,
}

impl Paths {
    /// Nothing came through to this site.
    pub fn fail(&mut self, site: &SiteName, now: Duration) {
        let old = self.failed.get(site).copied();
        if old.is_some_and(|old| now < old.until) {
            return;
        }
        let pause = old.map_or(FIRST, |old| (old.pause * 2).min(LONGEST));
        self.failed.insert(site.clone(), Failed { until: now + pause, pause });
        self.version += 1;
    }

    /// Somebody there has answered.
    pub fn answer(&mut self, site: &SiteName) {
        if self.failed.remove(site).is_some() {
            self.version += 1;
        }
    }

    /// Whether nothing is known to be wrong: then there is no need to tell of
    /// answers.
    pub fn is_clear(&self) -> bool {
        self.failed.is_empty()
    }

    /// Whether the way to this site is left alone for now.
    pub fn is_down(&self, site: &SiteName, now: Duration) -> bool {
        self.failed.get(site).is_some_and(|failed| now < failed.until)
    }

    /// Changes with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Forgets sites that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&SiteName) -> bool) {
        let before = self.failed.len();
        self.failed.retain(|site, _| keep(site));
        self.version += u64::from(before != self.failed.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_fails_again_is_left_alone_for_longer() {
        let (east, north): (SiteName, SiteName) =
            ("east".parse().unwrap(), "north".parse().unwrap());
        let mut paths = Paths::default();
        let (mut now, mut pause) = (Duration::from_secs(1), FIRST);
        for _ in 0..7 {
            let before = paths.version();
            paths.fail(&east, now);
            assert_ne!(paths.version(), before);
            // What fails meanwhile changes nothing.
            let held = paths.version();
            paths.fail(&east, now + pause - Duration::from_millis(1));
            assert_eq!(paths.version(), held);
            assert!(paths.is_down(&east, now + pause - Duration::from_millis(1)));
            assert!(!paths.is_down(&east, now + pause) && !paths.is_down(&north, now));
            now += pause;
            pause = (pause * 2).min(LONGEST);
        }
        assert_eq!(pause, LONGEST);
        let before = paths.version();
        paths.answer(&north);
        assert!(paths.version() == before && !paths.is_clear());
        paths.fail(&north, now);
        paths.retain(|site| *site == north);
        assert!(!paths.is_clear() && paths.failed.len() == 1);
        paths.answer(&north);
        assert!(paths.is_clear() && paths.version() > before);
        paths.fail(&east, now);
        assert!(paths.is_down(&east, now + FIRST - Duration::from_millis(1)));
        assert!(!paths.is_down(&east, now + FIRST), "an answer ended the doubling");
    }

    /// Who has seen a version has seen all that led to it.
    #[test]
    fn no_version_comes_twice() {
        let east: SiteName = "east".parse().unwrap();
        let (mut paths, mut now) = (Paths::default(), Duration::ZERO);
        let mut seen = std::collections::BTreeSet::from([paths.version()]);
        let changes: [fn(&mut Paths, &SiteName, Duration); 4] = [
            |paths, east, now| paths.fail(east, now),
            |paths, east, _| paths.answer(east),
            |paths, east, now| paths.fail(east, now),
            |paths, _, _| paths.retain(|_| false),
        ];
        for change in changes.iter().cycle().take(12) {
            change(&mut paths, &east, now);
            assert!(seen.insert(paths.version()));
            now += LONGEST;
        }
        paths.answer(&east);
        paths.retain(|_| true);
        assert!(seen.contains(&paths.version()), "nothing has changed");
    }
}
