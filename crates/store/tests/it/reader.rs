//! Large blobs are read ahead in blocks, and one that was right once is checked block by block.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use adamant_conformance::blobs::{Damage, sample};
use adamant_digest::{Digest, Verified};
use adamant_store::{BlobStore, FsBlobs};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::damage;

const BLOCK: usize = 256 << 10;
const SIZE: usize = 3 * BLOCK * 4 + 1000;

/// What a reader gives away, and why it ended.
async fn given(store: &FsBlobs, digest: Digest) -> (Vec<u8>, Option<ErrorKind>) {
    let mut chunks = store.open(digest).await.unwrap().into_chunks();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => return (bytes, Some(error.kind())),
        }
    }
    (bytes, None)
}

async fn upload(store: &FsBlobs, bytes: &[u8]) -> Digest {
    let mut upload = store.upload().await.unwrap();
    for piece in bytes.chunks(70_001) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    upload.finish(None).await.unwrap().0
}

#[tokio::test]
async fn a_block_that_changed_since_the_blob_was_right_is_never_given_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let mut seed = 0;
    for uploaded in [true, false] {
        for (kind, right) in [
            (Damage::Flip(0), 0),
            (Damage::Flip(5 * BLOCK as u64 + 7), 5 * BLOCK),
            (Damage::Flip(SIZE as u64 - 1), SIZE / BLOCK * BLOCK),
            (Damage::Grow(1), SIZE / BLOCK * BLOCK),
        ] {
            seed += 1;
            let bytes = sample(seed, SIZE);
            let digest = if uploaded {
                upload(&store, &bytes).await
            } else {
                let blob = Verified::hash(bytes.clone());
                store.put(&blob).await.unwrap();
                assert_eq!(given(&store, blob.digest()).await, (bytes.clone(), None));
                blob.digest()
            };
            damage(&store.path(digest), kind);
            let wrong = Digest::of(&std::fs::read(store.path(digest)).unwrap());
            let (before, why) = given(&store, digest).await;
            assert_eq!(why, Some(ErrorKind::InvalidData), "{kind:?}, uploaded {uploaded}");
            // A file of another length is read as another blob, whose end is held back.
            let least = if matches!(kind, Damage::Grow(_)) { 0 } else { right };
            assert!(before.len() >= least && before.len() <= right, "{} bytes, {kind:?}", before.len());
            assert!(bytes.starts_with(&before), "wrong bytes, {kind:?}, uploaded {uploaded}");
            assert_eq!(store.damaged().await, [(digest, wrong)], "{kind:?}");
            assert_eq!(upload(&store, &bytes).await, digest);
            assert_eq!(given(&store, digest).await, (bytes, None), "healed, {kind:?}");
            assert!(store.damaged().await.is_empty());
        }
    }
}

#[tokio::test]
async fn a_blob_that_was_removed_and_came_back_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let bytes = sample(1, SIZE);
    let digest = upload(&store, &bytes).await;
    for _ in 0..2 {
        assert_eq!(given(&store, digest).await, (bytes.clone(), None));
        assert!(store.remove(digest, None).await.unwrap());
        assert!(store.open(digest).await.is_err());
        store.put(&Verified::hash(bytes.clone())).await.unwrap();
    }
    assert_eq!(given(&store, digest).await, (bytes, None));
}

/// How far this process has read the file, if it is open.
fn read_so_far(path: &Path) -> Option<u64> {
    std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok).find_map(|entry| {
        let open = std::fs::read_link(entry.path()).ok()?;
        let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
        let info = std::fs::read_to_string(info).ok().filter(|_| open == path)?;
        info.lines().next()?.strip_prefix("pos:")?.trim().parse().ok()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_is_not_read_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let digest = upload(&store, &sample(1, 40 * BLOCK)).await;
    let mut chunks = store.open(digest).await.unwrap().into_chunks();
    assert!(chunks.next().await.unwrap().is_ok());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let read = read_so_far(&store.path(digest)).unwrap();
    assert!(read > BLOCK as u64 && read <= 8 * BLOCK as u64, "{read} bytes were read for one block");
    drop(chunks);
    let gone = async {
        while read_so_far(&store.path(digest)).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the file is closed");
}

#[test]
fn slow_readers_hold_no_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = FsBlobs::open(dir.path()).unwrap();
        let bytes = sample(1, 20 * BLOCK);
        let digest = upload(&store, &bytes).await;
        let mut slow = Vec::new();
        for _ in 0..5 {
            let mut chunks = store.open(digest).await.unwrap().into_chunks();
            chunks.next().await.unwrap().unwrap();
            slow.push(chunks);
        }
        let read = tokio::time::timeout(Duration::from_secs(30), given(&store, digest)).await;
        assert_eq!(read.expect("others are served"), (bytes.clone(), None));
        for chunks in slow {
            let rest: Vec<Bytes> = chunks.map(Result::unwrap).collect().await;
            assert_eq!(rest.concat(), bytes[BLOCK..]);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_used_again_once_nobody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let bytes = sample(1, 40 * BLOCK + 1);
    let digest = upload(&store, &bytes).await;
    let (mut places, mut at) = (HashSet::new(), 0);
    let mut chunks = store.open(digest).await.unwrap().into_chunks();
    while let Some(chunk) = chunks.next().await.transpose().unwrap() {
        places.insert(chunk.as_ptr() as usize);
        assert!(bytes[at..].starts_with(&chunk), "at {at}");
        at += chunk.len();
    }
    assert_eq!(at, bytes.len());
    assert!(places.len() <= 10, "{} buffers for 41 blocks", places.len());
    // What somebody holds stays as it is.
    let held: Vec<Bytes> = store.open(digest).await.unwrap().into_chunks().map(Result::unwrap).collect().await;
    assert_eq!(held.concat(), bytes);
}
