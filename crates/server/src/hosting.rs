//! The local target as the platform uses it: what is deployed, where it answers, what it says.

use std::path::Path;
use std::sync::Arc;

use adamant_api::Class;
use adamant_attest::predicate::{Observation, State};
use adamant_audit::{Capsule, Trust};
use adamant_deploy::{Applied, ApplyError, Claim, Down, Local, LocalError, Options, Outcome};
use adamant_digest::Digest;
use adamant_release::{Release, Rollout};
use adamant_store::BlobStore;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use crate::error::Problem;
use crate::opening::Claimed;
use crate::platform::{Config, Platform};

/// How long a deployment waits for another change of the same environment to end.
const BUSY: std::time::Duration = std::time::Duration::from_secs(90);
/// Lines of an instance's log shown at first.
const TAIL: usize = 200;

pub(crate) fn open(config: &Config, blobs: Arc<dyn BlobStore>) -> Result<Local, Problem> {
    Local::open(Options::new(&config.data, config.exe.clone()), blobs).map_err(|e| local_problem(&e))
}

fn local_problem(error: &LocalError) -> Problem {
    let class = match error {
        LocalError::Busy { .. } | LocalError::Io { .. } | LocalError::Front { .. } => Class::Unavailable,
        LocalError::Unknown { .. } => Class::No,
    };
    Problem::new(class, error.to_string())
}

impl Platform {
    /// Runs a recorded deployment and says what came of it. The capsule made here is what each
    /// instance verifies, offline, before it starts.
    pub(crate) async fn apply(&self, rollout: &Rollout, digest: Digest, sequence: u64) -> Result<Observation, Problem> {
        let (project, environment) = (rollout.project.clone(), rollout.environment.clone());
        let claim = adamant_audit::Claim { project: project.clone(), environment: environment.clone(), sequence };
        let evidence = String::from_utf8(self.capsule(claim).await?)
            .map_err(|e| Problem::internal("the capsule is not text", e))?;
        let applied = Applied {
            generation: sequence,
            rollout: self.blobs.get(digest).await?.into_bytes(),
            configuration: self.blobs.get(rollout.configuration).await?.into_bytes(),
            evidence,
            port: self.free_port(&project, &environment).await,
        };
        let seen = |state, detail: String| Observation {
            project: project.clone(),
            environment: environment.clone(),
            deployment: sequence,
            rollout: digest,
            state,
            detail,
        };
        // The host may just be mending what runs there: that ends, within the time it gives a
        // service to become healthy.
        let give_up = tokio::time::Instant::now() + BUSY;
        let outcome = loop {
            match self.local.apply(&applied).await {
                Err(ApplyError::Local(LocalError::Busy { .. })) if tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                outcome => break outcome,
            }
        };
        Ok(match outcome {
            Ok(Outcome::Healthy { ms, healed }) => {
                let healed =
                    if healed.is_empty() { String::new() } else { format!("; repaired {}", healed.join(", ")) };
                seen(State::Healthy, format!("healthy {}.{:02} s{healed}", ms / 1000, ms % 1000 / 10))
            }
            Ok(Outcome::Failed { reason }) => seen(State::Failed, reason),
            // Whatever keeps the host from trying is its answer too: the deployment is recorded
            // and what ran before runs on. Only what may pass is tried again later.
            Err(ApplyError::Local(error @ LocalError::Busy { .. })) => return Err(local_problem(&error)),
            Err(error) => seen(State::Failed, error.to_string()),
        })
    }

    /// The port a new environment's front is to take: the configured first one, further by the
    /// environment's place, if it is free.
    async fn free_port(&self, project: &str, environment: &str) -> Option<u16> {
        let first = self.config.environment_ports.or_else(|| {
            // Beside the server's own port, so that the addresses are easy to guess.
            (self.config.listen.port() != 0).then(|| self.config.listen.port().saturating_add(1))
        })?;
        let (policy, _) = self.policy(project).await.ok()?;
        let place = policy.environments.iter().position(|e| e.name == environment)?;
        let port = first.checked_add(u16::try_from(place).ok()?)?;
        std::net::TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    }

    /// Where a release answers in an environment; `None` if it has no service with a port, or the
    /// environment no front yet.
    pub(crate) async fn address(&self, release: &Release, environment: &str) -> Option<String> {
        release.services.iter().any(|service| service.port.is_some()).then_some(())?;
        let port = self.local.port(environment).await.ok()??;
        Some(format!("http://{}.{environment}.localhost:{port}", release.project))
    }

    /// The same in words, for a line of progress.
    pub(crate) async fn url(&self, release: &Release, environment: &str) -> String {
        let address = self.address(release, environment).await;
        address.unwrap_or_else(|| "(no artifact has a `port`, so nothing leads to it)".to_owned())
    }

    /// Brings what runs to what is recorded on this host.
    pub(crate) async fn converge(&self) {
        for event in self.local.converge().await {
            let adamant_deploy::Event { environment, project, what, trouble } = event;
            if trouble {
                tracing::warn!(environment, project, what, "target");
            } else {
                tracing::info!(environment, project, what, "target");
            }
        }
    }

    /// Whether anything was ever healthy there and is to run.
    pub(crate) async fn runs(&self, project: &str, environment: &str) -> bool {
        // Whoever cannot look does not know of anything.
        let observed = self.local.observe().await.unwrap_or_default();
        observed.iter().any(|o| o.project == project && o.environment == environment && o.generation > 0)
    }

    /// What the instances of an environment say, as text lines.
    pub(crate) async fn instance_log(
        &self,
        project: &str,
        environment: &str,
        follow: bool,
    ) -> Result<std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>, Problem> {
        let (policy, _) = self.policy(project).await?;
        policy.environment(environment).map_err(|e| Problem::usage(e.to_string()))?;
        let text = |line: adamant_deploy::LogLine| Ok(Bytes::from(format!("{} {}\n", line.instance, line.text)));
        let before = self.local.logs(environment, project, TAIL).await.map_err(|e| local_problem(&e))?;
        let first = futures_util::stream::iter(before.into_iter().map(text));
        if !follow {
            return Ok(first.boxed());
        }
        let follower = self.local.follow(environment, project);
        let later = futures_util::stream::unfold(Some(follower), move |follower| async move {
            let mut follower = follower?;
            loop {
                let polled = tokio::task::spawn_blocking(move || {
                    let lines = follower.poll();
                    (follower, lines)
                });
                let (back, lines) = polled.await.ok()?;
                follower = back;
                if !lines.is_empty() {
                    return Some((futures_util::stream::iter(lines.into_iter().map(text)), Some(follower)));
                }
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        });
        Ok(first.chain(later.flatten()).boxed())
    }
}

/// Verifies the evidence of an instance: the capsule holds under the trust file and is of a
/// deployment of this very rollout to this environment. Runs in the instance's supervisor.
pub fn verify_evidence(claim: &Claim) -> Result<(), String> {
    let trust = Trust::parse(&claim.trust).map_err(|e| e.to_string())?;
    let capsule = Capsule::parse(&claim.evidence).map_err(|e| e.to_string())?;
    let report = adamant_audit::verify(&capsule, &trust).map_err(|e| e.to_string())?;
    if report.claim.project != claim.project || report.claim.environment != claim.environment {
        return Err(format!("the evidence is of {} in {}", report.claim.project, report.claim.environment));
    }
    if report.deployment.rollout != claim.rollout {
        return Err(format!("the evidence is of rollout {}, not {}", report.deployment.rollout, claim.rollout));
    }
    if !report.deployment.artifacts.iter().any(|artifact| artifact.digest == claim.manifest) {
        return Err(format!("artifact {} is not part of the deployment in the evidence", claim.manifest));
    }
    Ok(())
}

/// Hashes every unpacked tree and compares it with its name. Gives how many there are.
pub(crate) fn check_trees(data: &Path, find: &mut impl FnMut(String, String)) -> u64 {
    let dir = data.join("trees");
    let Ok(entries) = std::fs::read_dir(&dir) else { return 0 };
    let mut count = 0;
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(tree) = Digest::from_hex(&name) else { continue };
        count += 1;
        if let Err(error) = adamant_deploy::check_tree(&dir, tree) {
            find(format!("tree {tree}"), error.to_string());
        }
    }
    count
}

/// Ends everything a data directory runs.
pub(crate) async fn down(data: &Path, exe: &Path) -> Result<Down, Problem> {
    // With the facts in PostgreSQL there are keys alone.
    if !data.join("adamant.db").exists() && !data.join("keys").exists() {
        return Err(Problem::usage(format!("{} holds no adamant data", data.display())).hint("pass `--data DIR`"));
    }
    // Without the lock a server is up and would bring everything back.
    let _claim = match crate::opening::claim(data)? {
        Claimed::Ours(claim) => claim,
        Claimed::Held { problem, .. } => {
            return Err(problem.hint("stop the server first, with Ctrl-C or SIGTERM"));
        }
    };
    let blobs: Arc<dyn BlobStore> = Arc::new(adamant_store::FsBlobs::observe(&data.join("blobs"))?);
    let local = Local::open(Options::new(data, exe.to_owned()), blobs).map_err(|e| local_problem(&e))?;
    local.down().await.map_err(|e| local_problem(&e))
}
