//! Numbers that look random: hashes that agree between proxies, and dice.

/// A hash of a key of affinity or of a name (FNV-1a, then mixed). Every proxy
/// gets the same; whoever chooses the key may choose the hash.
pub fn hash(bytes: &[u8]) -> u64 {
    mix(fnv(bytes.iter().copied()))
}

/// The hash of `<site>/<id>`.
pub(super) fn hash_name(site: &str, id: &str) -> u64 {
    mix(fnv(site.bytes().chain([b'/']).chain(id.bytes())))
}

fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The finalizer of SplitMix64: every bit in changes half of those out.
pub(super) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A sequence of numbers uniform over all of `u64` (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn roll(&mut self) -> u64 {
        let rolled = mix(self.0);
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        rolled
    }
}

/// A number of `u64` as one of [0, 1).
pub(super) fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// Which of `n` equal parts of `u64` a number lies in.
pub(super) fn part(number: u64, n: usize) -> usize {
    let part = (u128::from(number) * n as u128) >> 64;
    usize::try_from(part).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other versions and other proxies must agree: these never change.
    #[test]
    fn hashes_are_for_ever() {
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(hash(b""), mix(0xCBF2_9CE4_8422_2325));
        assert_ne!(hash(b"a"), hash(b"b"));
        assert_eq!(hash(b"east/o-1"), hash_name("east", "o-1"));
    }

    #[test]
    fn parts_and_units_cover_their_ranges() {
        assert_eq!([0, u64::MAX].map(|n| part(n, 10)), [0, 9]);
        assert_eq!([u64::MAX / 2, u64::MAX / 2 + 1].map(|n| part(n, 10)), [4, 5]);
        assert_eq!(unit(0), 0.0);
        assert!(unit(u64::MAX) < 1.0);
    }

    #[test]
    fn dice_are_fair_and_repeatable() {
        let rolls = |seed| {
            let mut dice = Dice::new(seed);
            (0..1000).map(move |_| unit(dice.roll())).collect::<Vec<_>>()
        };
        assert_eq!(rolls(3), rolls(3));
        assert_ne!(rolls(3), rolls(4));
        let mean = rolls(5).iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
    }
}
