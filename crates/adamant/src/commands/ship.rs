//! `promote`, `rollback` and `config`: what changes an environment.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use adamant_api::{Config, ConfigChange, Deployed, Promote, Rollback};
use adamant_client::{ClientError, Server};
use adamant_server::{Claim, Claimed};

use super::{connect, segment, server};
use crate::output::{self, Failure, say};
use crate::project;

/// How long a rollback waits for a process that holds the data directory and does not serve: more
/// than a server needs to stop.
const HOLDER_WAIT: Duration = Duration::from_secs(30);

pub(super) async fn promote(
    data: Option<&Path>,
    release: &str,
    environment: String,
    reason: Option<String>,
    wait: bool,
    json: bool,
) -> Result<ExitCode, Failure> {
    let (project, number) = project::release(release, None)?;
    let server = connect(data).await?;
    let path = format!("/projects/{}/promote", segment(&project));
    let request = Promote { release: number, environment, reason, wait };
    print_deployed(&server.stream(&path, &request, output::progress).await?, json)
}

pub(super) async fn rollback(
    data: Option<&Path>,
    environment: String,
    to: Option<&str>,
    named: Option<&str>,
    reason: Option<String>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let (project, to) = match to {
        Some(text) => {
            let (project, number) = project::release(text, named)?;
            (project, Some(number))
        }
        None => (project::project(named)?, None),
    };
    let data = project::data_dir(data)?;
    let request = Rollback { environment, to, reason };
    let deployed = match way(&data).await? {
        Way::Server(server) => {
            let path = format!("/projects/{}/rollback", segment(&project));
            server.stream(&path, &request, output::progress).await?
        }
        Way::Alone(claim) => {
            say("no server runs here; rolling back without it");
            server::rollback_offline(&data, claim, &project, &request).await?
        }
    };
    print_deployed(&deployed, json)
}

/// Who rolls back: the server, or this process while there is none.
enum Way {
    Server(Server),
    Alone(Claim),
}

/// Finds whoever can roll back. A server that is starting or stopping does not answer and holds
/// the data directory: it is waited for, to do either.
async fn way(data: &Path) -> Result<Way, Failure> {
    let give_up = Instant::now() + HOLDER_WAIT;
    let mut told = false;
    loop {
        match adamant_client::connect(data).await {
            Ok(server) => return Ok(Way::Server(server)),
            Err(ClientError::Off { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match adamant_server::claim(data)? {
            Claimed::Ours(claim) => return Ok(Way::Alone(claim)),
            Claimed::Held { problem, .. } if Instant::now() >= give_up => return Err(problem.into()),
            Claimed::Held { process, .. } => {
                if !told {
                    let process = process.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
                    say(format!("waiting for {process}, which holds {} and does not serve", data.display()));
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn print_deployed(deployed: &Deployed, json: bool) -> Result<ExitCode, Failure> {
    if json {
        output::json(deployed)?;
    } else {
        let url = deployed.url.as_deref().unwrap_or_default();
        let how = if deployed.unchanged { "runs already" } else { &deployed.detail };
        output::result(format!(
            "{} {} in {} (deployment {})  {url}",
            deployed.release, how, deployed.environment, deployed.sequence
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn config(
    data: Option<&Path>,
    environment: &str,
    set: &[String],
    unset: Vec<String>,
    named: Option<&str>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let project = project::project(named)?;
    let server = connect(data).await?;
    let path = format!("/projects/{}/config/{}", segment(&project), segment(environment));
    let mut pairs = BTreeMap::new();
    for pair in set {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Failure::usage(format!("`{pair}` is not NAME=VALUE")).hint("to remove a variable: `--unset NAME`")
        })?;
        pairs.insert(name.to_owned(), value.to_owned());
    }
    let config: Config = if pairs.is_empty() && unset.is_empty() {
        server.get(&path).await?
    } else {
        server.post(&path, &ConfigChange { set: pairs, unset }).await?
    };
    if json {
        output::json(&config)?;
    } else {
        say(format!("{environment} {}", config.revision));
        for (name, value) in &config.env {
            output::result(format!("{name}={value}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
