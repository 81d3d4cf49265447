//! Decisions over the deployments an environment has seen: rollback, holds, automation.

use adamant_attest::predicate::Action;
use adamant_digest::Digest;

use crate::{Policy, UnknownEnvironment};

/// A deployment of one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// From 1, without gaps.
    pub sequence: u64,
    /// Why it was made.
    pub action: Action,
    /// `project/number`.
    pub release: String,
    /// Digest of the rollout document.
    pub rollout: Digest,
    /// Whether it was observed healthy.
    pub healthy: bool,
    /// For a rollback: the sequence number it returned to.
    pub returns_to: Option<u64>,
}

/// There is nothing to return to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// Nothing was deployed.
    #[error("nothing was deployed to {0} yet, so there is nothing to return to")]
    Empty(String),
    /// No other deployment was healthy.
    #[error("no deployment to {environment} before {current} was healthy with another rollout")]
    NoneBefore {
        /// The environment.
        environment: String,
        /// The release that is there.
        current: String,
    },
    /// The release never was healthy there.
    #[error("{release} was never healthy in {environment}; healthy there were: {}", known.join(", "))]
    NeverHealthy {
        /// The environment.
        environment: String,
        /// What was asked for.
        release: String,
        /// What could be asked for, newest first.
        known: Vec<String>,
    },
    /// It is there already.
    #[error("{release} already runs in {environment}")]
    Current {
        /// The environment.
        environment: String,
        /// The release.
        release: String,
    },
}

/// Which deployment to return to: the last healthy one of release `to`, or without one the last
/// healthy one before the current with another rollout. What a rollback returned to counts as
/// the current one, so that a second rollback goes further back instead of forth again.
/// `history` is sorted by sequence.
pub fn decide_rollback<'a>(
    environment: &str,
    history: &'a [Past],
    to: Option<&str>,
) -> Result<&'a Past, RollbackError> {
    let environment = || environment.to_owned();
    let Some(current) = history.last() else { return Err(RollbackError::Empty(environment())) };
    let Some(release) = to else {
        let mut stands_for = current;
        while let Some(earlier) = stands_for
            .returns_to
            .filter(|to| *to < stands_for.sequence)
            .and_then(|to| history.iter().find(|past| past.sequence == to))
        {
            stands_for = earlier;
        }
        let before = history.iter().take_while(|past| past.sequence < stands_for.sequence).collect::<Vec<_>>();
        return before
            .into_iter()
            .rev()
            .find(|past| past.healthy && past.rollout != current.rollout)
            .ok_or_else(|| RollbackError::NoneBefore { environment: environment(), current: current.release.clone() });
    };
    if let Some(past) = history.iter().rev().find(|past| past.healthy && past.release == release) {
        if past.rollout == current.rollout && current.healthy {
            return Err(RollbackError::Current { environment: environment(), release: release.to_owned() });
        }
        return Ok(past);
    }
    let mut known: Vec<String> = Vec::new();
    for past in history.iter().rev().filter(|past| past.healthy) {
        if !known.contains(&past.release) && known.len() < 10 {
            known.push(past.release.clone());
        }
    }
    Err(RollbackError::NeverHealthy { environment: environment(), release: release.to_owned(), known })
}

/// The sequence number of the rollback that holds automation, if one does: the newest rollback
/// without a promotion by a person after it.
pub fn hold(history: &[Past]) -> Option<u64> {
    let last = history.iter().rev().find(|past| past.action != Action::Deploy)?;
    (last.action == Action::Rollback).then_some(last.sequence)
}

/// What automation does with a new release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automation {
    /// Deploys it.
    Deploy,
    /// Leaves it to people: the environment asks for a promotion.
    Asked,
    /// A rollback of that sequence number holds until somebody promotes.
    Held {
        /// Sequence number of the rollback.
        since: u64,
    },
    /// A newer release is there already.
    Older,
}

/// Decides whether a push deploys release `number` to `environment` by itself.
pub fn decide_automation(
    policy: &Policy,
    environment: &str,
    history: &[Past],
    number: u64,
) -> Result<Automation, UnknownEnvironment> {
    if !policy.environment(environment)?.automatic {
        return Ok(Automation::Asked);
    }
    if let Some(since) = hold(history) {
        return Ok(Automation::Held { since });
    }
    let newest = history.last().and_then(|past| past.release.rsplit('/').next()?.parse::<u64>().ok());
    Ok(if newest.is_some_and(|newest| newest > number) { Automation::Older } else { Automation::Deploy })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One word a deployment: action letter, release number, `!` if it failed.
    fn history(script: &str) -> Vec<Past> {
        let mut history: Vec<Past> = Vec::new();
        for (word, sequence) in script.split_whitespace().zip(1..) {
            let number = word[1..].trim_end_matches('!');
            let release = format!("shop/{number}");
            let earlier = history.iter().rev().find(|past| past.release == release).map(|past| past.sequence);
            let past = Past {
                sequence,
                action: match &word[..1] {
                    "d" => Action::Deploy,
                    "p" => Action::Promote,
                    _ => Action::Rollback,
                },
                returns_to: earlier.filter(|_| word.starts_with('r')),
                release,
                rollout: Digest::of(number.as_bytes()),
                healthy: !word.ends_with('!'),
            };
            history.push(past);
        }
        history
    }

    fn check(script: &str, to: Option<&str>, expect: Result<u64, &str>) {
        let history = history(script);
        let found = decide_rollback("prod", &history, to).map(|past| past.sequence).map_err(|e| e.to_string());
        assert_eq!(found, expect.map_err(str::to_owned), "{script} {to:?}");
    }

    #[test]
    fn rollback() {
        check("", None, Err("nothing was deployed to prod yet, so there is nothing to return to"));
        check("p1", None, Err("no deployment to prod before shop/1 was healthy with another rollout"));
        check("p1 p2", None, Ok(1));
        check("p1 p2! p3", None, Ok(1));
        check("p1 p2 p2", None, Ok(1));
        check("p1 p2 p3!", None, Ok(2));
        check("p1 p2 r1", None, Err("no deployment to prod before shop/1 was healthy with another rollout"));
        check("p1 p2 p3 r2", None, Ok(1));
        check("p1 p2 p3 r2 r1", Some("shop/3"), Ok(3));
        check("p1 p2 r1 p3", None, Ok(3));
        check("p1 p2 p1 p3", Some("shop/1"), Ok(3));
        check("p1 p2", Some("shop/2"), Err("shop/2 already runs in prod"));
        check("p1 p2!", Some("shop/2"), Err("shop/2 was never healthy in prod; healthy there were: shop/1"));
    }

    #[test]
    fn holds_until_somebody_promotes() {
        assert_eq!(hold(&history("d1 d2")), None);
        assert_eq!(hold(&history("d1 d2 r1")), Some(3));
        assert_eq!(hold(&history("d1 d2 r1 d3")), Some(3));
        assert_eq!(hold(&history("d1 d2 r1 p2 d3")), None);
    }

    #[test]
    fn automation() {
        let decide = |environment, script: &str, number| {
            decide_automation(&Policy::default(), environment, &history(script), number).unwrap()
        };
        assert_eq!(decide("dev", "", 1), Automation::Deploy);
        assert_eq!(decide("dev", "d1", 2), Automation::Deploy);
        assert_eq!(decide("dev", "d3", 2), Automation::Older);
        assert_eq!(decide("dev", "d1 d2 r1", 3), Automation::Held { since: 3 });
        assert_eq!(decide("dev", "d1 d2 r1 p3", 4), Automation::Deploy);
        assert_eq!(decide("prod", "p1", 2), Automation::Asked);
    }
}
