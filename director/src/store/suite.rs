//! One suite for every backend.

use std::sync::Arc;

use super::memory::Memory;
use super::{Expect, Kind, Sqlite, Store, StoreError, Write};
use crate::model::Revision;

fn put(kind: Kind, name: &str, expect: Expect, body: &str) -> Write {
    Write {
        kind,
        name: name.into(),
        expect,
        body: Some(body.as_bytes().to_vec()),
    }
}

/// Runs the whole suite on a fresh store of each backend.
macro_rules! suite {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let dir = tempfile::tempdir().unwrap();
                let store = super::Sqlite::open(&dir.path().join("s")).unwrap();
                super::$test(std::sync::Arc::new(store)).await;
            })+
        }
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(std::sync::Arc::new(super::Memory::default())).await;
            })+
        }
    };
}

suite!(
    reads_what_was_committed,
    a_conflict_writes_nothing,
    one_of_many_racing_writers_wins,
    revisions_grow_over_deletes,
    a_watcher_sees_every_change_in_order,
    prefixes_are_not_patterns,
);

async fn reads_what_was_committed(store: Arc<dyn Store>) {
    assert_eq!(store.get(Kind::Meta, "a").await.unwrap(), None);
    let one = store
        .commit(vec![
            put(Kind::Meta, "a", Expect::Absent, "1"),
            put(Kind::Task, "a", Expect::Absent, "2"),
        ])
        .await
        .unwrap();
    let a = store.get(Kind::Meta, "a").await.unwrap().unwrap();
    assert_eq!((a.revision, a.body.as_slice()), (one, b"1".as_slice()));
    let two = store
        .commit(vec![put(Kind::Meta, "a", Expect::At(one), "3")])
        .await
        .unwrap();
    assert!(two > one);
    assert_eq!(
        store.get(Kind::Meta, "a").await.unwrap().unwrap().body,
        b"3"
    );
    assert_eq!(
        store.get(Kind::Task, "a").await.unwrap().unwrap().body,
        b"2"
    );
}

async fn a_conflict_writes_nothing(store: Arc<dyn Store>) {
    let one = store
        .commit(vec![put(Kind::Meta, "a", Expect::Absent, "1")])
        .await
        .unwrap();
    for expect in [Expect::Absent, Expect::At(Revision(one.0 + 7))] {
        let error = store
            .commit(vec![
                put(Kind::Meta, "b", Expect::Absent, "1"),
                put(Kind::Meta, "a", expect, "2"),
            ])
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Conflict { ref name, .. } if name == "a"),
            "{error}"
        );
        assert_eq!(store.get(Kind::Meta, "b").await.unwrap(), None);
        assert_eq!(
            store.get(Kind::Meta, "a").await.unwrap().unwrap().body,
            b"1"
        );
    }
    let missing = Expect::At(Revision(1));
    assert!(
        store
            .commit(vec![put(Kind::Meta, "z", missing, "1")])
            .await
            .is_err()
    );
}

async fn one_of_many_racing_writers_wins(store: Arc<dyn Store>) {
    let mut running = tokio::task::JoinSet::new();
    for i in 0..32 {
        let store = store.clone();
        running.spawn(async move {
            let body = i.to_string();
            store
                .commit(vec![put(Kind::Token, "t", Expect::Absent, &body)])
                .await
                .is_ok()
                .then_some(body)
        });
    }
    let winners: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let stored = store.get(Kind::Token, "t").await.unwrap().unwrap().body;
    assert_eq!(stored, winners[0].as_bytes());
}

async fn revisions_grow_over_deletes(store: Arc<dyn Store>) {
    let one = store
        .commit(vec![put(Kind::Meta, "a", Expect::Absent, "1")])
        .await
        .unwrap();
    let delete = Write {
        body: None,
        ..put(Kind::Meta, "a", Expect::At(one), "")
    };
    let two = store.commit(vec![delete.clone()]).await.unwrap();
    assert_eq!(store.get(Kind::Meta, "a").await.unwrap(), None);
    assert!(store.commit(vec![delete]).await.is_err());
    let three = store
        .commit(vec![put(Kind::Meta, "a", Expect::Absent, "1")])
        .await
        .unwrap();
    assert!(one < two && two < three);
}

async fn a_watcher_sees_every_change_in_order(store: Arc<dyn Store>) {
    let mut watch = store.watch();
    let mut expected = Vec::new();
    for i in 0..10 {
        let name = format!("n{i}");
        let revision = store
            .commit(vec![put(Kind::Meta, &name, Expect::Any, "")])
            .await
            .unwrap();
        expected.push((name, revision));
    }
    for (name, revision) in expected {
        let change = watch.recv().await.unwrap();
        assert_eq!((change.name, change.revision), (name, revision));
    }
}

async fn prefixes_are_not_patterns(store: Arc<dyn Store>) {
    for name in ["a%/1", "a_/2", "ab/3", "a/4", "a/5", "b"] {
        store
            .commit(vec![put(Kind::Step, name, Expect::Absent, "")])
            .await
            .unwrap();
    }
    let names = |entries: Vec<super::Entry>| -> Vec<String> {
        entries.into_iter().map(|e| e.name).collect()
    };
    assert_eq!(
        names(store.list(Kind::Step, "a/").await.unwrap()),
        ["a/4", "a/5"]
    );
    assert_eq!(names(store.list(Kind::Step, "a%").await.unwrap()), ["a%/1"]);
    assert_eq!(store.list(Kind::Step, "").await.unwrap().len(), 6);
    assert_eq!(
        names(store.newest(Kind::Step, 2).await.unwrap()),
        ["b", "ab/3"]
    );
}
