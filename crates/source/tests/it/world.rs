//! A real HTTP server around the library, a real git client, a pipeline that does as it is told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adamant_source::{
    ByteStream, Encoding, Limits, Oid, Push, Receiver, Repositories, Repository, ServeError, Service,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, mpsc};

/// What the pipeline does with the next push.
pub(crate) enum Act {
    Accept,
    Refuse(&'static str),
    Panic,
    /// Says `waiting`, waits, accepts.
    Wait(Arc<Notify>),
}

#[derive(Default)]
pub(crate) struct Pipeline {
    pub(crate) acts: Mutex<VecDeque<Act>>,
    pub(crate) pushes: Mutex<Vec<Push>>,
}

impl Pipeline {
    pub(crate) fn then(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    pub(crate) fn seen(&self) -> Vec<Push> {
        self.pushes.lock().unwrap().clone()
    }
}

impl Receiver for Pipeline {
    fn received(&self, push: Push, progress: mpsc::Sender<String>) -> BoxFuture<'static, Result<(), String>> {
        let act = self.acts.lock().unwrap().pop_front().unwrap_or(Act::Accept);
        self.pushes.lock().unwrap().push(push.clone());
        async move {
            let _ = progress.send(format!("{}  {}", push.project, push.new.short())).await;
            match act {
                Act::Accept => Ok(()),
                Act::Refuse(reason) => Err(reason.to_owned()),
                Act::Panic => panic!("as told"),
                Act::Wait(notify) => {
                    let _ = progress.send("waiting".to_owned()).await;
                    notify.notified().await;
                    let _ = progress.send("waited".to_owned()).await;
                    Ok(())
                }
            }
        }
        .boxed()
    }
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) repositories: Repositories,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) address: SocketAddr,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let dir = tempfile::Builder::new().prefix("source-").tempdir().unwrap();
        let repositories = Repositories::open(dir.path().join("git"), limits).await.unwrap();
        repositories.create("shop").await.unwrap();
        let pipeline = Arc::new(Pipeline::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (served, told) = (repositories.clone(), Arc::clone(&pipeline));
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (served, told) = (served.clone(), Arc::clone(&told));
                tokio::spawn(async move {
                    let service = service_fn(move |request| handle(request, served.clone(), Arc::clone(&told)));
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { dir, repositories, pipeline, address }
    }

    pub(crate) async fn shop(&self) -> Repository {
        self.repositories.get("shop").await.unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/shop.git", self.address)
    }

    /// A new clone-like repository with the remote `adamant`.
    pub(crate) fn client(&self) -> Client {
        let client = Client { dir: tempfile::Builder::new().prefix("source-client-").tempdir().unwrap() };
        client.ok(&["init", "-q", "-b", "main"]);
        client.ok(&["remote", "add", "adamant", &self.url()]);
        client
    }

    pub(crate) async fn main(&self) -> Option<Oid> {
        self.shop().await.branches().await.unwrap().get("main").copied()
    }

    /// Nothing of a refused push stays behind.
    pub(crate) async fn assert_clean(&self) {
        let objects = self.shop().await.path().join("objects");
        let left: Vec<_> = std::fs::read_dir(&objects)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "pack" && name != "info")
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.shop().await.verify(&[], adamant_source::Depth::Content).await.unwrap(), Vec::<String>::new());
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

async fn handle(
    request: Request<Incoming>,
    repositories: Repositories,
    pipeline: Arc<Pipeline>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let Some((project, rest)) = path.strip_prefix('/').and_then(|path| path.split_once(".git/")) else {
        return Ok(text(StatusCode::NOT_FOUND, "no such page"));
    };
    let repository = match repositories.get(project).await {
        Ok(repository) => repository,
        Err(error) => return Ok(text(StatusCode::NOT_FOUND, &error.to_string())),
    };
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let protocol = header("git-protocol");
    let protocol = protocol.as_deref();
    let encoding = header("content-encoding");
    let served = async {
        if let Some(name) = request.uri().query().and_then(|query| query.strip_prefix("service=")) {
            let service = Service::parse(name).unwrap();
            let bytes = repository.advertise(service, protocol).await?;
            return Ok(whole(service.advertisement_type(), bytes));
        }
        assert_eq!(request.method(), Method::POST);
        let encoding = Encoding::parse(encoding.as_deref())?;
        let body = BodyDataStream::new(request.into_body()).map_err(std::io::Error::other).boxed();
        let service = Service::parse(rest).unwrap();
        let answer = match service {
            Service::UploadPack => repository.upload_pack(protocol, encoding, body).await?,
            Service::ReceivePack => repository.receive_pack("ann", encoding, body, pipeline).await?,
        };
        Ok(streamed(service.result_type(), answer))
    };
    Ok(served.await.unwrap_or_else(|error: ServeError| {
        let status = match error {
            ServeError::Malformed(_) => StatusCode::BAD_REQUEST,
            ServeError::Encoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ServeError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ServeError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            ServeError::Interrupted(_) => StatusCode::REQUEST_TIMEOUT,
            ServeError::Git(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        text(status, &error.to_string())
    }))
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = whole("text/plain", Bytes::copy_from_slice(text.as_bytes()));
    *answer.status_mut() = status;
    answer
}

fn whole(kind: &str, bytes: Bytes) -> Answer {
    let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    Response::builder().header("content-type", kind).body(body).unwrap()
}

fn streamed(kind: &str, stream: ByteStream) -> Answer {
    let body = StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync();
    Response::builder().header("content-type", kind).body(body).unwrap()
}

/// A work tree and the system's git without anybody's settings.
pub(crate) struct Client {
    pub(crate) dir: tempfile::TempDir,
}

impl Client {
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs([
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", self.path().to_str().unwrap()),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_AUTHOR_NAME", "Ann"),
            ("GIT_AUTHOR_EMAIL", "ann@example.org"),
            ("GIT_COMMITTER_NAME", "Bob"),
            ("GIT_COMMITTER_EMAIL", "bob@example.org"),
            ("LC_ALL", "C"),
        ]);
        command.current_dir(self.path()).args(["-c", "safe.directory=*"]).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs git, which must succeed; standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs git with input; standard output.
    pub(crate) fn feed(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut child = self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "git {args:?}");
        output.stdout
    }

    pub(crate) fn feed_oid(&self, args: &[&str], input: &[u8]) -> Oid {
        String::from_utf8(self.feed(args, input)).unwrap().trim().parse().unwrap()
    }

    pub(crate) fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn commit(&self, message: &str) -> Oid {
        self.ok(&["add", "-A"]);
        self.ok(&["commit", "-q", "--allow-empty", "-m", message]);
        self.head()
    }

    /// A commit of any tree, however it came about, on no branch.
    pub(crate) fn commit_tree(&self, tree: Oid) -> Oid {
        self.ok(&["commit-tree", "-m", "made by hand", &tree.to_string()]).parse().unwrap()
    }

    pub(crate) fn head(&self) -> Oid {
        self.ok(&["rev-parse", "HEAD"]).parse().unwrap()
    }

    /// Pushes `refspec`; whether it succeeded and all that was printed.
    pub(crate) fn push(&self, refspec: &[&str]) -> (bool, String) {
        let output = self.run(&[&["push", "adamant"], refspec].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn push_ok(&self, refspec: &[&str]) -> String {
        let (ok, text) = self.push(refspec);
        assert!(ok, "{text}");
        text
    }

    /// Pushes what must be refused; all that was printed, which must hold `reason`.
    pub(crate) fn push_refused(&self, refspec: &[&str], reason: &str) -> String {
        let (ok, text) = self.push(refspec);
        assert!(!ok, "the push went through: {text}");
        assert!(text.contains(reason), "expected `{reason}` in: {text}");
        text
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}
