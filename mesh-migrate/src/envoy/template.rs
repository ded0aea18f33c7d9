//! Templates of paths: "UriTemplateMatchConfig" and "UriTemplateRewriteConfig".

use super::tree::Tree;

/// What a segment may hold.
const LITERAL: &str = r"a-zA-Z0-9\-._~%!$&'()*+,;:@=";

/// The expression of a `path_match_policy`, for the whole path, a group for each variable.
pub(super) fn of_match(matcher: &Tree) -> Option<String> {
    let config = matcher.msg("path_match_policy")?.msg("typed_config")?;
    pattern(config.some_text("path_template")?)
}

/// What such a path becomes: the expression, and a substitution of the `regex` crate.
pub(super) fn of_rewrite(action: &Tree, matcher: Option<&Tree>) -> Option<(String, String)> {
    let config = action.msg("path_rewrite_policy")?.msg("typed_config")?;
    let to = config.some_text("path_template_rewrite")?;
    let mut substitution = String::new();
    let mut rest = to;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        substitution.push_str(&before.replace('$', "$$"));
        substitution.push_str(&format!("${{{name}}}"));
        rest = after;
    }
    substitution.push_str(&rest.replace('$', "$$"));
    Some((of_match(matcher?)?, substitution))
}

fn pattern(template: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '*']) {
        out.push_str(&regex::escape(&rest[..at]));
        rest = &rest[at..];
        if let Some(variable) = rest.strip_prefix('{') {
            let (variable, after) = variable.split_once('}')?;
            let (name, what) = variable.split_once('=').unwrap_or((variable, "*"));
            out.push_str(&format!("(?P<{name}>{})", globs(what)));
            rest = after;
            continue;
        }
        let end = rest.find(|c| c != '*').unwrap_or(rest.len());
        out.push_str(&globs(&rest[..end]));
        rest = &rest[end..];
    }
    out.push_str(&regex::escape(rest));
    Some(out)
}

/// Segments of a variable.
fn globs(what: &str) -> String {
    let one = |segment: &str| match segment {
        "*" => format!("[{LITERAL}]+"),
        "**" => format!("[{LITERAL}/]*"),
        literal => regex::escape(literal),
    };
    what.split('/').map(one).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_an_expression() {
        let holds = |template: &str, path: &str| {
            let pattern = pattern(template).unwrap();
            regex::Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(path)
        };
        for (template, path, expected) in [
            ("/a/{b}/c", "/a/x/c", true),
            ("/a/{b}/c", "/a/x/y/c", false),
            ("/a/{b}/c", "/a//c", false),
            ("/a/*/{rest=**}", "/a/x/", true),
            ("/a/*/{rest=**}", "/a/x/y/z.png", true),
            ("/a/*/{rest=**}", "/a/x", false),
            ("/v/{id=x/*}.json", "/v/x/1.json", true),
            ("/v/{id=x/*}.json", "/v/y/1.json", false),
            ("/a+b/**", "/a+b/", true),
        ] {
            assert_eq!(holds(template, path), expected, "{template} {path}");
        }
        assert!(pattern("/{a").is_none());
    }
}
