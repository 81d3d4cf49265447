//! `upstream`: what is read through other registries.

use std::path::Path;
use std::process::ExitCode;

use adamant_api::{Class, Upstream, UpstreamCheck, UpstreamChecked, UpstreamUpdate, UpstreamUpdated};

use super::{connect, segment};
use crate::cli::UpstreamCommand;
use crate::output::{self, Failure, say};

pub(super) async fn run(data: Option<&Path>, what: UpstreamCommand, json: bool) -> Result<ExitCode, Failure> {
    match what {
        UpstreamCommand::List { name } => list(data, name.as_deref(), json).await,
        UpstreamCommand::Check { what } => check(data, what, json).await,
        UpstreamCommand::Update { name } => update(data, name, json).await,
    }
}

async fn list(data: Option<&Path>, name: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let query = name.map(|name| format!("?name={}", segment(name))).unwrap_or_default();
    let upstreams: Vec<Upstream> = connect(data).await?.get(&format!("/upstreams{query}")).await?;
    if json {
        output::json(&upstreams)?;
        return Ok(ExitCode::SUCCESS);
    }
    for upstream in &upstreams {
        output::result(format!("{}  {}  {}", upstream.name, upstream.url, upstream.repositories.join(" ")))?;
        for tag in &upstream.tags {
            let moved = tag.moved.map(|now| format!("  there now {}", now.short())).unwrap_or_default();
            output::result(format!("  {}  {}  {}  {}{moved}", tag.name, tag.digest.short(), tag.at, tag.by))?;
        }
        if upstream.more {
            say(format!("{} has more tags than these", upstream.name));
        }
    }
    if upstreams.is_empty() {
        say("there is no upstream: `[[upstream]]` in server.toml makes one");
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(data: Option<&Path>, what: Option<String>, json: bool) -> Result<ExitCode, Failure> {
    let server = connect(data).await?;
    let ask = UpstreamCheck { what };
    let found: UpstreamChecked = server.stream("/upstreams/check", &ask, output::progress).await?;
    if json {
        output::json(&found)?;
    } else {
        for moved in &found.moved {
            output::result(format!("{}  bound {}  there now {}", moved.name, moved.bound, moved.now))?;
        }
        for failed in &found.failed {
            say(format!("{}: {}", failed.name, failed.cause));
        }
        output::result(format!(
            "{} checked, {} moved, {} failed",
            found.checked,
            found.moved.len(),
            found.failed.len()
        ))?;
    }
    Ok(match (found.moved.is_empty(), found.failed.is_empty()) {
        (false, _) => ExitCode::from(Class::No.exit_code()),
        (true, false) => ExitCode::from(Class::Unavailable.exit_code()),
        (true, true) => ExitCode::SUCCESS,
    })
}

async fn update(data: Option<&Path>, name: String, json: bool) -> Result<ExitCode, Failure> {
    let server = connect(data).await?;
    let ask = UpstreamUpdate { name };
    let updated: UpstreamUpdated = server.stream("/upstreams/update", &ask, output::progress).await?;
    if json {
        output::json(&updated)?;
    } else if updated.digest == updated.bound {
        output::result(format!("{} has not moved: {}", updated.name, updated.bound))?;
    } else {
        let was = if updated.new { "" } else { "  (was there)" };
        output::result(format!("{} = {}{was}", updated.updated, updated.digest))?;
        say(format!("{} stays {}", updated.name, updated.bound));
    }
    Ok(ExitCode::SUCCESS)
}
