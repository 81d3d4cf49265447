//! What a batch of calls becomes: pure. Given what the database says about the names and chains
//! they touch, decides each call and writes the statements, in order.
//!
//! A call is all or nothing. Later calls of a batch see what earlier ones did, as if each had
//! been a transaction of its own.

use std::collections::{HashMap, HashSet};

use adamant_attest::predicate::{self, BindingKind, Divergence, Predicate, Role};
use adamant_attest::{Link, Statement, format_time};
use adamant_digest::Digest;
use adamant_store::{AppendError, Bound, Conflict, Fact, LedgerError, Receipt};

use crate::writer::MAX_STATEMENT_BYTES;

/// Divergences recorded for one call; a hostile lock could contradict thousands of names.
const MAX_DIVERGENCES: usize = 100;

/// A fact and the names it binds.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) fact: Fact,
    pub(crate) binds: Vec<(BindingKind, String, Digest)>,
}

/// A name.
pub(crate) type Name = (BindingKind, String);

/// A binding with what a receipt needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) digest: Digest,
    pub(crate) index: u64,
    pub(crate) by: String,
    /// RFC 3339.
    pub(crate) at: String,
    pub(crate) statement: Digest,
    pub(crate) sequence: Option<u64>,
}

/// What is so already.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) bindings: HashMap<Name, Binding>,
    /// Last sequence number and statement of each chain.
    pub(crate) chains: HashMap<String, (u64, Digest)>,
    pub(crate) divergences: HashSet<(BindingKind, String, Digest)>,
}

/// A statement to sign and record.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) role: Role,
    pub(crate) statement: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) subject: Vec<Digest>,
    pub(crate) predicate: Predicate,
    pub(crate) link: Option<(String, u64)>,
}

/// The decision.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In order of their indices.
    pub(crate) entries: Vec<Planned>,
    /// One for each call.
    pub(crate) outcomes: Vec<Result<Vec<Receipt>, AppendError>>,
}

/// Decides `calls` for a log of `size` entries at `unix_seconds`.
pub(crate) fn plan(known: Known, size: u64, unix_seconds: i64, calls: &[Vec<Prepared>]) -> Plan {
    let Some(at) = format_time(unix_seconds) else {
        let error =
            || LedgerError::Unavailable(format!("the clock says {unix_seconds} s, no time a statement can hold"));
        return Plan { entries: Vec::new(), outcomes: calls.iter().map(|_| Err(error().into())).collect() };
    };
    let mut planner = Planner { known, size, at, entries: Vec::new() };
    let outcomes = calls.iter().map(|call| planner.call(call)).collect();
    Plan { entries: planner.entries, outcomes }
}

struct Planner {
    known: Known,
    size: u64,
    at: String,
    entries: Vec<Planned>,
}

/// What a call did so far; dropped if it fails.
#[derive(Default)]
struct Staged {
    entries: Vec<Planned>,
    bindings: HashMap<Name, Binding>,
    chains: HashMap<String, (u64, Digest)>,
}

impl Planner {
    fn call(&mut self, call: &[Prepared]) -> Result<Vec<Receipt>, AppendError> {
        let conflicts = self.conflicts(call);
        if let Some(first) = conflicts.first() {
            let first = first.0.clone();
            for (conflict, by) in conflicts {
                self.divergence(&conflict, by)?;
            }
            return Err(AppendError::Conflict(Box::new(first)));
        }
        let mut staged = Staged::default();
        let receipts = call.iter().map(|fact| self.fact(fact, &mut staged)).collect::<Result<_, _>>()?;
        self.entries.append(&mut staged.entries);
        self.known.bindings.extend(staged.bindings);
        self.known.chains.extend(staged.chains);
        Ok(receipts)
    }

    /// Every name of the call that is bound to something else.
    fn conflicts(&self, call: &[Prepared]) -> Vec<(Conflict, String)> {
        let binds = call.iter().flat_map(|fact| fact.binds.iter().map(move |bind| (fact, bind)));
        let conflict = |(fact, (kind, name, offered)): (&Prepared, &(BindingKind, String, Digest))| {
            let bound = self.known.bindings.get(&(*kind, name.clone())).filter(|bound| bound.digest != *offered)?;
            let (by, at) = (bound.by.clone(), bound.at.clone());
            let bound = Bound { digest: bound.digest, index: bound.index, by, at };
            let conflict = Conflict { kind: *kind, name: name.clone(), bound, offered: *offered };
            Some((conflict, predicate::actor(&fact.fact.predicate).to_owned()))
        };
        binds.filter_map(conflict).take(MAX_DIVERGENCES).collect()
    }

    fn fact(&self, prepared: &Prepared, staged: &mut Staged) -> Result<Receipt, AppendError> {
        let Prepared { fact, binds } = prepared;
        if let Some(receipt) = self.repeated(binds, staged)? {
            return Ok(receipt);
        }
        let link = self.link(fact, staged)?;
        let subject = fact.subject.iter().map(|subject| (subject.name.clone(), subject.digest)).collect();
        let planned = write(fact.role, subject, &fact.predicate, &self.at, link.as_ref())?;
        let index = self.size + (self.entries.len() + staged.entries.len()) as u64;
        let (statement, sequence) = (planned.digest, link.as_ref().map(|link| link.sequence));
        for (kind, name, digest) in binds {
            let name = (*kind, name.clone());
            if !self.known.bindings.contains_key(&name) {
                let (by, at) = (predicate::actor(&fact.predicate).to_owned(), self.at.clone());
                let binding = Binding { digest: *digest, index, by, at, statement, sequence };
                staged.bindings.entry(name).or_insert(binding);
            }
        }
        if let Some(link) = link {
            staged.chains.insert(link.chain, (link.sequence, statement));
        }
        staged.entries.push(planned);
        Ok(Receipt { index, new: true, sequence, statement, recorded_at: self.at.clone() })
    }

    /// The receipt of a fact that is there already. Its other names must be there as well:
    /// the same lock cannot hold other inputs.
    fn repeated(
        &self,
        binds: &[(BindingKind, String, Digest)],
        staged: &Staged,
    ) -> Result<Option<Receipt>, AppendError> {
        let find = |kind: BindingKind, name: &String| {
            let key = (kind, name.clone());
            self.known.bindings.get(&key).or_else(|| staged.bindings.get(&key))
        };
        let mut seen: HashMap<(BindingKind, &str), Digest> = HashMap::with_capacity(binds.len());
        for (kind, name, digest) in binds {
            let bound = find(*kind, name).map(|bound| bound.digest);
            let here = seen.insert((*kind, name), *digest);
            // The database's contradictions were found before; this one is within the call.
            if [bound, here].into_iter().flatten().any(|other| other != *digest) {
                let text = format!("it binds the {} `{name}` to two digests", kind.as_str());
                return Err(AppendError::Invalid(text));
            }
        }
        let Some(((kind, name, _), others)) = binds.split_first() else { return Ok(None) };
        let Some(bound) = find(*kind, name) else { return Ok(None) };
        if let Some((other_kind, other, _)) = others.iter().find(|(kind, name, _)| find(*kind, name).is_none()) {
            let text = format!(
                "the {} `{name}` was recorded before, without the {} `{other}`",
                kind.as_str(),
                other_kind.as_str()
            );
            return Err(AppendError::Invalid(text));
        }
        let Binding { index, statement, sequence, at, .. } = bound.clone();
        Ok(Some(Receipt { index, new: false, sequence, statement, recorded_at: at }))
    }

    fn link(&self, fact: &Fact, staged: &Staged) -> Result<Option<Link>, AppendError> {
        let Some(chain) = &fact.chain else { return Ok(None) };
        let last = staged.chains.get(&chain.name).or_else(|| self.known.chains.get(&chain.name));
        let sequence = last.map_or(0, |(sequence, _)| *sequence) + 1;
        if let Some(expected) = chain.expect.filter(|expected| *expected != sequence) {
            return Err(AppendError::ChainMoved { chain: chain.name.clone(), expected, found: sequence });
        }
        let previous = last.map(|(_, statement)| *statement);
        Ok(Some(Link { chain: chain.name.clone(), sequence, previous }))
    }

    /// Records that a name was offered another digest, once for each digest.
    fn divergence(&mut self, conflict: &Conflict, by: String) -> Result<(), AppendError> {
        let Conflict { kind, name, bound, offered } = conflict;
        let key = (*kind, name.clone(), *offered);
        if self.known.divergences.contains(&key) {
            return Ok(());
        }
        let (name, bound, offered) = (name.clone(), bound.digest, *offered);
        let subject = vec![(format!("{} {name}", kind.as_str()), offered)];
        let predicate = Predicate::Divergence(Divergence { kind: *kind, name, bound, offered, by });
        self.entries.push(write(Role::Control, subject, &predicate, &self.at, None)?);
        self.known.divergences.insert(key);
        Ok(())
    }
}

fn write(
    role: Role,
    subject: Vec<(String, Digest)>,
    predicate: &Predicate,
    at: &str,
    link: Option<&Link>,
) -> Result<Planned, AppendError> {
    let invalid = |error: adamant_attest::StatementError| AppendError::Invalid(error.to_string());
    let digests: Vec<Digest> = subject.iter().map(|(_, digest)| *digest).collect();
    let statement = Statement::record(subject, predicate, at, link).map_err(invalid)?.to_bytes().map_err(invalid)?;
    if statement.len() > MAX_STATEMENT_BYTES {
        let text = format!("its statement has {} bytes, the limit is {MAX_STATEMENT_BYTES}", statement.len());
        return Err(AppendError::Invalid(text));
    }
    let digest = Digest::of(&statement);
    let link = link.map(|link| (link.chain.clone(), link.sequence));
    Ok(Planned { role, statement, digest, subject: digests, predicate: predicate.clone(), link })
}

#[cfg(test)]
mod tests {
    use adamant_attest::predicate::{Input, Lock};
    use adamant_store::Chain;
    use serde_json::Value;

    use super::*;

    fn binding(name: &str, content: &str, chain: Option<Chain>) -> Prepared {
        let digest = Digest::of(content.as_bytes());
        let predicate = Predicate::Binding(predicate::Binding {
            kind: BindingKind::Tag,
            name: name.to_owned(),
            digest,
            by: "ann".to_owned(),
            detail: Value::Null,
        });
        prepared(predicate, chain)
    }

    fn prepared(predicate: Predicate, chain: Option<Chain>) -> Prepared {
        let binds = predicate::binds(&predicate);
        Prepared { fact: Fact { role: Role::Control, subject: Vec::new(), predicate, chain }, binds }
    }

    fn on(name: &str, expect: Option<u64>) -> Chain {
        Chain { name: name.to_owned(), expect }
    }

    fn decide(calls: &[Vec<Prepared>]) -> Plan {
        plan(Known::default(), 10, 0, calls)
    }

    #[test]
    fn calls_of_a_batch_see_each_other() {
        let plan = decide(&[
            vec![binding("a", "1", None), binding("b", "1", None)],
            vec![binding("a", "1", None)],
            vec![binding("b", "2", None), binding("c", "1", None)],
            vec![binding("b", "2", None)],
            vec![binding("c", "3", None)],
        ]);
        let [first, again, other, other_again, fresh] = plan.outcomes.as_slice() else { panic!() };
        let first = first.as_ref().unwrap();
        assert_eq!(
            first.iter().map(|receipt| (receipt.index, receipt.new)).collect::<Vec<_>>(),
            [(10, true), (11, true)]
        );
        assert_eq!(again.as_ref().unwrap()[0], Receipt { new: false, ..first[0].clone() });
        for other in [other, other_again] {
            let Err(AppendError::Conflict(conflict)) = other else { panic!("{other:?}") };
            assert_eq!((conflict.name.as_str(), conflict.bound.index), ("b", 11));
        }
        // One divergence for both; `c` of the failed call was never bound.
        assert_eq!(fresh.as_ref().unwrap()[0].index, 13);
        let kinds: Vec<_> =
            plan.entries.iter().map(|entry| entry.predicate.uri().rsplit('/').nth(1).unwrap()).collect();
        assert_eq!(kinds, ["binding", "binding", "divergence", "binding"]);
    }

    #[test]
    fn a_failed_call_leaves_no_trace_in_its_chains() {
        let plan = decide(&[
            vec![binding("a", "1", Some(on("c", None))), binding("b", "1", Some(on("c", Some(3))))],
            vec![binding("b", "1", Some(on("c", Some(1)))), binding("d", "1", Some(on("c", None)))],
        ]);
        let Err(AppendError::ChainMoved { expected: 3, found: 2, .. }) = &plan.outcomes[0] else { panic!("{plan:?}") };
        let receipts = plan.outcomes[1].as_ref().unwrap();
        assert_eq!(receipts.iter().map(|receipt| receipt.sequence).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let second = Statement::parse(&plan.entries[1].statement).unwrap().link().unwrap().unwrap();
        assert_eq!(second.previous, Some(plan.entries[0].digest));
    }

    #[test]
    fn a_call_that_contradicts_itself_is_invalid_and_no_divergence() {
        let plan = decide(&[vec![binding("a", "1", None), binding("a", "2", None)]]);
        assert!(matches!(&plan.outcomes[0], Err(AppendError::Invalid(_))), "{plan:?}");
        assert!(plan.entries.is_empty());
    }

    #[test]
    fn a_fact_twice_in_a_call_is_written_once() {
        let plan = decide(&[vec![binding("a", "1", None), binding("a", "1", None)]]);
        let receipts = plan.outcomes[0].as_ref().unwrap();
        assert_eq!((receipts[0].new, receipts[1].new, plan.entries.len()), (true, false, 1));
    }

    #[test]
    fn a_repeated_lock_holds_the_same_inputs() {
        let lock = |inputs: &[(&str, &str)]| {
            let inputs = inputs.iter().map(|(name, content)| Input {
                name: (*name).to_owned(),
                digest: Digest::of(content.as_bytes()),
                size: 1,
            });
            let lock = Digest::of(b"lock");
            prepared(
                Predicate::Lock(Lock { project: "p".into(), lock, by: "ann".into(), inputs: inputs.collect() }),
                None,
            )
        };
        let plan = decide(&[
            vec![lock(&[("x", "1"), ("y", "1")])],
            vec![lock(&[("x", "1"), ("y", "1")])],
            vec![lock(&[("x", "1"), ("z", "1")])],
            vec![lock(&[("x", "2"), ("y", "2")])],
            vec![lock(&[("q", "1"), ("q", "2")])],
        ]);
        assert!(plan.outcomes[0].as_ref().unwrap()[0].new);
        assert!(!plan.outcomes[1].as_ref().unwrap()[0].new);
        assert!(matches!(&plan.outcomes[2], Err(AppendError::Invalid(text)) if text.contains("`z`")), "{plan:?}");
        assert!(matches!(&plan.outcomes[3], Err(AppendError::Conflict(conflict)) if conflict.name == "x"), "{plan:?}");
        assert!(matches!(&plan.outcomes[4], Err(AppendError::Invalid(_))), "{plan:?}");
        // The lock, and a divergence for each contradicted input.
        assert_eq!(plan.entries.len(), 3);
    }

    #[test]
    fn statements_have_a_limit() {
        let mut large = binding("a", "1", None);
        let Predicate::Binding(inner) = &mut large.fact.predicate else { panic!() };
        inner.detail = Value::from("x".repeat(MAX_STATEMENT_BYTES));
        let plan = decide(&[vec![large]]);
        assert!(matches!(&plan.outcomes[0], Err(AppendError::Invalid(text)) if text.contains("limit")));
    }
}
