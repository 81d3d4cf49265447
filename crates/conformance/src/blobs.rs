//! The blob store suite.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adamant_digest::{Digest, Sha512, Verified};
use adamant_store::{BlobStore, ReadBlobError, WriteBlobError};
use bytes::Bytes;
use tokio::io::AsyncReadExt;

/// What the suite does to stored bytes behind the store's back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One bit of the byte at this offset flips.
    Flip(u64),
    /// Only this many bytes stay.
    Truncate(u64),
    /// This many zero bytes follow the end.
    Grow(u64),
}

/// Sizes around the limits a backend is likely to have, in bytes.
const SIZES: [usize; 8] = [0, 1, 4095, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_333_333];

/// Bytes that depend on `seed`, so that suites that share a store do not meet.
pub fn sample(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs everything. `open` opens the same storage again each time; `damage` alters the stored
/// bytes of a digest and says whether it could.
pub async fn suite<S, O, D>(open: O, damage: D)
where
    S: BlobStore + 'static,
    O: AsyncFn() -> S,
    D: Fn(Digest, Damage) -> bool,
{
    keeps_and_gives_back(&open).await;
    refuses_wrong_digest(&open().await).await;
    missing(&open().await).await;
    dropped_upload_leaves_nothing(&open().await).await;
    racing_writers(Arc::new(open().await)).await;
    lists_sorted(&open().await).await;
    second_names(&open).await;
    removes(&open, &damage).await;
    tells_the_time_of_use(&open).await;
    racing_removals(Arc::new(open().await)).await;
    never_gives_wrong_bytes(&open().await, &damage).await;
    heals(&open().await, &damage).await;
}

async fn read(store: &dyn BlobStore, digest: Digest) -> std::io::Result<Vec<u8>> {
    let mut reader = store.open(digest).await.map_err(std::io::Error::other)?;
    let mut bytes = Vec::new();
    reader.bytes.read_to_end(&mut bytes).await?;
    assert_eq!(reader.size, bytes.len() as u64, "a reader announces the size it gives");
    Ok(bytes)
}

async fn upload(
    store: &dyn BlobStore,
    bytes: &[u8],
    piece: usize,
    expected: Option<Digest>,
) -> Result<(Digest, u64), WriteBlobError> {
    let mut upload = store.upload().await?;
    assert!(upload.is_empty(), "a new upload is empty");
    for piece in bytes.chunks(piece) {
        upload.write(Bytes::copy_from_slice(piece)).await?;
    }
    assert_eq!(upload.len(), bytes.len() as u64, "an upload knows how much it took");
    upload.finish(expected).await
}

async fn keeps_and_gives_back<S: BlobStore>(open: &impl AsyncFn() -> S) {
    let store = open().await;
    let mut kept = Vec::new();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let bytes = sample(seed as u64 + 1, size);
        let blob = Verified::hash(bytes.clone());
        store.put(&blob).await.expect("put");
        store.put(&blob).await.expect("the same put again succeeds");
        assert_eq!(
            upload(&store, &bytes, 70_001, Some(blob.digest())).await.expect("the same by upload"),
            (blob.digest(), size as u64)
        );
        kept.push((blob.digest(), bytes));

        let bytes = sample(seed as u64 + 101, size);
        let digest = Digest::of(&bytes);
        assert_eq!(upload(&store, &bytes, 70_001, None).await.expect("upload"), (digest, size as u64));
        kept.push((digest, bytes));
    }
    let again = open().await;
    for store in [&store, &again] {
        for (digest, bytes) in &kept {
            assert_eq!(store.get(*digest).await.expect("get").bytes(), bytes, "get gives what was put");
            assert_eq!(&read(store, *digest).await.expect("open"), bytes, "open gives what was put");
            assert_eq!(store.size(*digest).await.expect("size"), Some(bytes.len() as u64));
        }
    }
}

async fn refuses_wrong_digest(store: &dyn BlobStore) {
    let (right, wrong) = (Digest::of(&sample(201, 5_000)), Digest::of(b"wrong"));
    match upload(store, &sample(201, 5_000), 999, Some(wrong)).await {
        Err(WriteBlobError::Mismatch(mismatch)) => assert_eq!((mismatch.expected, mismatch.found), (wrong, right)),
        other => panic!("an upload of other bytes than announced must be refused, was {other:?}"),
    }
    for digest in [right, wrong] {
        assert_eq!(store.size(digest).await.expect("size"), None, "a refused upload keeps nothing");
    }
}

async fn missing(store: &dyn BlobStore) {
    let digest = Digest::of(b"never stored by anyone");
    assert!(matches!(store.get(digest).await, Err(ReadBlobError::NotFound(found)) if found == digest));
    assert!(matches!(store.open(digest).await, Err(ReadBlobError::NotFound(found)) if found == digest));
    assert_eq!(store.size(digest).await.expect("size"), None);
}

async fn dropped_upload_leaves_nothing(store: &dyn BlobStore) {
    let before = store.list(None, usize::MAX).await.expect("list");
    let mut upload = store.upload().await.expect("upload");
    upload.write(Bytes::from(sample(301, 2_000_000))).await.expect("write");
    drop(upload);
    assert_eq!(store.list(None, usize::MAX).await.expect("list"), before, "a dropped upload keeps nothing");
}

async fn racing_writers<S: BlobStore + 'static>(store: Arc<S>) {
    let bytes = sample(401, 300_000);
    let digest = Digest::of(&bytes);
    let writers = (0..8).map(|n| {
        let (store, bytes) = (Arc::clone(&store), bytes.clone());
        tokio::spawn(async move {
            if n % 2 == 0 {
                store.put(&Verified::hash(bytes)).await.expect("a racing put succeeds");
            } else {
                upload(&*store, &bytes, 10_000, None).await.expect("a racing upload succeeds");
            }
            store.get(digest).await.expect("what a writer was told is kept can be read at once");
        })
    });
    for done in futures_util::future::join_all(writers).await {
        done.expect("a writer ran");
    }
    assert_eq!(store.get(digest).await.expect("get").bytes(), bytes);
}

async fn lists_sorted(store: &dyn BlobStore) {
    for seed in 501..540 {
        store.put(&Verified::hash(sample(seed, 10))).await.expect("put");
    }
    let all = store.list(None, usize::MAX).await.expect("list");
    assert!(all.is_sorted_by(|a, b| a < b), "a list is sorted and without repeats");
    for seed in 501..540 {
        assert!(all.contains(&Digest::of(&sample(seed, 10))), "a list holds all");
    }
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(after, 7).await.expect("list");
        assert!(page.len() <= 7, "a page keeps its limit");
        let Some(last) = page.last() else { break };
        after = Some(*last);
        paged.extend(page);
    }
    assert_eq!(paged, all, "pages are the whole list");
    assert!(store.list(None, 0).await.expect("list").is_empty());
}

/// Kinds of damage for a blob of `size` bytes.
fn damages(size: u64) -> Vec<Damage> {
    let mut all = vec![Damage::Grow(1), Damage::Grow(5_000_000)];
    if size > 0 {
        all.extend([Damage::Flip(0), Damage::Flip(size / 2), Damage::Flip(size - 1)]);
        all.extend([Damage::Truncate(size - 1), Damage::Truncate(0)]);
    }
    all
}

async fn never_gives_wrong_bytes(store: &dyn BlobStore, damage: &impl Fn(Digest, Damage) -> bool) {
    let mut seed = 600;
    for size in SIZES {
        for kind in damages(size as u64) {
            seed += 1;
            let bytes = sample(seed, size);
            let blob = Verified::hash(bytes.clone());
            store.put(&blob).await.expect("put");
            if !damage(blob.digest(), kind) {
                continue;
            }
            match store.get(blob.digest()).await {
                Err(ReadBlobError::Corrupt { digest, .. }) => assert_eq!(digest, blob.digest()),
                other => panic!("get of a damaged blob ({size} bytes, {kind:?}) must say so, was {other:?}"),
            }
            match store.open(blob.digest()).await {
                Err(ReadBlobError::Corrupt { digest, .. }) => assert_eq!(digest, blob.digest()),
                Err(other) => panic!("open of a damaged blob ({size} bytes, {kind:?}) was {other:?}"),
                Ok(mut reader) => {
                    let mut got = Vec::new();
                    let error = reader.bytes.read_to_end(&mut got).await.expect_err("a damaged blob ends in an error");
                    assert_eq!(error.kind(), ErrorKind::InvalidData, "{size} bytes, {kind:?}: {error}");
                    assert!((got.len() as u64) < reader.size.max(1), "the last bytes are held back: {size}, {kind:?}");
                    assert!(reader.bytes.read(&mut [0; 16]).await.is_err(), "an error stays an error");
                }
            }
            let about = format!("{size} bytes, {kind:?}");
            assert_eq!(store.size(blob.digest()).await.expect("size"), None, "it is not here: {about}");
            assert_eq!(store.touch(blob.digest()).await.expect("touch"), None, "nobody counts on it: {about}");
            assert!(store.damaged().await.iter().any(|(of, _)| *of == blob.digest()), "it is told: {about}");
            match store.open(blob.digest()).await {
                Err(ReadBlobError::Corrupt { digest, .. }) => assert_eq!(digest, blob.digest()),
                Err(other) => panic!("open of a blob that is known to be damaged ({about}) was {other:?}"),
                Ok(_) => panic!("what is known to be wrong is not begun: {about}"),
            }
        }
    }
}

async fn heals(store: &dyn BlobStore, damage: &impl Fn(Digest, Damage) -> bool) {
    let mut seed = 700;
    for size in SIZES {
        for kind in damages(size as u64) {
            for by_upload in [false, true] {
                seed += 1;
                let bytes = sample(seed, size);
                let blob = Verified::hash(bytes.clone());
                store.put(&blob).await.expect("put");
                if !damage(blob.digest(), kind) {
                    continue;
                }
                if by_upload {
                    upload(store, &bytes, 65_536, Some(blob.digest())).await.expect("upload heals");
                } else {
                    store.put(&blob).await.expect("put heals");
                }
                let got = store.get(blob.digest()).await;
                assert_eq!(got.expect("healed").bytes(), bytes, "{size} bytes, {kind:?}, upload {by_upload}");
            }
        }
    }
}

async fn second_names<S: BlobStore>(open: &impl AsyncFn() -> S) {
    let (one, two) = (Verified::hash(sample(91, 100)), Verified::hash(sample(92, 100)));
    let (first, second) = (Sha512::of(one.bytes()), Sha512::of(two.bytes()));
    {
        let store = open().await;
        assert_eq!(store.aliased(first).await.expect("asked"), None);
        for blob in [&one, &two] {
            store.put(blob).await.expect("kept");
        }
        // The same again, and a wrong entry that is mended.
        store.alias(first, two.digest()).await.expect("remembered");
        for _ in 0..2 {
            store.alias(first, one.digest()).await.expect("remembered");
            store.alias(second, two.digest()).await.expect("remembered");
        }
    }
    let store = open().await;
    assert_eq!(store.aliased(first).await.expect("asked"), Some(one.digest()));
    assert_eq!(store.aliased(second).await.expect("asked"), Some(two.digest()));
    assert_eq!(store.aliased(Sha512::of(b"never")).await.expect("asked"), None);
    let all = store.aliases(None, 1000).await.expect("listed");
    assert!(all.is_sorted() && all.contains(&first) && all.contains(&second), "{all:?}");
    let mut after = None;
    for expected in all {
        let page = store.aliases(after, 1).await.expect("listed");
        assert_eq!(page, [expected]);
        after = page.last().copied();
    }
}

async fn removes<S: BlobStore>(open: &impl AsyncFn() -> S, damage: &impl Fn(Digest, Damage) -> bool) {
    for (seed, size) in SIZES.into_iter().enumerate() {
        let blob = Verified::hash(sample(seed as u64 + 801, size));
        let near = Verified::hash(sample(seed as u64 + 821, size.max(1)));
        let (other, near_other) = (Sha512::of(blob.bytes()), Sha512::of(near.bytes()));
        let store = open().await;
        for (blob, other) in [(&blob, other), (&near, near_other)] {
            store.put(blob).await.expect("put");
            store.alias(other, blob.digest()).await.expect("alias");
        }
        let mut reader = store.open(blob.digest()).await.expect("open");
        // A damaged copy goes like a right one.
        let damaged = seed % 2 == 1 && damage(blob.digest(), Damage::Grow(1));
        for _ in 0..2 {
            assert!(store.remove(blob.digest(), None).await.expect("remove"), "a removal is idempotent");
        }
        if !damaged {
            let mut bytes = Vec::new();
            reader.bytes.read_to_end(&mut bytes).await.expect("a reader reads on");
            assert_eq!(bytes, blob.bytes());
        }
        for store in [store, open().await] {
            assert_eq!(store.size(blob.digest()).await.expect("size"), None, "removed, {size} bytes");
            assert!(matches!(store.get(blob.digest()).await, Err(ReadBlobError::NotFound(_))));
            assert_eq!(store.aliased(other).await.expect("aliased"), None, "a second name goes with its bytes");
            assert!(!store.list(None, usize::MAX).await.expect("list").contains(&blob.digest()));
            assert_eq!(store.touch(blob.digest()).await.expect("touch"), None, "what is not here cannot be counted on");
            assert_eq!(store.used(blob.digest()).await.expect("used"), None);
            assert_eq!(store.get(near.digest()).await.expect("another blob stays").bytes(), near.bytes());
            assert_eq!(store.aliased(near_other).await.expect("aliased"), Some(near.digest()));
        }
        let store = open().await;
        store.put(&blob).await.expect("what was removed can be put again");
        assert_eq!(store.get(blob.digest()).await.expect("get").bytes(), blob.bytes());
    }
}

async fn used(store: &dyn BlobStore, digest: Digest) -> SystemTime {
    store.used(digest).await.expect("used").expect("it is here")
}

async fn tells_the_time_of_use<S: BlobStore>(open: &impl AsyncFn() -> S) {
    let blob = Verified::hash(sample(851, 1000));
    let digest = blob.digest();
    let store = open().await;
    store.put(&blob).await.expect("put");
    for again in ["touch", "put", "upload"] {
        let before = used(&store, digest).await;
        // The storage's clock may be coarse.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            match again {
                "touch" => assert_eq!(store.touch(digest).await.expect("touch"), Some(1000)),
                "put" => store.put(&blob).await.expect("put"),
                _ => drop(upload(&store, blob.bytes(), 300, None).await.expect("upload")),
            }
            if used(&store, digest).await > before {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{again} is a use");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!store.remove(digest, Some(before)).await.expect("remove"), "{again}: used since, so it stays");
        assert_eq!(store.get(digest).await.expect("get").bytes(), blob.bytes());
        assert_eq!(used(&open().await, digest).await, used(&store, digest).await, "a use is remembered");
    }
    let last = used(&store, digest).await;
    assert!(store.remove(digest, Some(last)).await.expect("remove"), "not used since");
    assert_eq!(store.size(digest).await.expect("size"), None);
}

/// Nobody fails because a blob is removed at that moment.
async fn racing_removals<S: BlobStore + 'static>(store: Arc<S>) {
    let bytes = sample(861, 20_000);
    let digest = Digest::of(&bytes);
    store.put(&Verified::hash(bytes.clone())).await.expect("put");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let remover = tokio::spawn({
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        async move {
            let mut removed = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Whatever is a moment old counts as idle.
                let Some(seen) = store.used(digest).await.expect("used") else { continue };
                removed += u64::from(store.remove(digest, Some(seen)).await.expect("remove"));
            }
            removed
        }
    });
    let writers = (0..6).map(|n| {
        let (store, bytes) = (Arc::clone(&store), bytes.clone());
        tokio::spawn(async move {
            for _ in 0..60 {
                match n % 3 {
                    0 => store.put(&Verified::hash(bytes.clone())).await.expect("a racing put succeeds"),
                    1 => drop(upload(&*store, &bytes, 7_000, None).await.expect("a racing upload succeeds")),
                    _ => drop(store.touch(digest).await.expect("a racing touch answers")),
                }
            }
        })
    });
    for done in futures_util::future::join_all(writers).await {
        done.expect("a writer ran");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(remover.await.expect("the remover ran") > 0, "something was removed meanwhile");
    store.put(&Verified::hash(bytes.clone())).await.expect("put");
    assert_eq!(store.get(digest).await.expect("get").bytes(), bytes);
}
