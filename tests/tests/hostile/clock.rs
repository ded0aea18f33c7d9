//! A machine whose clock is an hour off.

use std::process::Command;

use crate::{
    programs::{eventually, program, said},
    site::{Machine, Site},
};

const M1: Machine = Machine("m1", 21);

/// A vm-agent that believes it is another time; its timers run as ever.
fn agent_at(offset: &str) -> Command {
    // faketime stays as a parent of what it starts; what it sets for its
    // children does the same to our own child.
    let found = Command::new("faketime").args(["-f", offset, "env"]).output();
    let found = found.expect("faketime is missing: apt-get install faketime");
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut command = Command::new(program("vm-agent"));
    for name in ["LD_PRELOAD", "FAKETIME"] {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        command.env(name, value.unwrap_or_else(|| panic!("faketime sets no {name}: {text}")));
    }
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

#[test]
fn a_clock_an_hour_off_is_told_and_costs_nothing() {
    let mut site = Site::start();
    site.prepare(M1);
    let token = site.token();
    for (offset, which) in [("+1h", "ahead"), ("-1h", "behind")] {
        site.start_agent_as(M1, &mut agent_at(offset));
        let refused = site.join(M1, &token);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{offset}: {told}");
        assert!(told.contains("clock_skew"), "{offset}: {told}");
        assert!(told.contains(which) && told.contains("chrony"), "{offset}: {told}");
        // Both times, as RFC 3339.
        assert!(told.matches('Z').count() >= 2, "{offset}: {told}");
        let identity = site.run_dir(M1).join("agent/identity.json");
        assert!(!identity.exists(), "{offset}: nothing is kept");
        site.kill(&M1.agent());
    }
    // The token has one use, and it is still there.
    site.start_agent(M1);
    site.start_proxy(M1);
    said(&site.join(M1, &token));
    site.wait_served(M1);
    assert_eq!(clock_warnings(&site), Vec::<String>::new());

    // A member goes on, and the site says whose clock is wrong.
    site.kill(&M1.agent());
    site.start_agent_as(M1, &mut agent_at("+1h"));
    let warnings = eventually("a warning", || match clock_warnings(&site) {
        none if none.is_empty() => Err("none".to_owned()),
        warnings => Ok(warnings),
    });
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let right = warnings[0].contains("ahead of this federation") && warnings[0].contains("chrony");
    assert!(right, "{warnings:?}");
    site.request(M1).unwrap();
    site.kill(&M1.agent());
    site.start_agent(M1);
    eventually("the clock is right", || match clock_warnings(&site) {
        none if none.is_empty() => Ok(()),
        warnings => Err(format!("{warnings:?}")),
    });
    site.check_alive();
}

/// What `meshctl status` says of clocks, once the agent of [`M1`] has spoken.
fn clock_warnings(site: &Site) -> Vec<String> {
    let status = eventually("the agent tells its time", || {
        let words = ["-o", "json", "status"];
        let shown = said(&site.meshctl(site.dir(), &words).output().unwrap());
        let status: serde_json::Value = serde_json::from_str(&shown).unwrap();
        match &status["nodes"][0]["clock_ahead_ms"] {
            ahead if ahead.is_i64() => Ok(status),
            unknown => Err(unknown.to_string()),
        }
    });
    let warnings = status["warnings"].as_array().unwrap().iter();
    let warnings = warnings.map(|warning| warning.as_str().unwrap().to_owned());
    warnings.filter(|warning| warning.starts_with("clock: ")).collect()
}
