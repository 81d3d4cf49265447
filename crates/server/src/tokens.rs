//! Named tokens: made and revoked by the owner, kept as facts of the chain `grants` that hold the
//! digest of the secret alone, so that they survive a restart and are audited.
//!
//! The actor of a named token is `token:NAME`. Users of this machine have no `:` in their names, and
//! other ways of logging in are to have a prefix of their own, so that no two are taken for one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adamant_api::{Class, NewToken, TokenMade, TokenSummary};
use adamant_attest::predicate::{Grant, PersonalGrant, Predicate, Role};
use adamant_digest::Digest;
use adamant_registry::{Rights, Scope};
use adamant_store::{AppendError, Chain, Fact, Subject};

use crate::auth::{Caller, random};
use crate::error::Problem;
use crate::facts::Facts;

/// The chain of all of them.
const CHAIN: &str = "grants";
/// Links read at once.
const PAGE: usize = 1000;
/// Most tokens that hold at a time.
const MOST: usize = 10_000;
/// What every secret starts with, so that scanners of secrets know it.
const PREFIX: &str = "adamant_";

/// The scope of whoever asks for erasures and approves them.
const ERASE: &str = "erase";

fn is_person(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-+@".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(fine)
}

/// The named tokens as the facts have them.
#[derive(Default)]
pub(crate) struct Tokens {
    state: RwLock<State>,
    /// Held while facts are read or written.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Links of the chain that are in here.
    upto: u64,
    named: BTreeMap<String, Named>,
    by_secret: HashMap<Digest, String>,
}

/// Who an actor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// As it is recorded.
    pub(crate) actor: String,
    /// Whose token it is.
    pub(crate) person: Option<String>,
    /// Who made the token.
    pub(crate) maker: Option<String>,
}

struct Named {
    rights: Rights,
    /// It may ask for erasures and approve them.
    erases: bool,
    expires_s: Option<i64>,
    summary: TokenSummary,
}

fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}

impl Tokens {
    /// Who has the secret with this digest, if their token holds.
    pub(crate) fn caller(&self, secret: Digest, now: SystemTime) -> Option<Caller> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let name = state.by_secret.get(&secret)?;
        let named = state.named.get(name).filter(|named| named.summary.revoked_by.is_none())?;
        let holds = named.expires_s.is_none_or(|end| seconds(now) < end);
        holds.then(|| Caller { actor: format!("token:{name}"), rights: named.rights.clone(), erases: named.erases })
    }

    /// Who an actor is: a user of this machine, or whoever a named token is of. A token tells that after
    /// its end, too.
    pub(crate) fn holder(&self, actor: &str) -> Holder {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let summary = actor.strip_prefix("token:").and_then(|name| state.named.get(name)).map(|named| &named.summary);
        Holder {
            actor: actor.to_owned(),
            person: summary.and_then(|summary| summary.person.clone()),
            maker: summary.map(|summary| summary.by.clone()),
        }
    }

    /// All tokens that ever were, by name.
    pub(crate) fn list(&self) -> Vec<TokenSummary> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.named.values().map(|named| named.summary.clone()).collect()
    }

    /// Reads the facts that were recorded since, by this server or another one.
    pub(crate) async fn refresh(&self, facts: &Facts) -> Result<(), Problem> {
        let _turn = self.turn.lock().await;
        self.catch_up(facts).await
    }

    async fn catch_up(&self, facts: &Facts) -> Result<(), Problem> {
        loop {
            let upto = self.state.read().unwrap_or_else(PoisonError::into_inner).upto;
            let page = facts.ledger.chain(CHAIN, upto + 1, PAGE).await?;
            for link in &page {
                let recorded = facts.at(link.index).await?;
                let (grant, person) = match recorded.predicate {
                    Predicate::Grant(grant) => (grant, None),
                    Predicate::PersonalGrant(PersonalGrant { grant, person }) => (grant, Some(person)),
                    _ => return Err(Problem::damaged(format!("entry {} is no grant", link.index))),
                };
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.take(grant, person, &recorded.entry.recorded_at);
                state.upto = link.sequence;
            }
            if page.len() < PAGE {
                return Ok(());
            }
        }
    }

    /// Makes a token. Its secret is in the answer and nowhere else.
    pub(crate) async fn create(&self, facts: &Facts, ask: &NewToken, by: &str) -> Result<TokenMade, Problem> {
        if !adamant_release::valid_name(&ask.name) {
            return Err(Problem::usage(format!("`{}` is not a name for a token", ask.name))
                .hint("use 1 to 40 lower-case letters, digits and inner hyphens"));
        }
        if ask.scopes.is_empty() {
            return Err(Problem::usage("a token without a scope allows nothing").hint("--scope 'team/*:pull,push'"));
        }
        let bad = |error| Problem::usage(format!("token {} cannot be made", ask.name)).cause(error);
        let erases = ask.scopes.iter().any(|text| text == ERASE);
        let scopes = ask.scopes.iter().filter(|text| *text != ERASE).map(|text| text.parse::<Scope>());
        let scopes = scopes.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let mut scopes_text: Vec<_> = scopes.iter().map(ToString::to_string).collect();
        if erases {
            scopes_text.push(ERASE.to_owned());
        }
        match &ask.person {
            Some(person) if !is_person(person) => {
                return Err(Problem::usage(format!("`{person}` is not a name for a person"))
                    .hint("use 1 to 64 lower-case letters, digits and `.`, `_`, `-`, `+`, `@`, as in the user name or address"));
            }
            None if erases => {
                return Err(Problem::usage("a token that asks for or approves erasures must say whose it is")
                    .hint("--person NAME: two tokens of one person count as one"));
            }
            _ => {}
        }
        Rights::new(scopes).map_err(bad)?;
        let expires = ask.expires_s.map(|life| {
            let end = SystemTime::now().checked_add(Duration::from_secs(life)).map(seconds);
            end.and_then(adamant_attest::format_time)
                .ok_or_else(|| Problem::usage("that is too far away to be an end of a token"))
        });
        let expires = expires.transpose()?;
        let _turn = self.turn.lock().await;
        self.catch_up(facts).await?;
        let next = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if state.named.contains_key(&ask.name) {
                let text = format!("there is or was a token `{}`: a name is given once", ask.name);
                return Err(Problem::new(Class::Conflict, text).hint("choose another name: adamant token list"));
            }
            if state.by_secret.len() >= MOST {
                return Err(Problem::usage(format!("{MOST} tokens hold already")).hint("revoke some"));
            }
            state.upto + 1
        };
        let secret = format!("{PREFIX}{}", random());
        let grant = Grant {
            name: ask.name.clone(),
            action: "granted".to_owned(),
            secret: Digest::of(secret.as_bytes()),
            scopes: scopes_text.clone(),
            expires: expires.clone(),
            by: by.to_owned(),
        };
        self.record(facts, grant, ask.person.clone(), next).await?;
        Ok(TokenMade { name: ask.name.clone(), secret, scopes: scopes_text, expires })
    }

    /// Revokes a token; all that was issued for it ends with it. Repeatable.
    pub(crate) async fn revoke(&self, facts: &Facts, name: &str, by: &str) -> Result<TokenSummary, Problem> {
        let _turn = self.turn.lock().await;
        self.catch_up(facts).await?;
        let unknown = || Problem::usage(format!("there is no token `{name}`")).hint("adamant token list");
        let (secret, next) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let named = state.named.get(name).ok_or_else(unknown)?;
            let secret = state.by_secret.iter().find(|(_, of)| *of == name).map(|(secret, _)| *secret);
            match secret {
                Some(secret) if named.summary.revoked_by.is_none() => (secret, state.upto + 1),
                _ => return Ok(named.summary.clone()),
            }
        };
        let grant = Grant {
            name: name.to_owned(),
            action: "revoked".to_owned(),
            secret,
            scopes: Vec::new(),
            expires: None,
            by: by.to_owned(),
        };
        self.record(facts, grant, None, next).await?;
        self.list().into_iter().find(|summary| summary.name == name).ok_or_else(unknown)
    }

    async fn record(&self, facts: &Facts, grant: Grant, person: Option<String>, next: u64) -> Result<(), Problem> {
        let fact = Fact {
            role: Role::Control,
            subject: vec![Subject { name: format!("token:{}", grant.name), digest: grant.secret }],
            predicate: match person {
                Some(person) => Predicate::PersonalGrant(PersonalGrant { grant, person }),
                None => Predicate::Grant(grant),
            },
            chain: Some(Chain { name: CHAIN.to_owned(), expect: Some(next) }),
        };
        match facts.ledger.append(vec![fact]).await {
            Ok(_) => self.catch_up(facts).await,
            // Another server on the same ledger.
            Err(AppendError::ChainMoved { .. }) => {
                Err(Problem::new(Class::Unavailable, "the tokens were changed meanwhile").hint("try again"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl State {
    fn take(&mut self, grant: Grant, person: Option<String>, at: &str) {
        if grant.action == "granted" {
            // Written by this program, which parsed them; what is not understood allows nothing.
            let erases = person.is_some() && grant.scopes.iter().any(|text| text == ERASE);
            let scopes: Vec<Scope> = grant.scopes.iter().filter_map(|text| text.parse().ok()).collect();
            let rights = Rights::new(scopes).unwrap_or_else(|_| Rights::none());
            let expires_s = grant.expires.as_deref().map(|text| adamant_attest::parse_time(text).unwrap_or(0));
            let summary = TokenSummary {
                name: grant.name.clone(),
                scopes: grant.scopes,
                person,
                expires: grant.expires,
                by: grant.by,
                at: at.to_owned(),
                revoked_by: None,
                revoked_at: None,
            };
            self.by_secret.insert(grant.secret, grant.name.clone());
            self.named.insert(grant.name, Named { rights, erases, expires_s, summary });
        } else if let Some(named) = self.named.get_mut(&grant.name) {
            named.summary.revoked_by = Some(grant.by);
            named.summary.revoked_at = Some(at.to_owned());
            self.by_secret.remove(&grant.secret);
        }
    }
}
