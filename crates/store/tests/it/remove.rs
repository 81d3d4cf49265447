//! Removal on files: what is idle goes, what is used meanwhile stays.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adamant_conformance::blobs::sample;
use adamant_conformance::{Faulty, When};
use adamant_digest::{Digest, Sha512, Verified};
use adamant_store::{BlobStore, FsBlobs};

fn age(store: &FsBlobs, digest: Digest, by: Duration) {
    let then = SystemTime::now() - by;
    if let Ok(file) = File::open(store.path(digest)) {
        file.set_modified(then).unwrap();
    }
}

const DAY: Duration = Duration::from_hours(24);

/// Each round a blob that is long idle is removed and used at the same moment. Whoever was told that
/// it is there must find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_use_that_was_acknowledged_is_respected() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FsBlobs::open(dir.path()).unwrap());
    let (mut lost, mut kept) = (0, 0);
    for round in 0..600 {
        let blob = Verified::hash(sample(round, 3_000));
        let digest = blob.digest();
        store.put(&blob).await.unwrap();
        age(&store, digest, DAY);
        let remover = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.remove(digest, Some(SystemTime::now() - DAY / 2)).await.unwrap() }
        });
        let told = match round % 3 {
            0 => store.touch(digest).await.unwrap().is_some(),
            1 => store.put(&blob).await.map(|()| true).unwrap(),
            _ => {
                let mut upload = store.upload().await.unwrap();
                upload.write(blob.bytes().to_vec().into()).await.unwrap();
                upload.finish(None).await.map(|_| true).unwrap()
            }
        };
        let removed = remover.await.unwrap();
        if told {
            assert_eq!(store.get(digest).await.unwrap().bytes(), blob.bytes(), "round {round}, removed: {removed}");
        }
        kept += u32::from(!removed);
        lost += u32::from(removed);
    }
    assert!(lost > 0 && kept > 0, "both were seen: {lost} removed, {kept} kept");
}

#[tokio::test]
async fn bytes_that_arrived_long_ago_are_used_when_they_get_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let mut upload = store.upload().await.unwrap();
    upload.write(sample(1, 2_000_000).into()).await.unwrap();
    for entry in std::fs::read_dir(dir.path().join("tmp")).unwrap() {
        File::open(entry.unwrap().path()).unwrap().set_modified(SystemTime::now() - DAY).unwrap();
    }
    let (digest, _) = upload.finish(None).await.unwrap();
    assert!(!store.remove(digest, Some(SystemTime::now() - DAY / 2)).await.unwrap());
    assert!(store.size(digest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_removal_that_failed_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(FsBlobs::open(dir.path()).unwrap());
    let blob = Verified::hash(sample(2, 5_000));
    let other = Sha512::of(blob.bytes());
    for (when, left) in [(When::Before, true), (When::After, false)] {
        store.put(&blob).await.unwrap();
        store.alias(other, blob.digest()).await.unwrap();
        store.arm(0, when);
        store.remove(blob.digest(), None).await.unwrap_err();
        assert_eq!(store.size(blob.digest()).await.unwrap().is_some(), left);
        assert!(store.remove(blob.digest(), None).await.unwrap());
        assert_eq!(store.size(blob.digest()).await.unwrap(), None);
        assert_eq!(store.aliased(other).await.unwrap(), None);
    }
}
