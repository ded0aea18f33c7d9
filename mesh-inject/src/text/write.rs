//! Values as YAML that means the same to every reader: YAML 1.1, as Kubernetes
//! and most tools have it, YAML 1.2, and people. Keys are sorted, lists stand
//! under their key, as `kubectl -o yaml` has it.

use serde_json::{Map, Value};

use super::scalar;

/// One document, without `---`.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut text, map, 0, true),
        Value::Array(list) if !list.is_empty() => sequence(&mut text, list, 0, true),
        other => {
            flow(&mut text, other, 0);
            text.push('\n');
        }
    }
    text
}

/// `begun`: the first line has its indentation already.
fn mapping(text: &mut String, map: &Map<String, Value>, depth: usize, begun: bool) {
    let mut begun = begun;
    let mut keys: Vec<_> = map.iter().collect();
    keys.sort_by_key(|(key, _)| *key);
    for (key, value) in keys {
        if !std::mem::take(&mut begun) {
            indent(text, depth);
        }
        string(text, key);
        text.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                text.push('\n');
                mapping(text, map, depth + 1, false);
            }
            Value::Array(list) if !list.is_empty() => {
                text.push('\n');
                sequence(text, list, depth, false);
            }
            other => {
                text.push(' ');
                flow(text, other, depth + 1);
                text.push('\n');
            }
        }
    }
}

fn sequence(text: &mut String, list: &[Value], depth: usize, begun: bool) {
    let mut begun = begun;
    for value in list {
        if !std::mem::take(&mut begun) {
            indent(text, depth);
        }
        text.push_str("- ");
        match value {
            Value::Object(map) if !map.is_empty() => mapping(text, map, depth + 1, true),
            Value::Array(list) if !list.is_empty() => sequence(text, list, depth + 1, true),
            other => {
                flow(text, other, depth + 1);
                text.push('\n');
            }
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

/// What needs no lines of its own, or brings them.
fn flow(text: &mut String, value: &Value, depth: usize) {
    match value {
        // Not every reader takes one without indentation, as a whole document.
        Value::String(value) if depth > 0 && is_block(value) => block(text, value, depth),
        Value::String(value) => string(text, value),
        Value::Object(_) => text.push_str("{}"),
        Value::Array(_) => text.push_str("[]"),
        other => text.push_str(&other.to_string()),
    }
}

/// Whether a text can be a literal block scalar that no reader takes for
/// something else.
fn is_block(value: &str) -> bool {
    let inner = value.trim_end_matches('\n');
    inner.contains('\n')
        && value.len() - inner.len() <= 1
        && !inner.starts_with([' ', '\t', '\n'])
        && value.chars().all(|c| c == '\n' || is_shown(c))
}

fn block(text: &mut String, value: &str, depth: usize) {
    text.push_str(if value.ends_with('\n') { "|" } else { "|-" });
    for line in value.trim_end_matches('\n').split('\n') {
        text.push('\n');
        if !line.is_empty() {
            indent(text, depth);
            text.push_str(line);
        }
    }
}

/// Without quotes where nobody can be mistaken.
fn string(text: &mut String, value: &str) {
    if is_plain(value) {
        text.push_str(value);
        return;
    }
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if is_shown(c) => text.push(c),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    text.push('"');
}

/// As YAML has it printable on one line; what is beyond the 16-bit plane is
/// printable, and so never escaped in halves.
fn is_shown(c: char) -> bool {
    matches!(c, '\t' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..)
        && !matches!(c, '\u{2028}' | '\u{2029}')
}

fn is_plain(value: &str) -> bool {
    let first = value.chars().next();
    let begins = first
        .is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.' | '-' | '$'));
    let is_inner = |c: char| c.is_ascii_alphanumeric() || " _./:=@+-,()%;&*$".contains(c);
    let reads_as_text = scalar::plain(value).is_string();
    begins
        && value.chars().all(is_inner)
        && !value.contains(": ")
        && !value.ends_with([' ', ':'])
        && reads_as_text
        && !is_doubtful(value)
}

/// Numbers of other readers, dates, times of YAML 1.1 (`12:30:45` is 45045), list
/// items, ends of documents.
fn is_doubtful(value: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit();
    if value.starts_with(is_digit) {
        // `100m`, `64Mi`, `30s` and the like are fine.
        let suffix = value.trim_start_matches(is_digit);
        return !["m", "k", "M", "G", "T", "s", "h", "d", "Ki", "Mi", "Gi", "Ti"].contains(&suffix);
    }
    let rest = value.trim_start_matches(['-', '.']);
    let is_word = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_number = ["inf", "nan"].contains(&rest.to_ascii_lowercase().as_str());
    rest.len() < value.len() && (!is_word || is_number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::text::read::read;

    #[test]
    fn it_looks_like_kubectls() {
        let value = json!({
            "kind": "Pod",
            "spec": {
                "containers": [
                    {"name": "a", "args": ["--x=1", "-v", "sh -c"], "env": [], "command": [["x", ["z"]]]},
                    {"name": "b", "script": "set -e\n\necho hi\n", "t": {}},
                ],
                "n": null, "f": 1.5, "z": -3, "on": true,
            },
        });
        let expected = "\
kind: Pod
spec:
  containers:
  - args:
    - --x=1
    - -v
    - sh -c
    command:
    - - x
      - - z
    env: []
    name: a
  - name: b
    script: |
      set -e

      echo hi
    t: {}
  f: 1.5
  \"n\": null
  \"on\": true
  z: -3
";
        assert_eq!(write(&value), expected);
    }

    #[test]
    fn what_could_be_taken_for_something_else_is_quoted() {
        let quoted = [
            "yes Off y null ~ 0644 1 1e3 1_000 0x1f 12:30:45 2001-12-14 10.0.0.1 1.2.3 08 <<",
            "- --- .5 .inf -.inf .nan a: *a &a !a %a @a `a {a [a 'a \"a #a | > ? = é",
        ];
        let words = quoted.iter().flat_map(|words| words.split(' '));
        let spaces = ["", "- a", "a: b", "a #b", " a", "a ", "a\tb", "a\r\nb"];
        let unseen = ["a\u{7f}", "a\u{85}b", "\u{feff}a", "a\u{2028}b"];
        for text in words.chain(spaces).chain(unseen) {
            assert!(write(&json!(text)).starts_with('"'), "{text:?}: {}", write(&json!(text)));
        }
        let plain = [
            "web nginx:1.25 100m 64Mi 30s /var/run --flag=x -v a-b_c.d/e isthmus.dev/inject",
            "$(HOME)/x .profile ./run x=1;y=2",
        ];
        let words = plain.iter().flat_map(|words| words.split(' '));
        for text in words.chain(["a, b", "sh -c"]) {
            assert_eq!(write(&json!(text)), format!("{text}\n"));
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "[ -~\n\t]{0,12}",
            "\\PC{0,6}",
            any::<String>(),
            "[-+.0-9eExob_:]{0,8}",
            "(yes|no|on|off|null|~|true|[a-z \n]{0,9})",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0 + 0.1)),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn we_read_what_we_write(value in value()) {
            let text = write(&value);
            let read = read(&text).unwrap_or_else(|mistake| panic!("{text}\n{mistake:?}"));
            prop_assert_eq!(read.value.unwrap_or_default(), value, "{}", text);
        }

        #[test]
        fn others_read_the_same(value in value()) {
            let text = write(&value);
            let read: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
