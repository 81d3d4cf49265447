//! `gc` and `erase`: what makes room, and what takes bytes away.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use adamant_api::{Erasable, Erase, EraseAction, Erasing, Erasure, ErasureState, Gc, GcReport};
use adamant_client::Server;

use super::connect;
use crate::output::{self, Failure, say};

pub(super) async fn gc(data: Option<&Path>, dry_run: bool, json: bool) -> Result<ExitCode, Failure> {
    let server = connect(data).await?;
    let report: GcReport = server.stream("/gc", &Gc { dry_run }, output::progress).await?;
    if json {
        output::json(&report)?;
    } else {
        let (verb, hours) = (if dry_run { "would go" } else { "removed" }, report.grace_s / 3600);
        output::result(format!("{} of {} blobs {verb}, {} bytes", report.removed, report.blobs, report.bytes))?;
        say(format!("no name leads to them, and nobody used them for {hours} hours"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Longest file with a token, in bytes.
const MAX_TOKEN: u64 = 4096;

/// A server anywhere, by a named token.
pub(super) fn server(url: &str, token_file: &Path) -> Result<Server, Failure> {
    let mut token = String::new();
    let read = std::fs::File::open(token_file).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut token));
    read.map_err(|e| Failure::usage(format!("the token cannot be read from {}: {e}", token_file.display())))?;
    Ok(Server::at(url, token.trim())?)
}

pub(super) async fn erasures(server: &Server, json: bool) -> Result<ExitCode, Failure> {
    let all: Vec<Erasure> = server.get("/erasures").await?;
    if json {
        output::json(&all)?;
    } else if all.is_empty() {
        say("nothing was erased, and nobody asks for it");
    } else {
        for erasure in &all {
            output::result(line(erasure))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn erase(
    server: &Server,
    what: Erasable,
    action: EraseAction,
    json: bool,
) -> Result<ExitCode, Failure> {
    let done: Erasing = server.post("/erasures", &Erase { what, action }).await?;
    let digest = done.erasure.digest;
    if json {
        output::json(&done)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::result(line(&done.erasure))?;
    for left in &done.left {
        say(format!("still here: {left}"));
    }
    match done.erasure.state {
        ErasureState::Requested => say(format!("somebody else approves it: adamant erase {digest} --approve")),
        ErasureState::Erased => {
            say("capsules, clones, pulled images and backups are out of reach: see docs/security.md");
        }
        ErasureState::Withdrawn => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn line(erasure: &Erasure) -> String {
    let Erasure { digest, by, at, entry, .. } = erasure;
    let names = erasure.git_blob.as_deref().map(|oid| format!(" (in git {oid})")).unwrap_or_default();
    let digest = format!("{digest}{names}");
    let reason = erasure.reason.as_deref().unwrap_or("(the reason was erased)");
    match (erasure.state, &erasure.approved_by) {
        (ErasureState::Erased, Some(approver)) => {
            format!("{digest}  erased {at} (entry {entry}), asked for by {by}, approved by {approver}: {reason}")
        }
        (ErasureState::Withdrawn, _) => format!("{digest}  withdrawn {at} (entry {entry}) by {by}: {reason}"),
        _ => format!("{digest}  asked for {at} (entry {entry}) by {by}: {reason}"),
    }
}
