//! Durable facts per second: `append_rate [DIR [FACTS [CALLERS [FACTS PER CALL]]]]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use adamant_attest::predicate::{Binding, BindingKind, Predicate, Role};
use adamant_digest::Digest;
use adamant_ledger::{Keys, SqlLedger};
use adamant_store::{Fact, Ledger, Subject};

fn fact(n: u64) -> Fact {
    let name = format!("shop/web:{n}");
    let digest = Digest::of(name.as_bytes());
    let by = "ann@example.org".to_owned();
    let detail = serde_json::Value::Null;
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: name.clone(), digest }],
        predicate: Predicate::Binding(Binding { kind: BindingKind::Tag, name, digest, by, detail }),
        chain: None,
    }
}

#[expect(clippy::print_stdout, reason = "its only output")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (facts, callers, per_call) = (number(100_000)?, number(512)?, number(4)?);
    let place = tempfile::tempdir_in(dir)?;
    let clock = Arc::new(SystemTime::now);
    let path = place.path().join("adamant.db");
    let ledger = Arc::new(SqlLedger::open(&path, Keys::generate()?, clock, None).await?);
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..callers {
        let (ledger, next) = (Arc::clone(&ledger), Arc::clone(&next));
        tasks.push(tokio::spawn(async move {
            let mut waits: Vec<Duration> = Vec::new();
            loop {
                let from = next.fetch_add(per_call, Ordering::Relaxed);
                if from >= facts {
                    return Ok::<_, adamant_store::AppendError>(waits);
                }
                let asked = Instant::now();
                ledger.append((from..from + per_call).map(fact).collect()).await?;
                waits.push(asked.elapsed());
            }
        }));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    let elapsed = begin.elapsed();
    waits.sort_unstable();
    let quantile = |q: usize| waits.get(waits.len() * q / 100).map_or(0.0, |wait| wait.as_secs_f64() * 1e3);
    let done = waits.len() as u128 * u128::from(per_call);
    let rate = done * 1_000_000 / elapsed.as_micros().max(1);
    println!(
        "{rate} facts/s  {callers} callers x {per_call} facts  p50 {:.1} ms  p99 {:.1} ms",
        quantile(50),
        quantile(99)
    );
    let begin = Instant::now();
    let head = ledger.head().await?;
    let findings = ledger.check().await?;
    println!("check of {} entries: {:.1} s, {} findings", head.size, begin.elapsed().as_secs_f64(), findings.len());
    Ok(())
}
