//! Who is asking: tokens from the control socket, one-time login links, page sessions.
//!
//! Everything lives in memory: a restart signs everybody out, nothing secret is on disk.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use ring::rand::SecureRandom as _;

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

/// All secrets that are valid now, by digest: the secrets themselves are not kept.
#[derive(Default)]
pub(crate) struct Auth {
    grants: Mutex<HashMap<(Kind, Digest), Grant>>,
}

impl Auth {
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
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let secret = match value.split_once(' ')? {
            (scheme, secret) if scheme.eq_ignore_ascii_case("bearer") => secret.trim().to_owned(),
            (scheme, encoded) if scheme.eq_ignore_ascii_case("basic") => {
                let raw = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
                String::from_utf8(raw).ok()?.split_once(':')?.1.to_owned()
            }
            _ => return None,
        };
        self.actor(Kind::Token, &secret)
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
            .find_map(|(_, secret)| self.actor(Kind::Session, secret))
    }

    fn actor(&self, kind: Kind, secret: &str) -> Option<String> {
        let grants = self.lock();
        let grant = grants.get(&(kind, Digest::of(secret.as_bytes())))?;
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

/// 256 bits nobody can guess.
fn random() -> String {
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
