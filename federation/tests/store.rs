//! What every store must do, and what becomes of a log that was cut, flipped,
//! locked or made read-only.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use federation::authority::{
    LogStore, MemoryStore, Store, StoreError,
    frames::{MAGIC, frame},
};
use mesh_api::v1::{
    AuthorityRecord, Revision, SiteCreated, TokenRevoked, WorkloadIssued, authority_record::Event,
};

fn record(n: u64, event: Event) -> AuthorityRecord {
    AuthorityRecord {
        revision: Some(Revision { epoch: 5, n }),
        at_unix_ms: 1000,
        actor: "test".into(),
        event: Some(event),
    }
}

fn site() -> AuthorityRecord {
    let site = SiteCreated {
        name: "west".into(),
        trust_domain: "west.example".into(),
        root: vec![9; 40],
        ..Default::default()
    };
    record(1, Event::SiteCreated(site))
}

fn numbered(n: u64) -> AuthorityRecord {
    record(n, Event::TokenRevoked(TokenRevoked { id: format!("token-{n}") }))
}

fn issued(n: u64, not_after_unix_s: i64) -> AuthorityRecord {
    let leaf = WorkloadIssued {
        serial: format!("serial-{n}"),
        node: "node".into(),
        not_after_unix_s,
        ..Default::default()
    };
    record(n, Event::WorkloadIssued(leaf))
}

fn all(store: &dyn Store) -> Vec<AuthorityRecord> {
    let mut records = Vec::new();
    store
        .replay(&mut |record| {
            records.push(record.clone());
            Ok(())
        })
        .unwrap();
    records
}

fn log_of(directory: &Path) -> PathBuf {
    directory.join("authority.log")
}

/// Runs with every store that is shipped; `reopen` closes and opens it again.
fn with_each_store(test: impl Fn(Box<dyn Store>, &dyn Fn(Box<dyn Store>) -> Box<dyn Store>)) {
    test(Box::new(MemoryStore::default()), &|store| store);
    let directory = tempfile::tempdir().unwrap();
    let reopen = |store: Box<dyn Store>| -> Box<dyn Store> {
        drop(store);
        Box::new(LogStore::open(directory.path()).unwrap())
    };
    test(Box::new(LogStore::create(directory.path()).unwrap()), &reopen);
}

#[test]
fn what_was_committed_is_there_in_order() {
    with_each_store(|store, reopen| {
        assert!(all(&*store).is_empty());
        store.commit(&[site()]).unwrap();
        store.commit(&[numbered(2), numbered(3)]).unwrap();
        let expected = vec![site(), numbered(2), numbered(3)];
        assert_eq!(all(&*store), expected);
        let store = reopen(store);
        assert_eq!(all(&*store), expected);
        store.commit(&[numbered(4)]).unwrap();
        assert_eq!(all(&*reopen(store)).len(), 4);
    });
}

#[test]
fn compaction_keeps_the_snapshot_and_certificates_that_live() {
    with_each_store(|store, reopen| {
        store.commit(&[site(), numbered(2), issued(3, 100), issued(4, 300)]).unwrap();
        let size = store.size();
        assert!(size > 0);
        let at = |record: AuthorityRecord| AuthorityRecord {
            revision: Some(Revision { epoch: 5, n: 4 }),
            ..record
        };
        store.compact(vec![at(site())], 200).unwrap();
        // No state takes it for used: the snapshot does not have it.
        let mut kept = at(issued(4, 300));
        let Some(Event::WorkloadIssued(leaf)) = &mut kept.event else { panic!("{kept:?}") };
        leaf.replaced = true;
        let expected = vec![at(site()), kept];
        assert_eq!(all(&*store), expected);
        store.commit(&[numbered(5)]).unwrap();
        let store = reopen(store);
        assert_eq!(all(&*store), [expected, vec![numbered(5)]].concat());
        assert!(store.certificate("serial-4").is_some());
    });
}

#[test]
fn every_certificate_is_kept_once_however_often_a_log_is_compacted() {
    with_each_store(|store, reopen| {
        let used = issued(2, 300);
        store.commit(&[site(), used.clone(), issued(3, 300)]).unwrap();
        // What a state says of it: neither who asked nor when.
        let known = AuthorityRecord { actor: "federation".into(), at_unix_ms: 7, ..used.clone() };
        for _ in 0..3 {
            store.compact(vec![site(), known.clone()], 200).unwrap();
        }
        let store = reopen(store);
        let records = all(&*store);
        assert_eq!(records.len(), 3, "{records:#?}");
        assert_eq!(records[1].event, used.event, "it is in use");
        assert_eq!((&records[1].actor, records[1].at_unix_ms), (&used.actor, used.at_unix_ms));
        assert_eq!(store.certificate("serial-2").unwrap().actor, used.actor);
        assert!(store.certificate("serial-3").is_some());
    });
}

#[test]
fn the_index_knows_certificates() {
    with_each_store(|store, reopen| {
        store.commit(&[site(), issued(2, 300)]).unwrap();
        let store = reopen(store);
        assert_eq!(store.certificate("serial-2"), Some(issued(2, 300)));
        assert_eq!(store.certificate("serial-9"), None);
    });
}

fn make_log(directory: &Path) -> Vec<u8> {
    let store = LogStore::create(directory).unwrap();
    store.commit(&[site()]).unwrap();
    store.commit(&[numbered(2), numbered(3)]).unwrap();
    store.commit(&[numbered(4)]).unwrap();
    drop(store);
    fs::read(log_of(directory)).unwrap()
}

fn copy_with_log(from: &Path, log: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir_in(from.parent().unwrap()).unwrap();
    fs::write(log_of(directory.path()), log).unwrap();
    directory
}

/// Where each frame begins, and where the last one ends.
fn boundaries() -> Vec<usize> {
    let mut ends = vec![MAGIC.len()];
    for records in [vec![site()], vec![numbered(2), numbered(3)], vec![numbered(4)]] {
        ends.push(ends.last().unwrap() + frame(&records).len());
    }
    ends
}

#[test]
fn a_log_that_is_cut_anywhere_loses_only_what_was_not_finished() {
    let directory = tempfile::tempdir().unwrap();
    let log = make_log(directory.path());
    let boundaries = boundaries();
    assert_eq!(*boundaries.last().unwrap(), log.len());
    for length in 0..log.len() {
        let copy = copy_with_log(directory.path(), &log[..length]);
        let opened = LogStore::open(copy.path());
        if length < MAGIC.len() {
            assert!(matches!(opened, Err(StoreError::Corrupt { offset: 0, .. })), "{length}");
            continue;
        }
        let store = opened.unwrap_or_else(|error| panic!("cut to {length}: {error}"));
        let whole = boundaries.iter().filter(|end| **end <= length).count() - 1;
        let records = all(&store).len();
        assert_eq!(records, [0, 1, 3, 4][whole], "cut to {length}");
        // It goes on where it was cut, and what was cut is kept aside.
        store.commit(&[numbered(9)]).unwrap();
        drop(store);
        assert_eq!(all(&LogStore::open(copy.path()).unwrap()).len(), records + 1);
        let cut = boundaries[whole];
        let aside = copy.path().join(format!("authority.log.cut-{cut}"));
        assert_eq!(fs::read(aside).ok(), (cut < length).then(|| log[cut..length].to_vec()));
    }
}

#[test]
fn a_flipped_bit_is_never_read_as_something_else() {
    let directory = tempfile::tempdir().unwrap();
    let log = make_log(directory.path());
    let boundaries = boundaries();
    for at in 0..log.len() {
        let mut damaged = log.clone();
        damaged[at] ^= 1 << (at % 8);
        let copy = copy_with_log(directory.path(), &damaged);
        let Err(error) = LogStore::open(copy.path()) else {
            panic!("a flip at {at} went unnoticed");
        };
        let frame = boundaries.iter().rev().find(|start| **start <= at).map_or(0, |start| *start);
        let StoreError::Corrupt { offset, .. } = &error else { panic!("flip at {at}: {error}") };
        assert_eq!(*offset, frame as u64, "flip at {at}");
        let shown = error.to_string();
        assert!(
            shown.contains("backup") && shown.contains(&format!("truncate -s {frame}")),
            "{shown}"
        );
        assert_eq!(fs::read(log_of(copy.path())).unwrap(), damaged, "evidence is not touched");
    }
}

#[test]
fn sectors_that_were_never_written_are_an_unfinished_write() {
    let directory = tempfile::tempdir().unwrap();
    let log = make_log(directory.path());
    let start = boundaries()[2];
    for zeros in [start + 16, start + 20, start] {
        let mut hole = log.clone();
        hole[zeros..].fill(0);
        hole.resize(hole.len().next_multiple_of(512) + 512, 0);
        let copy = copy_with_log(directory.path(), &hole);
        let store = LogStore::open(copy.path()).unwrap_or_else(|error| panic!("{zeros}: {error}"));
        assert_eq!(all(&store).len(), 3, "zeros from {zeros}");
    }
}

#[test]
fn one_directory_has_one_federation() {
    let directory = tempfile::tempdir().unwrap();
    let store = LogStore::create(directory.path()).unwrap();
    let second = LogStore::open(directory.path()).map(drop).unwrap_err();
    assert!(matches!(second, StoreError::InUse { .. }), "{second}");
    drop(store);
    LogStore::open(directory.path()).unwrap();
    let again = LogStore::create(directory.path()).map(drop).unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
}

#[test]
fn an_index_that_does_not_open_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = LogStore::create(directory.path()).unwrap();
    store.commit(&[site(), issued(2, 300)]).unwrap();
    drop(store);
    let index = directory.path().join("index");
    for damage in ["replaced", "missing", "garbage"] {
        fs::remove_dir_all(&index).or_else(|_| fs::remove_file(&index)).unwrap();
        match damage {
            "replaced" => fs::write(&index, "a file").unwrap(),
            "garbage" => {
                fs::create_dir(&index).unwrap();
                fs::write(index.join("conf"), [0xff; 64]).unwrap();
                fs::write(index.join("db"), [0xa5; 4096]).unwrap();
            }
            _ => {}
        }
        let store =
            LogStore::open(directory.path()).unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert_eq!(store.certificate("serial-2"), Some(issued(2, 300)), "{damage}");
    }
}

#[test]
fn an_index_of_another_log_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let store = LogStore::create(directory.path()).unwrap();
    store.commit(&[site(), issued(2, 300)]).unwrap();
    drop(store);
    let other = |record: AuthorityRecord| AuthorityRecord {
        revision: Some(Revision { epoch: 6, n: record.revision.unwrap().n }),
        ..record
    };
    let log = [MAGIC.to_vec(), frame(&[other(site()), other(issued(3, 300))])].concat();
    fs::write(log_of(directory.path()), log).unwrap();
    let store = LogStore::open(directory.path()).unwrap();
    assert_eq!(store.certificate("serial-2"), None);
    assert_eq!(store.certificate("serial-3"), Some(other(issued(3, 300))));
}

#[test]
fn an_interrupted_compaction_has_not_happened() {
    let directory = tempfile::tempdir().unwrap();
    make_log(directory.path());
    fs::write(directory.path().join("authority.log.new"), "half").unwrap();
    let store = LogStore::open(directory.path()).unwrap();
    assert_eq!(all(&store).len(), 4);
    store.compact(vec![site()], 0).unwrap();
    assert_eq!(all(&store).len(), 1);
    let kept: Vec<_> = fs::read_dir(directory.path().join("audit")).unwrap().collect();
    assert_eq!(kept.len(), 1, "the old log is kept for audit");
}

#[test]
fn a_place_where_no_log_can_be_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let missing = LogStore::open(directory.path()).map(drop).unwrap_err().to_string();
    assert!(missing.contains("site init"), "{missing}");
    let nowhere = directory.path().join("nowhere");
    let nowhere = LogStore::open(&nowhere).map(drop).unwrap_err().to_string();
    assert!(nowhere.contains("nowhere"), "{nowhere}");
    fs::write(log_of(directory.path()), "#!/bin/sh\necho this is another file\n").unwrap();
    let foreign = LogStore::open(directory.path()).map(drop).unwrap_err();
    assert!(matches!(foreign, StoreError::Corrupt { offset: 0, .. }), "{foreign}");
}
