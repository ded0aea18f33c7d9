//! Disks that take nothing more: directories without the right to write, a
//! limit on file sizes, no space left. Whoever can go on does, whoever cannot
//! says so, and nothing that was promised is lost.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Output},
};

use crate::{
    programs::{eventually, outcome, program, said},
    site::{FEDERATION, Machine, Site},
};

const M1: Machine = Machine("m1", 21);
const M2: Machine = Machine("m2", 22);

/// Runs a program as an ordinary user, for whom permission bits count. Root
/// becomes one in a user namespace of its own: the same owner of the same
/// files, without the privileges.
fn ordinary(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=1000", "--map-group=1000", "--"]).arg(program);
    command
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// 0500, and proved to be that for [`ordinary`] processes.
fn make_read_only(dir: &Path) {
    set_mode(dir, 0o500);
    let (code, told) = outcome(ordinary("touch").arg(dir.join("probe")));
    assert!(code != 0 && told.contains("Permission denied"), "the test tests nothing: {told}");
}

fn shown(output: &Output) -> String {
    assert!(!output.status.success(), "it did not fail: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn tokens(site: &Site) -> String {
    let listed = said(&site.meshctl(site.dir(), &["token", "list"]).output().unwrap());
    // The last column counts down.
    listed.lines().map(|line| line.split(" in ").next().unwrap_or_default()).collect()
}

/// Asks for a token, which may not be written.
fn ask_token(site: &Site) -> Output {
    let words = ["token", "create", "--namespace", "shop", "--account", "orders"];
    site.meshctl(site.dir(), &words).output().unwrap()
}

#[test]
fn federation_appends_in_a_read_only_directory_or_says_why_not() {
    let mut site = Site::init();
    let state = site.dir().join("state");
    make_read_only(&state);
    // The log is there, and only its own permissions count for appending.
    site.start_federation_as(&mut ordinary(program("federation")));
    site.token();
    site.check_alive();
    let listed = tokens(&site);
    site.kill(FEDERATION);

    // The index last: what does not open is made again from the log.
    for file in ["lock", "authority.log", "index/db"].map(|name| state.join(name)) {
        let kept = fs::metadata(&file).unwrap().mode();
        set_mode(&file, kept & 0o555);
        let mut command = ordinary(program("federation"));
        let (code, told) = outcome(command.arg("--config").arg(site.config("federation.yaml")));
        assert!(code == 1 && told.contains("Permission denied"), "{told}");
        assert!(told.contains(&state.display().to_string()), "{told}");
        assert!(!told.to_lowercase().contains("panic"), "{told}");
        if file.exists() {
            set_mode(&file, kept);
        }
    }
    set_mode(&state, 0o700);
    site.start_federation();
    assert_eq!(tokens(&site), listed, "nothing is lost");
}

#[test]
fn a_site_is_not_made_where_nothing_can_be_written() {
    let site = Site::init();
    let closed = site.dir().join("closed");
    fs::create_dir(&closed).unwrap();
    make_read_only(&closed);
    let state = closed.join("state");
    let mut command = ordinary(program("federation"));
    command.args(["init", "--site", "lab", "--trust-domain", "lab.example", "--state"]).arg(&state);
    let (code, told) = outcome(&mut command);
    // EX_NOPERM of sysexits.h
    assert!(code == 77 && told.contains(&state.display().to_string()), "{told}");
    assert!(told.contains("Permission denied") && !told.contains("panic"), "{told}");
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
}

#[test]
fn an_agent_that_cannot_write_spends_no_token_and_gives_nothing_up() {
    let mut site = Site::start();
    site.prepare(M1);
    let run = site.run_dir(M1);
    let state = run.join("agent");
    fs::create_dir(&state).unwrap();
    make_read_only(&state);
    let mut command = ordinary(program("vm-agent"));
    let (code, told) = outcome(command.arg("--config").arg(run.join("agent.yaml")));
    assert!(code == 1 && told.contains(&state.display().to_string()), "{told}");
    assert!(told.contains("can write") && !told.contains("panic"), "{told}");

    set_mode(&state, 0o700);
    site.start_agent_as(M1, &mut ordinary(program("vm-agent")));
    site.start_proxy(M1);
    make_read_only(&state);
    let token = site.token();
    let told = shown(&site.join(M1, &token));
    assert!(told.contains(&state.display().to_string()), "{told}");
    assert!(told.contains("who owns the directory"), "{told}");
    set_mode(&state, 0o700);
    said(&site.join(M1, &token));
    site.wait_served(M1);

    // A member: it goes on, also over a restart, and stays one.
    make_read_only(&state);
    site.kill(&M1.agent());
    site.start_agent_as(M1, &mut ordinary(program("vm-agent")));
    site.wait_ready(site.addr(M1.1, 4190), "the agent is connected");
    let identity = fs::read(state.join("identity.json")).unwrap();
    let told = shown(&site.meshctl(&run, &["leave"]).output().unwrap());
    assert!(told.contains(&state.display().to_string()), "{told}");
    let more = "service: orders\nnamespace: shop\nport: 9999\n";
    fs::write(run.join("services.d/more.yaml"), more).unwrap();
    eventually("the agent says what it cannot keep", || {
        let log = site.daemon(&M1.agent()).log();
        let told = log.contains("registered.json") && log.contains("stay registered");
        told.then_some(()).ok_or(log)
    });
    site.wait_ready(site.addr(M1.1, 4190), "the agent is still connected");
    site.request(M1).unwrap();
    assert_eq!(fs::read(state.join("identity.json")).unwrap(), identity);
    site.check_alive();

    set_mode(&state, 0o700);
    said(&site.meshctl(&run, &["leave"]).output().unwrap());
    assert!(!state.join("identity.json").exists());
}

#[test]
fn a_proxy_without_a_place_for_its_snapshot_serves_and_says_so() {
    let mut site = Site::start();
    site.prepare(M1);
    make_read_only(&site.run_dir(M1).join("proxy"));
    site.start_agent(M1);
    site.start_proxy_as(M1, &mut ordinary(program("edge-proxy")));
    let token = site.token();
    said(&site.join(M1, &token));
    site.wait_served(M1);
    eventually("the proxy says so", || {
        let log = site.daemon(&M1.proxy()).log();
        let told = log.contains("cannot be kept on disk") && log.contains("snapshot.bin");
        told.then_some(()).ok_or(log)
    });
    site.request(M1).unwrap();
    site.check_alive();
}

/// `setrlimit(2)`: beyond the limit a write fails, and there is a signal that
/// ends whoever does not expect it.
#[test]
fn a_log_at_its_size_limit_refuses_and_the_mesh_goes_on() {
    let mut site = Site::start();
    site.add(M1);
    site.token();
    let before = tokens(&site);
    let limit = |bytes: &str| {
        let pid = site.daemon(FEDERATION).pid().to_string();
        let mut command = Command::new("prlimit");
        command.args(["--pid", &pid]).arg(format!("--fsize={bytes}:"));
        assert!(command.status().unwrap().success());
    };
    let size = fs::metadata(site.dir().join("state/authority.log")).unwrap().len();
    // Whether nothing fits or only a part of a record.
    for bytes in [size, size + 20] {
        limit(&bytes.to_string());
        let told = shown(&ask_token(&site));
        assert!(told.contains("authority.log") && told.contains("File too large"), "{told}");
        assert!(told.contains("LimitFSIZE"), "{told}");
        site.request(M1).unwrap();
        assert_eq!(tokens(&site), before, "reads go on");
    }
    limit("unlimited");
    site.token();
    let after = tokens(&site);
    site.check_alive();
    site.kill(FEDERATION);
    site.start_federation();
    assert_eq!(tokens(&site), after, "what was promised is there, what was refused is not");
    site.check_alive();
}

/// Federation in a mount namespace of its own, its state on a small disk.
fn on_a_small_disk(state: &Path) -> Command {
    let script = "cp -a \"$1\" \"$1.copy\" && mount -t tmpfs -o size=2m none \"$1\" && \
                  cp -a \"$1.copy/.\" \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--", "sh", "-ec", script, "sh"]);
    command.arg(state).arg(program("federation"));
    command
}

#[test]
fn a_full_disk_refuses_and_the_mesh_goes_on() {
    let mut site = Site::init();
    let state = site.dir().join("state");
    site.start_federation_as(&mut on_a_small_disk(&state));
    site.start_gateway();
    site.add(M1);
    site.prepare(M2);
    site.start_agent(M2);
    site.start_proxy(M2);
    let token = site.token();
    let before = tokens(&site);

    // As federation sees it.
    let pid = site.daemon(FEDERATION).pid();
    let seen = format!("/proc/{pid}/root{}", state.display());
    let filler = Path::new(&seen).join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0x5a; 4096]).is_ok() {}
    while file.write_all(&[0x5a]).is_ok() {}
    // What is left of the log's last block takes some.
    let told = (0..100).map(|_| ask_token(&site)).find(|asked| !asked.status.success());
    let told = shown(&told.expect("the disk is full"));
    assert!(told.contains("authority.log") && told.contains("No space left"), "{told}");
    assert!(told.contains("make room"), "{told}");
    let status = site.meshctl(site.dir(), &["status"]).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("No space left"), "{status}");
    let told = shown(&site.join(M2, &token));
    assert!(told.contains("No space left"), "{told}");
    site.request(M1).unwrap();
    site.wait_ready(site.addr(M1.1, 4190), "the agent is still connected");
    assert!(tokens(&site).len() >= before.len(), "reads go on");

    drop(file);
    fs::remove_file(&filler).unwrap();
    said(&site.join(M2, &token));
    site.wait_served(M2);
    site.token();
    site.request(M1).unwrap();
    site.check_alive();
}
