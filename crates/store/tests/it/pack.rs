//! Blobs that are like others are stored as what differs, and nobody who reads can tell.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use adamant_conformance::blobs::sample;
use adamant_digest::{Digest, Sha512, Verified};
use adamant_store::{BlobStore, FsBlobs};
use tokio::io::AsyncReadExt;

const SIZE: usize = 4 << 20;

/// Bytes on disk below `dir`, by what they are for.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { dirs.push(entry.path()) } else { found.push((entry.path(), meta.len())) }
        }
    }
    found
}

fn count(dir: &Path, what: &str) -> usize {
    files(&dir.join(what)).len()
}

/// Overwrites `places` ranges of `len` bytes, wherever `seed` says.
fn scatter(bytes: &mut [u8], seed: u64, places: usize, len: usize) {
    for (n, at) in sample(seed, places * 8).chunks_exact(8).enumerate() {
        let at = usize::try_from(u64::from_le_bytes(at.try_into().unwrap()) % (bytes.len() - len) as u64).unwrap();
        bytes[at..at + len].copy_from_slice(&sample(seed * 1000 + n as u64, len));
    }
}

async fn put(store: &FsBlobs, bytes: &[u8]) -> Digest {
    let blob = Verified::hash(bytes.to_vec());
    store.put(&blob).await.unwrap();
    blob.digest()
}

async fn read(store: &FsBlobs, digest: Digest) -> std::io::Result<Vec<u8>> {
    let mut reader = store.open(digest).await.map_err(std::io::Error::other)?;
    let mut bytes = Vec::new();
    reader.bytes.read_to_end(&mut bytes).await?;
    assert_eq!(reader.size, bytes.len() as u64);
    Ok(bytes)
}

fn pack(store: &FsBlobs) {
    store.pack(&[]).unwrap();
}

/// A base and one build on it, packed.
async fn two(store: &FsBlobs) -> [(Digest, Vec<u8>); 2] {
    let base = sample(1, SIZE);
    let mut next = base.clone();
    scatter(&mut next, 2, 10, 1000);
    let first = put(store, &base).await;
    pack(store);
    let second = put(store, &next).await;
    pack(store);
    [(first, base), (second, next)]
}

fn recipe(dir: &Path, digest: Digest) -> PathBuf {
    dir.join("patched").join(&digest.hex()[..2]).join(digest.hex())
}

#[tokio::test(flavor = "multi_thread")]
async fn consecutive_builds_cost_little_and_are_served_as_pushed() {
    const BUILDS: u64 = 40;
    for kind in ["scattered", "inserted", "contiguous"] {
        let dir = tempfile::tempdir().unwrap();
        let store = FsBlobs::open(dir.path()).unwrap();
        let mut bytes = sample(1, SIZE);
        let mut kept = Vec::new();
        let mut naive = 0;
        for build in 0..BUILDS {
            let one_percent = SIZE / 100;
            match kind {
                _ if build == 0 => {}
                "scattered" => scatter(&mut bytes, build + 10, 40, one_percent / 40),
                "inserted" => {
                    let at = usize::try_from(build).unwrap() * 70_001 % bytes.len();
                    bytes.splice(at..at, sample(build + 10, one_percent));
                }
                _ => scatter(&mut bytes, build + 10, 1, one_percent),
            }
            naive += bytes.len() as u64;
            kept.push((put(&store, &bytes).await, Digest::of(&bytes)));
            pack(&store);
        }
        let used: u64 = files(dir.path()).iter().map(|(_, len)| len).sum();
        assert!(used * 100 <= naive * 5, "{kind}: {used} of {naive} bytes, {} %", used * 100 / naive);
        assert_eq!(count(dir.path(), "sha256"), 1, "{kind}");
        let again = FsBlobs::open(dir.path()).unwrap();
        assert_eq!(again.list(None, 1000).await.unwrap().len(), kept.len());
        for (digest, right) in &kept {
            assert_eq!(Digest::of(&read(&again, *digest).await.unwrap()), *right);
            assert_eq!(again.get(*digest).await.unwrap().digest(), *right);
            assert!(again.size(*digest).await.unwrap().is_some());
        }
        // The newest is pushed again: it is there, and nothing is written.
        put(&again, &bytes).await;
        assert_eq!(count(dir.path(), "sha256"), 1);
    }
}

#[tokio::test]
async fn what_is_like_nothing_stays_plain() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    for seed in 1..4 {
        put(&store, &sample(seed, SIZE)).await;
    }
    // Half of it is known: that saves too little to be worth a second file.
    let mut half = sample(1, SIZE);
    half[SIZE / 5..].copy_from_slice(&sample(9, SIZE - SIZE / 5));
    put(&store, &half).await;
    pack(&store);
    assert_eq!((count(dir.path(), "sha256"), count(dir.path(), "patched"), count(dir.path(), "pieces")), (4, 0, 0));
}

#[tokio::test]
async fn a_thread_packs_what_is_there_and_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let mut bytes = sample(1, SIZE);
    put(&store, &bytes).await;
    scatter(&mut bytes, 3, 5, 500);
    put(&store, &bytes).await;
    let packing = store.start_packing().unwrap();
    scatter(&mut bytes, 4, 5, 500);
    let newest = put(&store, &bytes).await;
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while count(dir.path(), "patched") < 2 {
        assert!(std::time::Instant::now() < deadline, "{:?}", files(dir.path()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(packing);
    assert_eq!(read(&store, newest).await.unwrap(), bytes);
}

#[tokio::test]
async fn the_time_of_use_survives() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let base = sample(1, SIZE);
    let mut next = base.clone();
    scatter(&mut next, 2, 10, 1000);
    put(&store, &base).await;
    pack(&store);
    let second = put(&store, &next).await;
    let then = SystemTime::now() - Duration::from_hours(24);
    std::fs::File::open(store.path(second)).unwrap().set_modified(then).unwrap();
    pack(&store);
    assert!(recipe(dir.path(), second).exists());
    let used = store.used(second).await.unwrap().unwrap();
    assert!(used.duration_since(then).unwrap_or_default() < Duration::from_secs(1));
    assert_eq!(store.touch(second).await.unwrap(), Some(SIZE as u64));
    assert!(store.used(second).await.unwrap().unwrap() > then + Duration::from_hours(1));
    assert!(!store.remove(second, Some(then)).await.unwrap());
    put(&store, &next).await;
    assert!(!store.path(second).exists());
}

#[tokio::test]
async fn removing_leaves_others_whole_and_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let mut bytes = sample(1, SIZE);
    let mut kept = Vec::new();
    for build in 0..4 {
        scatter(&mut bytes, build + 10, 10, 2000);
        kept.push((put(&store, &bytes).await, bytes.clone()));
        pack(&store);
    }
    // A secret that the second build alone has.
    let secret = kept[1].1.iter().zip(&kept[0].1).zip(&kept[2].1).position(|((b, a), c)| b != a && b != c);
    let secret = secret.map(|at| kept[1].1[at..at + 16].to_vec());
    store.alias(Sha512::of(&kept[1].1), kept[1].0).await.unwrap();
    let mut early = store.open(kept[1].0).await.unwrap();
    for gone in [1, 0] {
        assert!(store.remove(kept[gone].0, None).await.unwrap());
        for store in [&store, &FsBlobs::open(dir.path()).unwrap()] {
            assert_eq!(store.size(kept[gone].0).await.unwrap(), None);
            for (digest, bytes) in &kept[2..] {
                assert_eq!(&read(store, *digest).await.unwrap(), bytes, "{gone} is gone");
            }
        }
        if let (1, Some(secret)) = (gone, &secret) {
            for (path, _) in files(dir.path()) {
                let there = std::fs::read(&path).unwrap();
                assert!(!there.windows(16).any(|part| part == secret), "{}", path.display());
            }
        }
    }
    assert_eq!(store.aliased(Sha512::of(&kept[1].1)).await.unwrap(), None);
    let mut all = Vec::new();
    early.bytes.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, kept[1].1, "who was reading reads on");
    for (digest, _) in &kept[2..] {
        assert!(store.remove(*digest, None).await.unwrap());
    }
    for what in ["sha256", "patched", "pieces"] {
        assert_eq!(count(dir.path(), what), 0, "{what}");
    }
}

/// The bytes that only a removed blob had go, wherever packing put them: in a file of its own, in pieces
/// that others rest on in part, in a base.
#[tokio::test]
async fn no_piece_keeps_what_only_a_removed_blob_had() {
    let secret = sample(99, 3000);
    for order in [["clean", "secret", "later"], ["secret", "clean", "later"], ["clean", "later", "secret"]] {
        let dir = tempfile::tempdir().unwrap();
        let store = FsBlobs::open(dir.path()).unwrap();
        let clean = sample(1, SIZE);
        let mut with = clean.clone();
        // Beside the secret, something that a later blob has as well.
        with[1 << 20..(1 << 20) + 3000].copy_from_slice(&secret);
        with[(1 << 20) + 3000..(1 << 20) + 60_000].copy_from_slice(&sample(5, 57_000));
        let mut later = clean.clone();
        later[(1 << 20) + 3000..(1 << 20) + 60_000].copy_from_slice(&sample(5, 57_000));
        later[2 << 20..(2 << 20) + 3000].copy_from_slice(&sample(6, 3000));
        let mut kept = Vec::new();
        for what in order {
            let bytes = match what {
                "clean" => &clean,
                "secret" => &with,
                _ => &later,
            };
            let digest = put(&store, bytes).await;
            pack(&store);
            kept.extend((what != "secret").then(|| (digest, bytes.clone())));
        }
        let holders = || {
            let all = files(dir.path()).into_iter().map(|(path, _)| path);
            let part = &secret[100..132];
            all.filter(|path| std::fs::read(path).unwrap().windows(32).any(|bytes| bytes == part)).count()
        };
        assert_eq!((count(dir.path(), "patched"), holders()), (2, 1), "{order:?}");
        assert!(store.remove(Digest::of(&with), None).await.unwrap());
        assert_eq!(holders(), 0, "{order:?}");
        for (digest, bytes) in &kept {
            assert_eq!(&read(&store, *digest).await.unwrap(), bytes, "{order:?}");
        }
    }
}

/// What each moment of packing leaves if the process ends there.
#[tokio::test]
async fn a_crash_at_any_moment_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [(first, base), (second, next)] = two(&FsBlobs::open(dir.path()).unwrap()).await;
    let pieces = files(&dir.path().join("pieces"));
    assert_eq!(pieces.len(), 1);
    let plain = dir.path().join("sha256").join(&second.hex()[..2]).join(second.hex());
    let whole = |store: FsBlobs| {
        let (base, next) = (base.clone(), next.clone());
        async move {
            assert_eq!(read(&store, first).await.unwrap(), base);
            assert_eq!(read(&store, second).await.unwrap(), next);
        }
    };
    // The recipe has its name and the plain file is still there.
    std::fs::write(&plain, &next).unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    whole(store.clone()).await;
    assert_eq!(store.list(None, 10).await.unwrap().len(), 2);
    pack(&store);
    assert!(!plain.exists() && recipe(dir.path(), second).exists(), "it is packed again");
    whole(store).await;
    // Pieces have their name and the recipe was never written.
    let lost = dir.path().join("pieces/00").join("0".repeat(64));
    std::fs::create_dir_all(lost.parent().unwrap()).unwrap();
    std::fs::write(&lost, b"nobody's").unwrap();
    std::fs::write(dir.path().join("tmp/in-recipe"), b"half").unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    drop(store.start_packing().unwrap());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while lost.exists() {
        let packing = store.start_packing().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(packing);
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(count(dir.path(), "tmp"), 0);
    assert_eq!(files(&dir.path().join("pieces")), pieces);
    whole(store).await;
    // What is derived can be removed at any time.
    std::fs::remove_file(dir.path().join("sketches")).unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    pack(&store);
    whole(store).await;
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    assert!(file.metadata().unwrap().size() > at);
}

#[tokio::test]
async fn a_damaged_base_spoils_what_rests_on_it_until_it_is_pushed_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let [(first, base), (second, next)] = two(&store).await;
    flip(&store.path(first), 77);
    for store in [&store, &FsBlobs::open(dir.path()).unwrap()] {
        assert!(read(store, second).await.is_err());
        for digest in [first, second] {
            assert!(read(store, digest).await.is_err());
            assert_eq!(store.size(digest).await.unwrap(), None);
        }
    }
    put(&store, &base).await;
    assert_eq!(read(&store, second).await.unwrap(), next);
    assert_eq!(read(&store, first).await.unwrap(), base);
    // What rests on it alone is pushed again.
    flip(&store.path(first), 78);
    assert!(read(&store, second).await.is_err());
    put(&store, &next).await;
    assert_eq!(read(&store, second).await.unwrap(), next);
    assert!(read(&store, first).await.is_err());
}

#[tokio::test]
async fn damaged_pieces_heal_with_the_blob_that_brought_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let [_, (second, next)] = two(&store).await;
    let mut third = next.clone();
    scatter(&mut third, 5, 3, 1000);
    let third_name = put(&store, &third).await;
    pack(&store);
    assert_eq!(count(dir.path(), "patched"), 2);
    for (path, _) in files(&dir.path().join("pieces")) {
        flip(&path, 0);
    }
    for digest in [second, third_name] {
        assert!(read(&store, digest).await.is_err());
        assert_eq!(store.size(digest).await.unwrap(), None);
    }
    put(&store, &next).await;
    put(&store, &third).await;
    store.pack(&[second, third_name]).unwrap();
    assert_eq!(read(&store, second).await.unwrap(), next);
    assert_eq!(read(&store, third_name).await.unwrap(), third);
    // A recipe that is wrong is one blob's own matter.
    let both = [(second, &next), (third_name, &third)];
    let (patched, right) = both.into_iter().find(|(digest, _)| recipe(dir.path(), *digest).exists()).unwrap();
    flip(&recipe(dir.path(), patched), 60);
    assert!(read(&store, patched).await.is_err());
    for (digest, bytes) in both.into_iter().filter(|(digest, _)| *digest != patched) {
        assert_eq!(&read(&store, digest).await.unwrap(), bytes);
    }
    put(&store, right).await;
    assert_eq!(&read(&store, patched).await.unwrap(), right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patched_blob_that_was_right_never_gives_wrong_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = FsBlobs::open(dir.path()).unwrap();
    let [(first, _), (second, next)] = two(&store).await;
    assert!(recipe(dir.path(), second).exists());
    assert_eq!(read(&store, second).await.unwrap(), next);
    let at = (SIZE / 2) as u64;
    let path = store.path(first);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    let mut given = Vec::new();
    let error = store.open(second).await.unwrap().bytes.read_to_end(&mut given).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(next.starts_with(&given) && given.len() > SIZE / 4, "{} bytes, or wrong ones", given.len());
    let mut damaged: Vec<Digest> = store.damaged().await.iter().map(|(digest, _)| *digest).collect();
    damaged.sort();
    let mut both = vec![first, second];
    both.sort();
    assert_eq!(damaged, both);
}
