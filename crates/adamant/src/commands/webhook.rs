//! `webhook`: receivers that are told what is pushed.

use std::path::Path;
use std::process::ExitCode;

use adamant_api::Webhook;

use super::connect;
use crate::output::{self, Failure, say};

pub(super) async fn list(data: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let hooks: Vec<Webhook> = connect(data).await?.get("/webhooks").await?;
    if json {
        output::json(&hooks)?;
        return Ok(ExitCode::SUCCESS);
    }
    for hook in &hooks {
        output::result(format!(
            "{}  {}  at entry {}, {} behind  {} delivered, {} attempts failed, {} given up",
            hook.name, hook.url, hook.position, hook.lag, hook.delivered, hook.failed, hook.skipped
        ))?;
        if let Some(error) = &hook.last_error {
            output::result(format!("  {error}"))?;
        }
    }
    if hooks.is_empty() {
        say("there is no webhook: `[[webhook]]` in server.toml makes one");
    }
    Ok(ExitCode::SUCCESS)
}
