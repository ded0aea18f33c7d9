//! Request targets (RFC 9112 section 3.2).

use http::{Method, Version};
use mesh_core::message::{
    RequestHead,
    convert::{is_authority, is_target},
};

use crate::http1::BadMessage;

/// Puts authority and target into `head`, whose method has been read.
pub(super) fn read(
    target: &str,
    host: Option<&[u8]>,
    version: Version,
    head: &mut RequestHead,
) -> Result<(), BadMessage> {
    // RFC 9112 section 3.2: 1.1 needs one, whatever the target's form.
    if host.is_none() && version == Version::HTTP_11 {
        return Err(BadMessage::HostMissing);
    }
    let host = host.map(checked).transpose()?;
    if head.method == Method::CONNECT {
        authority_form(target, host, head)
    } else if target.starts_with('/') || target == "*" {
        head.authority.push_str(host.unwrap_or_default());
        origin_form(target, head)
    } else {
        absolute_form(target, host, head)
    }
}

fn checked(host: &[u8]) -> Result<&str, BadMessage> {
    let text = std::str::from_utf8(host).map_err(|_| BadMessage::HostInvalid)?;
    if is_authority(host) { Ok(text) } else { Err(BadMessage::HostInvalid) }
}

/// `/path?query`, and `*` for OPTIONS alone (sections 3.2.1, 3.2.4).
fn origin_form(target: &str, head: &mut RequestHead) -> Result<(), BadMessage> {
    let asterisk = target == "*" && head.method != Method::OPTIONS;
    if asterisk || !is_target(target.as_bytes()) {
        return Err(BadMessage::Target);
    }
    head.target.push_str(target);
    Ok(())
}

/// `host:port` for CONNECT alone (section 3.2.3); port 0 leads nowhere (RFC
/// 9110 section 9.3.6).
fn authority_form(
    target: &str,
    host: Option<&str>,
    head: &mut RequestHead,
) -> Result<(), BadMessage> {
    let port = target.rsplit_once(':').map_or("", |(_, port)| port);
    let port: u16 = port.parse().map_err(|_| BadMessage::Target)?;
    if port == 0 || !is_authority(target.as_bytes()) {
        return Err(BadMessage::Target);
    }
    if host.is_some_and(|host| !is_same(target, host, port)) {
        return Err(BadMessage::HostDiffers);
    }
    head.authority.push_str(target);
    Ok(())
}

/// `http://host/path?query` (section 3.2.2). A `Host` that says otherwise is
/// refused instead of overridden. `https` would need the other side of a
/// CONNECT, where targets are in origin-form.
fn absolute_form(
    target: &str,
    host: Option<&str>,
    head: &mut RequestHead,
) -> Result<(), BadMessage> {
    let (scheme, rest) = target.split_once("://").ok_or(BadMessage::Target)?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(BadMessage::Target);
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !is_authority(authority.as_bytes()) {
        return Err(BadMessage::Target);
    }
    if host.is_some_and(|host| !is_same(authority, host, 80)) {
        return Err(BadMessage::HostDiffers);
    }
    head.authority.push_str(authority);
    if path.is_empty() && head.method == Method::OPTIONS {
        // Section 3.2.4: the last proxy says what this stands for.
        return origin_form("*", head);
    }
    if !path.starts_with('/') {
        head.target.push('/');
    }
    head.target.push_str(path);
    if is_target(head.target.as_bytes()) { Ok(()) } else { Err(BadMessage::Target) }
}

/// Whether two authorities are the same where `default` is the port of one
/// that names none.
fn is_same(a: &str, b: &str, default: u16) -> bool {
    let parts = |authority: &str| {
        let end = authority.rfind(':').filter(|&colon| !authority[colon..].contains(']'));
        let end = end.unwrap_or(authority.len());
        let port = authority.get(end + 1..).and_then(|port| port.parse().ok());
        (end, port.unwrap_or(default))
    };
    let ((a_end, a_port), (b_end, b_port)) = (parts(a), parts(b));
    a_port == b_port && a[..a_end].eq_ignore_ascii_case(&b[..b_end])
}
