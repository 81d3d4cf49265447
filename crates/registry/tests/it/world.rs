//! A registry behind a real HTTP server, and a client that says exactly what it is told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use adamant_digest::{Digest, Verified};
use adamant_oci::{ArtifactMeta, Descriptor, ErrorBody, Manifest, media};
use adamant_registry::{Access, Config, Limits, Quota, Registry, Reserve, Rights, UpstreamConfig};
use adamant_store::{Erased, FsBlobs, WithoutErased};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::memory::MemoryLedger;

pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) blobs: FsBlobs,
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) registry: Registry,
    pub(crate) erased: Erased,
    pub(crate) address: SocketAddr,
    pub(crate) access: Arc<Mutex<Access>>,
    now_s: Arc<AtomicU64>,
    limits: Limits,
    quotas: Vec<Quota>,
    reserve: Option<Reserve>,
    client: Client<HttpConnector, Full<Bytes>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `None` if the connection ended early.
    pub(crate) body: Option<Vec<u8>>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.body.as_deref().expect("a whole body")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.bytes()).unwrap()
    }

    /// The status and the code of the error body, as the specification writes it.
    pub(crate) fn error(&self) -> (u16, String) {
        let body: ErrorBody = serde_json::from_slice(self.bytes())
            .unwrap_or_else(|error| panic!("{} is no error body: {error}", String::from_utf8_lossy(self.bytes())));
        let code = serde_json::to_value(body.errors[0].code).unwrap();
        assert!(!body.errors[0].message.is_empty());
        (self.status.as_u16(), code.as_str().unwrap().to_owned())
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        let text =
            || String::from_utf8_lossy(self.body.as_deref().unwrap_or_default()).chars().take(500).collect::<String>();
        assert_eq!(self.status.as_u16(), status, "{}", text());
        self
    }

    #[track_caller]
    pub(crate) fn fails(&self, status: u16, code: &str) {
        assert_eq!(self.error(), (status, code.to_owned()), "{}", String::from_utf8_lossy(self.bytes()));
    }
}

fn named(config: &mut Config, pointers: &[&str]) {
    config.pointers = pointers.iter().map(|text| text.parse().unwrap()).collect();
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        Self::over(TempDir::new().unwrap(), Arc::default(), limits, |_, _| {}).await
    }

    /// One whose operator names pointers.
    pub(crate) async fn pointing(pointers: &[&str]) -> Self {
        Self::over(TempDir::new().unwrap(), Arc::default(), Limits::default(), |config, _| named(config, pointers))
            .await
    }

    /// Another server on the same ledger and blobs.
    pub(crate) async fn beside(&self, pointers: &[&str]) -> Self {
        self.shared(|config| named(config, pointers)).await
    }

    /// The same, with demands of its own.
    pub(crate) async fn guarded_beside(&self, gates: &[adamant_registry::Gate]) -> Self {
        let gates = gates.to_vec();
        self.shared(|config| config.gates = gates).await
    }

    async fn shared(&self, shape: impl FnOnce(&mut Config)) -> Self {
        let directory = TempDir::new().unwrap();
        std::os::unix::fs::symlink(self.directory.path().join("blobs"), directory.path().join("blobs")).unwrap();
        Self::over(directory, self.ledger.clone(), Limits::default(), |config, _| shape(config)).await
    }

    /// One whose operator demands signatures.
    pub(crate) async fn guarded(gates: &[adamant_registry::Gate]) -> Self {
        let gates = gates.to_vec();
        Self::over(TempDir::new().unwrap(), Arc::default(), Limits::default(), |config, _| config.gates = gates).await
    }

    /// With upstreams over the store of this world.
    pub(crate) async fn below(upstreams: impl FnOnce(FsBlobs) -> Vec<UpstreamConfig>) -> Self {
        let shape = |config: &mut Config, blobs: &FsBlobs| config.upstreams = upstreams(blobs.clone());
        Self::over(TempDir::new().unwrap(), Arc::default(), Limits::default(), shape).await
    }

    /// With quotas and a reserve.
    pub(crate) async fn bounded(quotas: Vec<Quota>, reserve: Option<Reserve>) -> Self {
        Self::over(TempDir::new().unwrap(), Arc::default(), Limits::default(), |config, _| {
            (config.quotas, config.reserve) = (quotas, reserve);
        })
        .await
    }

    async fn over(
        directory: TempDir,
        ledger: Arc<MemoryLedger>,
        limits: Limits,
        shape: impl FnOnce(&mut Config, &FsBlobs),
    ) -> Self {
        let blobs = FsBlobs::open(&directory.path().join("blobs")).unwrap();
        let now_s =
            Arc::new(AtomicU64::new(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()));
        let clock = now_s.clone();
        let erased = Erased::default();
        let mut config = Config {
            erased: erased.clone(),
            uploads: directory.path().join("uploads"),
            limits: limits.clone(),
            clock: Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed))),
            owned: Some(Arc::new(|part| Box::pin(async move { Ok(part == "owned") }))),
            gates: Vec::new(),
            pointers: Vec::new(),
            upstreams: Vec::new(),
            quotas: Vec::new(),
            reserve: None,
        };
        shape(&mut config, &blobs);
        let (quotas, reserve) = (config.quotas.clone(), config.reserve.clone());
        let store = WithoutErased::new(Arc::new(blobs.clone()), erased.clone());
        let registry = Registry::new(Arc::new(store), ledger.clone(), config).unwrap();
        let access = Arc::new(Mutex::new(Access::known("alice", Rights::all())));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, registry.clone(), access.clone()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            directory,
            blobs,
            ledger,
            registry,
            erased,
            address,
            access,
            now_s,
            limits,
            quotas,
            reserve,
            client,
            server,
        }
    }

    /// Ends the server and starts another one on the same data.
    pub(crate) async fn reopen(mut self) -> Self {
        self.server.abort();
        let directory = std::mem::replace(&mut self.directory, TempDir::new().unwrap());
        let (ledger, limits) = (self.ledger.clone(), self.limits.clone());
        let (quotas, reserve) = (self.quotas.clone(), self.reserve.clone());
        drop(self);
        Self::over(directory, ledger, limits, |config, _| (config.quotas, config.reserve) = (quotas, reserve)).await
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.now_s.fetch_add(time.as_secs(), Ordering::Relaxed);
    }

    pub(crate) fn allow(&self, access: Access) {
        *self.access.lock().unwrap() = access;
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let response = self.client.request(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok().map(|all| all.to_bytes().to_vec());
        Answer { status: head.status, headers: head.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    /// Sends a request as it is and returns all that comes back until the server closes.
    pub(crate) async fn raw(&self, text: &[u8]) -> String {
        self.exchange(text, false).await
    }

    /// The same, but nothing more will come: the request is cut off where its bytes end.
    pub(crate) async fn cut(&self, text: &[u8]) -> String {
        self.exchange(text, true).await
    }

    async fn exchange(&self, text: &[u8], cut: bool) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut back = Vec::new();
        let all = async {
            // The server may answer and close before it has read everything.
            drop(stream.write_all(text).await);
            if cut {
                drop(stream.shutdown().await);
            }
            drop(stream.read_to_end(&mut back).await);
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("the server closes");
        String::from_utf8_lossy(&back).into_owned()
    }

    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.send("POST", &path, &[], bytes).await.expect(201);
        digest
    }

    /// Pushes the blobs of an image and returns its manifest, which is not pushed.
    pub(crate) async fn image(&self, repository: &str, content: &str) -> Manifest {
        let (config, layer) = (b"{}".to_vec(), content.as_bytes().to_vec());
        self.push_blob(repository, &config).await;
        self.push_blob(repository, &layer).await;
        let describe = |kind, bytes: Vec<u8>| {
            let blob = Verified::hash(bytes);
            Descriptor::new(kind, blob.digest(), blob.bytes().len() as u64)
        };
        let (config, layer) = (describe(media::OCI_EMPTY, config), describe(media::OCI_LAYER, layer));
        Manifest::image(config, vec![layer], ArtifactMeta::default())
    }

    pub(crate) async fn put(&self, repository: &str, reference: &str, manifest: &Manifest) -> Answer {
        self.put_if(repository, reference, manifest, &[]).await
    }

    pub(crate) async fn put_if(
        &self,
        repository: &str,
        reference: &str,
        manifest: &Manifest,
        condition: &[(&str, &str)],
    ) -> Answer {
        let headers = [condition, &[("content-type", manifest.kind().media_type())]].concat();
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &path, &headers, manifest.bytes().bytes()).await
    }
}

async fn serve(listener: TcpListener, registry: Registry, access: Arc<Mutex<Access>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (registry, access) = (registry.clone(), access.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let (registry, access) = (registry.clone(), access.lock().unwrap().clone());
                async move { Ok::<_, std::convert::Infallible>(registry.handle(request, access).await) }
            });
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}
