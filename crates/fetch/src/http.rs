//! Downloads: bounded, retried, resumed, checked while they stream.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use adamant_digest::Digest;
use adamant_store::{BlobStore, Upload, WriteBlobError};
use reqwest::header::{CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url};

use crate::config::{Config, Limits, Proxies};
use crate::error::FetchError;
use crate::guard::{Guard, Refused, shown};

/// The one HTTP client, with its guard.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client,
    guard: Guard,
    limits: Limits,
}

/// What a download must turn out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect<'a> {
    /// Name of the input, for errors.
    pub(crate) name: &'a str,
    pub(crate) digest: Option<Digest>,
    /// Exact length, if known.
    pub(crate) size: Option<u64>,
    /// Most bytes accepted.
    pub(crate) max: u64,
}

/// Where the attempts of a download come from.
pub(crate) trait Source: Sync {
    /// The address asked for.
    fn url(&self) -> &Url;
    /// One request, from `resume` on if the bytes before it still stand.
    fn send(&self, resume: Option<&(u64, String)>) -> impl Future<Output = Result<Response, Attempt>> + Send;
}

/// One attempt's end.
pub(crate) enum Attempt {
    /// Try again, from where it stopped if the bytes so far still stand.
    Retry(FetchError),
    /// Trying again cannot help.
    Fail(FetchError),
}

/// A download that may take several attempts.
struct Partial {
    upload: Box<dyn Upload>,
    /// Strong validator of the bytes so far; without one a resume could splice two versions.
    /// That would be caught by the digest, but only at the end.
    etag: Option<String>,
}

/// A client that goes through the proxies, with the guard of all that it connects to.
pub(crate) fn guarded(
    proxies: &Proxies,
    mut allowed: Vec<String>,
    control: &[std::net::IpAddr],
    limits: &Limits,
) -> Result<(ClientBuilder, Guard), FetchError> {
    let bad = |error: &dyn std::fmt::Display| FetchError::Config(error.to_string());
    let mut builder = Client::builder().no_proxy();
    let exempt = proxies.exempt.as_deref().and_then(reqwest::NoProxy::from_string);
    for (proxy, https) in [(&proxies.http, false), (&proxies.https, true)] {
        let Some(address) = proxy else { continue };
        let url: Url = address.parse().map_err(|_| bad(&"the proxy's address cannot be read"))?;
        // The administrator chose it; it is usually on the private network.
        allowed.extend(url.host_str().map(str::to_owned));
        let proxy = if https { reqwest::Proxy::https(url) } else { reqwest::Proxy::http(url) };
        builder = builder.proxy(proxy.map_err(|error| bad(&error))?.no_proxy(exempt.clone()));
    }
    let guard = Guard::new(allowed, control.iter().copied());
    let builder = builder
        .user_agent(concat!("adamant/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(guard.clone())
        .connect_timeout(limits.connect_timeout)
        .read_timeout(limits.idle_timeout)
        .timeout(limits.total_timeout);
    Ok((builder, guard))
}

/// Streams what `source` gives into the store; returns digest and length once it is durable.
pub(crate) async fn download(
    source: &impl Source,
    expect: Expect<'_>,
    blobs: &dyn BlobStore,
    limits: &Limits,
) -> Result<(Digest, u64), FetchError> {
    let mut attempt = 0;
    let mut partial = Partial { upload: blobs.upload().await?, etag: None };
    loop {
        match download_once(source, expect, blobs, &mut partial).await {
            Ok(()) => break,
            Err(Attempt::Fail(error)) => return Err(error),
            Err(Attempt::Retry(error)) => pause(limits, &mut attempt, error).await?,
        }
    }
    let found = partial.upload.len();
    if let Some(expected) = expect.size.filter(|size| *size != found) {
        let (name, url) = (expect.name.to_owned(), shown(source.url()));
        return Err(FetchError::Size { name, url, expected, found });
    }
    partial.upload.finish(expect.digest).await.map_err(|error| match error {
        WriteBlobError::Mismatch(mismatch) => FetchError::Mismatch {
            name: expect.name.to_owned(),
            url: shown(source.url()),
            expected: mismatch.expected,
            found: mismatch.found,
        },
        other @ (WriteBlobError::Io(_) | WriteBlobError::Erased { .. }) => other.into(),
    })
}

async fn download_once(
    source: &impl Source,
    expect: Expect<'_>,
    blobs: &dyn BlobStore,
    partial: &mut Partial,
) -> Result<(), Attempt> {
    let url = source.url();
    let have = partial.upload.len();
    let resume = partial.etag.clone().filter(|_| have > 0).map(|etag| (have, etag));
    let mut response = source.send(resume.as_ref()).await?;
    let resumed = response.status() == StatusCode::PARTIAL_CONTENT && continues(&response, have);
    if !resumed && have > 0 {
        partial.upload = blobs.upload().await.map_err(|error| Attempt::Fail(error.into()))?;
    }
    partial.etag = strong_etag(&response);
    let max = expect.size.unwrap_or(expect.max);
    if let (Some(expected), Some(announced), false) = (expect.size, response.content_length(), resumed)
        && announced != expected
    {
        let (name, url) = (expect.name.to_owned(), shown(url));
        return Err(Attempt::Fail(FetchError::Size { name, url, expected, found: announced }));
    }
    while let Some(chunk) = response.chunk().await.map_err(|error| Attempt::Retry(network(url, &error)))? {
        if partial.upload.len() + chunk.len() as u64 > max {
            return Err(Attempt::Fail(FetchError::TooLarge { url: shown(url), limit: max }));
        }
        partial.upload.write(chunk).await.map_err(|error| Attempt::Fail(error.into()))?;
    }
    Ok(())
}

/// The body of an answer in memory.
pub(crate) async fn read(url: &Url, mut response: Response, max: u64) -> Result<Vec<u8>, Attempt> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Attempt::Retry(network(url, &error)))? {
        if (bytes.len() + chunk.len()) as u64 > max {
            return Err(Attempt::Fail(FetchError::TooLarge { url: shown(url), limit: max }));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What a status means for whoever wants the content; `Ok` if the body is it.
pub(crate) fn judge(url: &Url, response: Response, resuming: bool) -> Result<Response, Attempt> {
    let status = response.status();
    if status == StatusCode::OK || (resuming && status == StatusCode::PARTIAL_CONTENT) {
        return Ok(response);
    }
    let (url, code) = (shown(url), status.as_u16());
    Err(match code {
        404 | 410 => Attempt::Fail(FetchError::Gone { url, status: code }),
        // 416: what we have is not a prefix of what is there now.
        408 | 416 | 425 | 429 | 500..=599 => Attempt::Retry(FetchError::Status { url, status: code }),
        _ => Attempt::Fail(FetchError::Status { url, status: code }),
    })
}

/// A request that got no answer: refused by the guard, or by the network.
pub(crate) fn unanswered(url: &Url, error: &reqwest::Error) -> Attempt {
    match refused(error) {
        Some(refused) => Attempt::Fail(refused.into()),
        None => Attempt::Retry(network(url, error)),
    }
}

/// Waits before the next attempt, or gives up with `error`.
pub(crate) async fn pause(limits: &Limits, attempt: &mut u32, error: FetchError) -> Result<(), FetchError> {
    *attempt += 1;
    if *attempt >= limits.attempts {
        return Err(error);
    }
    tracing::debug!(%error, attempt, "trying again");
    let wait = limits.backoff.saturating_mul(1 << (*attempt - 1).min(6));
    tokio::time::sleep(wait.min(Duration::from_secs(20))).await;
    Ok(())
}

/// A download over the one client.
struct Direct<'a> {
    http: &'a Http,
    url: Url,
}

impl Source for Direct<'_> {
    fn url(&self) -> &Url {
        &self.url
    }

    async fn send(&self, resume: Option<&(u64, String)>) -> Result<Response, Attempt> {
        self.http.send(&self.url, resume).await
    }
}

impl Http {
    pub(crate) fn new(config: &Config) -> Result<Self, FetchError> {
        let limits = config.limits.clone();
        let (builder, guard) =
            guarded(&config.proxies, config.allowed_hosts.clone(), &config.control_addresses, &limits)?;
        let client = builder.redirect(guard.redirects()).build().map_err(|error| FetchError::Config(chain(&error)))?;
        Ok(Self { client, guard, limits })
    }

    fn parse(&self, url: &str) -> Result<Url, FetchError> {
        let parsed: Url = url.parse().map_err(|_| Refused::Address(url.chars().take(200).collect()))?;
        self.guard.check_url(&parsed)?;
        Ok(parsed)
    }

    /// The whole body in memory; for signed indexes and the like.
    pub(crate) async fn bytes(&self, url: &str, max: u64) -> Result<Vec<u8>, FetchError> {
        let parsed = self.parse(url)?;
        let mut attempt = 0;
        loop {
            match self.bytes_once(&parsed, max).await {
                Ok(bytes) => return Ok(bytes),
                Err(Attempt::Fail(error)) => return Err(error),
                Err(Attempt::Retry(error)) => pause(&self.limits, &mut attempt, error).await?,
            }
        }
    }

    async fn bytes_once(&self, url: &Url, max: u64) -> Result<Vec<u8>, Attempt> {
        read(url, self.send(url, None).await?, max).await
    }

    /// Streams `url` into the store; returns digest and length once it is durable.
    pub(crate) async fn store(
        &self,
        url: &str,
        expect: Expect<'_>,
        blobs: &dyn BlobStore,
    ) -> Result<(Digest, u64), FetchError> {
        download(&Direct { http: self, url: self.parse(url)? }, expect, blobs, &self.limits).await
    }

    async fn send(&self, url: &Url, resume: Option<&(u64, String)>) -> Result<Response, Attempt> {
        let request = resuming(self.client.get(url.clone()), resume);
        let response = request.send().await.map_err(|error| unanswered(url, &error))?;
        judge(url, response, resume.is_some())
    }
}

/// Asks for the rest alone, if it is still the rest of the same.
pub(crate) fn resuming(request: RequestBuilder, resume: Option<&(u64, String)>) -> RequestBuilder {
    match resume {
        Some((from, etag)) => request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, etag),
        None => request,
    }
}

/// Whether a partial answer begins where we stopped.
fn continues(response: &Response, have: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{have}-"))))
}

fn strong_etag(response: &Response) -> Option<String> {
    let etag = response.headers().get(ETAG)?.to_str().ok()?;
    (etag.starts_with('"') && etag.len() <= 200).then(|| etag.to_owned())
}

fn refused(error: &reqwest::Error) -> Option<Refused> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return Some(refused.clone());
        }
        source = inner.source();
    }
    None
}

pub(crate) fn network(url: &Url, error: &reqwest::Error) -> FetchError {
    FetchError::Network { url: shown(url), cause: chain(error) }
}

/// The innermost causes of an HTTP error, which alone say what happened.
pub(crate) fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(inner) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{inner}");
        source = inner.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}
