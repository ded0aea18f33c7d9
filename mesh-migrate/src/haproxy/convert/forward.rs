//! Where requests and connections go on to.

use crate::{
    program::{Condition, Forward, Retry, TcpRule, Text, Then},
    source::Place,
};

use super::super::proxy::{Proxy, Switch};
use super::{
    logic::{all, known},
    pools,
    state::{Read, SERVER_NAME, State},
    walk::Walk,
};

impl<'c> Walk<'c, '_> {
    pub(super) fn use_server(
        &mut self,
        proxy: &'c Proxy,
        switch: &'c Switch,
        state: &mut State,
    ) -> bool {
        let Read { condition, unsaid } = self.when(proxy, state, switch.when.as_ref(), false);
        self.unsaid(&switch.place, &unsaid, false);
        let Some(name) = self.front_constant(state, switch) else {
            let question = "which server this is cannot be foreseen: it is left out";
            self.notes.decision(&switch.place, question, &["write rules by hand"]);
            return false;
        };
        let server = proxy.servers.iter().find(|s| s.name == name && !s.is_disabled());
        let Some(server) = server.filter(|_| known(&condition) != Some(false)) else {
            return false;
        };
        let how = format!("while {name} is not well, others do not take it");
        self.notes.approximated(&switch.place, how);
        let pool = format!("{}-{name}", proxy.name);
        let mut alone = server.clone();
        alone.settings.remove("backup");
        alone.settings.remove("weight");
        let one = pools::pool(self.config, proxy, std::slice::from_ref(&alone), self.notes);
        self.single.insert(pool.clone(), one);
        self.forward(&switch.place, proxy, state, &condition, pool);
        self.goes_on(condition, state)
    }

    pub(super) fn servers(&mut self, proxy: &'c Proxy, state: &State) {
        if proxy.servers.is_empty() {
            return self.nobody(proxy, state);
        }
        let place = state.place.as_ref().unwrap_or(&proxy.place);
        self.forward(place, proxy, state, &Condition::Always, proxy.name.clone());
    }

    fn forward(
        &mut self,
        place: &Place,
        proxy: &Proxy,
        state: &State,
        when: &Condition,
        pool: String,
    ) {
        let pools = vec![(pool, 1)];
        if self.front.is_tcp {
            return self.connection(place, state, when, pools);
        }
        let mut forward = Forward {
            pools,
            path: state.path.clone(),
            retry: retry(proxy),
            set_answer: state.answer.set.clone(),
            add_answer: state.answer.add.clone(),
            remove_answer: state.answer.remove.clone(),
            ..Forward::default()
        };
        if pools::hashed_header(proxy).is_some_and(|name| state.headers.contains_key(&name)) {
            let how = "the hash is of the header as the client sends it, before rules change it";
            self.notes.approximated(place, how);
        }
        super::action::answers(self, proxy, &mut forward);
        super::action::headers(state, &mut forward);
        self.emit(place, state, when, Then::Forward(Box::new(forward)));
    }

    pub(super) fn connection(
        &mut self,
        place: &Place,
        state: &State,
        when: &Condition,
        pools: Vec<(String, u32)>,
    ) {
        let when = all(state.when.iter().cloned().chain([when.clone()]));
        match names(&when) {
            Some(server_names) => {
                self.connections.push(TcpRule { place: place.clone(), server_names, pools });
            }
            None => {
                let question = "this condition on connections has no counterpart: \
                                they go where the rules below say";
                self.notes.decision(place, question, &["write rules by hand"]);
            }
        }
    }
}

/// Names of TLS that a condition is about; none is every connection.
fn names(condition: &Condition) -> Option<Vec<String>> {
    match condition {
        Condition::Always => Some(Vec::new()),
        Condition::Header(name, Text::Exact(server_name)) if name == SERVER_NAME => {
            Some(vec![server_name.clone()])
        }
        Condition::Any(any) if !any.is_empty() => {
            let names = any.iter().map(names).collect::<Option<Vec<_>>>()?;
            names.iter().all(|names| !names.is_empty()).then(|| names.concat())
        }
        _ => None,
    }
}

/// Repetitions: `retries`, 3 where nothing is said, and `retry-on`.
fn retry(proxy: &Proxy) -> Option<Retry> {
    let retries = proxy.setting("retries").map_or(Ok(3), |statement| statement.at(1).parse());
    let attempts: u32 = retries.unwrap_or(3);
    let mut retry = Retry { attempts, any_method: true, ..Retry::default() };
    for word in proxy.setting("retry-on").into_iter().flat_map(|statement| statement.from(1)) {
        match word.text.as_str() {
            "empty-response" | "junk-response" | "response-timeout" => retry.on_reset = true,
            "all-retryable-errors" => {
                retry.on_reset = true;
                retry.statuses.extend([500, 502, 503, 504]);
            }
            status => retry.statuses.extend(status.parse::<u16>()),
        }
    }
    (attempts > 0).then_some(retry)
}
