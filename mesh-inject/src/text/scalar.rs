//! What a plain scalar means to Kubernetes, which reads YAML 1.1 as go-yaml
//! does: `0644` is 420, `yes` is true, `1_000` is 1000.
//! <https://github.com/yaml/go-yaml/blob/v2/resolve.go>

use serde_json::{Number, Value};

/// A scalar without quotes and tag.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let begins = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    if !begins {
        return None;
    }
    let digits = text.replace('_', "");
    let (is_negative, rest) = match digits.as_bytes().first()? {
        b'-' => (true, digits.get(1..)?),
        b'+' => (false, digits.get(1..)?),
        _ => (false, digits.as_str()),
    };
    integer(is_negative, rest).or_else(|| float(&digits, rest))
}

fn integer(is_negative: bool, digits: &str) -> Option<Number> {
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (digits.get(2..)?, 16),
        [b'0', b'o' | b'O', ..] => (digits.get(2..)?, 8),
        [b'0', b'b' | b'B', ..] => (digits.get(2..)?, 2),
        [b'0', _, ..] => (digits.get(1..)?, 8),
        _ => (digits, 10),
    };
    // What follows a sign and a prefix is digits.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    if !is_negative {
        return Some(size.into());
    }
    0i64.checked_sub_unsigned(size).map(Number::from)
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; a whole one is shown
/// without a point, as JSON has it.
fn float(text: &str, unsigned: &str) -> Option<Number> {
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (unsigned.get(..at)?, Some(unsigned.get(at + 1..)?)),
        None => (unsigned, None),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_digits = !whole.is_empty() || !part.is_empty();
    let is_exponent = exponent.is_none_or(|digits| {
        let digits = digits.strip_prefix(['+', '-']).unwrap_or(digits);
        !digits.is_empty() && is_digits(digits)
    });
    if !(has_digits && is_digits(whole) && is_digits(part) && is_exponent) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        #[allow(clippy::cast_possible_truncation, reason = "it is whole and small")]
        return Some((value as i64).into());
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_mean_what_kubernetes_reads() {
        let cases = [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("-010", json!(-8)),
            ("1_000", json!(1000)),
            ("08", json!(8)),
            ("0", json!(0)),
            ("+5", json!(5)),
            ("-0", json!(0)),
            ("1e3", json!(1000)),
            ("1.50", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("n", json!(false)),
            ("~", json!(null)),
        ];
        for (text, expected) in cases {
            assert_eq!(plain(text), expected, "{text}");
        }
    }

    #[test]
    fn all_else_is_text() {
        let texts = [
            "1.2.3",
            "10.0.0.1",
            "100m",
            "64Mi",
            "0x",
            "0b2",
            "0o8",
            "-",
            "+",
            ".",
            "--",
            "-+1",
            "1e",
            "e3",
            "yEs",
            "nULL",
            "2001-12-14",
            "12:30:45",
            "1,000",
            "0x-1",
            "--1",
            "0-1",
        ];
        for text in texts {
            assert_eq!(plain(text), json!(text));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[-+0-9a-fA-FxXoO_.eE]{0,30}") {
            plain(&text);
        }
    }
}
