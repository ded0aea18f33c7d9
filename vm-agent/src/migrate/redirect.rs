//! What the kernel does with connections to a legacy proxy's addresses: one table
//! of nft for all moves, loaded as a whole. It stays as it is whatever happens to
//! this process.
//!
//! New connections only: those that are there stay where they are, in both
//! directions (conntrack). For that reason nothing is refused and nothing is
//! broken off, which taking a listener's socket over cannot promise: a socket that
//! is closed drops who waits in its queue.

use std::fmt::Write;

use super::record::{Listener, Record};
use crate::capture::nft::{self, NftError};

/// The table.
pub const TABLE: &str = "isthmus_migrate";
/// Marks a connection of ours that goes to the legacy proxy whatever is in force.
pub const TO_LEGACY: u32 = 0x4953_4c47;
/// Marks one that goes to our proxy whatever is in force.
pub const TO_OURS: u32 = 0x4953_4f55;

/// Whether the table is there: others may flush all rules.
///
/// # Errors
///
/// nft cannot be asked.
pub async fn is_there() -> Result<bool, NftError> {
    nft::has_table(TABLE).await
}

/// What `records` say, and nothing else, as nft reads it.
pub fn rules(records: &[&Record]) -> String {
    // So that a table that is not there can be deleted, too.
    let mut text = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
    if records.is_empty() {
        return text;
    }
    let _ = writeln!(text, "table inet {TABLE} {{");
    for (chain, hook) in [("arriving", "prerouting"), ("leaving", "output")] {
        let _ = writeln!(text, "  chain {chain} {{");
        let _ = writeln!(text, "    type nat hook {hook} priority -105; policy accept;");
        if hook == "output" {
            let _ = writeln!(text, "    meta mark {TO_LEGACY:#x} accept");
            for listener in records.iter().flat_map(|record| &record.listeners) {
                rule(&mut text, &format!("meta mark {TO_OURS:#x} "), listener);
            }
        }
        for record in records.iter().filter(|record| record.phase.is_ours()) {
            for listener in &record.listeners {
                rule(&mut text, "", listener);
            }
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

fn rule(text: &mut String, condition: &str, listener: &Listener) {
    let (ip, from, to) = (listener.address.ip(), listener.address.port(), listener.beside.port());
    let family = if ip.is_ipv4() { "ip" } else { "ip6" };
    let _ = match (ip.is_unspecified(), ip.is_ipv4()) {
        (true, true) => writeln!(
            text,
            "    {condition}meta nfproto ipv4 fib daddr type local tcp dport {from} redirect to :{to}"
        ),
        // A socket at :: takes both.
        (true, false) => {
            writeln!(text, "    {condition}fib daddr type local tcp dport {from} redirect to :{to}")
        }
        (false, true) => {
            writeln!(
                text,
                "    {condition}{family} daddr {ip} tcp dport {from} dnat ip to {ip}:{to}"
            )
        }
        (false, false) => writeln!(
            text,
            "    {condition}{family} daddr {ip} tcp dport {from} dnat ip6 to [{ip}]:{to}"
        ),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::record::{Legacy, Phase};

    fn record(phase: Phase) -> Record {
        let listener = |address: &str, beside: &str| Listener {
            name: "fe.legacy".into(),
            address: address.parse().unwrap(),
            beside: beside.parse().unwrap(),
        };
        Record {
            name: "web-7".into(),
            legacy: Legacy::default(),
            listeners: vec![
                listener("0.0.0.0:80", "0.0.0.0:20080"),
                listener("10.0.0.7:8080", "10.0.0.7:20081"),
                listener("[2001:db8::7]:80", "[2001:db8::7]:20082"),
                listener("[::]:81", "[::]:20083"),
            ],
            admin: "127.0.0.1:1".parse().unwrap(),
            phase,
            since: 0,
            problem: String::new(),
            watch: None,
            let_go: false,
            leaving: Vec::new(),
            process: None,
            shadow: None,
        }
    }

    #[test]
    fn only_who_has_cut_over_is_led_away() {
        let rehearsed = |text: &str| text.matches("mark 0x49534f55 ").count();
        for (phase, all) in [(Phase::Beside, 0), (Phase::Watch, 8), (Phase::Back, 0)] {
            let text = rules(&[&record(phase)]);
            assert_eq!(rehearsed(&text), 4, "{text}");
            assert_eq!(text.matches("dport").count(), 4 + all, "{text}");
            assert!(text.contains("meta mark 0x49534c47 accept"), "{text}");
        }
        assert!(!rules(&[]).contains("chain"));
    }
}
