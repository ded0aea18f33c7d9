//! Headers that change with one cluster of several.

use super::{Converter, headers};
use crate::{envoy::tree::Tree, program::OfPool};

impl Converter<'_> {
    /// What a route changes, too, is asked.
    pub(super) fn own_headers(
        &mut self,
        at: usize,
        one: &Tree,
        [request, answer]: [&headers::Changes; 2],
    ) -> Option<OfPool> {
        let mut of = |of: &str, of_route: &headers::Changes| {
            let fields = [format!("{of}_headers_to_add"), format!("{of}_headers_to_remove")];
            let fields: Vec<_> = fields.iter().filter_map(|name| one.entry(name)).collect();
            let own = headers::fold(&[one], of, &mut self.notes);
            let is_clear =
                own.tell.is_empty() && !own.names().any(|name| of_route.names().any(|n| n == name));
            if is_clear {
                return own;
            }
            for field in fields {
                let question = format!(
                    "{} is of one cluster among several, and says what the request says or what the route says, too. Until it is said, it is not done.",
                    field.name
                );
                let choices = ["not needed", "the application does it", "keep Envoy before us"];
                self.notes.decision(&field.place, question, &choices);
            }
            headers::Changes::default()
        };
        let (request, answer) = (of("request", request), of("response", answer));
        if let Some(field) = one.entry("host_rewrite_literal") {
            let question = "Host becomes another name with one cluster among several. Until it is said, it is not done.";
            let choices = ["not needed", "a route for each", "keep Envoy before us"];
            self.notes.decision(&field.place, question, &choices);
        }
        let own = OfPool {
            at,
            set: request.set,
            add: request.add,
            remove: request.remove,
            set_answer: answer.set,
            add_answer: answer.add,
            remove_answer: answer.remove,
        };
        (own != OfPool { at, ..OfPool::default() }).then_some(own)
    }
}
