//! Where requests and connections go on to.

use crate::{
    program::{Clients, Condition, Forward, Retry, Said, TcpRule, Text, Then},
    source::Place,
};

use super::super::{
    proxy::{Proxy, Switch},
    tree::Statement,
};
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
        let mut name = proxy.name.clone();
        if pools::is_by_port(proxy) {
            let port = self.front.port;
            let pool = pools::pool_at(self.config, proxy, &proxy.servers, port, self.notes);
            if let (Some(port), true) = (port, pools::ports(self.config, proxy).len() > 1) {
                name = format!("{name}-{port}");
            }
            self.single.insert(name.clone(), pool);
        }
        self.forward(place, proxy, state, &Condition::Always, name);
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
            retry: retry(proxy).filter(|_| !state.is_unrepeated),
            sometimes: state.sometimes.clone(),
            set_answer: state.answer.set.clone(),
            add_answer: state.answer.add.clone(),
            remove_answer: state.answer.remove.clone(),
            ..Forward::default()
        };
        if pools::hashed_header(proxy).is_some_and(|name| state.headers.contains_key(&name)) {
            let how = "the hash is of the header as the client sends it, before rules change it";
            self.notes.approximated(place, how);
        }
        super::answers::answers(self, proxy, state, &mut forward);
        super::action::headers(state, &mut forward);
        let options =
            [proxy.option("forwardfor"), self.frontend().and_then(|f| f.option("forwardfor"))];
        let mut options = options.into_iter().flatten();
        if let Some(option) = options.next() {
            forwarded_for(option, &mut forward);
            for other in options.filter(|other| header_of(other) != header_of(option)) {
                let how = format!("the line of {} counts, and not this one", proxy.name);
                self.notes.approximated(&other.place, how);
            }
        }
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
        if known(&when) == Some(false) {
            return;
        }
        match whose(&when) {
            Some(any) => {
                self.connections.extend(any.into_iter().map(|(server_names, clients)| TcpRule {
                    place: place.clone(),
                    server_names,
                    clients,
                    pools: pools.clone(),
                }));
            }
            None => {
                let question = "this condition on connections has no counterpart: \
                                they go where the rules below say";
                self.notes.decision(place, question, &["write rules by hand"]);
            }
        }
    }
}

/// The header of `option forwardfor`.
fn header_of(option: &Statement) -> String {
    let mut words = option.words.iter().skip_while(|word| word.text != "header");
    words.nth(1).map_or("x-forwarded-for".to_owned(), |name| name.text.to_ascii_lowercase())
}

fn forwarded_for(option: &Statement, forward: &mut Forward) {
    let own = (header_of(option), Said::Client);
    if own.0 == "x-forwarded-for" {
        // What is removed is removed last with us.
        match forward.remove.contains(&own.0) {
            true => forward.tell.push(own.clone()),
            false => forward.tell_more.push(own.clone()),
        }
        forward.remove.retain(|name| *name != own.0);
    } else {
        forward.set.retain(|(known, _)| *known != own.0);
        forward.tell.retain(|(known, _)| *known != own.0);
        forward.tell.push(own);
    }
}

/// Names of TLS, none is all; and clients.
type Whose = (Vec<String>, Clients);

/// Alternatives of one condition, at most.
const MAX_WHOSE: usize = 256;

/// Whose connections a condition is about: any of these.
fn whose(condition: &Condition) -> Option<Vec<Whose>> {
    let everybody = || (Vec::new(), Clients::default());
    match condition {
        Condition::Always => Some(vec![everybody()]),
        Condition::Header(name, Text::Exact(server_name)) if name == SERVER_NAME => {
            Some(vec![(vec![server_name.clone()], Clients::default())])
        }
        Condition::Source(within) => {
            let clients = Clients { within: within.clone(), ..Clients::default() };
            Some(vec![(Vec::new(), clients)])
        }
        Condition::Not(inner) => match &**inner {
            Condition::Source(outside) => {
                let clients = Clients { outside: outside.clone(), ..Clients::default() };
                Some(vec![(Vec::new(), clients)])
            }
            Condition::Any(any) => {
                whose(&all(any.iter().map(|one| super::logic::not(one.clone()))))
            }
            _ => None,
        },
        Condition::Any(any) if !any.is_empty() => {
            let mut alternatives: Vec<Whose> = Vec::new();
            for (names, clients) in any.iter().map(whose).collect::<Option<Vec<_>>>()?.concat() {
                let alike =
                    |one: &&mut Whose| !names.is_empty() && !one.0.is_empty() && one.1 == clients;
                match alternatives.iter_mut().find(alike) {
                    Some(one) => one.0.extend(names),
                    None => alternatives.push((names, clients)),
                }
            }
            (alternatives.len() <= MAX_WHOSE).then_some(alternatives)
        }
        Condition::All(all) => {
            let mut so_far = vec![everybody()];
            for one in all {
                let more = whose(one)?;
                let both = so_far.iter().flat_map(|a| more.iter().map(|b| both(a, b)));
                so_far = both.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
                if so_far.len() > MAX_WHOSE {
                    return None;
                }
            }
            Some(so_far)
        }
        _ => None,
    }
}

/// Those of both; `Some(None)` is nobody, and `None` cannot be said.
fn both(a: &Whose, b: &Whose) -> Option<Option<Whose>> {
    let is_whole = |names: &[String]| names.iter().all(|name| !name.starts_with('*'));
    let mut names = a.0.clone();
    if names.is_empty() {
        names.clone_from(&b.0);
    } else if !b.0.is_empty() && names != b.0 {
        if !is_whole(&names) || !is_whole(&b.0) {
            return None;
        }
        names.retain(|name| b.0.contains(name));
        if names.is_empty() {
            return Some(None);
        }
    }
    let one = |a: &Vec<String>, b: &Vec<String>| match (a.is_empty(), b.is_empty()) {
        (_, true) => Some(a.clone()),
        (true, _) => Some(b.clone()),
        _ => (a == b).then(|| a.clone()),
    };
    let outside = [a.1.outside.clone(), b.1.outside.clone()].concat();
    let clients = Clients { within: one(&a.1.within, &b.1.within)?, outside };
    Some(Some((names, clients)))
}

/// Whether more is repeated than what no server has taken.
pub(super) fn repeats_answers(proxy: &Proxy) -> bool {
    retry(proxy).is_some_and(|retry| retry.on_reset || !retry.statuses.is_empty())
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
