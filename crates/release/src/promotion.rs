//! Whether a release may go to an environment.

use std::collections::BTreeMap;

use adamant_digest::Digest;

use crate::{Policy, Release, Rule, UnknownEnvironment};

/// What is known of the rebuild of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebuild {
    /// Still to come.
    Running,
    /// The same bytes.
    Passed,
    /// Other bytes, in words.
    Failed(String),
    /// It gave no bytes, in words: the host was full, say, or killed it.
    Incomplete(String),
}

/// What is known of a release in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Deployed, not observed yet.
    Pending,
    /// Observed healthy.
    Healthy,
    /// Observed failed, in words.
    Failed(String),
}

/// What a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct PromotionInput<'a> {
    /// The rules.
    pub policy: &'a Policy,
    /// Where to.
    pub environment: &'a str,
    /// What.
    pub release: &'a Release,
    /// Rebuilds by manifest digest.
    pub rebuilds: &'a BTreeMap<Digest, Rebuild>,
    /// The newest observation of this very release, by environment.
    pub observed: &'a BTreeMap<String, Health>,
}

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failed {
    /// Its name.
    pub rule: Rule,
    /// Why it does not hold.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

/// The answer, with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether every rule holds.
    pub allowed: bool,
    /// The rules that hold.
    pub held: Vec<Rule>,
    /// The rules that do not, one entry a reason.
    pub failed: Vec<Failed>,
}

/// Decides whether a release may go to an environment. An environment without rules allows all.
pub fn decide_promotion(input: &PromotionInput<'_>) -> Result<Decision, UnknownEnvironment> {
    let environment = input.policy.environment(input.environment)?;
    let mut decision = Decision { allowed: true, held: Vec::new(), failed: Vec::new() };
    for rule in &environment.rules {
        let failed = match rule {
            Rule::Previous => previous(input)?,
            Rule::Rebuilt => rebuilt(input),
        };
        if failed.is_empty() {
            decision.held.push(*rule);
        }
        decision.failed.extend(failed);
    }
    decision.allowed = decision.failed.is_empty();
    Ok(decision)
}

fn previous(input: &PromotionInput<'_>) -> Result<Vec<Failed>, UnknownEnvironment> {
    let release = input.release.name();
    let Some(before) = input.policy.previous(input.environment)? else { return Ok(Vec::new()) };
    let failed = |reason: String, fix: String| vec![Failed { rule: Rule::Previous, reason, fix }];
    Ok(match input.observed.get(&before.name) {
        Some(Health::Healthy) => Vec::new(),
        Some(Health::Pending) => failed(
            format!("{release} is not yet healthy in {}", before.name),
            format!("wait, then try again; `adamant status` shows {}", before.name),
        ),
        Some(Health::Failed(detail)) => failed(
            format!("{release} failed in {}: {detail}", before.name),
            "push a commit that repairs it and promote its release".to_owned(),
        ),
        None => failed(
            format!("{release} never ran in {}", before.name),
            format!("adamant promote {release} {}", before.name),
        ),
    })
}

fn rebuilt(input: &PromotionInput<'_>) -> Vec<Failed> {
    let mut failed = Vec::new();
    for artifact in &input.release.artifacts {
        let (reason, fix) = match input.rebuilds.get(&artifact.digest) {
            Some(Rebuild::Passed) => continue,
            Some(Rebuild::Running) => ("is still being rebuilt", "wait for the rebuild, then try again".to_owned()),
            Some(Rebuild::Failed(detail)) => (
                "was rebuilt to other bytes",
                format!("make the build give the same bytes each time and push again; what differs: {detail}"),
            ),
            Some(Rebuild::Incomplete(detail)) => (
                "could not be rebuilt yet",
                format!("it is tried again, wait for it with `--wait`; what went wrong: {detail}"),
            ),
            None => ("was not rebuilt", "wait for the rebuild, then try again".to_owned()),
        };
        let reason = format!("artifact `{}` {} {reason}", artifact.name, artifact.digest);
        failed.push(Failed { rule: Rule::Rebuilt, reason, fix });
    }
    failed
}

#[cfg(test)]
mod tests {
    use adamant_attest::predicate::ArtifactRef;

    use super::*;

    fn release() -> Release {
        let artifact = |name: &str| ArtifactRef {
            name: name.to_owned(),
            platform: "linux/amd64".to_owned(),
            digest: Digest::of(name.as_bytes()),
        };
        Release {
            version: 1,
            project: "shop".into(),
            number: 7,
            commit: "a".repeat(40),
            tree: Digest::of(b"t"),
            lock: Digest::of(b"l"),
            artifacts: vec![artifact("api"), artifact("web")],
            services: Vec::new(),
        }
    }

    /// `rebuilds`: one word for api and one for web; `expect`: held rules, then failed reasons.
    fn check(environment: &str, health: Option<Health>, rebuilds: [Option<Rebuild>; 2], expect: &str) {
        let release = release();
        let policy = Policy::default();
        let before = policy.previous(environment).unwrap().map(|e| e.name.clone());
        let observed = before.into_iter().zip(health).collect();
        let rebuilds = release.artifacts.iter().zip(rebuilds).filter_map(|(a, r)| r.map(|r| (a.digest, r))).collect();
        let input = PromotionInput {
            policy: &policy,
            environment,
            release: &release,
            rebuilds: &rebuilds,
            observed: &observed,
        };
        let decision = decide_promotion(&input).unwrap();
        let mut lines: Vec<String> = decision.held.iter().map(|r| r.as_str().to_owned()).collect();
        lines.extend(decision.failed.iter().map(|f| format!("{}: {}", f.rule.as_str(), f.reason)));
        assert_eq!(lines.join("\n"), expect);
        assert_eq!(decision.allowed, decision.failed.is_empty());
    }

    #[test]
    fn table() {
        let ok = || [Some(Rebuild::Passed), Some(Rebuild::Passed)];
        let web = Digest::of(b"web");
        check("dev", None, [None, None], "");
        check("staging", Some(Health::Healthy), ok(), "previous\nrebuilt");
        check("prod", Some(Health::Healthy), ok(), "previous\nrebuilt");
        check("staging", None, ok(), "rebuilt\nprevious: shop/7 never ran in dev");
        check("prod", Some(Health::Pending), ok(), "rebuilt\nprevious: shop/7 is not yet healthy in staging");
        check("prod", Some(Health::Failed("x".into())), ok(), "rebuilt\nprevious: shop/7 failed in staging: x");
        check(
            "prod",
            Some(Health::Healthy),
            [Some(Rebuild::Passed), Some(Rebuild::Running)],
            &format!("previous\nrebuilt: artifact `web` {web} is still being rebuilt"),
        );
        check(
            "prod",
            Some(Health::Healthy),
            [Some(Rebuild::Passed), Some(Rebuild::Failed("usr/bin/x".into()))],
            &format!("previous\nrebuilt: artifact `web` {web} was rebuilt to other bytes"),
        );
        check(
            "prod",
            Some(Health::Healthy),
            [Some(Rebuild::Passed), None],
            &format!("previous\nrebuilt: artifact `web` {web} was not rebuilt"),
        );
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let (release, policy) = (release(), Policy::default());
        let (rebuilds, observed) = (BTreeMap::new(), BTreeMap::new());
        let mut input = PromotionInput {
            policy: &policy,
            environment: "prod",
            release: &release,
            rebuilds: &rebuilds,
            observed: &observed,
        };
        let decision = decide_promotion(&input).unwrap();
        assert_eq!(decision.failed.len(), 3);
        assert_eq!(decision.failed[0].fix, "adamant promote shop/7 staging");
        assert!(decision.failed.iter().all(|f| !f.fix.is_empty()));
        input.environment = "production";
        assert!(decide_promotion(&input).is_err());
    }
}
