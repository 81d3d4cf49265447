//! A server from start to stop, and what works while none runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use adamant_api::{Class, Deployed, Rollback};
use tokio_util::sync::CancellationToken;

/// How long after one look at the erasures of others the next one is, at least.
const ERASURES: Duration = Duration::from_secs(1);
use crate::auth::Auth;
use crate::control;
use crate::error::Problem;
use crate::http::{self, Rim};
use crate::metrics::Metrics;
use crate::opening::Claim;
use crate::platform::{Config, Platform};
use crate::rate::Buckets;
use crate::serving::{self, Bounds};
use crate::tls::Certificate;

/// How long work under way gets at a stop before the process ends; a restart resumes it.
const GRACE: Duration = Duration::from_secs(10);
/// How often published tiles follow the ledger at the latest.
const PUBLISH: Duration = Duration::from_secs(1);
/// How often what runs is compared with what should run.
const CONVERGE: Duration = Duration::from_secs(5);
/// How soon after a start the tags of upstreams are checked.
const FIRST_CHECK: Duration = Duration::from_mins(1);
/// Seconds' worth of requests that a caller of the registry may send at once, unless it is set.
const BURST_S: u32 = 10;
/// Logins that may fail at once from one address, and how many more a second.
const FAILED_LOGINS: f64 = 30.0;
const FAILED_LOGINS_A_SECOND: f64 = 0.5;
/// How often housekeeping is done.
const HOUSEKEEPING: Duration = Duration::from_mins(10);

/// A server that runs.
pub struct Running {
    platform: Arc<Platform>,
    stop: CancellationToken,
    tasks: tokio_util::task::TaskTracker,
    packing: Option<adamant_store::Packing>,
}

/// Opens the data directory, listens, and brings everything to what the facts say.
pub async fn start(config: Config) -> Result<Running, Problem> {
    let data = config.data.clone();
    let (listen, anonymous_registry) = (config.listen, config.anonymous_registry);
    let settings = config.settings.registry.clone();
    let anonymous_pull = settings.anonymous()?;
    if anonymous_registry && !listen.ip().is_loopback() {
        return Err(Problem::usage(format!("--anonymous-registry is for loopback alone, not for {listen}"))
            .hint("listen on 127.0.0.1, or give clients a token: adamant token"));
    }
    let certificate = config.settings.tls.as_ref().map(|tls| Certificate::open(tls, &data)).transpose()?;
    if certificate.is_none() && !listen.ip().is_loopback() {
        tracing::warn!(%listen, "no [tls] in server.toml: tokens cross the network in the clear");
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
    auth.tokens.refresh(&platform.facts).await?;
    let stop = CancellationToken::new();
    let rim = Arc::new(Rim {
        platform: Arc::clone(&platform),
        auth: Arc::clone(&auth),
        metrics: Arc::new(Metrics::default()),
        address,
        anonymous_registry,
        anonymous_pull,
        rate: settings.requests_per_second.map(|rate| {
            let burst = settings.burst.unwrap_or(rate.saturating_mul(BURST_S));
            Buckets::new(f64::from(rate.max(1)), f64::from(burst))
        }),
        failed_logins: Buckets::new(FAILED_LOGINS_A_SECOND, FAILED_LOGINS),
        closing: stop.clone(),
    });
    // Before anything is built or run from what was erased.
    match platform.finish_erasures().await {
        Ok(left) => left.iter().for_each(|left| tracing::warn!(left, "an erasure is not finished")),
        Err(problem) => tracing::error!(%problem, "an erasure is not finished"),
    }
    platform.reconcile().await;

    let tasks = tokio_util::task::TaskTracker::new();
    let grants = Arc::clone(&auth);
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
    let bounds = Bounds::of_this_process();
    if let Some(certificate) = &certificate {
        // The command line on this machine trusts this directory, not a certificate.
        let local = control::listen_at(&data, "http.sock")?;
        let (router, tasks_too) = (router.clone(), tasks.clone());
        tasks.spawn(serving::serve(serving::Listener::Local(local), router, bounds, tasks_too, stop.clone()));
        let (certificate, until) = (Arc::clone(certificate), until(&stop));
        tasks.spawn(async move { certificate.follow(until).await });
    }
    let listener = serving::Listener::Tcp(listener, certificate.map(|certificate| certificate.config()));
    tasks.spawn(serving::serve(listener, router, bounds, tasks.clone(), stop.clone()));
    tasks.spawn(follow_others(Arc::clone(&platform), grants, until(&stop)));
    if platform.config.settings.database.url.is_some() {
        tasks.spawn(follow_erasures(Arc::clone(&platform), until(&stop)));
    }
    tasks.spawn(housekeeping(Arc::clone(&platform), until(&stop)));
    tasks.spawn(crate::collect::collecting(Arc::clone(&platform), until(&stop)));
    tasks.spawn(hosting(Arc::clone(&platform), until(&stop)));
    for upstream in platform.config.settings.upstreams.iter().filter(|upstream| upstream.check_hours > 0) {
        let every = Duration::from_hours(upstream.check_hours.into());
        tasks.spawn(checks(Arc::clone(&platform), upstream.name.clone(), every, until(&stop)));
    }
    let mut packing = None;
    tasks.spawn(crate::scrub::scrub(Arc::clone(&platform), until(&stop)));
    if let Some(files) = platform.files.as_ref().filter(|_| platform.config.settings.store.deduplicate) {
        packing = Some(files.start_packing()?);
    }
    for hook in &platform.hooks {
        tasks.spawn(crate::webhooks::follow(Arc::clone(&platform), Arc::clone(hook), until(&stop)));
    }
    tracing::info!(%address, data = %data.display(), "serving");
    Ok(Running { platform, stop, tasks, packing })
}

/// Learns of what another server on the same ledger recorded, tokens before anything else.
async fn follow_others(platform: Arc<Platform>, auth: Arc<Auth>, stop: impl Future<Output = ()>) {
    let mut tick = tokio::time::interval(CONVERGE);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            _ = tick.tick() => {}
        }
        if let Err(problem) = auth.tokens.refresh(&platform.facts).await {
            tracing::warn!(%problem, "reading the tokens");
        }
        if let Err(error) = platform.ledger.look().await {
            tracing::warn!(%error, "looking whether the log has grown");
        }
    }
}

/// Learns of erasures as the log grows: whatever other servers on the same ledger erase is refused
/// here, too, and this server's own copies go.
async fn follow_erasures(platform: Arc<Platform>, stop: impl Future<Output = ()>) {
    let mut grown = platform.ledger.grown();
    grown.mark_changed();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            changed = grown.changed() => if changed.is_err() { return },
        }
        if let Err(problem) = platform.learn_erasures().await {
            tracing::warn!(%problem, "reading the erasures");
            // What could not be read now is read with the next fact, or by then.
            grown.mark_changed();
        }
        tokio::time::sleep(ERASURES).await;
    }
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

/// Compares the bound tags of an upstream with those there, soon after the start and then `every` so
/// often.
async fn checks(platform: Arc<Platform>, upstream: String, every: Duration, stop: impl Future<Output = ()>) {
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_CHECK, every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let all = async {
        loop {
            tick.tick().await;
            match platform.check_upstreams(Some(&upstream), &|_| {}).await {
                Ok(found) => tracing::info!(
                    upstream,
                    checked = found.checked,
                    moved = found.moved.len(),
                    failed = found.failed.len(),
                    "an upstream's tags were checked"
                ),
                Err(problem) => tracing::warn!(upstream, %problem, "an upstream's tags cannot be checked"),
            }
        }
    };
    tokio::select! {
        () = stop => {}
        () = all => {}
    }
}

/// Publishes tiles as the log grows and sweeps old uploads.
async fn housekeeping(platform: Arc<Platform>, stop: impl Future<Output = ()>) {
    let mut grown = platform.ledger.grown();
    grown.mark_changed();
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    tick.reset();
    tokio::pin!(stop);
    // What expired while no server ran.
    platform.registry.sweep().await;
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
                // Copies that were in use when their erasure was approved.
                if let Err(problem) = platform.finish_erasures().await {
                    tracing::error!(%problem, "an erasure is not finished");
                }
            }
        }
    }
}

impl Running {
    /// Base URL.
    pub fn url(&self) -> String {
        self.platform.base_url()
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
