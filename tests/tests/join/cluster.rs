//! `meshctl --context`: the control plane in a pod, through kubectl.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use crate::world::{World, program, run};

/// Leads where it should, and says so where it is asked for something else.
const KUBECTL: &str = r#"#!/bin/sh
case "$*" in
"--context east --namespace isthmus-system exec --stdin isthmus-0 --container federation -- meshctl pipe")
    exec MESHCTL --run RUN pipe ;;
"--context gone "*) echo "Error from server (NotFound): pods \"isthmus-0\" not found" >&2; exit 1 ;;
*) echo "error: context \"$2\" does not exist" >&2; exit 1 ;;
esac
"#;

fn write_kubectl(dir: &Path, of: &World) {
    let text = KUBECTL.replace("MESHCTL", &program("meshctl").display().to_string());
    let kubectl = dir.join("kubectl");
    fs::write(&kubectl, text.replace("RUN", &of.run_dir().display().to_string())).unwrap();
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
}

fn meshctl(path: &Path, words: &[&str]) -> Output {
    let path = format!("{}:/usr/bin:/bin", path.display());
    let mut meshctl = Command::new(program("meshctl"));
    // Of a demo in the same terminal: what is typed counts.
    meshctl.env("PATH", path).env("ISTHMUS_RUN", "/nowhere").args(words).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn kubectl_leads_to_the_control_plane_of_a_cluster() {
    run(async {
        let world = World::start().await;
        let dir = tempfile::tempdir().unwrap();
        write_kubectl(dir.path(), &world);
        let output = meshctl(dir.path(), &["--context", "east", "status", "--json"]);
        assert!(output.status.success(), "{}", said(&output));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["site"], "west", "as it calls itself");
        let token = ["link", "token", "--site", "north", "--context", "east"];
        let output = meshctl(dir.path(), &token);
        assert!(output.status.success(), "{}", said(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("isthmus1."));
    });
}

#[test]
fn a_cluster_that_is_not_there_is_named_with_what_kubectl_says() {
    run(async {
        let world = World::start().await;
        let dir = tempfile::tempdir().unwrap();
        write_kubectl(dir.path(), &world);
        for (context, says) in [("gone", "pods \"isthmus-0\" not found"), ("x", "does not exist")] {
            let output = meshctl(dir.path(), &["--context", context, "status"]);
            assert_eq!(output.status.code(), Some(69), "{}", said(&output));
            assert!(said(&output).contains(says), "{}", said(&output));
            assert!(said(&output).contains(context), "{}", said(&output));
        }
        let empty = tempfile::tempdir().unwrap();
        let output = Command::new(program("meshctl"))
            .env("PATH", empty.path())
            .args(["--context", "east", "links"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(69));
        assert!(said(&output).contains("install kubectl"), "{}", said(&output));
        // What asks no control plane, or a machine's agent.
        for words in [&["install", "--site", "x"][..], &["vm", "capture", "status"], &["leave"]] {
            let output = meshctl(dir.path(), &[&["--context", "east"], words].concat());
            assert_eq!(output.status.code(), Some(2), "{words:?} {}", said(&output));
        }
        let output = meshctl(dir.path(), &["--context", "east", "--site", "west", "status"]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    });
}
