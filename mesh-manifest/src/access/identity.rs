//! Identities as they are written: SPIFFE IDs with wildcards, and Linkerd's
//! names.

use mesh_api::v1;
use mesh_core::authorize::PrincipalMatch;

/// What Linkerd has between an account's namespace and the control plane's.
const LINKERD: &str = "serviceaccount.identity.";

/// Whom a text names. Without a trust domain it is the own one; any domain is
/// `*`.
///
/// # Errors
///
/// It is none of the forms.
pub fn principal(text: &str) -> Result<v1::PrincipalMatch, String> {
    let principal = match text {
        "*" => in_domain("*", "", ""),
        _ => match text.strip_prefix("spiffe://") {
            Some(rest) => {
                let (domain, path) = rest.split_once('/').ok_or_else(|| unknown(text))?;
                of_path(domain, path).ok_or_else(|| unknown(text))?
            }
            None if text.starts_with("ns/") => of_path("", text).ok_or_else(|| unknown(text))?,
            None => of_linkerd(text).ok_or_else(|| unknown(text))?,
        },
    };
    checked(principal)
}

fn unknown(text: &str) -> String {
    format!(
        "{text:?}: write *, spiffe://<trust domain>/ns/<namespace>/sa/<account>, \
         spiffe://<trust domain>/ns/<namespace>/*, spiffe://<trust domain>/*, the same from ns/ \
         on for the own trust domain, or \
         <account>.<namespace>.serviceaccount.identity.<namespace>.<trust domain>"
    )
}

/// A principal whose parts are well formed.
pub(super) fn checked(principal: v1::PrincipalMatch) -> Result<v1::PrincipalMatch, String> {
    PrincipalMatch::try_from(&principal).map_err(|error| error.problem)?;
    Ok(principal)
}

fn in_domain(domain: &str, namespace: &str, account: &str) -> v1::PrincipalMatch {
    v1::PrincipalMatch {
        trust_domain: domain.into(),
        namespace: any(namespace),
        account: any(account),
    }
}

fn any(part: &str) -> String {
    if part == "*" { String::new() } else { part.into() }
}

/// `ns/<namespace>/sa/<account>`, `ns/<namespace>/*` or `*`.
fn of_path(domain: &str, path: &str) -> Option<v1::PrincipalMatch> {
    let parts: Vec<&str> = path.split('/').collect();
    match *parts.as_slice() {
        ["*"] => Some(in_domain(domain, "", "")),
        ["ns", namespace, "*"] if !namespace.is_empty() => Some(in_domain(domain, namespace, "")),
        ["ns", namespace, "sa", account] if !namespace.is_empty() && !account.is_empty() => {
            Some(in_domain(domain, namespace, account))
        }
        _ => None,
    }
}

/// `<account>.<namespace>.serviceaccount.identity.<namespace>.<trust domain>`
/// or such an ending after `*.`; the control plane's namespace says nothing
/// here. Any other ending is a trust domain.
fn of_linkerd(text: &str) -> Option<v1::PrincipalMatch> {
    let domain_of = |control: &str| control.split_once('.').map(|(_, domain)| domain.to_owned());
    if let Some((of, control)) = text.split_once(&format!(".{LINKERD}")) {
        let domain = domain_of(control)?;
        return match *of.split('.').collect::<Vec<_>>().as_slice() {
            ["*"] => Some(in_domain(&domain, "", "")),
            [account, namespace] if namespace != "*" => {
                Some(in_domain(&domain, namespace, account))
            }
            _ => None,
        };
    }
    let ending = text.strip_prefix("*.")?;
    let domain = match ending.strip_prefix("identity.") {
        Some(control) => domain_of(control)?,
        None => ending.to_owned(),
    };
    Some(in_domain(&domain, "", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases = [
            ("*", Some(("*", "", ""))),
            ("spiffe://east.example/ns/shop/sa/web", Some(("east.example", "shop", "web"))),
            ("spiffe://east.example/ns/shop/*", Some(("east.example", "shop", ""))),
            ("spiffe://east.example/ns/shop/sa/*", Some(("east.example", "shop", ""))),
            ("spiffe://*/ns/shop/sa/web", Some(("*", "shop", "web"))),
            ("spiffe://east.example/*", Some(("east.example", "", ""))),
            ("ns/shop/sa/web", Some(("", "shop", "web"))),
            ("ns/shop/*", Some(("", "shop", ""))),
            (
                "web.shop.serviceaccount.identity.linkerd.east.example",
                Some(("east.example", "shop", "web")),
            ),
            (
                "*.shop.serviceaccount.identity.linkerd.east.example",
                Some(("east.example", "shop", "")),
            ),
            ("*.serviceaccount.identity.linkerd.east.example", Some(("east.example", "", ""))),
            ("*.identity.linkerd.east.example", Some(("east.example", "", ""))),
            ("*.east.example", Some(("east.example", "", ""))),
            ("", None),
            ("web", None),
            ("web.shop", None),
            ("**", None),
            ("spiffe://east.example", None),
            ("spiffe://east.example/ns//sa/web", None),
            ("spiffe://east.example/ns/shop/sa/web/x", None),
            ("spiffe://East Example/ns/shop/sa/web", None),
            ("spiffe://east.example/node/x", None),
            ("ns/sh*p/sa/web", None),
            ("web.*.serviceaccount.identity.linkerd.east.example", None),
            ("web.shop.serviceaccount.identity.linkerd", None),
        ];
        for (text, wanted) in cases {
            let wanted = wanted.map(|(domain, namespace, account)| v1::PrincipalMatch {
                trust_domain: domain.into(),
                namespace: namespace.into(),
                account: account.into(),
            });
            assert_eq!(principal(text).ok(), wanted, "{text}");
        }
    }
}
