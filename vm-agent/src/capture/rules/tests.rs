use proptest::{collection::vec, prelude::*};

use super::*;

fn block(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn rules() -> Rules {
    Rules {
        proxy_port: 4141,
        own: [990, 991].into(),
        virtual_addresses: vec![block("240.0.0.0/4"), block("fd69::/64")],
        outbound: vec![
            Selection { who: Who::Uid(1000), ports: vec![], to: vec![] },
            Selection {
                who: Who::Cgroup(2, "system.slice/orders.service".into()),
                ports: vec![(80, 80), (8000, 8999)],
                to: vec![block("10.20.0.0/16"), block("2001:db8::/32")],
            },
        ],
        exclude_users: [34].into(),
        exclude_ports: vec![(25, 25)],
        exclude_to: vec![block("10.20.0.9/32")],
        inbound: [(8080, None), (8081, Some(4144))].into(),
        ..Rules::default()
    }
}

/// The rules of a chain, without indentation.
fn chain<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let lines = text.lines().map(str::trim);
    let begun = lines.skip_while(|line| *line != format!("chain {name} {{"));
    begun.skip(2).take_while(|line| *line != "}").collect()
}

#[test]
fn the_text_is_one_transaction_of_our_table_alone() {
    let text = rules().text(Term::Trial(Duration::from_secs(60)), true);
    assert!(
        text.starts_with(
            "add table inet isthmus\ndelete table inet isthmus\ntable inet isthmus {\n"
        )
    );
    assert!(text.contains(
        "set confirmed { type inet_proto; flags timeout; elements = { tcp timeout 60s }; }"
    ));
    assert!(
        text.contains(
            "set alive { type inet_proto; flags timeout; elements = { tcp timeout 5s }; }"
        )
    );
    assert_eq!(text.matches("table").count(), 3);
    let text = rules().text(Term::Confirmed, false);
    assert!(text.contains("set confirmed { type inet_proto; flags timeout; elements = { tcp }; }"));
    assert!(text.contains("set alive { type inet_proto; flags timeout; }"));
}

#[test]
fn output_is_decided_in_order() {
    let text = rules().text(Term::Confirmed, true);
    let wanted = "\
meta l4proto != @confirmed return
tcp flags & (fin | syn | rst | ack) != syn return
ip daddr { 100.100.100.200/32, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16 } return
ip6 daddr { ::1/128, fd00:ec2::/32, fd20:ce::254/128, fe80::/10, ff00::/8 } return
meta skuid { 990, 991 } ip daddr { 240.0.0.0/4 } reject with tcp reset
ip daddr { 240.0.0.0/4 } meta l4proto tcp redirect to :4141
meta skuid { 990, 991 } ip6 daddr { fd69::/64 } reject with tcp reset
ip6 daddr { fd69::/64 } meta l4proto tcp redirect to :4141
meta skuid { 990, 991 } return
oifname \"lo\" return
meta skuid { 34 } return
tcp dport { 22, 25, 53, 853, 5353, 5355 } return
ip daddr { 10.20.0.9/32 } return
meta l4proto != @alive return
meta skuid 1000 meta l4proto tcp redirect to :4141
socket cgroupv2 level 2 \"system.slice/orders.service\" tcp dport { 80, 8000-8999 } ip daddr { 10.20.0.0/16 } meta l4proto tcp redirect to :4141
socket cgroupv2 level 2 \"system.slice/orders.service\" tcp dport { 80, 8000-8999 } ip6 daddr { 2001:db8::/32 } meta l4proto tcp redirect to :4141";
    assert_eq!(chain(&text, "output").join("\n"), wanted);
}

#[test]
fn virtual_addresses_are_refused_to_others_than_this_machine() {
    let text = rules().text(Term::Confirmed, true);
    let wanted = [
        "meta l4proto != @confirmed return",
        "ip daddr { 240.0.0.0/4 } reject with tcp reset",
        "ip6 daddr { fd69::/64 } reject with tcp reset",
    ];
    assert_eq!(chain(&text, "forward"), wanted);
}

#[test]
fn inbound_is_redirected_or_refused_and_only_that_begins() {
    let text = rules().text(Term::Confirmed, true);
    let redirected = [
        "meta l4proto != @confirmed return",
        "iifname \"lo\" return",
        "tcp flags & (fin | syn | rst | ack) != syn return",
        "fib daddr type != local return",
        "tcp dport 8081 redirect to :4144",
    ];
    assert_eq!(chain(&text, "prerouting"), redirected);
    let refused =
        "tcp flags & (fin | syn | rst | ack) == syn tcp dport { 8080 } reject with tcp reset";
    assert_eq!(chain(&text, "input").last(), Some(&refused));
    let quiet = Rules { inbound: BTreeMap::new(), ..rules() };
    let text = quiet.text(Term::Confirmed, true);
    assert!(chain(&text, "prerouting").is_empty() && chain(&text, "input").is_empty());
}

#[test]
fn what_is_refused_without_a_proxy_does_not_ask_for_it() {
    let asks = |rules: Rules| rules.text(Term::Confirmed, true).contains("!= @alive return");
    assert!(asks(rules()));
    assert!(!asks(Rules { refuse: true, ..rules() }));
    let dns = Rules { dns: true, ..rules() }.text(Term::Confirmed, true);
    assert!(chain(&dns, "output").contains(&"tcp dport { 22, 25 } return"));
}

#[test]
fn intervals_never_overlap() {
    assert_eq!(
        ports(&[(80, 90), (85, 95), (96, 96), (1, 1), (65535, 65535)]),
        "{ 1, 80-96, 65535 }"
    );
    let blocks = ["10.1.0.0/16", "10.9.9.9/8", "10.0.0.0/8", "::/0", "fd00::/8"].map(block);
    let told: Vec<_> = destinations(&blocks).collect();
    assert_eq!(told, ["ip daddr { 10.0.0.0/8 }", "ip6 daddr { ::/0 }"]);
}

fn selections() -> impl Strategy<Value = Vec<Selection>> {
    let who = prop_oneof![
        Just(Who::Anybody),
        (0u32..5).prop_map(Who::Uid),
        Just(Who::Cgroup(1, "shop.slice".into())),
    ];
    let to = prop_oneof![
        Just(vec![]),
        Just(vec![block("0.0.0.0/0"), block("::/0")]),
        Just(vec![block("127.0.0.0/8"), block("169.254.169.254/32")]),
    ];
    let ports = vec((1u16..100, 0u16..9000).prop_map(|(first, n)| (first, first + n)), 0..4);
    vec((who, ports, to).prop_map(|(who, ports, to)| Selection { who, ports, to }), 0..6)
}

proptest! {
    /// Whatever is selected: before the first rule that could redirect it, all
    /// that is never captured has returned.
    #[test]
    fn what_is_never_captured_has_left_before(outbound in selections(), dns: bool, refuse: bool) {
        let rules = Rules { outbound, dns, refuse, ..rules() };
        let text = rules.text(Term::Confirmed, true);
        let output = chain(&text, "output");
        let place = |wanted: &str| output.iter().position(|rule| *rule == wanted);
        let first = output.iter().position(|rule| rule.contains("redirect"));
        let is_virtual = |rule: &str| rule.starts_with("ip daddr { 240.") || rule.starts_with("ip6 daddr { fd69:");
        let selected = output.iter().position(|r| r.contains("redirect") && !is_virtual(r));
        for block in NEVER {
            let rule = output.iter().position(|r| r.contains(block) && r.ends_with("} return"));
            prop_assert!(rule.is_some() && rule < first, "{block}");
        }
        for rule in ["meta l4proto != @confirmed return", "tcp flags & (fin | syn | rst | ack) != syn return"] {
            prop_assert!(place(rule).is_some() && place(rule) < first);
        }
        let dns_ports = if dns { "" } else { ", 53, 853, 5353, 5355" };
        let left_alone = format!("tcp dport {{ 22, 25{dns_ports} }} return");
        for rule in ["meta skuid { 990, 991 } return", "oifname \"lo\" return", &left_alone] {
            prop_assert!(place(rule).is_some());
            prop_assert!(selected.is_none() || place(rule) < selected, "{rule}");
        }
    }
}
