//! Who is asking: tokens from the control socket, one-time login links, page sessions.
//!
//! All of these live in memory: a restart signs everybody out, nothing secret is on disk. Named
//! tokens are facts (see `tokens`). For a registry's client, any of them is exchanged for a signed
//! token that lives minutes, for what it asked alone; it ends with the one it was made for.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adamant_digest::Digest;
use adamant_registry::{Action, Asked, Rights, Scope, Within};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use ring::hmac;
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};

use crate::tokens::Tokens;

/// How long a token from the control socket lives. Longer than any single command.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_hours(1);
/// How long a login link waits to be used.
pub(crate) const LINK_LIFE: Duration = Duration::from_mins(15);
/// How long a page session lives.
const SESSION_LIFE: Duration = Duration::from_hours(12);
/// Secrets of one kind that are kept at the same time; the oldest goes first.
const MAX_SECRETS: usize = 1024;
/// Name of the page's cookie.
pub(crate) const COOKIE: &str = "adamant_session";

/// What a secret stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Token,
    Link,
    Session,
}

struct Grant {
    actor: String,
    ends: Instant,
}

/// Somebody whose secret holds.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Their name in every record. A prefix before `:` says how they are known; users of this
    /// machine have none.
    pub(crate) actor: String,
    /// What they may do in the registry.
    pub(crate) rights: Rights,
    /// Whether they may ask for erasures and approve what others ask for.
    pub(crate) erases: bool,
}

/// What a request to the registry was sent with.
#[derive(Debug)]
pub(crate) enum Credentials {
    /// Nothing.
    None,
    /// Something that does not hold.
    Denied,
    /// Somebody's secret, by digest, or what was issued for it.
    Known { caller: Caller, secret: Digest, within: Option<Within> },
    /// What was issued to nobody in particular.
    Anonymous(Within),
}

/// What a token for one purpose says.
#[derive(Serialize, Deserialize)]
struct Claims {
    /// Digest of the secret it was issued for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Digest>,
    scopes: Vec<String>,
    catalog: bool,
    /// Seconds since the Unix epoch.
    ends_s: u64,
}

/// How long a token for one purpose lives.
pub(crate) const BEARER_LIFE: Duration = Duration::from_mins(15);
/// Scopes that are looked at of one request for a token.
const MAX_ASKED: usize = 32;
/// What a token for one purpose starts with.
const BEARER: &str = "v1.";

/// All secrets that are valid now, by digest: the secrets themselves are not kept.
pub(crate) struct Auth {
    grants: Mutex<HashMap<(Kind, Digest), Grant>>,
    /// Signs tokens for one purpose; new at each start.
    key: hmac::Key,
    pub(crate) tokens: Tokens,
}

impl Default for Auth {
    fn default() -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, random().as_bytes());
        Self { grants: Mutex::default(), key, tokens: Tokens::default() }
    }
}

impl Auth {
    /// Who sent a request to the registry.
    pub(crate) fn credentials(&self, headers: &HeaderMap) -> Credentials {
        if !headers.contains_key(header::AUTHORIZATION) {
            return Credentials::None;
        }
        let Some(text) = secret(headers) else { return Credentials::Denied };
        if let Some(signed) = text.strip_prefix(BEARER) {
            return self.by_bearer(signed).unwrap_or(Credentials::Denied);
        }
        let secret = Digest::of(text.as_bytes());
        match self.holder(secret) {
            Some(caller) => Credentials::Known { caller, secret, within: None },
            None => Credentials::Denied,
        }
    }

    fn holder(&self, secret: Digest) -> Option<Caller> {
        let session =
            self.holds(Kind::Token, secret).map(|actor| Caller { actor, rights: Rights::all(), erases: true });
        session.or_else(|| self.tokens.caller(secret, SystemTime::now()))
    }

    fn by_bearer(&self, signed: &str) -> Option<Credentials> {
        let (payload, signature) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.key, payload.as_bytes(), &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        if claims.ends_s <= unix_s() {
            return None;
        }
        let scopes = claims.scopes.iter().map(|text| text.parse()).collect::<Result<Vec<Scope>, _>>().ok()?;
        let within = Within { rights: Rights::new(scopes).ok()?, catalog: claims.catalog };
        Some(match claims.secret {
            None => Credentials::Anonymous(within),
            Some(secret) => Credentials::Known { caller: self.holder(secret)?, secret, within: Some(within) },
        })
    }

    /// A token for what is asked and allowed, for the holder of `secret` or for nobody in particular;
    /// and what that is, as a `scope`.
    pub(crate) fn bearer<'a>(
        &self,
        secret: Option<Digest>,
        rights: &Rights,
        asked: impl Iterator<Item = &'a str>,
    ) -> (String, String) {
        let mut claims =
            Claims { secret, scopes: Vec::new(), catalog: false, ends_s: unix_s() + BEARER_LIFE.as_secs() };
        let mut given = Vec::new();
        for text in asked.take(MAX_ASKED) {
            match Asked::parse(text) {
                Some(Asked::Catalog) if rights.may_anywhere(Action::Pull) => {
                    claims.catalog = true;
                    given.push(text.to_owned());
                }
                Some(asked) => {
                    if let Some(scope) = asked.within(rights) {
                        given.push(format!("repository:{scope}"));
                        claims.scopes.push(scope.to_string());
                    }
                }
                None => {}
            }
        }
        // Texts and numbers: it can always be written.
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap_or_default());
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, payload.as_bytes()));
        (format!("{BEARER}{payload}.{signature}"), given.join(" "))
    }

    /// A token for the interface, git and the registry.
    pub(crate) fn token(&self, actor: &str) -> String {
        self.issue(Kind::Token, actor, TOKEN_LIFE)
    }

    /// A secret for a login link.
    pub(crate) fn link(&self, actor: &str) -> String {
        self.issue(Kind::Link, actor, LINK_LIFE)
    }

    /// Turns a login secret into a page session, once.
    pub(crate) fn log_in(&self, secret: &str) -> Option<String> {
        let key = (Kind::Link, Digest::of(secret.as_bytes()));
        let grant = self.lock().remove(&key)?;
        (grant.ends > Instant::now()).then(|| self.issue(Kind::Session, &grant.actor, SESSION_LIFE))
    }

    /// Who sent a request with a token: `Bearer`, or `Basic` with the token as password.
    pub(crate) fn by_token(&self, headers: &HeaderMap) -> Option<String> {
        self.holds(Kind::Token, Digest::of(secret(headers)?.as_bytes()))
    }

    /// Who sent a request with a token that is good for erasures.
    pub(crate) fn eraser(&self, headers: &HeaderMap) -> Option<Caller> {
        self.holder(Digest::of(secret(headers)?.as_bytes()))
    }

    /// Who sent a request with the page's cookie. Good for reading alone.
    pub(crate) fn by_cookie(&self, headers: &HeaderMap) -> Option<String> {
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(name, _)| *name == COOKIE)
            .find_map(|(_, secret)| self.holds(Kind::Session, Digest::of(secret.as_bytes())))
    }

    fn holds(&self, kind: Kind, secret: Digest) -> Option<String> {
        let grants = self.lock();
        let grant = grants.get(&(kind, secret))?;
        (grant.ends > Instant::now()).then(|| grant.actor.clone())
    }

    fn issue(&self, kind: Kind, actor: &str, life: Duration) -> String {
        let secret = random();
        let now = Instant::now();
        let mut grants = self.lock();
        grants.retain(|_, grant| grant.ends > now);
        if grants.keys().filter(|(k, _)| *k == kind).count() >= MAX_SECRETS {
            let oldest =
                grants.iter().filter(|((k, _), _)| *k == kind).min_by_key(|(_, g)| g.ends).map(|(key, _)| *key);
            oldest.map(|key| grants.remove(&key));
        }
        grants.insert((kind, Digest::of(secret.as_bytes())), Grant { actor: actor.to_owned(), ends: now + life });
        secret
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Kind, Digest), Grant>> {
        self.grants.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The secret of a request: `Bearer`, or `Basic` with it as password.
fn secret(headers: &HeaderMap) -> Option<String> {
    adamant_registry::secret(headers.get(header::AUTHORIZATION)?.to_str().ok()?)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// 256 bits nobody can guess.
pub(crate) fn random() -> String {
    let mut raw = [0_u8; 32];
    // The system generator of a running kernel does not fail; without it no secret may exist.
    ring::rand::SystemRandom::new().fill(&mut raw).unwrap_or_else(|_| std::process::abort());
    URL_SAFE_NO_PAD.encode(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(secret: &str) -> HeaderMap {
        let value = base64::engine::general_purpose::STANDARD.encode(format!("any:{secret}"));
        HeaderMap::from_iter([(header::AUTHORIZATION, format!("Basic {value}").parse().unwrap())])
    }

    #[test]
    fn tokens_work_as_bearer_and_as_password_and_not_as_cookie() {
        let auth = Auth::default();
        let token = auth.token("ann");
        let bearer = HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]);
        assert_eq!(auth.by_token(&bearer).as_deref(), Some("ann"));
        assert_eq!(auth.by_token(&basic(&token)).as_deref(), Some("ann"));
        assert_eq!(auth.by_token(&basic("guess")), None);
        let cookie = HeaderMap::from_iter([(header::COOKIE, format!("{COOKIE}={token}").parse().unwrap())]);
        assert_eq!(auth.by_cookie(&cookie), None);
    }

    #[test]
    fn a_token_for_one_purpose_gives_what_was_asked_and_allowed() {
        let auth = Auth::default();
        let secret = auth.token("ann");
        let Credentials::Known { caller, secret, within: None } = auth.credentials(&basic(&secret)) else { panic!() };
        let asked = ["repository:a/b:pull,push,delete", "repository:NO:pull", "registry:catalog:*", "x"];
        let (token, scope) = auth.bearer(Some(secret), &caller.rights, asked.into_iter());
        assert_eq!(scope, "repository:a/b:pull,push registry:catalog:*");
        let Credentials::Known { caller, within: Some(within), .. } = auth.credentials(&basic(&token)) else {
            panic!()
        };
        assert_eq!(caller.actor, "ann");
        assert!(within.catalog && within.rights.may(Action::Push, "a/b") && !within.rights.may(Action::Pull, "a/c"));
        // It opens nothing else, and no bit of it may change.
        assert_eq!(auth.by_token(&basic(&token)), None);
        let mut forged = token.clone();
        forged.replace_range(5..6, if &token[5..6] == "A" { "B" } else { "A" });
        assert!(matches!(auth.credentials(&basic(&forged)), Credentials::Denied));
        assert!(matches!(Auth::default().credentials(&basic(&token)), Credentials::Denied));
        // It ends with the secret it was issued for.
        auth.lock().clear();
        assert!(matches!(auth.credentials(&basic(&token)), Credentials::Denied));
        let pull = Rights::everywhere(&[Action::Pull]);
        let (token, scope) = auth.bearer(None, &pull, ["repository:a:pull,push"].into_iter());
        assert_eq!(scope, "repository:a:pull");
        assert!(matches!(auth.credentials(&basic(&token)), Credentials::Anonymous(_)));
    }

    #[test]
    fn a_login_link_works_once() {
        let auth = Auth::default();
        let link = auth.link("ann");
        let session = auth.log_in(&link).unwrap();
        assert_eq!(auth.log_in(&link), None);
        let cookie = HeaderMap::from_iter([(header::COOKIE, format!("a=b; {COOKIE}={session}").parse().unwrap())]);
        assert_eq!(auth.by_cookie(&cookie).as_deref(), Some("ann"));
    }

    #[test]
    fn secrets_are_bounded() {
        let auth = Auth::default();
        for _ in 0..MAX_SECRETS + 10 {
            auth.token("ann");
        }
        assert!(auth.lock().len() <= MAX_SECRETS);
    }
}
