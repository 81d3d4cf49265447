//! Chains: gapless and hash-linked.

use std::collections::HashMap;

use adamant_attest::predicate::Predicate;

use crate::facts::Fact;
use crate::refusal::Refusal;

/// Chains that hold one kind of statement alone.
const RESERVED: [&str; 4] = ["keys", "environment/", "observation/", "configuration/"];

/// Checks every chain in the capsule: each kind of statement stands in its chain, sequence
/// numbers grow with the index, and neighbours are linked by hash.
pub(crate) fn check(facts: &[Fact]) -> Result<(), Refusal> {
    let mut last: HashMap<&str, (u64, &Fact)> = HashMap::new();
    for fact in facts {
        if let Some(expected) = own_chain(&fact.predicate)
            && fact.link.as_ref().is_none_or(|link| link.chain != expected)
        {
            return Err(Refusal::WrongChain { index: fact.index, expected });
        }
        let Some(link) = &fact.link else { continue };
        let reserved = RESERVED.iter().any(|prefix| link.chain.starts_with(prefix));
        if reserved && own_chain(&fact.predicate).is_none() {
            return Err(Refusal::WrongChain { index: fact.index, expected: "one of another kind".to_owned() });
        }
        if let Some(before) = last.insert(&link.chain, (link.sequence, fact)) {
            let (index, chain, sequence) = (fact.index, link.chain.clone(), link.sequence);
            if sequence <= before.0 {
                return Err(Refusal::ChainOrder { index, chain, sequence, before: before.0 });
            }
            if sequence == before.0 + 1 && link.previous != Some(before.1.digest) {
                return Err(Refusal::ChainLink { index, chain, sequence });
            }
        }
    }
    Ok(())
}

/// The facts of `chain` from 1, all of them up to the last in the capsule.
pub(crate) fn whole<'a>(facts: &'a [Fact], chain: &str) -> Result<Vec<&'a Fact>, Refusal> {
    let mut next = 1;
    let mut found = Vec::new();
    for fact in facts {
        let Some(link) = fact.link.as_ref().filter(|link| link.chain == chain) else { continue };
        if link.sequence != next {
            return Err(Refusal::ChainGap { chain: chain.to_owned(), missing: next });
        }
        next += 1;
        found.push(fact);
    }
    Ok(found)
}

/// The chain that a statement must stand in; `None` if its kind has no chain of its own.
fn own_chain(predicate: &Predicate) -> Option<String> {
    match predicate {
        Predicate::Deployment(p) => Some(format!("environment/{}/{}", p.project, p.environment)),
        Predicate::Observation(p) => Some(format!("observation/{}/{}", p.project, p.environment)),
        Predicate::Configuration(p) => Some(format!("configuration/{}/{}", p.project, p.environment)),
        Predicate::Key(_) => Some("keys".to_owned()),
        _ => None,
    }
}
