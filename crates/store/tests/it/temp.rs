//! What is left of uploads, and what a full disk does.

use std::path::{Path, PathBuf};
use std::process::Command;

use adamant_conformance::blobs::sample;
use adamant_digest::Verified;
use adamant_store::{BlobStore, FsBlobs, WriteBlobError};

fn arrivals(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir.join("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_sweeps_dead_uploads_and_leaves_living_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let mut upload = store.upload().await.unwrap();
    upload.write(vec![1; 100].into()).await.unwrap();
    let dead = dir.path().join("tmp/in-dead");
    std::fs::write(&dead, b"half").unwrap();
    assert_eq!(arrivals(dir.path()).len(), 2);
    FsBlobs::open(dir.path()).unwrap();
    assert!(!dead.exists());
    assert_eq!(arrivals(dir.path()).len(), 1);
    upload.finish(None).await.unwrap();
    assert!(arrivals(dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_upload_frees_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    for size in [10, 3 << 20] {
        let mut upload = store.upload().await.unwrap();
        upload.write(vec![1; size].into()).await.unwrap();
        drop(upload);
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !arrivals(dir.path()).is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", arrivals(dir.path()));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_as_such_and_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(dir.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a_full_disk_is_reported_as_such_and_does_no_harm: cannot mount a tmpfs");
        return;
    }
    let _mounted = Mounted(dir.path().to_owned());
    let blobs = dir.path().join("blobs");
    let store = FsBlobs::open(&blobs).unwrap();
    let small = Verified::hash(sample(1, 1000));
    store.put(&small).await.unwrap();

    let large = Verified::hash(sample(2, 5 << 20));
    let storage_full = |error: WriteBlobError| match error {
        WriteBlobError::Io(error) => assert_eq!(error.kind(), std::io::ErrorKind::StorageFull),
        other => panic!("{other}"),
    };
    storage_full(store.put(&large).await.unwrap_err());
    let mut upload = store.upload().await.unwrap();
    let mut failed = None;
    for chunk in large.bytes().chunks(100_000) {
        if let Err(error) = upload.write(chunk.to_vec().into()).await {
            failed = Some(error);
            break;
        }
    }
    match failed {
        Some(error) => {
            storage_full(error);
            upload.write(vec![0].into()).await.unwrap_err();
            upload.finish(None).await.unwrap_err();
        }
        None => storage_full(upload.finish(None).await.unwrap_err()),
    }
    assert_eq!(store.size(large.digest()).await.unwrap(), None);
    assert_eq!(store.get(small.digest()).await.unwrap(), small);
    FsBlobs::open(&blobs).unwrap();
    assert!(arrivals(&blobs).is_empty());
    store.put(&Verified::hash(sample(3, 1 << 20))).await.unwrap();
}
