//! Tiles on disk and for HTTP.

use std::path::{Path, PathBuf};

use adamant_conformance::ledger::tag;
use adamant_ledger::{PublishError, SqlLedger};
use adamant_store::Ledger;
use adamant_tlog::{Checkpoint, Note, Tile, decode_entries, leaf_hash, node_in_tile, root};

use crate::Place;

async fn grow(ledger: &SqlLedger, to: u64) {
    let from = ledger.head().await.unwrap().size;
    let facts: Vec<_> = (from..to).map(|n| tag(&format!("grow:{n}"), "1")).collect();
    ledger.append(facts).await.unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Reads the published log as a stranger does.
async fn verify(dir: &Path, ledger: &SqlLedger) -> u64 {
    let note = std::fs::read_to_string(dir.join("checkpoint")).unwrap();
    let key = ledger.trust_values().log.parse().unwrap();
    let (checkpoint, _) = Checkpoint::verify(&note, &ledger.trust_values().origin, &key).unwrap();
    let computed = root(checkpoint.size, |node| {
        let tile = Tile::of_node(node, checkpoint.size).unwrap();
        let bytes = std::fs::read(dir.join(tile.to_string())).map_err(|error| format!("{tile}: {error}"))?;
        node_in_tile(node, tile, &bytes).map_err(|error| error.to_string())
    });
    assert_eq!(computed, Ok(checkpoint.root));
    let mut index = 0;
    while index < checkpoint.size {
        let tile = Tile::entries(index / 256, checkpoint.size).unwrap();
        let bytes = std::fs::read(dir.join(tile.to_string())).unwrap();
        assert_eq!(ledger.tile(&tile.to_string()).await.unwrap(), Some(bytes.clone()));
        let hashes =
            std::fs::read(dir.join(Tile::in_tree(0, index / 256, checkpoint.size).unwrap().to_string())).unwrap();
        for (entry, hash) in decode_entries(&bytes).unwrap().iter().zip(hashes.chunks(32)) {
            assert_eq!(leaf_hash(entry), hash);
            index += 1;
        }
    }
    checkpoint.size
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_step_by_step_and_all_at_once_the_same() {
    let place = Place::new();
    let ledger = place.open().await;
    let (steps, once) = (place.dir.path().join("steps"), place.dir.path().join("once"));
    for size in [4, 5, 255, 256, 257, 511, 700, 1030] {
        grow(&ledger, size).await;
        assert_eq!(ledger.publish(&steps).await.unwrap(), size);
        assert_eq!(verify(&steps, &ledger).await, size);
    }
    ledger.publish(&once).await.unwrap();
    assert_eq!(verify(&once, &ledger).await, 1030);
    let names = |dir: &Path| {
        let full = files(dir).into_iter().filter(|path| !path.to_string_lossy().contains(".p/"));
        full.map(|path| (path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(names(&steps), names(&once));
    assert!(!steps.join("tile/0/000.p").exists(), "partial tiles of a full one go");
    assert!(files(&steps).iter().all(|path| !path.to_string_lossy().contains(".new-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_after_any_part_is_missing_and_rewrites_nothing() {
    let place = Place::new();
    let ledger = place.open().await;
    let dir = place.dir.path().join("log");
    grow(&ledger, 600).await;
    ledger.publish(&dir).await.unwrap();
    let old = std::fs::read(dir.join("checkpoint")).unwrap();
    grow(&ledger, 900).await;
    ledger.publish(&dir).await.unwrap();
    let all = files(&dir);
    // A crash before the checkpoint: any subset of the new files is there, some of them cut off.
    for lost in &all {
        std::fs::write(dir.join("checkpoint"), &old).unwrap();
        if !lost.ends_with("checkpoint") && std::fs::metadata(lost).unwrap().modified().is_ok() {
            std::fs::write(lost, b"half").unwrap();
        }
        let of_old_tree = ["tile/0/000", "tile/0/001", "tile/entries/000", "tile/entries/001"];
        let shown = lost.strip_prefix(&dir).unwrap().to_string_lossy().into_owned();
        ledger.publish(&dir).await.unwrap();
        if of_old_tree.contains(&shown.as_str()) || shown.contains(".p/88") {
            // Below the published checkpoint nothing is looked at again; a lost checkpoint is a
            // fresh start and heals that as well.
            std::fs::remove_file(dir.join("checkpoint")).unwrap();
            ledger.publish(&dir).await.unwrap();
        }
        if !shown.contains(".p/88") {
            assert_eq!(verify(&dir, &ledger).await, 900, "{shown}");
        }
    }
    let times = || files(&dir).iter().map(|path| path.metadata().unwrap().modified().unwrap()).collect::<Vec<_>>();
    let before = times();
    ledger.publish(&dir).await.unwrap();
    assert_eq!(times(), before);
    std::fs::write(dir.join("checkpoint"), "rubbish").unwrap();
    ledger.publish(&dir).await.unwrap();
    assert_eq!(verify(&dir, &ledger).await, 900);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_database_does_not_publish() {
    let place = Place::new();
    let ledger = place.open().await;
    let dir = place.dir.path().join("log");
    ledger.publish(&dir).await.unwrap();
    ledger.close().await;
    let newer = Place { dir: tempfile::tempdir().unwrap(), keys: place.keys.clone() };
    std::fs::copy(place.db(), newer.db()).unwrap();
    let ahead = newer.open().await;
    grow(&ahead, 10).await;
    ahead.publish(&dir).await.unwrap();
    let error = place.open().await.publish(&dir).await.unwrap_err();
    assert!(matches!(error, PublishError::Ahead { published: 10, stored: 4 }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tiles_by_path() {
    let place = Place::new();
    let ledger = place.open().await;
    grow(&ledger, 300).await;
    let checkpoint = ledger.tile("checkpoint").await.unwrap().unwrap();
    assert!(Note::parse(std::str::from_utf8(&checkpoint).unwrap()).is_ok());
    for (path, length) in
        [("tile/0/000", Some(8192)), ("tile/0/000.p/255", Some(8160)), ("tile/0/001.p/44", Some(1408))]
    {
        assert_eq!(ledger.tile(path).await.unwrap().map(|bytes| bytes.len()), length, "{path}");
    }
    assert_eq!(ledger.tile("tile/1/000.p/1").await.unwrap().map(|bytes| bytes.len()), Some(32));
    for absent in ["tile/0/001", "tile/0/001.p/45", "tile/2/000.p/1", "tile/entries/001", "tile/0/x001/000"] {
        assert_eq!(ledger.tile(absent).await.unwrap(), None, "{absent}");
    }
    for bad in
        ["", "tile", "../adamant.db", "tile/0/0", "tile/0/000.p/256", "tile/0/000.p/0", "tile/9/000", "/checkpoint"]
    {
        assert_eq!(ledger.tile(bad).await.unwrap(), None, "{bad}");
    }
}
