//! Requests to the bucket: signed, bounded in time and tries, with errors that say what to do.

use std::io;
use std::time::{Duration, SystemTime};

use adamant_digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED, RANGE};
use reqwest::{Body, Client, Response, StatusCode};
use rusty_s3::actions::{CompleteMultipartUploadResponse, CreateMultipartUpload, ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::settings::{S3Credentials, S3Settings};
use super::upload::Source;

/// Tries of a request, and the bounds of the pauses between them.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Longest waits: for a connection, and for the next bytes of an answer.
const CONNECT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);
/// A request may take this long, and a second more for as many bytes as it sends.
const BASE: Duration = Duration::from_mins(1);
const LEAST_BYTES_PER_SECOND: u64 = 256 << 10;
/// How long a signature holds; it is checked when a request begins.
const SIGNED_FOR: Duration = Duration::from_mins(15);
/// An answer that is not a blob is at most this long, in bytes: a page of 1,000 names.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// A blob above this size, in bytes, is sent in parts of it: S3 takes 5 GiB in one piece, and a
/// part that fails is sent again alone. 64 GiB are 1,024 parts of the 10,000 there may be.
const PART_BYTES: u64 = 64 << 20;
/// Bytes read from a file at a time while it is sent.
const CHUNK_BYTES: u64 = 256 << 10;

/// A client of one bucket.
#[derive(Debug)]
pub(super) struct Requests {
    client: Client,
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
}

/// What S3 says about an object.
pub(super) struct Found {
    /// Length in bytes.
    pub(super) size: u64,
    /// When it was put, in whole seconds.
    pub(super) modified: SystemTime,
}

/// What a request does, and to which key; for errors.
#[derive(Debug, Clone, Copy)]
struct About<'a> {
    verb: &'a str,
    key: &'a str,
}

impl Requests {
    pub(super) fn new(settings: S3Settings) -> io::Result<Self> {
        let S3Settings { bucket, prefix, credentials: S3Credentials(credentials) } = settings;
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| {
                io::Error::other(format!("no client for the bucket {} can be made: {error}", bucket.name()))
            })?;
        Ok(Self { client, bucket, credentials, prefix })
    }

    /// `s3://bucket/prefix/key`.
    pub(super) fn location(&self, key: &str) -> String {
        format!("s3://{}/{}{key}", self.bucket.name(), self.prefix)
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The object from byte `from` on; `None` if there is none.
    pub(super) async fn get(&self, key: &str, from: u64) -> io::Result<Option<Response>> {
        let object = self.full(key);
        let about = About { verb: "GET", key };
        let answer = self.send(about, |client| {
            let url = self.bucket.get_object(Some(&self.credentials), &object).sign(SIGNED_FOR);
            let request = client.get(url);
            if from > 0 { request.header(RANGE, format!("bytes={from}-")) } else { request }
        });
        let answer = answer.await?;
        match answer.status() {
            StatusCode::OK if from == 0 => Ok(Some(answer)),
            StatusCode::PARTIAL_CONTENT if from > 0 => Ok(Some(answer)),
            // A bucket that is gone must not look like one that is empty.
            StatusCode::NOT_FOUND => match self.refused(about, answer).await {
                (code, _) if code == "NoSuchKey" => Ok(None),
                (_, error) => Err(error),
            },
            _ => Err(self.refused(about, answer).await.1),
        }
    }

    /// What S3 says about the object; `None` if there is none.
    pub(super) async fn head(&self, key: &str) -> io::Result<Option<Found>> {
        let object = self.full(key);
        let about = About { verb: "HEAD", key };
        let answer = self.send(about, |client| {
            client.head(self.bucket.head_object(Some(&self.credentials), &object).sign(SIGNED_FOR))
        });
        let answer = answer.await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
                let size = header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
                let modified = header(LAST_MODIFIED).and_then(|text| OffsetDateTime::parse(text, &Rfc2822).ok());
                let (Some(size), Some(modified)) = (size, modified) else {
                    return Err(self.failed(about, "the answer has no length or no time"));
                };
                Ok(Some(Found { size, modified: modified.into() }))
            }
            _ => Err(self.refused(about, answer).await.1),
        }
    }

    /// A short text; `None` if there is no object or it is longer or no text.
    pub(super) async fn small(&self, key: &str, limit: u64) -> io::Result<Option<String>> {
        let Some(answer) = self.get(key, 0).await? else { return Ok(None) };
        if answer.content_length().is_none_or(|length| length > limit) {
            return Ok(None);
        }
        self.text(About { verb: "GET", key }, answer).await.map(Some)
    }

    /// Removes an object; there may be none.
    pub(super) async fn delete(&self, key: &str) -> io::Result<()> {
        let object = self.full(key);
        let about = About { verb: "DELETE", key };
        let answer = self.send(about, |client| {
            client.delete(self.bucket.delete_object(Some(&self.credentials), &object).sign(SIGNED_FOR))
        });
        let answer = answer.await?;
        if answer.status().is_success() {
            return Ok(());
        }
        match self.refused(about, answer).await {
            (code, _) if code == "NoSuchKey" => Ok(()),
            (_, error) => Err(error),
        }
    }

    /// What follows `kind` in the names of objects, after `after`, in byte order.
    pub(super) async fn list(&self, kind: &str, after: Option<&str>, limit: usize) -> io::Result<Vec<String>> {
        let about = About { verb: "LIST", key: kind };
        let prefix = self.full(kind);
        let answer = self.send(about, |client| {
            let mut list = self.bucket.list_objects_v2(Some(&self.credentials));
            list.with_prefix(prefix.as_str());
            list.with_max_keys(limit);
            if let Some(after) = after {
                list.with_start_after(format!("{prefix}{after}"));
            }
            client.get(list.sign(SIGNED_FOR))
        });
        let answer = answer.await?;
        if !answer.status().is_success() {
            return Err(self.refused(about, answer).await.1);
        }
        let text = self.text(about, answer).await?;
        listed(&text, &prefix).map_err(|error| self.failed(about, &format!("the answer cannot be read: {error}")))
    }

    /// Puts an object, durably. Without a condition: what is put under a name is always the same.
    pub(super) async fn put(&self, key: &str, source: &Source, digest: Option<Digest>) -> io::Result<()> {
        if source.len() > PART_BYTES {
            return self.put_in_parts(key, source).await;
        }
        let object = self.full(key);
        // A store that knows this header refuses bytes that were changed on the way.
        let checksum = digest.map(|digest| STANDARD.encode(digest.as_bytes()));
        let about = About { verb: "PUT", key };
        let answer = self.send(about, |client| {
            let mut put = self.bucket.put_object(Some(&self.credentials), &object);
            if let Some(checksum) = &checksum {
                put.headers_mut().insert("x-amz-checksum-sha256", checksum.as_str());
            }
            let mut request = client.put(put.sign(SIGNED_FOR));
            if let Some(checksum) = &checksum {
                request = request.header("x-amz-checksum-sha256", checksum);
            }
            with_body(request, source, 0, source.len())
        });
        let answer = answer.await?;
        if answer.status().is_success() { Ok(()) } else { Err(self.refused(about, answer).await.1) }
    }

    async fn put_in_parts(&self, key: &str, source: &Source) -> io::Result<()> {
        let object = self.full(key);
        let about = About { verb: "create multipart upload", key };
        let answer = self
            .send(about, |client| {
                client.post(self.bucket.create_multipart_upload(Some(&self.credentials), &object).sign(SIGNED_FOR))
            })
            .await?;
        if !answer.status().is_success() {
            return Err(self.refused(about, answer).await.1);
        }
        let created = CreateMultipartUpload::parse_response(&self.text(about, answer).await?)
            .map_err(|error| self.failed(about, &format!("the answer cannot be read: {error}")))?;
        let id = created.upload_id();
        let done = self.parts(key, &object, id, source).await;
        if done.is_err() {
            // Best effort: what is left of it is for the bucket's own rule (docs/scaling.md).
            let abort = About { verb: "abort multipart upload", key };
            let aborted = self.send(abort, |client| {
                let action = self.bucket.abort_multipart_upload(Some(&self.credentials), &object, id);
                client.delete(action.sign(SIGNED_FOR))
            });
            if let Err(error) = aborted.await {
                tracing::warn!(%error, "parts of an upload are left in the bucket");
            }
        }
        done
    }

    async fn parts(&self, key: &str, object: &str, id: &str, source: &Source) -> io::Result<()> {
        let about = About { verb: "PUT part", key };
        let mut etags = Vec::new();
        let mut at = 0;
        while at < source.len() {
            let number = u16::try_from(etags.len() + 1).map_err(|_| self.failed(about, "it has too many parts"))?;
            let length = PART_BYTES.min(source.len() - at);
            let answer = self.send(about, |client| {
                let part = self.bucket.upload_part(Some(&self.credentials), object, number, id);
                with_body(client.put(part.sign(SIGNED_FOR)), source, at, length)
            });
            let answer = answer.await?;
            if !answer.status().is_success() {
                return Err(self.refused(about, answer).await.1);
            }
            let etag = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
            etags.push(etag.ok_or_else(|| self.failed(about, "the answer has no ETag"))?);
            at += length;
        }
        let about = About { verb: "complete multipart upload", key };
        let complete = || {
            let etags = etags.iter().map(String::as_str);
            self.bucket.complete_multipart_upload(Some(&self.credentials), object, id, etags)
        };
        let answer =
            self.send(about, |client| client.post(complete().sign(SIGNED_FOR)).body(complete().body())).await?;
        if answer.status().is_success() {
            // The status is sent before the store knows; the body tells.
            let text = self.text(about, answer).await?;
            if CompleteMultipartUploadResponse::parse(&text).is_ok() {
                return Ok(());
            }
            return Err(self.failed(about, &format!("it was answered with {}", said(&text).1)));
        }
        // A try whose answer was lost may have done it.
        let error = self.refused(about, answer).await.1;
        if self.head(key).await?.is_some_and(|found| found.size == source.len()) { Ok(()) } else { Err(error) }
    }

    /// Sends until there is an answer that another try would not change.
    async fn send(
        &self,
        about: About<'_>,
        request: impl Fn(&Client) -> reqwest::RequestBuilder,
    ) -> io::Result<Response> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let problem = match request(&self.client).send().await {
                Ok(answer) if !again(answer.status()) => return Ok(answer),
                Ok(answer) if tries == TRIES => return Err(self.refused(about, answer).await.1),
                Ok(answer) => answer.status().to_string(),
                Err(error) => {
                    let hint = if error.is_connect() { "; check the endpoint and that the store is up" } else { "" };
                    let problem = format!("{}{hint}", causes(&error.without_url()));
                    if tries == TRIES {
                        return Err(self.failed(about, &format!("{problem}; tried {TRIES} times")));
                    }
                    problem
                }
            };
            tracing::debug!(location = self.location(about.key), verb = about.verb, problem, tries, "trying again");
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            tries += 1;
        }
    }

    /// The body of an answer that is not a blob.
    async fn text(&self, about: About<'_>, mut answer: Response) -> io::Result<String> {
        let mut bytes = Vec::new();
        let failed = |error: reqwest::Error| self.failed(about, &causes(&error.without_url()));
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(self.failed(about, &format!("the answer is longer than {MAX_ANSWER_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        // What is no text is no answer of S3, and no entry of ours.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The code of a refusal, and the error that says what to do about it.
    async fn refused(&self, about: About<'_>, answer: Response) -> (String, io::Error) {
        let status = answer.status();
        let (code, said) = said(&self.text(about, answer).await.unwrap_or_default());
        let fix = match (status.as_u16(), code.as_str()) {
            (_, "NoSuchBucket") => "make the bucket, or correct `[blobs] url`",
            (_, "RequestTimeTooSkewed") => "set this machine's clock",
            (301 | 307, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
                "the bucket is elsewhere: correct `[blobs] region` and `endpoint`"
            }
            (401 | 403, _) => "check the access key, and that it may read, write and list in the bucket",
            (429 | 503, _) => "the store is busy: try again later",
            (500.., _) => "look at the store's own log",
            _ => "check `[blobs]` in server.toml",
        };
        let kind =
            if matches!(status.as_u16(), 401 | 403) { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
        let location = self.location(about.key);
        let text = format!("{location}: {} was answered with {status}{said}: {fix}", about.verb);
        (code, io::Error::new(kind, text))
    }

    fn failed(&self, about: About<'_>, problem: &str) -> io::Error {
        io::Error::other(format!("{}: {}: {problem}", self.location(about.key), about.verb))
    }
}

/// Whether another try may end otherwise.
fn again(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// An error with what lies beneath it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What follows `prefix` in the names of a page of objects.
pub(super) fn listed(text: &str, prefix: &str) -> Result<Vec<String>, impl std::fmt::Display + use<>> {
    ListObjectsV2::parse_response(text).map(|page| {
        page.contents.iter().filter_map(|object| object.key.strip_prefix(prefix)).map(str::to_owned).collect()
    })
}

/// Code and message of S3's error document, as far as it is one.
pub(super) fn said(text: &str) -> (String, String) {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.chars().take(300).collect::<String>())
    };
    let code = element("Code").unwrap_or_default();
    let said = match element("Message") {
        Some(message) => format!(" {code} ({message})"),
        None if code.is_empty() => String::new(),
        None => format!(" {code}"),
    };
    (code, said)
}

/// Between half of a pause and all of it, so that servers that failed together do not come back
/// together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 1];
    let drawn = rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::NONBLOCK);
    let share = if drawn.is_ok() { u32::from(random[0]) } else { 255 };
    pause / 2 + pause / 2 * share / 255
}

/// Bytes `from..from + length` of a source as the body of a request.
fn with_body(request: reqwest::RequestBuilder, source: &Source, from: u64, length: u64) -> reqwest::RequestBuilder {
    let request =
        request.header(CONTENT_LENGTH, length).timeout(BASE + Duration::from_secs(length / LEAST_BYTES_PER_SECOND));
    match source {
        Source::Memory(bytes) if from == 0 && length == source.len() => request.body(bytes.clone()),
        _ => {
            let chunks = stream::try_unfold((source.clone(), from), move |(source, at)| async move {
                let count = CHUNK_BYTES.min(from + length - at);
                if count == 0 {
                    return Ok::<_, io::Error>(None);
                }
                let bytes: Bytes = source.read(at, usize::try_from(count).unwrap_or_default()).await?;
                Ok(Some((bytes, (source, at + count))))
            });
            request.body(Body::wrap_stream(chunks))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_refusals() {
        let text = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>not here</Message></Error>";
        assert_eq!(said(text), ("NoSuchKey".to_owned(), " NoSuchKey (not here)".to_owned()));
        assert_eq!(said("<html>"), (String::new(), String::new()));
    }

    #[test]
    fn pauses_stay_within_their_bounds() {
        for _ in 0..100 {
            let pause = jittered(LONGEST_PAUSE);
            assert!(pause >= LONGEST_PAUSE / 2 && pause <= LONGEST_PAUSE, "{pause:?}");
        }
    }
}
