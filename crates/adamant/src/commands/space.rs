//! `gc` and `erase`: what makes room, and what takes bytes away.

use std::path::Path;
use std::process::ExitCode;

use adamant_api::{Erase, EraseAction, Erasing, Erasure, ErasureState, Gc, GcReport};
use adamant_digest::Digest;

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

pub(super) async fn erasures(data: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let all: Vec<Erasure> = connect(data).await?.get("/erasures").await?;
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
    data: Option<&Path>,
    digest: Digest,
    action: EraseAction,
    json: bool,
) -> Result<ExitCode, Failure> {
    let done: Erasing = connect(data).await?.post("/erasures", &Erase { digest, action }).await?;
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
    let reason = erasure.reason.as_deref().unwrap_or("(the reason was erased)");
    match (erasure.state, &erasure.approved_by) {
        (ErasureState::Erased, Some(approver)) => {
            format!("{digest}  erased {at} (entry {entry}), asked for by {by}, approved by {approver}: {reason}")
        }
        (ErasureState::Withdrawn, _) => format!("{digest}  withdrawn {at} (entry {entry}) by {by}: {reason}"),
        _ => format!("{digest}  asked for {at} (entry {entry}) by {by}: {reason}"),
    }
}
