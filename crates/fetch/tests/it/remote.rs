//! Another registry: who hears credentials, where redirects may lead, and what is not kept.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use adamant_fetch::remote::{self, Credentials, Remote, RemoteConfig};
use adamant_fetch::{FetchError, Limits, Proxies};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::store::Memory;

type Body = BoxBody<Bytes, std::io::Error>;
type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A request as it came.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    path: String,
    query: String,
    authorization: String,
}

enum Reply {
    Text(u16, Vec<(&'static str, String)>, Vec<u8>),
    Endless,
    Never,
}

fn ok(bytes: &[u8]) -> Reply {
    Reply::Text(200, Vec::new(), bytes.to_vec())
}

fn redirect(to: &str) -> Reply {
    Reply::Text(307, vec![("location", to.to_owned())], Vec::new())
}

struct Fake {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (noted, handler): (_, Handler) = (seen.clone(), Arc::new(handler));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (noted, handler) = (noted.clone(), handler.clone());
                let service = service_fn(move |request| {
                    let (noted, handler) = (noted.clone(), handler.clone());
                    async move { Ok::<_, Infallible>(answer(&noted, &handler, &request).await) }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, seen, task }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn config(&self) -> RemoteConfig {
        RemoteConfig {
            url: format!("http://127.0.0.1:{}", self.port),
            credentials: None,
            token_host: None,
            certificates: None,
            proxies: Proxies::default(),
            allowed_hosts: Vec::new(),
            control_addresses: Vec::new(),
            limits: Limits { backoff: Duration::from_millis(1), ..remote::limits() },
        }
    }
}

async fn answer(noted: &Mutex<Vec<Seen>>, handler: &Handler, request: &Request<Incoming>) -> Response<Body> {
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: authorization.unwrap_or_default().to_owned(),
    };
    noted.lock().unwrap().push(seen.clone());
    match handler(&seen) {
        Reply::Text(status, headers, bytes) => {
            let mut builder = Response::builder().status(status);
            for (name, value) in headers {
                builder = builder.header(name, value);
            }
            builder.body(Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()).unwrap()
        }
        Reply::Endless => {
            let chunk = || Ok(Frame::data(Bytes::from(vec![0; 4096])));
            Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(std::iter::repeat_with(chunk)))))
        }
        Reply::Never => std::future::pending().await,
    }
}

fn credentials() -> Credentials {
    Credentials { user: "ann".to_owned(), password: "secret".to_owned() }
}

#[tokio::test]
async fn credentials_go_to_the_registry_and_no_further() {
    let blob = b"blob".to_vec();
    let away = Fake::start(|_| ok(b"blob")).await;
    let elsewhere = format!("http://localhost:{}/cdn", away.port);
    let realm = Arc::new(Mutex::new(String::new()));
    let told = realm.clone();
    let home = Fake::start(move |seen| match seen.path.as_str() {
        "/token" if seen.authorization == "Basic YW5uOnNlY3JldA==" => ok(br#"{"token":"t0k","expires_in":300}"#),
        "/token" => Reply::Text(401, Vec::new(), Vec::new()),
        _ if seen.authorization != "Bearer t0k" => {
            let challenge = format!("Bearer realm=\"{}\",service=\"s\"", told.lock().unwrap());
            Reply::Text(401, vec![("www-authenticate", challenge)], Vec::new())
        }
        path if path.contains("/blobs/") => redirect(&elsewhere),
        _ => ok(b"manifest"),
    })
    .await;
    *realm.lock().unwrap() = format!("http://127.0.0.1:{}/token", home.port);
    let config =
        RemoteConfig { credentials: Some(credentials()), allowed_hosts: vec!["localhost".to_owned()], ..home.config() };
    let remote = Remote::new(config.clone()).unwrap();
    assert_eq!(remote.manifest("a/b", "1", &["x/y"], 100).await.unwrap(), b"manifest");
    let store = Memory::default();
    let digest = Digest::of(&blob);
    remote.blob("a/b", &digest.to_string(), Some(digest), 4, &store).await.unwrap();
    assert_eq!(store.bytes(digest), Some(blob));
    let tokens: Vec<_> = home.seen().into_iter().filter(|seen| seen.path == "/token").collect();
    // One token for both, to pull and no more.
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].query, "service=s&scope=repository%3Aa%2Fb%3Apull");
    assert_eq!(away.seen().iter().map(|seen| seen.authorization.as_str()).collect::<Vec<_>>(), [""]);

    // A registry that names another host as its token service does not get it the credentials.
    *realm.lock().unwrap() = format!("http://localhost:{}/token", away.port);
    let error = Remote::new(config.clone()).unwrap().manifest("a/b", "1", &[], 100).await.unwrap_err().to_string();
    assert!(error.contains("token-host = \"localhost\"") && !error.contains("secret"), "{error}");
    assert_eq!(away.seen().len(), 1);
    // Unless the operator says so.
    let config = RemoteConfig { token_host: Some("localhost".to_owned()), ..config };
    Remote::new(config).unwrap().manifest("a/b", "1", &[], 100).await.unwrap_err();
    assert_eq!(away.seen()[1].authorization, "Basic YW5uOnNlY3JldA==");
}

#[tokio::test]
async fn redirects_are_bounded_and_do_not_lead_inside() {
    let inside = Fake::start(|_| ok(b"secret")).await;
    let port = inside.port;
    let home = Fake::start(move |seen| match seen.path.rsplit('/').next().unwrap_or_default() {
        "port" => redirect(&format!("http://127.0.0.1:{port}/x")),
        "name" => redirect(&format!("http://localhost:{port}/x")),
        "metadata" => redirect("http://169.254.169.254/latest"),
        "loop" => redirect("/v2/a/manifests/loop"),
        "file" => redirect("file:///etc/passwd"),
        _ => redirect("http://ann:secret@example.org/"),
    })
    .await;
    let remote = Remote::new(home.config()).unwrap();
    for tag in ["port", "name", "metadata", "loop", "file", "user"] {
        let error = remote.manifest("a", tag, &[], 100).await.unwrap_err();
        assert!(matches!(error, FetchError::Refused(_)), "{tag}: {error}");
    }
    assert_eq!(inside.seen().len(), 0);
    assert_eq!(home.seen().iter().filter(|seen| seen.path.ends_with("loop")).count(), 6);
}

#[tokio::test]
async fn wrong_and_endless_bytes_are_not_kept() {
    let home = Fake::start(|seen| if seen.path.contains("endless") { Reply::Endless } else { ok(b"evil") }).await;
    let remote = Remote::new(home.config()).unwrap();
    let store = Memory::default();
    let digest = Digest::of(b"good");
    let blob = async |repository: &str, size| {
        remote.blob(repository, &digest.to_string(), Some(digest), size, &store).await.unwrap_err()
    };
    assert!(matches!(blob("a", 4).await, FetchError::Mismatch { .. }));
    assert!(matches!(blob("a", 5).await, FetchError::Size { expected: 5, found: 4, .. }));
    assert!(matches!(blob("endless", 4).await, FetchError::TooLarge { limit: 4, .. }));
    let error = remote.manifest("endless", "1", &[], 10_000).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { limit: 10_000, .. }), "{error}");
    assert_eq!(store.len(), 0);
}

#[tokio::test]
async fn a_registry_that_is_busy_or_silent_is_waited_for_within_bounds() {
    let count = Arc::new(Mutex::new(0));
    let home = Fake::start(move |seen| match seen.path.rsplit('/').next().unwrap_or_default() {
        "soon" => {
            let mut count = count.lock().unwrap();
            *count += 1;
            if *count < 3 { Reply::Text(503, Vec::new(), Vec::new()) } else { ok(b"m") }
        }
        "busy" => Reply::Text(429, Vec::new(), Vec::new()),
        "gone" => Reply::Text(404, Vec::new(), Vec::new()),
        _ => Reply::Never,
    })
    .await;
    let mut config = home.config();
    config.limits.idle_timeout = Duration::from_millis(200);
    let remote = Remote::new(config).unwrap();
    assert_eq!(remote.manifest("a", "soon", &[], 100).await.unwrap(), b"m");
    assert!(remote.manifest("a", "busy", &[], 100).await.unwrap_err().is_temporary());
    assert!(matches!(remote.manifest("a", "gone", &[], 100).await, Err(FetchError::Gone { status: 404, .. })));
    let begin = Instant::now();
    let error = remote.digest("a", "silent", &[]).await.unwrap_err();
    assert!(matches!(error, FetchError::Network { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    let asked = |tag: &str| home.seen().iter().filter(|seen| seen.path.ends_with(tag)).count();
    assert_eq!((asked("busy"), asked("gone"), asked("silent")), (3, 1, 3));
    assert!(home.seen().iter().filter(|seen| seen.path.ends_with("silent")).all(|seen| seen.method == "HEAD"));
}

#[test]
fn only_an_address_is_an_address() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = |url: &str| RemoteConfig {
        url: url.to_owned(),
        credentials: None,
        token_host: None,
        certificates: None,
        proxies: Proxies::default(),
        allowed_hosts: Vec::new(),
        control_addresses: Vec::new(),
        limits: remote::limits(),
    };
    for bad in [
        "registry.example",
        "ftp://a.example",
        "https://ann:secret@a.example",
        "https://a.example/v2",
        "https://a.example/?x",
    ] {
        let error = Remote::new(config(bad)).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
    assert!(Remote::new(config("https://a.example:5000")).is_ok());
}
