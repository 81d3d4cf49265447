//! How long checking a proof takes, in the process and as a command.

use std::path::Path;
use std::time::Instant;

use adamant_audit::{Capsule, Trust, verify};
use anyhow::Result;

use crate::process::ms;
use crate::report::{Goal, Report, median};

/// Verifications measured.
const ROUNDS: usize = 50;

/// `command_ms`: what `adamant verify` took as a process.
pub(crate) fn measure(capsule: &Path, trust: &Path, command_ms: f64, report: &mut Report) -> Result<()> {
    let (bytes, trust) = (std::fs::read(capsule)?, std::fs::read(trust)?);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        verify(&Capsule::parse(&bytes)?, &Trust::parse(&trust)?)?;
        times.push(ms(begin.elapsed()));
    }
    report
        .row("capsule, parsed and verified (median)", median(&mut times), "ms")
        .goal(Goal::AtMost(20.0))
        .note(format!("{} kB", bytes.len() / 1000));
    report.row("capsule, `adamant verify` as a command (median)", command_ms, "ms").goal(Goal::AtMost(20.0));
    Ok(())
}
