//! Ranges of numbers as regular expressions.

/// Digits of a number that is not bounded, at most.
const MAX_DIGITS: usize = 18;

/// What matches decimal numbers from `low` to `high`, both among them.
pub(super) fn within(low: u64, high: u64) -> String {
    let high = high.min(10u64.pow(MAX_DIGITS as u32) - 1);
    let mut patterns = Vec::new();
    let mut from = low;
    while from <= high {
        let upto = block(from, high);
        patterns.push(of_block(from, upto));
        from = upto + 1;
    }
    patterns.join("|")
}

/// The last number of the largest block from `from` on whose digits vary at its end only.
fn block(from: u64, high: u64) -> u64 {
    let mut upto = from;
    let mut power = 1u64;
    while power <= 10u64.pow(MAX_DIGITS as u32 - 1) {
        let digit = from / power % 10;
        let last = from + (9 - digit) * power + (power - 1);
        // The first number of the block has zeros after this digit.
        if !from.is_multiple_of(power) || from.to_string().len() != last.to_string().len() {
            break;
        }
        if last > high {
            let room = (high + 1 - from) / power;
            return if room == 0 { upto } else { from + room * power - 1 };
        }
        upto = last;
        power *= 10;
    }
    upto
}

fn of_block(from: u64, upto: u64) -> String {
    let (from, upto) = (from.to_string(), upto.to_string());
    let pairs = from.chars().zip(upto.chars());
    pairs.map(|(a, b)| if a == b { a.to_string() } else { format!("[{a}-{b}]") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_take_their_numbers() {
        let bounds = [(1, 1), (1, 10), (7, 103), (99, 1001), (1000, 1999), (501, 4321)];
        for (low, high) in bounds {
            let pattern = regex::Regex::new(&format!("^(?:{})$", within(low, high))).unwrap();
            for number in 0..5000u64 {
                let wanted = (low..=high).contains(&number);
                assert_eq!(pattern.is_match(&number.to_string()), wanted, "{low} {high} {number}");
            }
        }
        let pattern = regex::Regex::new(&format!("^(?:{})$", within(1001, u64::MAX))).unwrap();
        assert!(pattern.is_match("123456789012") && !pattern.is_match("1000"));
    }
}
