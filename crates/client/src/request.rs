//! Requests and streamed answers.

use std::path::PathBuf;
use std::time::Duration;

use adamant_api::{ApiError, BASE, Line};
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Server;

/// Largest answer that is held in memory, in bytes: a capsule of a long history fits.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Longest line of a streamed answer, in bytes.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no server runs on {}", data.display())]
    Off {
        /// Its data directory.
        data: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody listens but says nothing: stopped, or far too busy.
    #[error("{} holds {} but does not answer: nothing came within {wait_s} s", holder(*process), data.display())]
    Silent {
        /// The data directory.
        data: PathBuf,
        /// The process that holds it, if it noted that.
        process: Option<u32>,
        /// How long it was waited for, in seconds.
        wait_s: u64,
    },
    /// The connection broke.
    #[error("the connection to {url} broke: {problem}")]
    Broken {
        /// The server.
        url: String,
        /// What happened.
        problem: String,
    },
    /// The server said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The answer is not what the interface promises.
    #[error("the server's answer is not understood: {0}")]
    Answer(String),
}

/// Begins to speak HTTP over a connection.
async fn handshake<S>(stream: S) -> hyper::Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection, which ends when the response body is dropped.
    tokio::spawn(connection);
    Ok(sender)
}

fn holder(process: Option<u32>) -> String {
    process.map_or_else(|| "a server".to_owned(), |process| format!("a server (process {process})"))
}

impl Server {
    /// `GET`, one JSON answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = self.get_bytes(path).await?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer(e.to_string()))
    }

    /// `GET`, the answer's exact bytes.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.body(response).await
    }

    /// `POST` with one JSON answer.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Answer(e.to_string()))?;
        let response = self.send(Method::POST, path, body.into()).await?;
        let bytes = self.body(response).await?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer(e.to_string()))
    }

    /// `POST` with a streamed answer; `progress` sees each line as it comes.
    pub async fn stream<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        mut progress: impl FnMut(&str),
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Answer(e.to_string()))?;
        let response = self.send(Method::POST, path, body.into()).await?;
        let mut last = None;
        self.lines(response, |line| {
            match serde_json::from_slice(line).map_err(|e| ClientError::Answer(e.to_string()))? {
                Line::Progress(text) => progress(&text),
                Line::Done(value) => last = Some(value),
                Line::Failed(error) => return Err(ClientError::Api(error)),
            }
            Ok(())
        })
        .await?;
        last.ok_or_else(|| self.broken(&"it ended before the result"))
    }

    /// `GET` of a plain text stream, line by line until it ends.
    pub async fn follow(&self, path: &str, mut each: impl FnMut(&str)) -> Result<(), ClientError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.lines(response, |line| {
            each(&String::from_utf8_lossy(line));
            Ok(())
        })
        .await
    }

    fn broken(&self, problem: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken { url: self.url.clone(), problem: problem.to_string() }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let authority = self.url.split_once("://").map_or(self.url.as_str(), |(_, authority)| authority);
        // No certificate has to be trusted on the way through a directory of our own.
        let local = self.url.starts_with("https://") && self.socket.exists();
        let connect = async {
            if local {
                let stream = crate::control::short_connect(&self.socket).await?;
                return Ok::<_, std::io::Error>(handshake(stream).await);
            }
            Ok(handshake(tokio::net::TcpStream::connect(authority).await?).await)
        };
        let mut sender = tokio::time::timeout(Duration::from_secs(10), connect)
            .await
            .map_err(|_| self.broken(&"no connection within 10 s"))?
            .map_err(|e| self.broken(&e))?
            .map_err(|e| self.broken(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{BASE}{path}"))
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Full::new(body))
            .map_err(|e| ClientError::Answer(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.body(response).await?;
        Err(match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => ClientError::Api(error),
            Err(_) if status == StatusCode::UNAUTHORIZED => {
                ClientError::Answer("the server did not accept the token it gave".to_owned())
            }
            Err(_) => ClientError::Answer(format!("status {status}")),
        })
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        Ok(body.collect().await.map_err(|e| self.broken(&e))?.to_bytes())
    }

    async fn lines(
        &self,
        response: Response<Incoming>,
        mut each: impl FnMut(&[u8]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.broken(&e))?;
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(end);
                buffer.advance(1);
                if !line.is_empty() {
                    each(&line)?;
                }
            }
            if buffer.len() > MAX_LINE {
                return Err(ClientError::Answer(format!("a line of over {MAX_LINE} bytes")));
            }
        }
        if buffer.is_empty() { Ok(()) } else { each(&buffer) }
    }
}
