//! `up`, `down`, and what works without a server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use adamant_api::{Deployed, Rollback};
use adamant_server::{Claim, Config, Running};

use crate::output::{self, Failure, say};

/// A server's configuration with defaults for everything but its place.
pub(crate) fn config(data: PathBuf, listen: SocketAddr) -> Result<Config, Failure> {
    let settings = adamant_server::Settings::load(&data, None)?;
    Ok(Config {
        data,
        listen,
        exe: std::env::current_exe()?,
        anonymous_registry: false,
        debian_mirror: std::env::var("ADAMANT_DEBIAN_MIRROR").ok(),
        allow_private: Vec::new(),
        environment_ports: None,
        proxy: adamant_server::Proxy::from_environment(&|name| std::env::var(name).ok()),
        settings,
        access_key: access_key(),
    })
}

/// The access key that the environment names.
pub(crate) fn access_key() -> adamant_server::AccessKey {
    adamant_server::AccessKey::from_environment(&|name| std::env::var(name).ok())
}

pub(crate) async fn start(config: Config) -> Result<Running, Failure> {
    Ok(adamant_server::start(config).await?)
}

pub(super) async fn up(config: Config) -> Result<ExitCode, Failure> {
    let data = config.data.clone();
    let running = start(config).await?;
    let link = adamant_client::login_link(&data).await?;
    output::result(format!("adamant {} on {}, data in {}", env!("CARGO_PKG_VERSION"), running.url(), data.display()))?;
    output::result(format!("page: {link}  (once; `adamant login` prints another)"))?;
    running.until_signal().await;
    say("stopped; what was deployed runs on (`adamant down` stops it)");
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn down(data: &Path) -> Result<ExitCode, Failure> {
    let stopped = adamant_server::down(data, &std::env::current_exe()?).await?;
    let counted = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    output::result(match (stopped.instances, stopped.fronts) {
        (0, 0) => "nothing ran".to_owned(),
        (instances, fronts) => {
            format!("{} and {} stopped", counted(instances, "instance"), counted(fronts, "front"))
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A rollback by the owner of the data directory while no server holds it.
pub(super) async fn rollback_offline(
    data: &Path,
    claim: Claim,
    project: &str,
    ask: &Rollback,
) -> Result<Deployed, Failure> {
    let config = config(data.to_owned(), SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok(adamant_server::rollback_offline(config, claim, project, ask, &|line| output::progress(&line)).await?)
}
