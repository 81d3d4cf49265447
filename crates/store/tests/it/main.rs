//! Blobs on local files: the conformance suite and what only files can show.
#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod lock;
mod pack;
mod quarantine;
mod reader;
mod remove;
mod s3;
mod temp;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use adamant_conformance::blobs::{self, Damage};
use adamant_conformance::{Faulty, When};
use adamant_digest::{Digest, Verified};
use adamant_store::{BlobStore, FsBlobs};

fn damage(path: &Path, kind: Damage) -> bool {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let mut file = OpenOptions::new().read(true).write(true).open(path).expect("stored copy");
    let len = file.metadata().expect("metadata").len();
    match kind {
        Damage::Flip(at) => {
            let mut byte = [0];
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.read_exact(&mut byte).expect("read");
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.write_all(&[byte[0] ^ 1]).expect("write");
        }
        Damage::Truncate(len) => file.set_len(len).expect("truncate"),
        Damage::Grow(more) => file.set_len(len + more).expect("grow"),
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let paths = FsBlobs::open(dir.path()).unwrap();
    blobs::suite(async || FsBlobs::open(dir.path()).unwrap(), |digest, kind| damage(&paths.path(digest), kind)).await;
}

#[tokio::test]
async fn a_blob_is_a_read_only_file_named_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let blob = Verified::hash(b"adamant".to_vec());
    store.put(&blob).await.unwrap();
    let hex = blob.digest().hex();
    let path = dir.path().join("sha256").join(&hex[..2]).join(&hex);
    assert_eq!(store.path(blob.digest()), path);
    assert_eq!(std::fs::read(&path).unwrap(), b"adamant");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o444);
}

#[tokio::test]
async fn the_same_put_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let blob = Verified::hash(blobs::sample(1, 100_000));
    store.put(&blob).await.unwrap();
    let before = File::open(store.path(blob.digest())).unwrap().metadata().unwrap();
    store.put(&blob).await.unwrap();
    let mut upload = store.upload().await.unwrap();
    upload.write(blob.bytes().to_vec().into()).await.unwrap();
    upload.finish(Some(blob.digest())).await.unwrap();
    let after = File::open(store.path(blob.digest())).unwrap().metadata().unwrap();
    let id = |meta: &std::fs::Metadata| {
        use std::os::unix::fs::MetadataExt;
        (meta.ino(), meta.len(), meta.mode())
    };
    assert_eq!(id(&before), id(&after));
}

#[tokio::test]
async fn a_link_in_place_of_a_blob_is_not_followed_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let blob = Verified::hash(b"mine".to_vec());
    let other = dir.path().join("other");
    std::fs::write(&other, b"mine").unwrap();
    std::os::unix::fs::symlink(&other, store.path(blob.digest())).unwrap();
    assert!(store.get(blob.digest()).await.is_err());
    assert_eq!(store.size(blob.digest()).await.unwrap(), None);
    store.put(&blob).await.unwrap();
    assert!(store.path(blob.digest()).symlink_metadata().unwrap().is_file());
    assert_eq!(store.get(blob.digest()).await.unwrap().bytes(), b"mine");
    assert_eq!(std::fs::read(&other).unwrap(), b"mine");
}

#[tokio::test]
async fn rubbish_beside_blobs_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let blob = Verified::hash(b"x".to_vec());
    store.put(&blob).await.unwrap();
    let shard = store.path(blob.digest()).parent().unwrap().to_owned();
    for name in ["README", "sha256", &"0".repeat(64), &"f".repeat(63)] {
        std::fs::write(shard.join(name), b"").unwrap();
    }
    assert_eq!(store.list(None, 100).await.unwrap(), [blob.digest()]);
}

#[tokio::test]
async fn a_shard_removed_by_hand_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let blob = Verified::hash(b"y".to_vec());
    std::fs::remove_dir(store.path(blob.digest()).parent().unwrap()).unwrap();
    store.put(&blob).await.unwrap();
    assert_eq!(store.get(blob.digest()).await.unwrap().bytes(), b"y");
}

#[tokio::test]
async fn faults_fire_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(FsBlobs::open(dir.path()).unwrap());
    for (when, kept) in [(When::Before, false), (When::After, true)] {
        for by_upload in [false, true] {
            let bytes = format!("{when:?} {by_upload}").into_bytes();
            let digest = Digest::of(&bytes);
            store.put(&Verified::hash(b"not this one".to_vec())).await.unwrap();
            store.arm(0, when);
            if by_upload {
                let mut upload = store.upload().await.unwrap();
                upload.write(bytes.into()).await.unwrap();
                upload.finish(None).await.unwrap_err();
            } else {
                store.put(&Verified::hash(bytes)).await.unwrap_err();
            }
            assert_eq!(store.size(digest).await.unwrap().is_some(), kept, "{when:?} {by_upload}");
        }
    }
    assert_eq!((store.fired(), store.calls()), (4, 8));
}
