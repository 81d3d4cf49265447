//! Named tokens: `token create`, `list` and `revoke`.

use std::path::Path;
use std::process::ExitCode;

use adamant_api::{NewToken, TokenMade, TokenSummary};
use serde_json::json;

use super::{connect, segment};
use crate::cli::TokenCommand;
use crate::output::{self, Failure, say};

pub(super) async fn run(data: Option<&Path>, command: TokenCommand, json: bool) -> Result<ExitCode, Failure> {
    let server = connect(data).await?;
    match command {
        TokenCommand::Create { name, scope, person, expires } => {
            let made: TokenMade =
                server.post("/tokens", &NewToken { name, scopes: scope, person, expires_s: expires }).await?;
            if json {
                output::json(&made)?;
            } else {
                say(format!(
                    "token {}: {}, {}; this is its secret, and it is not shown again:",
                    made.name,
                    made.scopes.join(" "),
                    ends(made.expires.as_deref())
                ));
                output::result(made.secret)?;
            }
        }
        TokenCommand::List => {
            let all: Vec<TokenSummary> = server.get("/tokens").await?;
            if json {
                output::json(&all)?;
            } else {
                for token in &all {
                    output::result(line(token))?;
                }
            }
        }
        TokenCommand::Revoke { name } => {
            let path = format!("/tokens/{}/revoke", segment(&name));
            let revoked: TokenSummary = server.post(&path, &json!({})).await?;
            if json { output::json(&revoked)? } else { output::result(line(&revoked))? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(token: &TokenSummary) -> String {
    let state = match (&token.revoked_by, &token.revoked_at) {
        (Some(by), Some(at)) => format!("revoked by {by} at {at}"),
        _ => ends(token.expires.as_deref()),
    };
    let of = token.person.as_deref().map(|person| format!(" of {person}")).unwrap_or_default();
    format!("{:<20} {}{of}  {state}; made by {} at {}", token.name, token.scopes.join(" "), token.by, token.at)
}

fn ends(expires: Option<&str>) -> String {
    expires.map_or_else(|| "until it is revoked".to_owned(), |at| format!("until {at}"))
}
