//! What a deployer has to do to get from what is to what shall be.

use std::collections::BTreeMap;

use adamant_digest::Digest;

/// What shall run of one project in one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Sequence number of the deployment; hosts refuse lower ones than they have seen.
    pub generation: u64,
    /// Digest of the rollout document.
    pub rollout: Digest,
    /// Artifacts to run, and whether each serves a port and so gets a route.
    pub services: BTreeMap<String, bool>,
}

/// State of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    /// Its supervisor runs, it is not healthy yet (or again).
    Starting,
    /// Passed its health check.
    Healthy,
    /// Its supervisor refused it: damaged files, evidence that does not hold.
    Refused,
    /// No supervisor.
    Gone,
}

/// An instance on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its name, unique in project and environment.
    pub name: String,
    /// The generation it was started for.
    pub generation: u64,
    /// Digest of the rollout it belongs to.
    pub rollout: Digest,
    /// What it runs.
    pub artifact: String,
    /// How it is.
    pub state: InstanceState,
}

/// What the host sees of one project in one environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Highest generation accepted so far, 0 if none.
    pub generation: u64,
    /// The rollout of that generation.
    pub rollout: Option<Digest>,
    /// The generation recorded as what runs, 0 if none; below `generation` after a failure.
    pub recorded: u64,
    /// Whether the environment's front answers.
    pub front: bool,
    /// Routes by artifact to the name of an instance.
    pub routes: BTreeMap<String, String>,
    /// All instances.
    pub instances: Vec<Instance>,
}

/// One idempotent step. The order of a plan is the order of execution; a step that fails ends it
/// and leaves what ran before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start the environment's front.
    StartFront,
    /// Make the files whole again from verified blobs, then start the instance of that name.
    Heal {
        /// Name of the instance.
        instance: String,
        /// What it runs.
        artifact: String,
    },
    /// Start an instance (or its supervisor again) under that name.
    Start {
        /// Name of the instance.
        instance: String,
        /// What it runs.
        artifact: String,
    },
    /// Wait until it is healthy, within a bound.
    Await {
        /// Name of the instance.
        instance: String,
    },
    /// Record durably that this generation is what runs, before the switch.
    Record,
    /// Replace the project's routes at once.
    Route {
        /// Artifact → name of the instance.
        routes: BTreeMap<String, String>,
    },
    /// Let its requests end within a bound, then stop and remove it.
    Retire {
        /// Name of the instance.
        instance: String,
    },
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The host has accepted a newer generation.
    #[error("deployment {asked} is older than {accepted}, which this host has accepted already")]
    Older {
        /// What was asked for.
        asked: u64,
        /// What was accepted.
        accepted: u64,
    },
    /// The same generation with another rollout.
    #[error("deployment {generation} is rollout {accepted} on this host, not {asked}")]
    OtherRollout {
        /// The generation.
        generation: u64,
        /// What was asked for.
        asked: Digest,
        /// What was accepted.
        accepted: Digest,
    },
}

/// The name of an instance: `<generation>-<artifact>`.
pub(crate) fn instance_name(generation: u64, artifact: &str) -> String {
    format!("{generation}-{artifact}")
}

/// The steps from `observed` to `desired`. Empty when there is nothing to do.
///
/// An instance of the same rollout is kept whatever generation started it, so that applying the
/// same rollout under a new number restarts nothing.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Step>, PlanError> {
    if desired.generation < observed.generation {
        return Err(PlanError::Older { asked: desired.generation, accepted: observed.generation });
    }
    if let Some(accepted) = observed.rollout
        && desired.generation == observed.generation
        && accepted != desired.rollout
    {
        return Err(PlanError::OtherRollout { generation: desired.generation, asked: desired.rollout, accepted });
    }
    let mut steps = Vec::new();
    if !observed.front {
        steps.push(Step::StartFront);
    }
    let (mut keep, mut routes, mut awaited) = (Vec::new(), BTreeMap::new(), Vec::new());
    for (artifact, routed) in &desired.services {
        let found = observed
            .instances
            .iter()
            .filter(|i| i.rollout == desired.rollout && &i.artifact == artifact)
            .max_by_key(|i| (i.state == InstanceState::Healthy, i.generation));
        let name = found.map_or_else(|| instance_name(desired.generation, artifact), |i| i.name.clone());
        let artifact = artifact.clone();
        match found.map(|i| &i.state) {
            Some(InstanceState::Healthy) => {}
            Some(InstanceState::Starting) => awaited.push(name.clone()),
            Some(InstanceState::Refused) => {
                steps.push(Step::Heal { instance: name.clone(), artifact: artifact.clone() });
                awaited.push(name.clone());
            }
            Some(InstanceState::Gone) | None => {
                steps.push(Step::Start { instance: name.clone(), artifact: artifact.clone() });
                awaited.push(name.clone());
            }
        }
        if *routed {
            routes.insert(artifact, name.clone());
        }
        keep.push(name);
    }
    steps.extend(awaited.into_iter().map(|instance| Step::Await { instance }));
    if desired.generation != observed.recorded {
        steps.push(Step::Record);
    }
    if routes != observed.routes {
        steps.push(Step::Route { routes });
    }
    let old = observed.instances.iter().filter(|i| !keep.contains(&i.name));
    steps.extend(old.map(|i| Step::Retire { instance: i.name.clone() }));
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(generation: u64, rollout: &str) -> Desired {
        let services = [("web".to_owned(), true), ("worker".to_owned(), false)].into();
        Desired { generation, rollout: Digest::of(rollout.as_bytes()), services }
    }

    fn instance(generation: u64, artifact: &str, rollout: &str, state: InstanceState) -> Instance {
        Instance {
            name: instance_name(generation, artifact),
            generation,
            rollout: Digest::of(rollout.as_bytes()),
            artifact: artifact.to_owned(),
            state,
        }
    }

    fn script(steps: &[Step]) -> String {
        let line = |step: &Step| match step {
            Step::StartFront => "front".to_owned(),
            Step::Heal { instance, .. } => format!("heal {instance}"),
            Step::Start { instance, .. } => format!("start {instance}"),
            Step::Await { instance } => format!("await {instance}"),
            Step::Record => "record".to_owned(),
            Step::Route { routes } => format!("route {routes:?}"),
            Step::Retire { instance } => format!("retire {instance}"),
        };
        steps.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn first_deployment() {
        let steps = plan(&desired(1, "a"), &Observed::default()).unwrap();
        assert_eq!(
            script(&steps),
            "front; start 1-web; start 1-worker; await 1-web; await 1-worker; record; route {\"web\": \"1-web\"}"
        );
    }

    fn running() -> Observed {
        Observed {
            generation: 1,
            recorded: 1,
            rollout: Some(Digest::of(b"a")),
            front: true,
            routes: [("web".to_owned(), "1-web".to_owned())].into(),
            instances: vec![
                instance(1, "web", "a", InstanceState::Healthy),
                instance(1, "worker", "a", InstanceState::Healthy),
            ],
        }
    }

    #[test]
    fn nothing_to_do() {
        assert_eq!(plan(&desired(1, "a"), &running()).unwrap(), vec![]);
        assert_eq!(script(&plan(&desired(2, "a"), &running()).unwrap()), "record");
    }

    #[test]
    fn switch_starts_before_it_stops() {
        assert_eq!(
            script(&plan(&desired(2, "b"), &running()).unwrap()),
            "start 2-web; start 2-worker; await 2-web; await 2-worker; record; route {\"web\": \"2-web\"}; \
             retire 1-web; retire 1-worker"
        );
    }

    #[test]
    fn what_is_gone_or_damaged_comes_back_under_its_name() {
        let mut observed = running();
        observed.front = false;
        observed.instances[0].state = InstanceState::Refused;
        observed.instances[1].state = InstanceState::Gone;
        assert_eq!(
            script(&plan(&desired(1, "a"), &observed).unwrap()),
            "front; heal 1-web; start 1-worker; await 1-web; await 1-worker"
        );
    }

    /// What a host that works does with a step. Panics where users would notice.
    fn execute(step: &Step, desired: &Desired, observed: &mut Observed) {
        let state = |observed: &Observed, name: &str| {
            observed.instances.iter().find(|i| i.name == name).map(|i| i.state.clone())
        };
        match step {
            Step::StartFront => observed.front = true,
            Step::Start { instance, artifact } | Step::Heal { instance, artifact } => {
                observed.instances.retain(|i| &i.name != instance);
                observed.instances.push(Instance {
                    name: instance.clone(),
                    generation: desired.generation,
                    rollout: desired.rollout,
                    artifact: artifact.clone(),
                    state: InstanceState::Starting,
                });
            }
            Step::Await { instance } => {
                let found = observed.instances.iter_mut().find(|i| &i.name == instance).unwrap();
                found.state = InstanceState::Healthy;
            }
            Step::Record => {
                (observed.generation, observed.recorded) = (desired.generation, desired.generation);
                observed.rollout = Some(desired.rollout);
            }
            Step::Route { routes } => {
                assert!(observed.front);
                assert_eq!(observed.recorded, desired.generation, "recorded before it is in force");
                for name in routes.values() {
                    assert_eq!(state(observed, name), Some(InstanceState::Healthy), "routed before it is healthy");
                }
                observed.routes = routes.clone();
            }
            Step::Retire { instance } => {
                assert!(!observed.routes.values().any(|name| name == instance), "stopped while it is routed");
                observed.instances.retain(|i| &i.name != instance);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn from_any_state_one_plan_is_enough(
            wanted in 1_u64..4,
            front: bool,
            routed in 0_u64..3,
            recorded in 0_u64..3,
            instances in proptest::collection::vec((1_u64..4, 0_u8..2, 0_u8..3, 0_u8..4), 0..8),
        ) {
            let rollouts = ["a", "b", "c"];
            let states =
                [InstanceState::Starting, InstanceState::Healthy, InstanceState::Refused, InstanceState::Gone];
            let mut observed = Observed { front, recorded, generation: recorded, ..Observed::default() };
            for (generation, artifact, rollout, state) in instances {
                let artifact = ["web", "worker"][usize::from(artifact)];
                let new = instance(generation, artifact, rollouts[usize::from(rollout)], states[usize::from(state)].clone());
                observed.instances.retain(|i| i.name != new.name);
                observed.instances.push(new);
            }
            if routed > 0 {
                observed.routes = [("web".to_owned(), instance_name(routed, "web"))].into();
            }
            let desired = desired(wanted, "a");
            match plan(&desired, &observed) {
                Err(_) => proptest::prop_assert!(recorded > wanted),
                Ok(steps) => {
                    for step in &steps {
                        execute(step, &desired, &mut observed);
                    }
                    proptest::prop_assert_eq!(plan(&desired, &observed), Ok(vec![]));
                    proptest::prop_assert_eq!(observed.instances.len(), 2);
                }
            }
        }
    }

    #[test]
    fn a_failed_deployment_can_be_tried_again() {
        let observed = Observed { generation: 2, rollout: Some(Digest::of(b"b")), ..running() };
        assert_eq!(
            script(&plan(&desired(2, "b"), &observed).unwrap()),
            script(&plan(&desired(2, "b"), &running()).unwrap()),
        );
    }

    #[test]
    fn older_generations_are_refused() {
        let mut observed = running();
        observed.generation = 5;
        let error = plan(&desired(4, "a"), &observed).unwrap_err();
        assert_eq!(error.to_string(), "deployment 4 is older than 5, which this host has accepted already");
        assert!(matches!(plan(&desired(5, "b"), &observed), Err(PlanError::OtherRollout { .. })));
    }
}
