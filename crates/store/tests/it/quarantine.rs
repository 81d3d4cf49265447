//! Wrong bytes are moved aside, are known after a restart, and are healed by the right ones.

use adamant_conformance::blobs::{Damage, sample};
use adamant_digest::{Digest, Verified};
use adamant_store::{BlobStore, FsBlobs, ReadBlobError};

use crate::damage;

fn aside(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir.join("quarantine")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn known_damage_is_no_blob_for_whoever_asks_and_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    for size in [5_000, 3 << 20] {
        let store = FsBlobs::open(dir.path()).unwrap();
        let blob = Verified::hash(sample(size as u64, size));
        let digest = blob.digest();
        store.put(&blob).await.unwrap();
        damage(&store.path(digest), Damage::Flip(10));
        let wrong = Digest::of(&std::fs::read(store.path(digest)).unwrap());
        assert_eq!(store.size(digest).await.unwrap(), Some(size as u64), "not known yet");
        assert!(matches!(store.get(digest).await, Err(ReadBlobError::Corrupt { .. })));
        assert!(!store.path(digest).exists());
        for store in [&store, &FsBlobs::open(dir.path()).unwrap(), &FsBlobs::observe(dir.path()).unwrap()] {
            assert_eq!(store.size(digest).await.unwrap(), None);
            match store.get(digest).await {
                Err(ReadBlobError::Corrupt { source, .. }) => assert_eq!(source.found, wrong),
                other => panic!("{other:?}"),
            }
            assert!(matches!(store.open(digest).await, Err(ReadBlobError::Corrupt { .. })));
            assert_eq!(store.touch(digest).await.unwrap(), None);
            assert_eq!(store.damaged().await, [(digest, wrong)]);
        }
        store.put(&blob).await.unwrap();
        assert_eq!((store.damaged().await, store.damages()), (vec![], 1));
        assert_eq!(store.get(digest).await.unwrap(), blob);
        for again in [FsBlobs::open(dir.path()).unwrap(), FsBlobs::observe(dir.path()).unwrap()] {
            assert_eq!((again.damaged().await, again.size(digest).await.unwrap()), (vec![], Some(size as u64)));
            assert_eq!(again.aside().unwrap().iter().map(|(_, of)| *of).collect::<Vec<_>>(), [digest]);
        }
        // The bad bytes of an erased blob go as well.
        assert_eq!(aside(dir.path()), 1);
        store.remove(digest, None).await.unwrap();
        assert_eq!(aside(dir.path()), 0);
    }
}

#[tokio::test]
async fn who_observes_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blob = Verified::hash(sample(1, 1000));
    FsBlobs::open(dir.path()).unwrap().put(&blob).await.unwrap();
    let store = FsBlobs::observe(dir.path()).unwrap();
    damage(&store.path(blob.digest()), Damage::Grow(1));
    assert!(store.get(blob.digest()).await.is_err());
    assert!(store.path(blob.digest()).exists() && aside(dir.path()) == 0);
}

#[tokio::test]
async fn what_is_kept_aside_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    for seed in 0..110 {
        let blob = Verified::hash(sample(seed, 100));
        store.put(&blob).await.unwrap();
        damage(&store.path(blob.digest()), Damage::Truncate(1));
        assert!(store.get(blob.digest()).await.is_err());
    }
    assert_eq!((aside(dir.path()), store.damaged().await.len()), (100, 110));
}
