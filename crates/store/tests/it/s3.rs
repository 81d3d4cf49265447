//! Blobs in S3: the conformance suite on a server in memory and on any other store that is named,
//! and what only a network can show.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use adamant_conformance::blobs::{self, Damage, sample};
use adamant_conformance::services::Moto;
use adamant_digest::{Digest, Verified};
use adamant_store::{BlobStore, ReadBlobError, S3Blobs, S3Credentials, S3Settings};
use bytes::Bytes;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIGNED_FOR: Duration = Duration::from_mins(1);

/// A store with a bucket of its own, and a client that does what it likes to it.
struct Place {
    endpoint: String,
    key: String,
    secret: String,
    region: String,
    bucket: &'static str,
    /// Of this run: a store that is not ours may hold what earlier runs left.
    prefix: String,
    spool: tempfile::TempDir,
}

impl Place {
    async fn new(endpoint: String, bucket: &'static str) -> Self {
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place = Self {
            endpoint,
            key: variable("AWS_ACCESS_KEY_ID", "test"),
            secret: variable("AWS_SECRET_ACCESS_KEY", "test"),
            region: variable("AWS_DEFAULT_REGION", "us-east-1"),
            bucket,
            prefix: format!("some/{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos()),
            spool: tempfile::tempdir().unwrap(),
        };
        let (name, credentials) = place.raw();
        let made = reqwest::Client::new()
            .put(name.create_bucket(&credentials).sign(SIGNED_FOR))
            .body("")
            .header("content-length", 0)
            .send()
            .await
            .unwrap();
        assert!(made.status().is_success() || made.status() == 409, "{made:?}");
        place
    }

    fn raw(&self) -> (Bucket, Credentials) {
        let endpoint = self.endpoint.parse().unwrap();
        let bucket = Bucket::new(endpoint, UrlStyle::Path, self.bucket, self.region.clone()).unwrap();
        (bucket, Credentials::new(&self.key, &self.secret))
    }

    fn settings(&self, endpoint: &str, bucket: &str) -> S3Settings {
        let credentials = S3Credentials::from_environment(&|name| match name {
            "AWS_ACCESS_KEY_ID" => Some(self.key.clone()),
            "AWS_SECRET_ACCESS_KEY" => Some(self.secret.clone()),
            _ => None,
        });
        let url = format!("s3://{bucket}/{}", self.prefix);
        S3Settings::new(&url, Some(endpoint), &self.region, true, credentials.unwrap()).unwrap()
    }

    async fn open(&self) -> S3Blobs {
        self.open_by(&self.endpoint).await
    }

    async fn open_by(&self, endpoint: &str) -> S3Blobs {
        S3Blobs::open(self.settings(endpoint, self.bucket), self.spool.path().to_owned()).await.unwrap()
    }

    /// Alters the stored bytes. The suite asks from within its runtime, so this has one of its own.
    fn damage(&self, digest: Digest, kind: Damage) -> bool {
        let (bucket, credentials) = self.raw();
        let object = format!("{}/sha256/{}", self.prefix, digest.hex());
        let change = async move {
            let client = reqwest::Client::new();
            let got = client.get(bucket.get_object(Some(&credentials), &object).sign(SIGNED_FOR)).send().await.unwrap();
            assert!(got.status().is_success(), "the stored copy can be read");
            let mut bytes = got.bytes().await.unwrap().to_vec();
            match kind {
                Damage::Flip(at) => bytes[usize::try_from(at).unwrap()] ^= 1,
                Damage::Truncate(len) => bytes.truncate(usize::try_from(len).unwrap()),
                Damage::Grow(more) => bytes.resize(bytes.len() + usize::try_from(more).unwrap(), 0),
            }
            let put = client.put(bucket.put_object(Some(&credentials), &object).sign(SIGNED_FOR));
            // An empty body has no length of its own accord.
            let put = put.header("content-length", bytes.len()).body(bytes);
            assert!(put.send().await.unwrap().status().is_success(), "the stored copy can be changed");
        };
        let thread = std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(change);
        });
        thread.join().unwrap();
        true
    }
}

async fn conforms_at(place: &Place) {
    blobs::suite(async || place.open().await, |digest, kind| place.damage(digest, kind)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let Some(moto) = Moto::start("store s3::conforms") else { return };
    conforms_at(&Place::new(moto.endpoint(), "conforms").await).await;
}

/// The longer suite: any S3 that `ADAMANT_TEST_S3` names, with the usual variables for the access
/// key. The bucket is made and stays.
#[tokio::test(flavor = "multi_thread")]
async fn conforms_on_the_store_that_is_named() {
    let Ok(endpoint) = std::env::var("ADAMANT_TEST_S3") else {
        eprintln!("skipped: store s3::conforms_on_the_store_that_is_named: ADAMANT_TEST_S3 names no endpoint");
        return;
    };
    let place = Place::new(endpoint.clone(), "adamant-conformance").await;
    conforms_at(&place).await;
    large(&place).await;
    // A prefix in which the suite left no damage.
    marks(&Place::new(endpoint, "adamant-conformance").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_goes_in_parts() {
    let Some(moto) = Moto::start("store s3::a_large_blob_goes_in_parts") else { return };
    large(&Place::new(moto.endpoint(), "large").await).await;
}

/// More than one part, from a spool file that leaves nothing behind.
async fn large(place: &Place) {
    let store = place.open().await;
    let bytes = Bytes::from(sample(4242, (64 << 20) + 12_345));
    let digest = Digest::of(&bytes);
    for _ in 0..2 {
        let mut upload = store.upload().await.unwrap();
        for at in (0..bytes.len()).step_by(3_000_000) {
            upload.write(bytes.slice(at..bytes.len().min(at + 3_000_000))).await.unwrap();
        }
        assert_eq!(upload.finish(Some(digest)).await.unwrap(), (digest, bytes.len() as u64));
    }
    let mut reader = store.open(digest).await.unwrap();
    let mut found = Vec::new();
    reader.bytes.read_to_end(&mut found).await.unwrap();
    assert!(found == bytes, "what comes back is what went in");
    assert_eq!(std::fs::read_dir(place.spool.path()).unwrap().count(), 0, "nothing is left in the spool");
    place.damage(digest, Damage::Flip((64 << 20) + 1));
    let mut reader = store.open(digest).await.unwrap();
    let error = reader.bytes.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    store.put(&Verified::hash(bytes.to_vec())).await.unwrap();
    assert_eq!(store.get(digest).await.unwrap().bytes(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_no_empty_one() {
    let Some(moto) = Moto::start("store s3::a_bucket_that_is_not_there_is_no_empty_one") else { return };
    let place = Place::new(moto.endpoint(), "gone").await;
    let settings = place.settings(&place.endpoint, "never-made");
    let error = S3Blobs::open(settings, place.spool.path().to_owned()).await.unwrap_err().to_string();
    assert!(error.contains("s3://never-made/some/") && error.contains("make the bucket"), "{error}");
    let store = place.open().await;
    let (bucket, credentials) = place.raw();
    let gone = reqwest::Client::new().delete(bucket.delete_bucket(&credentials).sign(SIGNED_FOR)).send().await.unwrap();
    assert!(gone.status().is_success());
    let digest = Digest::of(b"x");
    let error = store.get(digest).await.unwrap_err();
    assert!(matches!(error, ReadBlobError::Io { .. }), "lost data must not look like none: {error}");
}

#[tokio::test]
async fn a_store_that_is_down_is_given_up_with_its_name() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let variable = |name: &str| Some(name.to_owned());
    let settings = S3Settings::new(
        "s3://bucket/some",
        Some("http://127.0.0.1:1"),
        "us-east-1",
        true,
        S3Credentials::from_environment(&variable).unwrap(),
    );
    let spool = tempfile::tempdir().unwrap();
    let begin = std::time::Instant::now();
    let error = S3Blobs::open(settings.unwrap(), spool.path().to_owned()).await.unwrap_err().to_string();
    assert!(begin.elapsed() < Duration::from_secs(20), "tries are bounded");
    assert!(error.contains("s3://bucket/some/") && error.contains("check the endpoint"), "{error}");
    assert!(!error.contains("Signature"), "a signed URL is no secret, but it is nobody's business: {error}");
}

/// Passes bytes on; the first `cuts` connections that have given `after` bytes of answers are cut.
async fn cutting_proxy(target: SocketAddr, cuts: usize, after: usize) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cut = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let cut = Arc::clone(&counted);
            tokio::spawn(async move {
                let Ok(server) = tokio::net::TcpStream::connect(target).await else { return };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                });
                let mut given = 0;
                let mut buffer = vec![0; 16 << 10];
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    if to_client.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                    given += n;
                    if given > after
                        && cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < cuts).then_some(n + 1)).is_ok()
                    {
                        break;
                    }
                }
                up.abort();
            });
        }
    });
    (format!("http://{address}"), cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_breaks_off_goes_on() {
    let Some(moto) = Moto::start("store s3::a_read_that_breaks_off_goes_on") else { return };
    let place = Place::new(moto.endpoint(), "broken").await;
    let blob = Verified::hash(sample(77, 5_000_000));
    place.open().await.put(&blob).await.unwrap();
    let (endpoint, cut) = cutting_proxy(moto.address(), 3, 1_000_000).await;
    let store = place.open_by(&endpoint).await;
    let mut reader = store.open(blob.digest()).await.unwrap();
    let mut found = Vec::new();
    reader.bytes.read_to_end(&mut found).await.unwrap();
    assert!(found == blob.bytes(), "nothing twice, nothing lost");
    assert_eq!(cut.load(Ordering::SeqCst), 3);
    // Without end it is given up, and no end is taken for the end.
    let (endpoint, _) = cutting_proxy(moto.address(), usize::MAX, 100_000).await;
    let store = place.open_by(&endpoint).await;
    let mut reader = store.open(blob.digest()).await.unwrap();
    let error = reader.bytes.read_to_end(&mut Vec::new()).await.unwrap_err().to_string();
    assert!(error.contains("broke off") && error.contains("s3://broken/"), "{error}");
}

/// What one server finds damaged, no server that is asked afterwards, or started, counts on; whoever has
/// the right bytes heals it for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_marked_for_every_server_until_it_is_healed() {
    let Some(moto) = Moto::start("store s3::damage_is_marked_for_every_server_until_it_is_healed") else { return };
    marks(&Place::new(moto.endpoint(), "marks").await).await;
}

async fn marks(place: &Place) {
    for size in [1_000, 3_000_000] {
        let (one, two) = (place.open().await, place.open().await);
        let bytes = sample(size as u64, size);
        let blob = Verified::hash(bytes.clone());
        let digest = blob.digest();
        let mut wrong = bytes;
        wrong[7] ^= 1;
        let expected = [(digest, Digest::of(&wrong))];
        one.put(&blob).await.unwrap();
        place.damage(digest, Damage::Flip(7));

        assert!(matches!(one.get(digest).await, Err(ReadBlobError::Corrupt { .. })));
        let three = place.open().await;
        for store in [&one, &three] {
            assert_eq!(store.damaged().await, expected);
            assert_eq!((store.size(digest).await.unwrap(), store.touch(digest).await.unwrap()), (None, None));
            assert!(matches!(store.open(digest).await, Err(ReadBlobError::Corrupt { .. })), "{size} bytes");
        }
        assert_eq!((one.damages(), three.damages()), (1, 0), "counted where it was found");

        // Over a server that knew nothing.
        two.put(&blob).await.unwrap();
        for store in [&one, &two, &three] {
            assert_eq!(store.size(digest).await.unwrap(), Some(size as u64));
            assert_eq!(store.get(digest).await.unwrap().bytes(), blob.bytes());
            assert_eq!(store.damaged().await, []);
        }
        assert_eq!(place.open().await.damaged().await, [], "and it is no damage after a start");

        // Beside the servers: whoever reads it notices.
        place.damage(digest, Damage::Flip(7));
        if let Ok(mut reader) = one.open(digest).await {
            reader.bytes.read_to_end(&mut Vec::new()).await.unwrap_err();
        }
        assert_eq!(one.size(digest).await.unwrap(), None);
        place.damage(digest, Damage::Flip(7));
        let mut found = Vec::new();
        place.open().await.open(digest).await.unwrap().bytes.read_to_end(&mut found).await.unwrap();
        assert!(found == blob.bytes());
        assert_eq!(one.size(digest).await.unwrap(), Some(size as u64));

        // What is removed is no damage.
        place.damage(digest, Damage::Flip(7));
        assert!(matches!(one.get(digest).await, Err(ReadBlobError::Corrupt { .. })));
        assert!(one.remove(digest, None).await.unwrap());
        assert_eq!(place.open().await.damaged().await, []);
    }
}
