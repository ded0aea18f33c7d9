//! Texts of HAProxy's own answers (2.6).

use super::Config;

/// What a refusal with this status says, where no line says otherwise: media type, whether
/// it may be kept, text.
pub(super) fn page(config: &Config, status: u16) -> Option<(Vec<(String, String)>, String)> {
    let (title, text) =
        PAGES.iter().find(|(known, ..)| *known == status).map(|(_, t, b)| (t, b))?;
    let is_other = config.tree.sections.iter().flat_map(|section| &section.statements).any(|s| {
        matches!(s.at(0), "errorfile" | "errorfiles" | "http-error" | "errorloc")
            || s.at(0).starts_with("errorloc")
    });
    if is_other {
        return None;
    }
    let headers = [("cache-control", "no-cache"), ("content-type", "text/html")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Some((headers, format!("<html><body><h1>{status} {title}</h1>\n{text}\n</body></html>\n")))
}

/// What comes with a redirect: those that are not for good are not kept.
pub(super) fn of_redirect(status: u16) -> Vec<(String, String)> {
    let is_kept = !matches!(status, 302 | 303 | 307);
    if is_kept { Vec::new() } else { vec![("cache-control".to_owned(), "no-cache".to_owned())] }
}

const PAGES: &[(u16, &str, &str)] = &[
    (200, "OK", "Service ready."),
    (400, "Bad request", "Your browser sent an invalid request."),
    (403, "Forbidden", "Request forbidden by administrative rules."),
    (404, "Not Found", "The resource could not be found."),
    (
        405,
        "Method Not Allowed",
        "A request was made of a resource using a request method not supported by that resource",
    ),
    (408, "Request Time-out", "Your browser didn't send a complete request in time."),
    (410, "Gone", "The resource is no longer available and will not be available again."),
    (413, "Payload Too Large", "The request entity exceeds the maximum allowed."),
    (429, "Too Many Requests", "You have sent too many requests in a given amount of time."),
    (500, "Internal Server Error", "An internal server error occurred."),
    (502, "Bad Gateway", "The server returned an invalid or incomplete response."),
    (503, "Service Unavailable", "No server is available to handle this request."),
    (504, "Gateway Time-out", "The server didn't respond in time."),
];
