use std::sync::Arc;

use adamant_digest::Digest;
use adamant_fetch::{Archive, FetchError, Fetcher};
use adamant_recipe::cargo::Crate;
use adamant_recipe::{Lock, Source, UrlInput};

use crate::server::{Answer, Server};
use crate::store::Memory;

fn source(url: String) -> Source {
    Source { name: "src".into(), url, digest: None, dir: ".".into(), unpack: true }
}

fn big() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped() {
    let server = Server::start().await;
    let store = Memory::default();
    server.put("/f", Answer::Cut { bytes: big(), after: 500_000, times: 1 });
    let url = server.fetcher(&store).lock_url(&source(format!("{}/f", server.base))).await.unwrap();
    assert_eq!((url.digest, url.size), (Digest::of(&big()), 1_200_000));
    assert_eq!(store.bytes(url.digest), Some(big()));
    let seen = server.state.lock().unwrap().seen.clone();
    assert_eq!(seen.len(), 2);
    // How much had arrived before the cut is up to the kernel; it resumed unless nothing had.
    let from = seen[1]
        .1
        .as_deref()
        .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
    assert!(from.is_none_or(|from| from > 0 && from <= 500_000), "{from:?}");
}

#[tokio::test]
async fn busy_servers_are_asked_again_and_only_so_often() {
    let server = Server::start().await;
    let store = Memory::default();
    let fetch = |path: &str| {
        let (fetcher, url) = (server.fetcher(&store), format!("{}{path}", server.base));
        async move { fetcher.lock_url(&source(url)).await }
    };
    server.put("/a", Answer::Busy { status: 503, times: 3, bytes: b"a".to_vec() });
    assert_eq!(fetch("/a").await.unwrap().digest, Digest::of(b"a"));
    server.put("/b", Answer::Busy { status: 503, times: 9, bytes: b"b".to_vec() });
    let error = fetch("/b").await.unwrap_err();
    assert!(matches!(error, FetchError::Status { status: 503, .. }) && error.is_temporary());
    assert_eq!(server.seen().iter().filter(|path| *path == "/b").count(), 4);
    server.put("/c", Answer::Busy { status: 403, times: 9, bytes: Vec::new() });
    assert!(!fetch("/c").await.unwrap_err().is_temporary());
    assert_eq!(server.seen().iter().filter(|path| *path == "/c").count(), 1);
    assert!(matches!(fetch("/none").await, Err(FetchError::Gone { status: 404, .. })));
}

#[tokio::test]
async fn sizes_are_bounded() {
    let server = Server::start().await;
    let store = Memory::default();
    for answer in [Answer::File(big()), Answer::Chunked(big())] {
        server.put("/f", answer);
        let mut config = server.config();
        config.limits.input_bytes = 1000;
        let fetcher = Fetcher::new(config, Arc::new(store.clone())).unwrap();
        let error = fetcher.lock_url(&source(format!("{}/f", server.base))).await.unwrap_err();
        assert!(matches!(error, FetchError::TooLarge { limit: 1000, .. }), "{error}");
        let mut lock = Lock::new("stable");
        lock.urls.push(UrlInput {
            name: "f".into(),
            url: format!("{}/f", server.base),
            digest: Digest::of(&big()),
            size: 10,
        });
        let error = server.fetcher(&store).ensure(&lock, &[], &|_| {}).await.unwrap_err();
        assert!(
            matches!(error, FetchError::Size { expected: 10, .. } | FetchError::TooLarge { limit: 10, .. }),
            "{error}"
        );
        lock.urls[0].size = 2_000_000;
        let error = server.fetcher(&store).ensure(&lock, &[], &|_| {}).await.unwrap_err();
        assert!(matches!(error, FetchError::Size { expected: 2_000_000, found: 1_200_000, .. }), "{error}");
    }
    assert_eq!(store.len(), 0);
}

#[tokio::test]
async fn private_addresses_are_refused() {
    let server = Server::start().await;
    let store = Memory::default();
    let strict = || {
        let mut config = server.config();
        config.allowed_hosts.clear();
        Fetcher::new(config, Arc::new(store.clone())).unwrap()
    };
    server.put("/f", Answer::File(b"secret".to_vec()));
    let port = server.base.rsplit(':').next().unwrap();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433"] {
        let error = strict().lock_url(&source(format!("http://{host}:{port}/f"))).await.unwrap_err();
        assert!(matches!(error, FetchError::RefusedInput { .. }), "{host}: {error}");
    }
    assert_eq!(server.seen().len(), 0);
    let error = strict().lock_url(&source(format!("http://127.0.0.1:{port}/f"))).await.unwrap_err().to_string();
    let expect = "source src: 127.0.0.1 is loopback and not fetched from: take a public address, or let an administrator \
                  start the server with `adamant up --allow-private 127.0.0.1`";
    assert_eq!(error, expect);
    let error = strict().lock_url(&source(format!("http://localhost:{port}/f"))).await.unwrap_err().to_string();
    assert!(error.contains("localhost, at ") && error.ends_with("`adamant up --allow-private localhost`"), "{error}");
    // An allowed host must not lead to one that is not.
    server.put("/r", Answer::Redirect(format!("http://localhost:{port}/f")));
    let error = server.fetcher(&store).lock_url(&source(format!("{}/r", server.base))).await.unwrap_err();
    assert!(matches!(error, FetchError::RefusedInput { .. }), "{error}");
    server.put("/r", Answer::Redirect("http://169.254.169.254/latest/meta-data".into()));
    let error = server.fetcher(&store).lock_url(&source(format!("{}/r", server.base))).await.unwrap_err();
    assert!(error.to_string().contains("169.254.169.254 is link-local"), "{error}");
    server.put("/r", Answer::Redirect("/r".into()));
    let error = server.fetcher(&store).lock_url(&source(format!("{}/r", server.base))).await.unwrap_err();
    assert!(error.to_string().contains("redirects more than 5 times"), "{error}");
    server.put("/r", Answer::Redirect("/f".into()));
    assert!(server.fetcher(&store).lock_url(&source(format!("{}/r", server.base))).await.is_ok());
    assert_eq!(server.seen().iter().filter(|path| *path == "/f").count(), 1);
}

#[tokio::test]
async fn what_is_wrong_with_a_source_is_said_in_words_of_the_recipe() {
    let server = Server::start().await;
    let store = Memory::default();
    server.put("/f", Answer::File(b"f".to_vec()));
    let pinned = Source { digest: Some(Digest::of(b"g")), ..source(format!("{}/f", server.base)) };
    let error = server.fetcher(&store).lock_url(&pinned).await.unwrap_err();
    let expect = format!(
        "source src: {}/f has {}, `sha256` of [sources.src] in adamant.toml says {}: correct it if these are the bytes \
         you want, or correct `url`",
        server.base,
        Digest::of(b"f"),
        Digest::of(b"g")
    );
    assert_eq!(error.to_string(), expect);

    // Every mirror that was asked is named.
    let mut config = server.config();
    let archive = config.debian.archives[0].clone();
    config.debian.archives.push(Archive { base: format!("{}/security", server.base), ..archive });
    let bases: Vec<String> = config.debian.archives.iter().map(|archive| archive.base.clone()).collect();
    let fetcher = Fetcher::new(config, Arc::new(store)).unwrap();
    let url = "debian:pool/main/x/x/x_1.tar.gz";
    let error = fetcher.lock_url(&source(url.into())).await.unwrap_err().to_string();
    assert!(error.starts_with("source src: none of ") && error.contains("check the address"), "{error}");
    let mut lock = Lock::new("stable");
    lock.urls.push(UrlInput { name: "src".into(), url: url.into(), digest: Digest::of(b"x"), size: 1 });
    let locked = fetcher.ensure(&lock, &[], &|_| {}).await.unwrap_err().to_string();
    assert_eq!(locked, error);
    assert!(bases.len() > 1);
    for base in bases {
        assert!(error.contains(&format!("{base}/pool/main/x/x/x_1.tar.gz")), "{base}: {error}");
    }
}

#[tokio::test]
async fn proxies_of_the_configuration_are_used() {
    let server = Server::start().await;
    let store = Memory::default();
    // To a proxy the request line holds the whole address; the path is all this server looks at.
    server.put("/f", Answer::File(b"through".to_vec()));
    let mut config = server.config();
    config.allowed_hosts.clear();
    config.proxies.http = Some(server.base.clone());
    let fetcher = Fetcher::new(config.clone(), Arc::new(store.clone())).unwrap();
    let url = fetcher.lock_url(&source("http://nowhere.invalid/f".into())).await.unwrap();
    assert_eq!(url.digest, Digest::of(b"through"));
    config.proxies.exempt = Some("nowhere.invalid".into());
    config.limits.attempts = 1;
    let fetcher = Fetcher::new(config, Arc::new(store)).unwrap();
    let error = fetcher.lock_url(&source("http://nowhere.invalid/f".into())).await.unwrap_err();
    assert!(matches!(error, FetchError::Network { .. }), "{error}");
}

#[tokio::test]
async fn crates_by_checksum() {
    let server = Server::start().await;
    let store = Memory::default();
    let krate = |name: &str, version: &str| Crate {
        name: name.into(),
        version: version.into(),
        checksum: Digest::of(name.as_bytes()),
    };
    server.put("/crates/serde/serde-1.0.1.crate", Answer::File(b"serde".to_vec()));
    server.put("/crates/zstd/zstd-2.0.1%2Bzstd.1.5.2.crate", Answer::File(b"zstd".to_vec()));
    let crates = [krate("serde", "1.0.1"), krate("zstd", "2.0.1+zstd.1.5.2")];
    let lock = Lock::new("stable");
    let report = server.fetcher(&store).ensure(&lock, &crates, &|_| {}).await.unwrap();
    assert_eq!((report.kept, report.new, report.bytes), (0, 2, 9));
    let report = server.fetcher(&store).ensure(&lock, &crates, &|_| {}).await.unwrap();
    assert_eq!((report.kept, report.new, report.bytes), (2, 0, 0));
    let error = server.fetcher(&store).ensure(&lock, &[krate("gone", "1.0.0")], &|_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone { .. }), "{error}");
}

#[tokio::test]
async fn many_inputs_in_parallel() {
    let server = Server::start().await;
    let store = Memory::default();
    let mut lock = Lock::new("stable");
    for i in 0..100_u32 {
        let bytes = i.to_string().into_bytes();
        let (name, url) = (format!("f{i}"), format!("{}/{i}", server.base));
        lock.urls.push(UrlInput { name, url, digest: Digest::of(&bytes), size: bytes.len() as u64 });
        server.put(&format!("/{i}"), Answer::Busy { status: 500, times: usize::from(i % 7 == 0), bytes });
    }
    let report = server.fetcher(&store).ensure(&lock, &[], &|_| {}).await.unwrap();
    assert_eq!((report.new, store.len()), (100, 100));
}
