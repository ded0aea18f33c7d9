//! What is lost of a `cookie` that keeps clients at a server.

use super::super::tree::Statement;

/// What is asked about it.
pub(super) fn of(statement: &Statement) -> (String, &'static [&'static str]) {
    let words: Vec<&str> = statement.from(2).iter().map(|word| word.text.as_str()).collect();
    if !words.contains(&"insert") {
        let question = "an endpoint is chosen by hash of what the application sets: a session that one has \
             begun may go on at another, and names of servers in it reach the application";
        let choices = &["leave it so: sessions are shared", "a cookie of ours, in its policy"];
        return (question.to_owned(), choices);
    }
    let question = "an endpoint is chosen by hash of the cookie: clients with a cookie of HAProxy may \
             come to another one";
    let name = statement.at(1);
    let mut lost = lost(&words);
    lost.push(format!(
        "an application that sets {name} itself is heard, too: clients get its cookie beside ours, \
         and HAProxy sends its own alone"
    ));
    let question = format!("{question}; {}", lost.join("; "));
    (question, &["take that once", "switch over when sessions are few"])
}

/// What the cookie of ours does not have, and what it has that HAProxy's has not.
fn lost(words: &[&str]) -> Vec<String> {
    let has = |name: &str| words.contains(&name);
    let after = |name: &str| {
        let places = words.iter().enumerate().filter(move |(_, word)| **word == name);
        places.filter_map(|(at, _)| words.get(at + 1).copied()).collect::<Vec<_>>()
    };
    let mut lost = Vec::new();
    if has("secure") {
        lost.push("it is not Secure: browsers send it in plaintext, too".to_owned());
    }
    let domains = after("domain");
    if !domains.is_empty() {
        lost.push(format!("it is of one host, and not of {}", domains.join(", ")));
    }
    let attributes = after("attr");
    if !attributes.is_empty() {
        lost.push(format!("it has not {}", attributes.join(", ")));
    }
    if !has("httponly") {
        lost.push("it is HttpOnly: scripts do not read it".to_owned());
    }
    if has("maxlife") {
        lost.push("it stays for its life when a browser is closed".to_owned());
    }
    if has("maxidle") {
        lost.push("it does not end by maxidle".to_owned());
    }
    if has("postonly") {
        lost.push("it is set whatever the method".to_owned());
    }
    lost
}
