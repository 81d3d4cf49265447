//! Opening each part with what it is to know: the one place where paths, clocks, the host's
//! names and the user's settings meet.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use adamant_api::Class;
use adamant_audit::Trust;
use adamant_build::{Builder, BuilderConfig, Host};
use adamant_fetch::Fetcher;
use adamant_ledger::{Keys, OpenError, SqlLedger, TrustValues};
use adamant_registry::Registry;
use adamant_sandbox::Sandbox;
use adamant_store::{
    BlobStore, DataLock, DataLockError, FsBlobs, Ledger, S3Blobs, S3Credentials, S3Settings, S3SettingsError,
};

use crate::error::Problem;
use crate::platform::Config;
use crate::settings::{BlobSettings, Settings};

/// Proxies for fetching, as the environment of the process names them.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    http: Option<String>,
    https: Option<String>,
    exempt: Option<String>,
}

impl Proxy {
    /// From the usual variables, lower case first. `http_proxy` alone is read in lower case
    /// only, as curl does.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        Self {
            http: first(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            https: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            exempt: first(&["no_proxy", "NO_PROXY"]),
        }
    }
}

/// The access key for S3 in the environment of the process, if there is one.
#[derive(Debug, Clone, Default)]
pub struct AccessKey(Option<S3Credentials>);

impl AccessKey {
    /// From the usual variables, `AWS_ACCESS_KEY_ID` and its like.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        Self(S3Credentials::from_environment(variable).ok())
    }
}

/// A data directory that is this process's alone until dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: DataLock,
}

/// Whether a data directory could be had.
#[derive(Debug)]
pub enum Claimed {
    /// It is ours.
    Ours(Claim),
    /// Another process works on it, a server most likely.
    Held {
        /// The process, if it noted itself.
        process: Option<u32>,
        /// For whoever does not wait for it.
        problem: Problem,
    },
}

/// Claims a data directory, making it if it is not there. Does not wait.
pub fn claim(data: &Path) -> Result<Claimed, Problem> {
    std::fs::create_dir_all(data).map_err(|e| {
        Problem::usage(format!("cannot use {} as data directory", data.display())).cause(e).hint("pass `--data DIR`")
    })?;
    std::fs::set_permissions(data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    match DataLock::acquire(data) {
        Ok(lock) => Ok(Claimed::Ours(Claim { _lock: lock })),
        Err(error) => {
            let problem = Problem::new(Class::Unavailable, error.to_string());
            match error {
                DataLockError::Held { pid, .. } => Ok(Claimed::Held {
                    process: pid,
                    problem: problem.hint("a server is stopped with Ctrl-C or SIGTERM; `adamant down` stops none"),
                }),
                DataLockError::Io { .. } => Err(problem),
            }
        }
    }
}

/// The server's UTC, RFC 3339 in whole seconds.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).ok().and_then(adamant_attest::format_time).unwrap_or_default()
}

/// The blobs that the settings name; as files, too, if that is what they are, which `open` opens.
pub(crate) async fn blobs(
    data: &Path,
    settings: &Settings,
    key: &AccessKey,
    open: fn(&Path) -> std::io::Result<FsBlobs>,
) -> Result<(Arc<dyn BlobStore>, Option<FsBlobs>), Problem> {
    let Some(url) = &settings.blobs.url else {
        let files = open(&data.join("blobs"))?;
        return Ok((Arc::new(files.clone()), Some(files)));
    };
    let BlobSettings { endpoint, region, path_style, credentials, .. } = &settings.blobs;
    let refuse = |e: &dyn std::fmt::Display| {
        Problem::usage("the bucket that `[blobs]` names cannot be used").cause(e).hint("docs/scaling.md shows how")
    };
    let key = match credentials {
        Some(file) => S3Credentials::from_file(file).map_err(|e| refuse(&e))?,
        None => key.0.clone().ok_or_else(|| refuse(&S3SettingsError::NoCredentials))?,
    };
    let region = region.as_deref().unwrap_or("us-east-1");
    let bucket = S3Settings::new(url, endpoint.as_deref(), region, *path_style, key).map_err(|e| refuse(&e))?;
    Ok((Arc::new(S3Blobs::open(bucket, data.join("work/spool")).await.map_err(|e| refuse(&e))?), None))
}

/// The ledger that the settings name.
pub(crate) async fn ledger(data: &Path, settings: &Settings) -> Result<SqlLedger, Problem> {
    let keys =
        Keys::open_or_create(&data.join("keys")).map_err(|e| Problem::damaged("the keys cannot be used").cause(e))?;
    let clock = Arc::new(SystemTime::now);
    let opened = match &settings.database.url {
        Some(url) => SqlLedger::open_postgres(url, keys, clock, None).await,
        None => SqlLedger::open(&data.join("adamant.db"), keys, clock, None).await,
    };
    opened.map_err(|e| match e {
        OpenError::OtherKey { .. } if settings.database.url.is_some() => {
            Problem::damaged("the ledger cannot be opened")
                .cause(e)
                .hint("servers on one database have the same `keys`: copy that directory from the first one's data")
        }
        e => Problem::damaged("the ledger cannot be opened").cause(e),
    })
}

/// The ledger that the settings name, for looking at.
pub(crate) async fn ledger_to_read(
    data: &Path,
    settings: &Settings,
    trust: Option<TrustValues>,
) -> Result<SqlLedger, Problem> {
    let opened = match &settings.database.url {
        Some(url) => SqlLedger::open_postgres_read_only(url, trust).await,
        None => SqlLedger::open_read_only(&data.join("adamant.db"), trust).await,
    };
    opened.map_err(|e| Problem::damaged("the ledger cannot be opened").cause(e))
}

/// Writes `trust.json` if it is not there. It is never replaced: that it differs from the keys
/// is for `fsck` to say.
pub(crate) fn write_trust(data: &Path, ledger: &SqlLedger) -> Result<(), Problem> {
    let path = data.join("trust.json");
    if path.exists() {
        return Ok(());
    }
    let values = ledger.trust_values();
    let trust = Trust {
        origin: values.origin.clone(),
        log_key: values.log.parse().map_err(|e| Problem::internal("the log key cannot be printed", e))?,
        root_control_key: values.root.clone(),
        checkpoint: None,
        witnesses: Vec::new(),
    };
    let bytes = trust.to_bytes().map_err(|e| Problem::internal("the trust file cannot be written", e))?;
    let mut temp = tempfile::NamedTempFile::new_in(data)?;
    std::io::Write::write_all(&mut temp, &bytes)?;
    std::fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temp.as_file().sync_all()?;
    temp.persist(&path).map_err(|error| error.error)?;
    std::fs::File::open(data)?.sync_all()?;
    Ok(())
}

pub(crate) fn proxies(config: &Config) -> adamant_fetch::Proxies {
    adamant_fetch::Proxies {
        http: config.proxy.http.clone(),
        https: config.proxy.https.clone(),
        exempt: config.proxy.exempt.clone(),
    }
}

pub(crate) fn fetcher(config: &Config, blobs: Arc<dyn BlobStore>) -> Result<Fetcher, Problem> {
    let mut settings = adamant_fetch::Config::default();
    if let Some(mirror) = &config.debian_mirror {
        let mirror = mirror.trim_end_matches('/');
        if let [main, security] = settings.debian.archives.as_mut_slice() {
            mirror.clone_into(&mut main.base);
            // Mirrors keep the security archive beside the main one under this name.
            security.base = format!("{mirror}-security");
        }
    }
    settings.allowed_hosts.clone_from(&config.allow_private);
    settings.control_addresses = vec![config.listen.ip()];
    settings.proxies = proxies(config);
    Fetcher::new(settings, blobs).map_err(|e| Problem::usage("fetching is not possible").cause(e))
}

pub(crate) fn builder(config: &Config, blobs: Arc<dyn BlobStore>) -> Result<Builder, Problem> {
    let uid = rustix::process::geteuid().as_raw();
    let host = Host {
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        user: crate::control::user_name(uid).unwrap_or_default(),
        data: config.data.display().to_string(),
    };
    Builder::open(BuilderConfig {
        cache: config.data.join("cache"),
        work: config.data.join("work"),
        rebuild_work: None,
        blobs,
        sandbox: Sandbox::new(config.exe.clone()),
        host,
        clock: adamant_build::system_clock(),
    })
    .map_err(|e| Problem::new(Class::Unavailable, "builds are not possible").cause(e))
}

/// A project owns the repositories below its name.
fn owned(ledger: Arc<SqlLedger>) -> adamant_registry::Owned {
    Arc::new(move |project| {
        let ledger = Arc::clone(&ledger);
        Box::pin(async move { Ok(ledger.chain_head(&crate::facts::policy(&project)).await?.is_some()) })
    })
}

pub(crate) async fn registry(
    config: &Config,
    blobs: &Arc<dyn BlobStore>,
    ledger: &Arc<SqlLedger>,
    erased: adamant_store::Erased,
) -> Result<Registry, Problem> {
    let upstreams = crate::upstream::open(config, blobs, ledger).await?;
    let config = adamant_registry::Config {
        uploads: config.data.join("work/uploads"),
        limits: adamant_registry::Limits::default(),
        clock: Arc::new(SystemTime::now),
        owned: Some(owned(Arc::clone(ledger))),
        pointers: config.settings.registry.pointers.clone(),
        gates: config.settings.gate.iter().map(|gate| gate.open(&config.data)).collect::<Result<_, _>>()?,
        upstreams,
        quotas: config.settings.registry.quotas()?,
        reserve: config.settings.registry.reserve(&config.data),
        erased,
    };
    Registry::new(Arc::clone(blobs), Arc::clone(ledger) as Arc<dyn Ledger>, config)
        .map_err(|e| Problem::internal("cannot open the registry", e))
}
