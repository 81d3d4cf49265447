//! A server from start to stop, and what works while none runs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adamant_api::{Class, Deployed, Rollback};
use tokio_util::sync::CancellationToken;

use crate::auth::Auth;
use crate::control;
use crate::error::Problem;
use crate::http::{self, Rim};
use crate::metrics::Metrics;
use crate::opening::Claim;
use crate::platform::{Config, Platform};
use crate::serving::{self, Bounds};

/// How long work under way gets at a stop before the process ends; a restart resumes it.
const GRACE: Duration = Duration::from_secs(10);
/// How often published tiles follow the ledger at the latest.
const PUBLISH: Duration = Duration::from_secs(1);
/// How often what runs is compared with what should run.
const CONVERGE: Duration = Duration::from_secs(5);
/// How often housekeeping is done.
const HOUSEKEEPING: Duration = Duration::from_mins(10);

/// A server that runs.
pub struct Running {
    platform: Arc<Platform>,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: tokio_util::task::TaskTracker,
    packing: Option<adamant_store::Packing>,
}

/// Opens the data directory, listens, and brings everything to what the facts say.
pub async fn start(config: Config) -> Result<Running, Problem> {
    let data = config.data.clone();
    let (listen, anonymous_registry) = (config.listen, config.anonymous_registry);
    let anonymous_pull = config.settings.registry.anonymous_pull;
    if anonymous_registry && !listen.ip().is_loopback() {
        return Err(Problem::usage(format!("--anonymous-registry is for loopback alone, not for {listen}"))
            .hint("listen on 127.0.0.1, or give clients a token: adamant token"));
    }
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|e| {
        Problem::new(Class::Unavailable, format!("cannot listen on {listen}"))
            .cause(e)
            .hint("pass `--listen 127.0.0.1:0` for any free port")
    })?;
    let platform = Platform::open(config).await?;
    let address = listener.local_addr()?;
    platform.listens_on(address);
    let auth = Arc::new(Auth::default());
    let stop = CancellationToken::new();
    let rim = Arc::new(Rim {
        platform: Arc::clone(&platform),
        auth: Arc::clone(&auth),
        metrics: Arc::new(Metrics::default()),
        address,
        anonymous_registry,
        anonymous_pull,
        closing: stop.clone(),
    });
    platform.reconcile().await;

    let tasks = tokio_util::task::TaskTracker::new();
    let socket = control::listen(&data)?;
    let url = platform.base_url();
    let until = |stop: &CancellationToken| stop.clone().cancelled_owned();
    let control_stop = until(&stop);
    tasks.spawn(async move {
        tokio::select! {
            () = control::serve(socket, auth, url) => {}
            () = control_stop => {}
        }
    });
    let router = http::router(rim);
    tasks.spawn(serving::serve(listener, router, Bounds::of_this_process(), tasks.clone(), stop.clone()));
    tasks.spawn(housekeeping(Arc::clone(&platform), until(&stop)));
    tasks.spawn(hosting(Arc::clone(&platform), until(&stop)));
    tasks.spawn(crate::scrub::scrub(Arc::clone(&platform), until(&stop)));
    let packing = if platform.config.settings.store.deduplicate { Some(platform.files.start_packing()?) } else { None };
    tracing::info!(%address, data = %data.display(), "serving");
    Ok(Running { platform, address, stop, tasks, packing })
}

/// Keeps environments running what is recorded. A task of its own: waiting for a service that
/// does not get healthy holds nothing else up.
async fn hosting(platform: Arc<Platform>, stop: impl Future<Output = ()>) {
    // The first tick is at once: what should run does, soon after a start.
    let mut tick = tokio::time::interval(CONVERGE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            _ = tick.tick() => {}
        }
        tokio::select! {
            () = &mut stop => return,
            () = platform.converge() => {}
        }
    }
}

/// Publishes tiles as the log grows and sweeps old uploads.
async fn housekeeping(platform: Arc<Platform>, stop: impl Future<Output = ()>) {
    let mut grown = platform.changes.subscribe();
    grown.mark_changed();
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    tick.reset();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            changed = grown.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Err(problem) = platform.publish().await {
                    tracing::warn!(%problem, "publishing tiles");
                }
                // What is recorded meanwhile goes out together.
                tokio::time::sleep(PUBLISH / 5).await;
            }
            _ = tick.tick() => {
                platform.registry.sweep().await;
            }
        }
    }
}

impl Running {
    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for SIGINT or SIGTERM, then stops.
    pub async fn until_signal(self) {
        use tokio::signal::unix::{SignalKind, signal};
        let wait = async |kind: SignalKind| match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        };
        tokio::select! {
            () = wait(SignalKind::interrupt()) => {}
            () = wait(SignalKind::terminate()) => {}
        }
        self.stop().await;
    }

    /// Stops listening, gives work under way a moment and closes the data directory. What is
    /// deployed runs on.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.platform.tasks.close();
        // It ends between two blocks of what it reads.
        drop(self.packing);
        let ended = async {
            self.platform.tasks.wait().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("work is still under way; the next start resumes it");
        }
        if let Err(problem) = self.platform.publish().await {
            tracing::warn!(%problem, "publishing tiles");
        }
    }
}

/// A rollback while no server holds the data directory, which `claim` is of: the same decision,
/// facts and switch.
pub async fn rollback_offline(
    config: Config,
    claim: Claim,
    project: &str,
    ask: &Rollback,
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<Deployed, Problem> {
    let platform = Platform::open_claimed(config, claim).await?;
    let uid = rustix::process::geteuid().as_raw();
    let by = control::user_name(uid).unwrap_or_else(|| format!("uid {uid}"));
    let done = platform.rollback(project, ask, &by, say).await;
    // Nobody comes after this process to end what was replaced.
    platform.local.settle().await;
    platform.publish().await?;
    done
}

/// Ends all instances and fronts of a data directory that no server holds. Gives how many ran.
pub async fn down(data: &Path, exe: &Path) -> Result<adamant_deploy::Down, Problem> {
    crate::hosting::down(data, exe).await
}
