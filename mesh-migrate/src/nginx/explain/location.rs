//! The location of a URI (`ngx_http_core_find_location`).

use super::{Problem, Run, bad, redirect};
use crate::{
    nginx::{
        model::{Kind, Location, redirecting},
        pattern::Pattern,
    },
    request::Outcome,
};

/// What a search has found.
enum Found<'m, 'c> {
    /// This one, whatever comes.
    Sure(&'m Location<'c>),
    /// This one, unless a pattern takes it.
    Prefix(&'m Location<'c>),
    /// The URI lacks the last slash of this one.
    Redirect(&'m Location<'c>),
    Nothing,
}

impl<'m, 'c> Run<'m, 'c> {
    /// Sets the location, or answers with a redirect to it.
    pub(super) fn find_location(&mut self) -> Result<Option<Outcome>, Problem> {
        let server = self.server;
        let found = self.search(&server.locations)?;
        if let Found::Sure(location) | Found::Prefix(location) | Found::Redirect(location) = found {
            self.enter(location);
            if let Some(internal) = crate::nginx::model::inherited(&location.chain, "internal")
                && !self.is_internal
            {
                self.step(&internal.place, "internal: no client may ask for it: 404");
                return self.special(404).map(Some);
            }
        }
        match found {
            Found::Sure(_) | Found::Prefix(_) => {}
            Found::Redirect(location) => {
                let place = location.directive.place.clone();
                self.step(&place, "the path lacks its last slash: 301");
                let args = String::from_utf8_lossy(&self.args).into_owned();
                let text = crate::nginx::uri::escaped(location.text.as_bytes());
                let text = String::from_utf8_lossy(&text).into_owned();
                let to = if args.is_empty() { text } else { format!("{text}?{args}") };
                return Ok(Some(redirect(301, self.absolute(&to))));
            }
            Found::Nothing => {
                self.chain.clone_from(&server.chain);
                self.handlers = vec![server.directive];
                self.location = None;
                self.step(&server.directive.place, "no location takes the path");
            }
        }
        Ok(None)
    }

    pub(super) fn enter(&mut self, location: &'m Location<'c>) {
        self.chain.clone_from(&location.chain);
        self.handlers = vec![location.directive];
        self.location = Some(location);
        let args = location.directive.args.join(" ");
        self.step(&location.directive.place, format!("location {args}"));
    }

    fn search(&mut self, level: &'m [Location<'c>]) -> Result<Found<'m, 'c>, Problem> {
        let uri = self.uri.clone();
        let is = |location: &&Location<'c>| location.text.as_bytes() == uri;
        if let Some(exact) = level.iter().filter(|l| matches!(l.kind, Kind::Exact)).find(is) {
            return Ok(Found::Sure(exact));
        }
        let prefixes = level.iter().filter(|location| location.is_prefix());
        let longest = prefixes
            .filter(|location| uri.starts_with(location.text.as_bytes()))
            .max_by_key(|location| location.text.len());
        let is_whole = longest.is_some_and(|location| is(&location));
        let with_slash = [&uri[..], b"/"].concat();
        let lacking = redirecting(level).find(|l| l.text.as_bytes() == with_slash);
        if let Some(location) = lacking.filter(|_| !is_whole) {
            return Ok(Found::Redirect(location));
        }
        let mut best = Found::Nothing;
        if let Some(prefix) = longest {
            best = Found::Prefix(prefix);
            match self.search(&prefix.locations)? {
                Found::Nothing => {}
                Found::Prefix(inner) => best = Found::Prefix(inner),
                sure => return Ok(sure),
            }
            if matches!(prefix.kind, Kind::Final) {
                return Ok(best);
            }
        }
        for location in level {
            let Kind::Regex(pattern) = &location.kind else { continue };
            let pattern = match pattern {
                Ok(pattern) => pattern,
                Err(_) if is_elsewhere(location, &uri) => continue,
                Err(wrong) => return Err(bad(&location.directive.place, wrong.as_str())),
            };
            let Some(found) = pattern.captures(&uri) else { continue };
            self.captured(pattern, &found);
            return Ok(match self.search(&location.locations)? {
                Found::Nothing => Found::Sure(location),
                Found::Prefix(inner) => Found::Sure(inner),
                sure => sure,
            });
        }
        Ok(best)
    }
}

/// Whether a pattern that cannot be read surely does not take the URI.
fn is_elsewhere(location: &Location<'_>, uri: &[u8]) -> bool {
    let ignores_case = location.directive.arg(0).starts_with("~*");
    Pattern::cannot_match(&location.text, ignores_case, uri)
}
