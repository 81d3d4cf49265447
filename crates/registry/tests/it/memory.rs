//! A ledger in memory: the naming law and the views, without signatures.

use std::collections::BTreeMap;
use std::sync::Mutex;

use adamant_attest::Statement;
use adamant_attest::predicate::{BindingKind, Predicate, actor, binds};
use adamant_digest::Digest;
use adamant_store::{AppendError, Bound, BoxFuture, Conflict, Entry, Fact, Head, Ledger, LedgerError, Link, Receipt};

#[derive(Default)]
pub(crate) struct MemoryLedger(Mutex<State>);

#[derive(Default)]
struct State {
    facts: Vec<Fact>,
    names: BTreeMap<(BindingKind, String), Bound>,
    /// Indices of the facts of a chain.
    chains: BTreeMap<String, Vec<u64>>,
    divergences: usize,
}

const AT: &str = "2026-01-02T03:04:05Z";

impl MemoryLedger {
    pub(crate) fn size(&self) -> usize {
        self.0.lock().unwrap().facts.len()
    }

    pub(crate) fn divergences(&self) -> usize {
        self.0.lock().unwrap().divergences
    }
}

impl State {
    fn append(&mut self, facts: Vec<Fact>) -> Result<Vec<Receipt>, AppendError> {
        for (kind, name, offered) in facts.iter().flat_map(|fact| binds(&fact.predicate)) {
            if let Some(bound) = self.names.get(&(kind, name.clone())).filter(|bound| bound.digest != offered) {
                self.divergences += 1;
                return Err(AppendError::Conflict(Box::new(Conflict { kind, name, bound: bound.clone(), offered })));
            }
        }
        for chain in facts.iter().filter_map(|fact| fact.chain.as_ref()) {
            let found = self.chains.get(&chain.name).map_or(0, Vec::len) as u64 + 1;
            if let Some(expected) = chain.expect.filter(|expected| *expected != found) {
                return Err(AppendError::ChainMoved { chain: chain.name.clone(), expected, found });
            }
        }
        Ok(facts.into_iter().map(|fact| self.one(fact)).collect())
    }

    fn one(&mut self, fact: Fact) -> Receipt {
        let bound = binds(&fact.predicate);
        let known = bound.first().and_then(|(kind, name, _)| self.names.get(&(*kind, name.clone())));
        let receipt =
            |index, new| Receipt { index, new, sequence: None, statement: Digest::of(b""), recorded_at: AT.to_owned() };
        if let Some(known) = known {
            return receipt(known.index, false);
        }
        let index = self.facts.len() as u64;
        for (kind, name, digest) in bound {
            let by = actor(&fact.predicate).to_owned();
            self.names.entry((kind, name)).or_insert(Bound { digest, index, by, at: AT.to_owned() });
        }
        if let Some(chain) = &fact.chain {
            self.chains.entry(chain.name.clone()).or_default().push(index);
        }
        self.facts.push(fact);
        receipt(index, true)
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

fn no_log<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, LedgerError>> {
    ready(Err(LedgerError::Unavailable("the ledger in memory has no log".to_owned())))
}

fn entry(index: u64, fact: &Fact) -> Entry {
    Entry {
        index,
        statement: statement(&fact.predicate),
        envelope: Vec::new(),
        leaf: Vec::new(),
        recorded_at: AT.to_owned(),
    }
}

/// What the statement of a fact says, without a place in the log.
fn statement(predicate: &Predicate) -> Vec<u8> {
    let statement = Statement::record(vec![("x".to_owned(), Digest::of(b""))], predicate, AT, None).unwrap();
    statement.to_bytes().unwrap()
}

impl Ledger for MemoryLedger {
    fn append(&self, facts: Vec<Fact>) -> BoxFuture<'_, Result<Vec<Receipt>, AppendError>> {
        ready(self.0.lock().unwrap().append(facts))
    }

    fn head(&self) -> BoxFuture<'_, Result<Head, LedgerError>> {
        ready(Ok(Head { size: self.size() as u64, checkpoint: String::new() }))
    }

    fn binding<'a>(&'a self, kind: BindingKind, name: &'a str) -> BoxFuture<'a, Result<Option<Bound>, LedgerError>> {
        ready(Ok(self.0.lock().unwrap().names.get(&(kind, name.to_owned())).cloned()))
    }

    fn bindings<'a>(
        &'a self,
        kind: BindingKind,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Bound)>, LedgerError>> {
        let state = self.0.lock().unwrap();
        let all = state
            .names
            .iter()
            .filter(|((k, name), _)| *k == kind && name.starts_with(prefix) && name.as_bytes() > after.as_bytes());
        ready(Ok(all.take(limit).map(|((_, name), bound)| (name.clone(), bound.clone())).collect()))
    }

    fn entry(&self, index: u64) -> BoxFuture<'_, Result<Option<Entry>, LedgerError>> {
        let state = self.0.lock().unwrap();
        ready(Ok(state.facts.get(usize::try_from(index).unwrap()).map(|fact| entry(index, fact))))
    }

    fn entries(&self, from: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, LedgerError>> {
        let state = self.0.lock().unwrap();
        let all = (from..).zip(state.facts.iter().skip(usize::try_from(from).unwrap())).take(limit);
        ready(Ok(all.map(|(index, fact)| entry(index, fact)).collect()))
    }

    fn about(&self, digest: Digest, limit: usize) -> BoxFuture<'_, Result<Vec<u64>, LedgerError>> {
        let state = self.0.lock().unwrap();
        let about = |fact: &Fact| fact.subject.iter().any(|subject| subject.digest == digest);
        let all = (0..).zip(&state.facts).filter(|(_, fact)| about(fact));
        ready(Ok(all.map(|(index, _)| index).take(limit).collect()))
    }

    fn chain_head<'a>(&'a self, chain: &'a str) -> BoxFuture<'a, Result<Option<Link>, LedgerError>> {
        let state = self.0.lock().unwrap();
        let link = state.chains.get(chain).and_then(|all| {
            let index = *all.last()?;
            Some(Link { sequence: all.len() as u64, index, statement: Digest::of(b"") })
        });
        ready(Ok(link))
    }

    fn chain<'a>(&'a self, chain: &'a str, from: u64, limit: usize) -> BoxFuture<'a, Result<Vec<Link>, LedgerError>> {
        let state = self.0.lock().unwrap();
        let all = (1..).zip(state.chains.get(chain).into_iter().flatten()).filter(|(sequence, _)| *sequence >= from);
        let link = |(sequence, index): (u64, &u64)| Link { sequence, index: *index, statement: Digest::of(b"") };
        ready(Ok(all.take(limit).map(link).collect()))
    }

    fn chains<'a>(&'a self, _prefix: &'a str, _limit: usize) -> BoxFuture<'a, Result<Vec<String>, LedgerError>> {
        no_log()
    }

    fn inclusion(&self, _index: u64, _size: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>> {
        no_log()
    }

    fn consistency(&self, _old: u64, _new: u64) -> BoxFuture<'_, Result<Vec<[u8; 32]>, LedgerError>> {
        no_log()
    }
}
