//! `promote`, `rollback` and `config`: what changes an environment.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use adamant_api::{Config, ConfigChange, Deployed, Promote, Rollback};
use adamant_client::ClientError;

use super::{connect, segment, server};
use crate::output::{self, Failure, say};
use crate::project;

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
    let deployed = match adamant_client::connect(&data).await {
        Ok(server) => {
            let path = format!("/projects/{}/rollback", segment(&project));
            server.stream(&path, &request, output::progress).await?
        }
        Err(ClientError::Off { .. }) => {
            say("no server runs here; rolling back without it");
            server::rollback_offline(&data, &project, &request).await?
        }
        Err(error) => return Err(error.into()),
    };
    print_deployed(&deployed, json)
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
