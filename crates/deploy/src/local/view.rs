//! What runs, for people and for the planner.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use adamant_attest::predicate::State;
use adamant_digest::Digest;
use adamant_release::{Instance, InstanceState, Rollout};

use super::disk::{Project, Record};
use crate::front::{FrontClient, FrontConfig};
use crate::instance::{self, Description, InstanceStatus, Phase, file};
use crate::{durable, log};

/// What runs of a project in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The environment.
    pub environment: String,
    /// The project.
    pub project: String,
    /// Sequence number of the deployment that runs, 0 if none does.
    pub generation: u64,
    /// Digest of its rollout document.
    pub rollout: Option<Digest>,
    /// `project/number`.
    pub release: String,
    /// Healthy, failed (no front, an instance not healthy) or drifted (an instance refused).
    pub state: State,
    /// In words.
    pub detail: String,
    /// Where it serves, if it has a port.
    pub url: Option<String>,
    /// Instances of the deployment, and others that are being started or stopped.
    pub instances: Vec<InstanceView>,
}

/// An instance on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub artifact: String,
    /// Digest of the rollout it was started for.
    pub rollout: Digest,
    /// How it is.
    pub status: InstanceStatus,
    /// Whether it was replaced and ends when its requests have.
    pub retiring: bool,
}

/// A line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// The instance.
    pub instance: String,
    /// `<time> <out|err|adamant> <text>`.
    pub text: String,
}

/// Follows the output of a project.
pub struct LogFollower {
    project: Project,
    open: HashMap<String, log::Follow>,
    begun: bool,
}

impl LogFollower {
    pub(super) fn new(project: Project) -> Self {
        Self { project, open: HashMap::new(), begun: false }
    }

    /// Lines since the last call; the first call opens the logs at their ends. Blocks for a few
    /// reads; call it as often as lines shall appear.
    pub fn poll(&mut self) -> Vec<LogLine> {
        let names = self.project.instances();
        for name in &names {
            let begun = self.begun;
            let path = self.project.instance_dir(name).join(file::LOG);
            // An instance that appears later is new: all it has said is wanted.
            self.open.entry(name.clone()).or_insert_with(|| log::Follow::new(path, !begun));
        }
        self.begun = true;
        let mut lines = Vec::new();
        for (name, follow) in &mut self.open {
            lines.extend(follow.poll().into_iter().map(|text| LogLine { instance: name.clone(), text }));
        }
        self.open.retain(|name, _| names.contains(name));
        lines
    }
}

pub(super) fn logs(project: &Project, lines: usize) -> Vec<LogLine> {
    let mut found = Vec::new();
    let running = project.instances();
    for name in &running {
        let texts = log::tail(&project.instance_dir(name).join(file::LOG), lines);
        found.extend(texts.into_iter().map(|text| LogLine { instance: name.clone(), text }));
    }
    let mut ended = failed(project);
    if running.is_empty() && ended.is_empty() {
        ended.extend(kept(project).pop());
    }
    for instance in ended {
        let texts = log::tail(&project.logs_dir().join(&instance), lines);
        found.extend(texts.into_iter().map(|text| LogLine { instance: instance.clone(), text }));
    }
    found
}

/// Instances of the newest deployment that were ended because it failed, in order.
fn failed(project: &Project) -> Vec<String> {
    let newest = project.generations().ok().and_then(|all| all.last().copied());
    let record = newest.and_then(|generation| project.record(generation).ok().flatten());
    let Some(record) = record.filter(|record| record.healthy == Some(false)) else { return Vec::new() };
    let prefix = format!("{}-", record.generation);
    kept(project).into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

/// Ended instances whose logs are kept, by the time of their end.
fn kept(project: &Project) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(project.logs_dir()) else { return Vec::new() };
    let time = |entry: &std::fs::DirEntry| entry.metadata().and_then(|metadata| metadata.modified()).ok();
    let mut logs: Vec<_> =
        entries.flatten().map(|entry| (time(&entry), entry.file_name().to_string_lossy().into_owned())).collect();
    logs.sort();
    logs.into_iter().map(|(_, name)| name).collect()
}

/// All instances of a project.
pub(super) fn instances(project: &Project) -> Vec<InstanceView> {
    let view = |name: String| {
        let dir = project.instance_dir(&name);
        let description: Description = durable::read_json(&dir.join(file::DESCRIPTION), 1 << 20).ok()??;
        let rollout = Digest::of(&durable::read(&dir.join(file::ROLLOUT), 4 << 20).ok()?);
        let retiring = dir.join(file::RETIRING).exists();
        Some(InstanceView { artifact: description.artifact, rollout, status: instance::look(&dir), retiring, name })
    };
    project.instances().into_iter().filter_map(view).collect()
}

/// What the planner wants to know. `accepted`: the record of the newest deployment.
pub(super) fn for_plan(project: &Project, accepted: Option<&Record>, current: u64) -> adamant_release::Observed {
    let table = FrontClient::connect(project.environment_dir()).and_then(|front| front.hello()).ok();
    let mut routes = BTreeMap::new();
    if let Some(routed) = table.as_ref().and_then(|hello| hello.table.projects.get(&project.name)) {
        for (host, key) in &routed.hosts {
            let artifact = host.strip_suffix(&suffix(project)).and_then(|rest| rest.strip_suffix('.'));
            if let (Some(artifact), Some((_, instance))) = (artifact, key.rsplit_once('/')) {
                routes.insert(artifact.to_owned(), instance.to_owned());
            }
        }
    }
    let state = |phase| match phase {
        Phase::Healthy => InstanceState::Healthy,
        Phase::Starting | Phase::BackingOff => InstanceState::Starting,
        Phase::Damaged | Phase::Refused => InstanceState::Refused,
        Phase::Stopped | Phase::Gone => InstanceState::Gone,
    };
    let instance = |view: InstanceView| Instance {
        generation: view.name.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0),
        rollout: view.rollout,
        artifact: view.artifact,
        state: state(view.status.phase),
        name: view.name,
    };
    adamant_release::Observed {
        generation: accepted.map_or(0, |record| record.generation),
        recorded: current,
        rollout: accepted.map(Record::digest),
        front: table.is_some(),
        routes,
        instances: instances(project).into_iter().filter(|view| !view.retiring).map(instance).collect(),
    }
}

/// `<project>.<environment>.localhost`
pub(super) fn suffix(project: &Project) -> String {
    format!("{}.{}.localhost", project.name, project.environment)
}

/// Host names to instances. The plain name leads to the artifact called `web`, else to the one
/// called like the project, else to the first.
pub(super) fn hosts(project: &Project, routes: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let suffix = suffix(project);
    let mut hosts: BTreeMap<String, String> =
        routes.iter().map(|(artifact, name)| (format!("{artifact}.{suffix}"), project.key(name))).collect();
    let main = ["web", &project.name].into_iter().find_map(|name| routes.get(name)).or_else(|| routes.values().next());
    if let Some(name) = main {
        hosts.insert(suffix, project.key(name));
    }
    hosts
}

/// Looks at everything below `local`.
pub(super) fn observe(local: &Path) -> Vec<Observed> {
    Project::all(local).iter().filter_map(observe_one).collect()
}

fn observe_one(project: &Project) -> Option<Observed> {
    let generation = project.current().ok()?;
    let record = project.record(generation).ok().flatten();
    let rollout = record.as_ref().and_then(|record| record.document().ok());
    let instances = instances(project);
    if record.is_none() && instances.is_empty() && project.generations().ok()?.is_empty() {
        return None;
    }
    let port = FrontConfig::read(project.environment_dir()).ok().flatten().map(|config| config.port);
    let front = FrontClient::connect(project.environment_dir()).and_then(|front| front.hello()).is_ok();
    let digest = record.as_ref().map(Record::digest);
    let (state, detail) = judge(rollout.as_ref(), digest, front, &instances);
    let serves = rollout.as_ref().is_some_and(|r| r.target.services.iter().any(|s| s.port.is_some()));
    Some(Observed {
        environment: project.environment.clone(),
        project: project.name.clone(),
        generation,
        rollout: digest,
        release: rollout.as_ref().map(|rollout| rollout.release.clone()).unwrap_or_default(),
        state,
        detail,
        url: port.filter(|_| serves).map(|port| format!("http://{}:{port}", suffix(project))),
        instances,
    })
}

fn judge(
    rollout: Option<&Rollout>,
    digest: Option<Digest>,
    front: bool,
    instances: &[InstanceView],
) -> (State, String) {
    let Some(rollout) = rollout else { return (State::Failed, "nothing was healthy yet".to_owned()) };
    if !front {
        return (State::Failed, "the front does not run".to_owned());
    }
    for service in &rollout.target.services {
        let ours = |i: &&InstanceView| i.artifact == service.artifact && Some(i.rollout) == digest && !i.retiring;
        let Some(found) = instances.iter().filter(ours).max_by_key(|i| i.status.phase == Phase::Healthy) else {
            return (State::Failed, format!("{} has no instance", service.artifact));
        };
        let words = format!("{}: {}", found.name, describe(&found.status));
        match found.status.phase {
            Phase::Healthy => {}
            Phase::Damaged | Phase::Refused => return (State::Drift, words),
            _ => return (State::Failed, words),
        }
    }
    (State::Healthy, String::new())
}

/// A status in words.
pub(super) fn describe(status: &InstanceStatus) -> String {
    let word = match status.phase {
        Phase::Starting => "starting",
        Phase::Healthy => "healthy",
        Phase::BackingOff => "waiting to start again",
        // The detail says it.
        Phase::Damaged | Phase::Refused => return status.detail.clone(),
        Phase::Stopped => "stopped",
        Phase::Gone => "not running",
    };
    if status.detail.is_empty() { word.to_owned() } else { format!("{word}: {}", status.detail) }
}
