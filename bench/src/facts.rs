//! Durable signed facts per second, many callers at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use adamant_attest::predicate::{Binding, BindingKind, Predicate, Role};
use adamant_digest::Digest;
use adamant_ledger::{Keys, SqlLedger};
use adamant_store::{Fact, Ledger as _, Subject};
use anyhow::Result;

use crate::process::ms;
use crate::report::{Goal, Report, median, quantile};

/// Facts appended at most.
const FACTS: u32 = 100_000;
/// Callers at one time.
const CALLERS: u32 = 512;
/// Facts per call: what a push records together is more.
const PER_CALL: u32 = 4;
/// Most time for appending.
const LIMIT: Duration = Duration::from_secs(30);
/// Facts appended one after another, each waited for.
const ALONE: u32 = 100;

pub(crate) fn measure(place: &Path, report: &mut Report) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run(place, report))
}

async fn run(place: &Path, report: &mut Report) -> Result<()> {
    let path = place.join("facts.db");
    let ledger = Arc::new(SqlLedger::open(&path, Keys::generate()?, Arc::new(SystemTime::now), None).await?);
    let next = Arc::new(AtomicU32::new(0));
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (ledger, next) = (Arc::clone(&ledger), Arc::clone(&next));
        tasks.spawn(async move {
            let mut waits = Vec::new();
            loop {
                let from = next.fetch_add(PER_CALL, Ordering::Relaxed);
                if from >= FACTS || begin.elapsed() > LIMIT {
                    return anyhow::Ok(waits);
                }
                let asked = Instant::now();
                ledger.append((from..from + PER_CALL).map(fact).collect()).await?;
                waits.push(ms(asked.elapsed()));
            }
        });
    }
    let mut waits = Vec::new();
    while let Some(done) = tasks.join_next().await {
        waits.extend(done??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let facts = f64::from(u32::try_from(waits.len())?) * f64::from(PER_CALL);
    report
        .row("ledger, durable signed facts", facts / seconds, "facts/s")
        .goal(Goal::AtLeast(15_000.0))
        .note(format!("{CALLERS} callers × {PER_CALL} facts"));
    report.row("ledger, p99 of a caller under that load", quantile(&mut waits, 99), "ms").goal(Goal::AtMost(50.0));

    let mut alone = Vec::new();
    for n in FACTS..FACTS + ALONE {
        let asked = Instant::now();
        ledger.append(vec![fact(n + PER_CALL)]).await?;
        alone.push(ms(asked.elapsed()));
    }
    report.row("ledger, one fact alone (median)", median(&mut alone), "ms");
    Ok(())
}

fn fact(n: u32) -> Fact {
    let name = format!("shop/web:{n}");
    let digest = Digest::of(name.as_bytes());
    let by = "ann@shop.example".to_owned();
    let detail = serde_json::Value::Null;
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: name.clone(), digest }],
        predicate: Predicate::Binding(Binding { kind: BindingKind::Tag, name, digest, by, detail }),
        chain: None,
    }
}
