use super::*;

const ACCOUNTS: &str = "root:x:0:0::/:/bin/sh\nisthmus-proxy:x:990:990::/:/bin/false\n\
                        isthmus-agent:x:991:991::/:/bin/false\nshop:x:1000:1000::/:/bin/sh\n\
                        backup:x:34:34::/:/bin/false\n";

fn parsed(text: &str) -> Result<Plan, ConfigError> {
    parse(text, "/etc/isthmus/capture.yaml")
}

#[test]
fn nothing_written_captures_virtual_addresses() {
    let resolved = parsed("# nothing\n").unwrap().resolve(ACCOUNTS, &Cgroups::none()).unwrap();
    let rules = resolved.rules;
    let blocks = ["240.0.0.0/4", "fd69:7374:686d::f000:0/100"];
    assert_eq!(rules.virtual_addresses, blocks.map(|block| block.parse().unwrap()));
    assert_eq!((rules.proxy_port, rules.own), (4141, [990, 991].into()));
    assert!(rules.outbound.is_empty() && rules.inbound.is_empty() && !rules.refuse && !rules.dns);
}

#[test]
fn the_documented_file_means_what_it_says() {
    let text = "outbound:\n- user: shop\n- unit: orders.service\n  ports: [80, 8000-8999]\n\
                - to: [10.20.0.0/16]\n\
                exclude: { users: [backup], ports: [25], to: [10.20.0.9] }\n\
                inbound:\n- port: 8080\n- { port: 8081, to: 4144 }\n\
                when_proxy_is_gone: refuse\n";
    let plan = parsed(text).unwrap();
    assert!(plan.names_units() && plan.closes(8081) && !plan.closes(22));
    let resolved = plan.resolve(ACCOUNTS, &Cgroups::none()).unwrap();
    assert_eq!(resolved.waits_for, ["orders.service"]);
    let rules = resolved.rules;
    let to = vec!["10.20.0.0/16".parse().unwrap()];
    let wanted = [
        Selection { who: Who::Uid(1000), ports: vec![], to: vec![] },
        Selection { who: Who::Anybody, ports: vec![], to },
    ];
    assert_eq!(rules.outbound, wanted);
    assert_eq!((rules.exclude_users, rules.exclude_ports), ([34].into(), vec![(25, 25)]));
    assert_eq!(rules.inbound, [(8080, None), (8081, Some(4144))].into());
    assert!(rules.refuse);
    let told = plan.captured().join("\n");
    for part in [
        "user shop, to everywhere",
        "unit orders.service, to everywhere, ports 80, 8000-8999",
        "8080: refused",
        "8081: served at 4144",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let never = plan.never().join("\n");
    for part in
        ["isthmus-proxy", "loopback", "SSH", "DNS", "user backup", "port 25", "10.20.0.9/32"]
    {
        assert!(never.contains(part), "{part}: {never}");
    }
}

#[test]
fn mistakes_are_named_with_their_place_and_remedy() {
    let cases = [
        ("outbund: []\n", ":1:1: ", "did you mean `outbound`?"),
        ("outbound:\n- usr: shop\n", ":2:3: ", "did you mean `user`?"),
        ("outbound:\n- {}\n", ": outbound[0]: ", "0.0.0.0/0"),
        ("outbound:\n- ports: [80]\n", ": outbound[0]: ", "0.0.0.0/0"),
        ("outbound:\n- { user: a, unit: b.service }\n", ": outbound[0]: ", "two entries"),
        ("outbound:\n- unit: orders\n", ": outbound[0]: ", "orders.service"),
        ("outbound:\n- unit: 'a/../b.service'\n", ": outbound[0]: ", "suffix"),
        ("outbound:\n- unit: 'a\".service'\n", ": outbound[0]: ", "suffix"),
        ("outbound:\n- { user: shop, ports: [22] }\n", ": outbound[0]: ", "SSH"),
        ("outbound:\n- { user: shop, ports: [0] }\n", ":2:", "a range of ports"),
        ("outbound:\n- { user: shop, ports: [90-80] }\n", ":2:", "a range of ports"),
        ("outbound:\n- { user: shop, ports: [70000] }\n", ":2:", "a range of ports"),
        ("outbound:\n- { user: shop, to: [here] }\n", ":2:", "CIDR"),
        ("inbound:\n- { port: 22 }\n", ": inbound: ", "SSH"),
        ("inbound:\n- { port: 80 }\n- { port: 80 }\n", ": inbound: ", "twice"),
        ("inbound:\n- { port: 80, to: 4141 }\n", ": inbound: ", "inbound_plaintext"),
        ("virtual_addresses: [169.254.0.0/24]\n", ": virtual_addresses: ", "never captured"),
        ("virtual_addresses: ['::/0']\n", ": virtual_addresses: ", "never captured"),
        ("when_proxy_is_gone: drop\n", ":1:21: ", "`direct` or `refuse`"),
    ];
    for (text, place, remedy) in cases {
        let shown = parsed(text).unwrap_err().to_string();
        let expected = format!("/etc/isthmus/capture.yaml{place}");
        assert!(shown.starts_with(&expected) && shown.contains(remedy), "{text:?}: {shown}");
    }
    let many = format!("exclude: {{ ports: {:?} }}\n", vec![80; MAX_ENTRIES + 1]);
    assert!(parsed(&many).unwrap_err().to_string().contains("no list has more"));
}

#[test]
fn users_must_exist_and_not_be_the_meshs_own() {
    let cases = [
        ("outbound: [{ user: nobody-here }]\n", "no such user"),
        ("outbound: [{ user: isthmus-proxy }]\n", "the mesh itself"),
        ("outbound: [{ user: 991 }]\n", "the mesh itself"),
        ("exclude: { users: [nobody-here] }\n", "no such user"),
        ("proxy: { user: nobody-here }\n", "no such user"),
    ];
    for (text, problem) in cases {
        let plan = parsed(text).unwrap();
        let shown = plan.resolve(ACCOUNTS, &Cgroups::none()).unwrap_err().to_string();
        assert!(shown.contains(problem), "{text}: {shown}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[a-z:\\[\\]{}, \n/0-9-]{0,200}") {
        if let Ok(plan) = parsed(&text) {
            let _ = plan.resolve(ACCOUNTS, &Cgroups::none());
        }
    }
}
