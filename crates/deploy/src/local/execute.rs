//! Carrying out a plan.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adamant_digest::Digest;
use adamant_release::{Desired, Rollout, Step, plan};

use super::disk::{Project, Record, desired};
use super::retire::{discard, gone, remove, supervised};
use super::view;
use super::{Applied, ApplyError, Event, Inner, LocalError, Outcome, blocking};
use crate::front::{FrontClient, ProjectRoutes};
use crate::instance::{self, Description, Phase, file};
use crate::{daemon, durable, log};

/// How long another process may hold a project.
const LOCK_WAIT: Duration = Duration::from_mins(3);
/// How long a supervisor may take until its control socket is there.
const SUPERVISOR_START: Duration = Duration::from_secs(20);
/// A program that ended so often before it was healthy will not become it.
const MAX_FAILED_STARTS: u32 = 4;
/// How long [`super::Local::converge`] waits for what it has started.
const CONVERGE_READY: Duration = Duration::from_secs(15);
/// Lines of the log in a failure.
const LAST_LINES: usize = 8;

/// A plan being carried out.
struct Run<'a> {
    inner: &'a Arc<Inner>,
    project: &'a Project,
    record: &'a Record,
    rollout: &'a Rollout,
    port: Option<u16>,
    /// How long an instance may take until it is healthy.
    ready: Duration,
    started: Vec<String>,
    healed: Vec<String>,
}

/// Why a plan was not carried out.
enum Stopped {
    /// The deployment itself: what ran before runs on.
    Failed(String),
    Error(ApplyError),
}

impl<E: Into<ApplyError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Inner {
    pub(super) async fn apply(
        self: &Arc<Self>,
        project: Project,
        rollout: Rollout,
        applied: &Applied,
    ) -> Result<Outcome, ApplyError> {
        let began = Instant::now();
        let create = project.clone();
        blocking(project.dir(), move || create.create()).await?;
        let _lock = self.lock(&project, LOCK_WAIT).await?;
        let desired = desired(applied.generation, Digest::of(&applied.rollout), &rollout);
        let steps = self.steps(&project, &desired, false).await?;
        let mut record = Record {
            version: 1,
            generation: applied.generation,
            rollout: text(&applied.rollout),
            configuration: text(&applied.configuration),
            evidence: applied.evidence.clone(),
            healthy: None,
            detail: String::new(),
        };
        // Accepted from here on: nothing older is carried out any more, whatever happens next.
        self.keep(&project, &record).await?;
        let mut run = Run {
            inner: self,
            project: &project,
            record: &record,
            rollout: &rollout,
            port: applied.port,
            ready: self.options.ready,
            started: Vec::new(),
            healed: Vec::new(),
        };
        let result = run.all(&steps).await;
        let (started, healed) = (run.started, run.healed);
        let outcome = match result {
            Ok(()) => {
                let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                (record.healthy, record.detail) = (Some(true), format!("healthy after {ms} ms"));
                Outcome::Healthy { ms, healed }
            }
            Err(stopped) => {
                self.abandon(&project, started).await;
                let reason = match stopped {
                    Stopped::Failed(reason) => reason,
                    Stopped::Error(error) => {
                        record.detail = error.to_string();
                        self.keep(&project, &record).await?;
                        return Err(error);
                    }
                };
                (record.healthy, record.detail) = (Some(false), reason.clone());
                Outcome::Failed { reason }
            }
        };
        self.keep(&project, &record).await?;
        Ok(outcome)
    }

    pub(super) async fn converge(self: &Arc<Self>) -> Vec<Event> {
        let mut events = Vec::new();
        let dir = self.options.dir.clone();
        let projects = blocking(&dir.clone(), move || Ok(Project::all(&dir))).await.unwrap_or_default();
        let mut environments: Vec<&str> = projects.iter().map(|project| project.environment.as_str()).collect();
        environments.dedup();
        for environment in environments {
            let (inner, name) = (self.clone(), environment.to_owned());
            let upgraded = tokio::task::spawn_blocking(move || inner.upgrade_front(&name)).await;
            let event = |what: String, trouble| Event {
                environment: environment.to_owned(),
                project: String::new(),
                what,
                trouble,
            };
            match upgraded {
                Ok(Ok(true)) => events.push(event("front replaced by a newer one".to_owned(), false)),
                Ok(Ok(false)) => {}
                // None runs: the plan below starts it.
                Ok(Err(error)) if gone(&error) => {}
                Ok(Err(error)) => {
                    events.push(event(format!("the front was not replaced by a newer one: {error}"), true));
                }
                Err(error) => events.push(event(error.to_string(), true)),
            }
        }
        for project in &projects {
            let event = |what: String, trouble| Event {
                environment: project.environment.clone(),
                project: project.name.clone(),
                what,
                trouble,
            };
            match self.converge_one(project).await {
                Ok(done) => events.extend(done.into_iter().map(|what| event(what, false))),
                Err(Stopped::Failed(reason)) => events.push(event(reason, true)),
                Err(Stopped::Error(ApplyError::Local(LocalError::Busy { .. }))) => {}
                Err(Stopped::Error(error)) => events.push(event(error.to_string(), true)),
            }
        }
        events
    }

    async fn converge_one(self: &Arc<Self>, project: &Project) -> Result<Vec<String>, Stopped> {
        let _lock = self.lock(project, Duration::ZERO).await?;
        let of = project.clone();
        let (current, record) = blocking(project.dir(), move || {
            let current = of.current()?;
            Ok((current, of.record(current)?))
        })
        .await?;
        let mut done = Vec::new();
        for view in view::instances(project).into_iter().filter(|view| view.retiring) {
            self.retire(project, &view.name).map_err(|source| io_at(project.dir(), source))?;
        }
        let Some(record) = record else { return Ok(done) };
        let rollout = record.document().map_err(|source| io_at(project.dir(), source))?;
        let desired = desired(current, record.digest(), &rollout);
        let steps = self.steps(project, &desired, true).await?;
        for step in &steps {
            match step {
                Step::StartFront => done.push("front started".to_owned()),
                Step::Start { instance, .. } => done.push(format!("{instance} started")),
                Step::Route { .. } => done.push("routes set".to_owned()),
                Step::Heal { .. } | Step::Await { .. } | Step::Record | Step::Retire { .. } => {}
            }
        }
        let starts = steps.iter().any(|step| matches!(step, Step::Start { .. } | Step::Heal { .. }));
        let mut run = Run {
            inner: self,
            project,
            record: &record,
            rollout: &rollout,
            port: None,
            // Others wait for this project meanwhile; a supervisor goes on trying without us.
            ready: if starts { CONVERGE_READY } else { Duration::ZERO },
            started: Vec::new(),
            healed: Vec::new(),
        };
        run.all(&steps).await?;
        done.append(&mut run.healed);
        Ok(done)
    }

    /// Plans against what is there. To `converge`, what runs is all there is; to a deployment, the
    /// newest accepted one counts.
    async fn steps(&self, project: &Project, desired: &Desired, converge: bool) -> Result<Vec<Step>, ApplyError> {
        let (of, desired) = (project.clone(), desired.clone());
        let observed = blocking(project.dir(), move || {
            let current = of.current()?;
            let newest = if converge { Some(current) } else { of.generations()?.last().copied() };
            let accepted = newest.map(|generation| of.record(generation)).transpose()?.flatten();
            Ok(view::for_plan(&of, accepted.as_ref(), current))
        })
        .await?;
        Ok(plan(&desired, &observed)?)
    }

    async fn lock(&self, project: &Project, wait: Duration) -> Result<std::fs::File, LocalError> {
        let deadline = Instant::now() + wait;
        loop {
            let of = project.clone();
            if let Some(lock) = blocking(project.dir(), move || of.lock()).await? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(LocalError::Busy {
                    environment: project.environment.clone(),
                    project: project.name.clone(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn keep(&self, project: &Project, record: &Record) -> Result<(), LocalError> {
        let (of, record) = (project.clone(), record.clone());
        blocking(project.dir(), move || of.write_record(&record)).await
    }

    /// Ends what a failed deployment has started; nothing was routed to it.
    async fn abandon(&self, project: &Project, started: Vec<String>) {
        let of = project.clone();
        let work = move || started.iter().try_for_each(|name| remove(&of, name, Duration::ZERO));
        if let Err(error) = blocking(project.dir(), work).await {
            tracing::warn!(environment = project.environment, project = project.name, %error, "not cleaned up");
        }
    }
}

impl Run<'_> {
    async fn all(&mut self, steps: &[Step]) -> Result<(), Stopped> {
        for step in steps {
            match step {
                Step::StartFront => {
                    let (inner, environment, port) = (self.inner.clone(), self.project.environment.clone(), self.port);
                    let work = tokio::task::spawn_blocking(move || inner.ensure_front(&environment, port));
                    let result = work.await.map_err(io::Error::other).and_then(|result| result);
                    result.map_err(|source| LocalError::Front {
                        environment: self.project.environment.clone(),
                        source,
                    })?;
                }
                Step::Heal { instance, artifact } => self.heal(instance, artifact).await?,
                Step::Start { instance, artifact } => self.start(instance, artifact).await?,
                Step::Await { instance } => self.healthy(instance).await?,
                Step::Record => {
                    let (of, generation) = (self.project.clone(), self.record.generation);
                    blocking(self.project.dir(), move || of.set_current(generation)).await?;
                    // From here on it is what runs: a crash now is repaired forwards.
                    tracing::info!(point = "before the switch", environment = self.project.environment, generation);
                    self.started.clear();
                }
                Step::Route { routes } => self.route(routes).await?,
                Step::Retire { instance } => {
                    self.inner.retire(self.project, instance).map_err(|source| io_at(self.project.dir(), source))?;
                }
            }
        }
        Ok(())
    }

    async fn route(&self, routes: &BTreeMap<String, String>) -> Result<(), Stopped> {
        let routes = ProjectRoutes { generation: self.record.generation, hosts: view::hosts(self.project, routes) };
        let of = self.project.clone();
        let work = move || FrontClient::connect(of.environment_dir())?.route(&of.name, routes);
        let result = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|result| result);
        result.map_err(|source| LocalError::Front { environment: self.project.environment.clone(), source })?;
        Ok(())
    }

    async fn start(&mut self, name: &str, artifact: &str) -> Result<(), Stopped> {
        let missing = || Stopped::Failed(format!("the rollout has no artifact `{artifact}`"));
        let reference = self.rollout.artifacts.iter().find(|a| a.name == artifact).ok_or_else(missing)?;
        let unpacked = self.inner.trees.ensure(reference.digest).await?;
        let description = Description {
            version: 1,
            generation: self.record.generation,
            artifact: artifact.to_owned(),
            tree: unpacked.tree,
            trees: self.inner.options.trees.clone(),
            trust: self.inner.options.trust.clone(),
        };
        self.inner.wait_until_retired(self.project, name).await?;
        self.started.push(name.to_owned());
        let (of, name, record, exe) =
            (self.project.clone(), name.to_owned(), self.record.clone(), self.inner.options.exe.clone());
        let work = move || {
            let dir = of.instance_dir(&name);
            if supervised(&dir) {
                // It ends or is refused right now: what it leaves is no longer of use.
                instance::stop(&dir)?;
            }
            if dir.join(file::RETIRING).exists() {
                // Whoever was to end it is gone; with its mark it would never count as running.
                discard(&of, &name)?;
            }
            durable::create_dir(&dir)?;
            // Copies: the record is what is durable, and each start writes and checks them anew.
            let description = serde_json::to_vec(&description).map_err(io::Error::other)?;
            durable::replace(&dir.join(file::DESCRIPTION), &description)?;
            durable::replace(&dir.join(file::ROLLOUT), record.rollout.as_bytes())?;
            durable::replace(&dir.join(file::CONFIGURATION), record.configuration.as_bytes())?;
            durable::replace(&dir.join(file::EVIDENCE), record.evidence.as_bytes())?;
            durable::replace(&dir.join(file::MANIFEST), &unpacked.manifest_bytes)?;
            durable::replace(&dir.join(file::IMAGE), &unpacked.config_bytes)?;
            match std::fs::remove_file(dir.join(file::STATUS)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            daemon::start(&exe, "__instance", &dir, false, SUPERVISOR_START).map(drop)
        };
        Ok(blocking(self.project.dir(), work).await?)
    }

    /// Makes the tree of an instance whole again and starts it.
    async fn heal(&mut self, name: &str, artifact: &str) -> Result<(), Stopped> {
        let status = self.look(name).await?;
        if status.phase == Phase::Damaged {
            self.heal_tree(name, artifact, &status.detail).await?;
        }
        let (of, at) = (self.project.clone(), name.to_owned());
        blocking(self.project.dir(), move || discard(&of, &at)).await?;
        self.start(name, artifact).await
    }

    async fn heal_tree(&mut self, name: &str, artifact: &str, detail: &str) -> Result<(), Stopped> {
        let missing = || Stopped::Failed(format!("the rollout has no artifact `{artifact}`"));
        let reference = self.rollout.artifacts.iter().find(|a| a.name == artifact).ok_or_else(missing)?;
        self.inner.trees.heal(reference.digest).await?;
        self.healed.push(format!("{name}: {detail}; unpacked again from verified blobs"));
        Ok(())
    }

    /// Waits until an instance is healthy. A damaged tree is healed once.
    async fn healthy(&mut self, name: &str) -> Result<(), Stopped> {
        let deadline = Instant::now() + self.ready;
        let mut pause = Duration::from_millis(5);
        let mut healed = false;
        loop {
            let status = self.look(name).await?;
            match status.phase {
                Phase::Healthy => return Ok(()),
                Phase::Damaged if !healed => {
                    healed = true;
                    let artifact = name.split_once('-').map_or(name, |(_, artifact)| artifact).to_owned();
                    self.heal(name, &artifact).await?;
                }
                Phase::Damaged | Phase::Refused | Phase::Stopped | Phase::Gone => {
                    return Err(self.failed(name, &view::describe(&status)).await);
                }
                Phase::BackingOff if status.restarts >= MAX_FAILED_STARTS && status.healthy_ms.is_none() => {
                    return Err(self.failed(name, &status.detail).await);
                }
                Phase::Starting | Phase::BackingOff => {}
            }
            if Instant::now() >= deadline {
                let words = format!("not healthy within {} s; {}", self.ready.as_secs(), view::describe(&status));
                return Err(self.failed(name, &words).await);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(50));
        }
    }

    async fn look(&self, name: &str) -> Result<instance::InstanceStatus, LocalError> {
        let dir = self.project.instance_dir(name);
        blocking(self.project.dir(), move || Ok(instance::look(&dir))).await
    }

    async fn failed(&self, name: &str, words: &str) -> Stopped {
        let path = self.project.instance_dir(name).join(file::LOG);
        let lines = tokio::task::spawn_blocking(move || log::tail(&path, LAST_LINES)).await.unwrap_or_default();
        let mut reason = format!("{name}: {words}");
        for line in lines {
            reason.push_str("\n  ");
            reason.push_str(&line);
        }
        Stopped::Failed(reason)
    }
}

fn io_at(path: &Path, source: io::Error) -> LocalError {
    LocalError::Io { path: path.to_owned(), source }
}

fn text(bytes: &[u8]) -> String {
    // Documents were parsed as JSON, which is UTF-8.
    String::from_utf8_lossy(bytes).into_owned()
}
