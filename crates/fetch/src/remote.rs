//! Another registry, read over the distribution protocol: manifests, digests of tags, blobs.
//!
//! The operator chose its address, so that address may be private; whatever it redirects to is
//! checked like any other. Credentials go to that address and to the token host the operator
//! named, and nowhere else: a registry that could choose who hears them would own them.

mod challenge;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use adamant_store::BlobStore;
use base64::Engine as _;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Method, Response, StatusCode, Url};

use self::challenge::Challenge;
use crate::config::{Limits, Proxies};
use crate::error::FetchError;
use crate::guard::{Guard, MAX_REDIRECTS, Refused, shown};
use crate::http::{self, Attempt, Expect, Source};

/// Longest answer of a token service, in bytes.
const TOKEN_BYTES: u64 = 64 * 1024;
/// How long a token holds whose service does not say (distribution, "Token Authentication").
const TOKEN_LIFE: Duration = Duration::from_mins(1);
/// A token is not used in the last moments of its life.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// Most tokens remembered, one a repository.
const TOKENS: usize = 256;
/// Longest time for a manifest, with all attempts: somebody waits for the answer.
const MANIFEST_TIME: Duration = Duration::from_secs(45);

/// A name and a password, or a token in its place.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What must be known of another registry.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// `https://registry.example`; `http://` only where somebody wrote so.
    pub url: String,
    /// Sent to the host of `url`, and to `token_host`.
    pub credentials: Option<Credentials>,
    /// A host that may be given the credentials for a token.
    pub token_host: Option<String>,
    /// Certificates to trust besides the system's, PEM.
    pub certificates: Option<Vec<u8>>,
    /// Proxies.
    pub proxies: Proxies,
    /// Hosts that may be redirected to although they are private.
    pub allowed_hosts: Vec<String>,
    /// Addresses of our own, refused like private ones.
    pub control_addresses: Vec<IpAddr>,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds for registries: somebody waits.
pub fn limits() -> Limits {
    Limits {
        attempts: 3,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(20),
        total_timeout: Duration::from_hours(2),
        ..Limits::default()
    }
}

struct Token {
    authorization: HeaderValue,
    ends: Instant,
}

/// Another registry.
pub struct Remote {
    base: Url,
    /// For the address itself.
    home: Client,
    home_guard: Guard,
    /// For everything it leads to.
    away: Client,
    away_guard: Guard,
    credentials: Option<HeaderValue>,
    token_host: Option<String>,
    tokens: Mutex<HashMap<String, Token>>,
    limits: Limits,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Remote {
    /// A registry with connections of its own. Asks nobody yet.
    pub fn new(config: RemoteConfig) -> Result<Self, FetchError> {
        let bad = |cause: String| FetchError::Config(cause);
        let base: Url = config.url.parse().map_err(|_| bad(format!("`{}` is not an address", config.url)))?;
        let plain = base.path() == "/" && base.query().is_none() && base.fragment().is_none();
        let host = base.host_str().map(str::to_owned).filter(|_| plain && matches!(base.scheme(), "http" | "https"));
        let host = host.ok_or_else(|| bad(format!("{} is not `https://HOST[:PORT]`", shown(&base))))?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad(format!("{} has credentials in it: name a file of them", shown(&base))));
        }
        let certificates = match &config.certificates {
            Some(pem) => Certificate::from_pem_bundle(pem)
                .map_err(|error| bad(format!("the certificates for {}: {}", shown(&base), http::chain(&error))))?,
            None => Vec::new(),
        };
        let client = |allowed: Vec<String>| {
            let (builder, guard) = http::guarded(&config.proxies, allowed, &config.control_addresses, &config.limits)?;
            // Redirects are followed here, where it is known what may be sent along.
            let builder = builder.redirect(reqwest::redirect::Policy::none());
            let builder = if certificates.is_empty() { builder } else { builder.tls_certs_merge(certificates.clone()) };
            Ok::<_, FetchError>((builder.build().map_err(|error| bad(http::chain(&error)))?, guard))
        };
        let (home, home_guard) = client([config.allowed_hosts.clone(), vec![host]].concat())?;
        let (away, away_guard) = client(config.allowed_hosts.clone())?;
        let credentials = config.credentials.map(|credentials| basic(&credentials)).transpose()?;
        Ok(Self {
            base,
            home,
            home_guard,
            away,
            away_guard,
            credentials,
            token_host: config.token_host,
            tokens: Mutex::default(),
            limits: config.limits,
        })
    }

    /// The bytes of a manifest, by tag or digest. Nobody has checked them.
    pub async fn manifest(
        &self,
        repository: &str,
        reference: &str,
        accept: &[&str],
        max: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let url = self.address(&format!("{repository}/manifests/{reference}"))?;
        let ask = Ask { remote: self, method: Method::GET, url, repository, accept };
        Ok(ask.patiently(max).await?.0)
    }

    /// What the registry says that a tag's digest is; `None` if it does not say.
    pub async fn digest(
        &self,
        repository: &str,
        reference: &str,
        accept: &[&str],
    ) -> Result<Option<Digest>, FetchError> {
        let url = self.address(&format!("{repository}/manifests/{reference}"))?;
        let ask = Ask { remote: self, method: Method::HEAD, url, repository, accept };
        Ok(ask.patiently(0).await?.1)
    }

    /// Streams a blob into the store; durable on return. `named` is its digest as the registry
    /// writes it; its bytes are checked by `digest`, or by the caller if there is none.
    pub async fn blob(
        &self,
        repository: &str,
        named: &str,
        digest: Option<Digest>,
        size: u64,
        blobs: &dyn BlobStore,
    ) -> Result<Digest, FetchError> {
        let url = self.address(&format!("{repository}/blobs/{named}"))?;
        let ask = Ask { remote: self, method: Method::GET, url, repository, accept: &[] };
        let expect = Expect { name: named, digest, size: Some(size), max: size };
        Ok(http::download(&ask, expect, blobs, &self.limits).await?.0)
    }

    fn address(&self, path: &str) -> Result<Url, FetchError> {
        self.base.join(&format!("/v2/{path}")).map_err(|_| Refused::Address(path.chars().take(200).collect()).into())
    }

    fn is_home(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// One request with its redirects, in whose name it may be sent. The second value says whether
    /// the answer is the registry's own.
    async fn follow(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
        resume: Option<&(u64, String)>,
    ) -> Result<(Response, bool), Attempt> {
        let mut at = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let home = self.is_home(&at);
            let (client, guard) = if home { (&self.home, &self.home_guard) } else { (&self.away, &self.away_guard) };
            guard.check_url(&at).map_err(|refused| Attempt::Fail(refused.into()))?;
            let mut request = http::resuming(client.request(ask.method.clone(), at.clone()), resume);
            if !ask.accept.is_empty() {
                request = request.header(ACCEPT, ask.accept.join(", "));
            }
            if let Some(authorization) = authorization.filter(|_| home) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(|error| http::unanswered(&at, &error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, home));
            }
            at = self.next(&at, response.headers()).map_err(Attempt::Fail)?;
        }
        Err(Attempt::Fail(Refused::Redirects(shown(&ask.url)).into()))
    }

    fn next(&self, at: &Url, headers: &HeaderMap) -> Result<Url, FetchError> {
        let to = headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let next = at.join(to).map_err(|_| Refused::Address(to.chars().take(200).collect()))?;
        if self.base.scheme() == "https" && next.scheme() != "https" {
            return Err(Refused::Downgrade { from: shown(at), to: shown(&next) }.into());
        }
        Ok(next)
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<String, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, repository: &str) -> Option<HeaderValue> {
        let now = Instant::now();
        self.tokens().get(repository).filter(|token| token.ends > now).map(|token| token.authorization.clone())
    }

    /// What a challenge is answered with; `None` if there is nothing to answer it with.
    async fn authorize(&self, repository: &str, headers: &HeaderMap) -> Result<Option<HeaderValue>, Attempt> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match Challenge::choose(values) {
            Some(Challenge::Bearer { realm, service }) => self.token(repository, &realm, service.as_deref()).await,
            Some(Challenge::Basic) => Ok(self.credentials.clone()),
            None => Ok(None),
        }
    }

    /// A token to pull from a repository. The scope is ours: never more than that.
    async fn token(
        &self,
        repository: &str,
        realm: &str,
        service: Option<&str>,
    ) -> Result<Option<HeaderValue>, Attempt> {
        let refuse = |cause: String| Attempt::Fail(FetchError::Config(cause));
        let mut url: Url =
            realm.parse().map_err(|_| refuse("the token service's address cannot be read".to_owned()))?;
        let home = self.is_home(&url);
        if self.base.scheme() == "https" && url.scheme() != "https" {
            return Err(Attempt::Fail(Refused::Downgrade { from: shown(&self.base), to: shown(&url) }.into()));
        }
        let (client, guard) = if home { (&self.home, &self.home_guard) } else { (&self.away, &self.away_guard) };
        guard.check_url(&url).map_err(|refused| Attempt::Fail(refused.into()))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        if self.credentials.is_some() && !home && self.token_host.as_deref() != Some(host.as_str()) {
            return Err(refuse(format!(
                "{} wants its credentials sent to `{host}` for a token: if that is right, write `token-host = \"{host}\"`",
                shown(&self.base)
            )));
        }
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{repository}:pull"));
        let mut request = client.get(url.clone());
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, credentials);
        }
        let response = request.send().await.map_err(|error| http::unanswered(&url, &error))?;
        let bytes = http::read(&url, http::judge(&url, response, false)?, TOKEN_BYTES).await?;
        let (token, life) =
            challenge::token(&bytes).ok_or_else(|| refuse(format!("{} does not answer with a token", shown(&url))))?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| refuse(format!("{} answers with a token that cannot be sent", shown(&url))))?;
        authorization.set_sensitive(true);
        let ends = Instant::now() + life.unwrap_or(TOKEN_LIFE).saturating_sub(TOKEN_MARGIN);
        let mut tokens = self.tokens();
        if tokens.len() >= TOKENS {
            let now = Instant::now();
            tokens.retain(|_, token| token.ends > now);
            if tokens.len() >= TOKENS {
                tokens.clear();
            }
        }
        tokens.insert(repository.to_owned(), Token { authorization: authorization.clone(), ends });
        Ok(Some(authorization))
    }
}

/// A request to a registry.
struct Ask<'a> {
    remote: &'a Remote,
    method: Method,
    url: Url,
    repository: &'a str,
    accept: &'a [&'a str],
}

impl Ask<'_> {
    /// Attempts until one succeeds, within the bounds of what somebody waits for.
    async fn patiently(&self, max: u64) -> Result<(Vec<u8>, Option<Digest>), FetchError> {
        let all = async {
            let mut attempt = 0;
            loop {
                match self.once(max).await {
                    Ok(value) => return Ok(value),
                    Err(Attempt::Fail(error)) => return Err(error),
                    Err(Attempt::Retry(error)) => http::pause(&self.remote.limits, &mut attempt, error).await?,
                }
            }
        };
        match tokio::time::timeout(MANIFEST_TIME, all).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::Network {
                url: shown(&self.url),
                cause: format!("no whole answer within {} s", MANIFEST_TIME.as_secs()),
            }),
        }
    }
}

impl Ask<'_> {
    /// The body, and the digest that the registry says it has.
    async fn once(&self, max: u64) -> Result<(Vec<u8>, Option<Digest>), Attempt> {
        let response = self.send(None).await?;
        let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let said = said.and_then(|text| text.parse().ok());
        Ok((http::read(&self.url, response, max).await?, said))
    }
}

impl Source for Ask<'_> {
    fn url(&self) -> &Url {
        &self.url
    }

    async fn send(&self, resume: Option<&(u64, String)>) -> Result<Response, Attempt> {
        let mut authorization = self.remote.known(self.repository);
        let (mut response, home) = self.remote.follow(self, authorization.as_ref(), resume).await?;
        if home && response.status() == StatusCode::UNAUTHORIZED {
            authorization = self.remote.authorize(self.repository, response.headers()).await?;
            if authorization.is_some() {
                (response, _) = self.remote.follow(self, authorization.as_ref(), resume).await?;
            }
        }
        http::judge(&self.url, response, resume.is_some())
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, FetchError> {
    let text = format!("{}:{}", credentials.user, credentials.password);
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| FetchError::Config("the credentials cannot stand in a header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
