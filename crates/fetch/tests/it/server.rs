//! An HTTP server on loopback whose answers a test decides.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use adamant_fetch::{Archive, Config, DebianConfig, Fetcher, Limits};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::store::Memory;

#[derive(Clone)]
pub(crate) enum Answer {
    /// The file, with ranges and an entity tag.
    File(Vec<u8>),
    /// The first answers break off after so many bytes; then the file.
    Cut {
        bytes: Vec<u8>,
        after: usize,
        times: usize,
    },
    /// So many times this status; then the file.
    Busy {
        status: u16,
        times: usize,
        bytes: Vec<u8>,
    },
    Redirect(String),
    /// Bytes without announced length.
    Chunked(Vec<u8>),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) answers: BTreeMap<String, Answer>,
    /// Path and `Range` of every request.
    pub(crate) seen: Vec<(String, Option<String>)>,
}

pub(crate) struct Server {
    pub(crate) base: String,
    pub(crate) state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed()
}

fn answer(state: &Mutex<State>, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let range = request.headers().get("range").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut state = state.lock().unwrap();
    state.seen.push((path.clone(), range.clone()));
    let status = |code: u16| Response::builder().status(code).body(full(Vec::new())).unwrap();
    let file = |bytes: Vec<u8>| {
        let from =
            range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let builder = Response::builder().header("etag", "\"one\"");
        match from {
            Some(from) if from < bytes.len() => builder
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
                .body(full(bytes[from..].to_vec()))
                .unwrap(),
            _ => builder.body(full(bytes)).unwrap(),
        }
    };
    match state.answers.get_mut(&path) {
        None => status(404),
        Some(Answer::File(bytes) | Answer::Cut { bytes, times: 0, .. } | Answer::Busy { bytes, times: 0, .. }) => {
            file(bytes.clone())
        }
        Some(Answer::Cut { bytes, after, times }) => {
            *times -= 1;
            let frames: Vec<Result<Frame<Bytes>, std::io::Error>> =
                vec![Ok(Frame::data(Bytes::copy_from_slice(&bytes[..*after]))), Err(std::io::Error::other("cut"))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let builder = Response::builder().header("etag", "\"one\"").header("content-length", bytes.len());
            builder.body(BodyExt::boxed(body)).unwrap()
        }
        Some(Answer::Busy { status: code, times, .. }) => {
            *times -= 1;
            status(*code)
        }
        Some(Answer::Redirect(to)) => {
            Response::builder().status(302).header("location", to.as_str()).body(full(Vec::new())).unwrap()
        }
        Some(Answer::Chunked(bytes)) => {
            let frames: Vec<Result<Frame<Bytes>, std::io::Error>> =
                bytes.chunks(1000).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
            Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))))
        }
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        // Each test installs it; only the first can succeed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                let service = service_fn(move |request| {
                    let response = answer(&state, &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                connections.spawn(async move {
                    // A cut body ends the connection with an error; that is the point.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { base, state, task }
    }

    pub(crate) fn put(&self, path: &str, answer: Answer) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answer);
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Settings that point everything here.
    pub(crate) fn config(&self) -> Config {
        Config {
            debian: DebianConfig {
                release: "stable".into(),
                archives: vec![Archive { base: format!("{}/debian", self.base), suites: vec!["stable".into()] }],
                ..DebianConfig::bookworm("amd64")
            },
            crates_base: format!("{}/crates", self.base),
            allowed_hosts: vec!["127.0.0.1".into()],
            limits: Limits { backoff: std::time::Duration::from_millis(1), ..Limits::default() },
            ..Config::default()
        }
    }

    pub(crate) fn fetcher(&self, store: &Memory) -> Fetcher {
        Fetcher::new(self.config(), Arc::new(store.clone())).unwrap()
    }
}
