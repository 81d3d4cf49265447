//! Processes that die, and disks that fill.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use adamant_attest::predicate::BindingKind;
use adamant_conformance::ledger::{link, tag};
use adamant_ledger::{Keys, SqlLedger};
use adamant_store::{AppendError, Ledger, LedgerError};

use crate::{Place, clean, clock};

const CHILD: &str = "ADAMANT_TEST_APPEND_DIR";

/// Not a test of its own: appends until killed, and says on stdout what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn append_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = std::path::PathBuf::from(dir);
    let keys = Keys::open_or_create(&dir.join("keys")).unwrap();
    let ledger = Arc::new(SqlLedger::open(&dir.join("adamant.db"), keys, clock(), None).await.unwrap());
    let round = std::process::id();
    let tasks = (0..4).map(|task| {
        let (ledger, dir) = (Arc::clone(&ledger), dir.clone());
        tokio::spawn(async move {
            for n in 0..1_000_000 {
                let name = format!("{round}/{task}:{n}");
                let receipts = ledger.append(vec![tag(&name, &name), link(&format!("c/{task}"), None)]).await.unwrap();
                let line = format!("acknowledged {name} {}\n", receipts[0].index);
                std::io::stdout().write_all(line.as_bytes()).unwrap();
                if task == 0 && n % 7 == 0 {
                    ledger.publish(&dir.join("log")).await.unwrap();
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_missing_after_kill() {
    let place = Place::new();
    // Milliseconds until the kill; small ones hit the first start.
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::append_child", "--nocapture"])
            .env(CHILD, place.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(5 + round * round * 3 + round * 17 % 41));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            // Other lines are the test runner's. A pipe takes a short line whole or not at all.
            let Some((_, rest)) = line.split_once("acknowledged ") else { continue };
            let (name, index) = rest.split_once(' ').unwrap();
            acknowledged.push((name.to_owned(), index.parse().unwrap()));
        }
        let ledger = place.open().await;
        for (name, index) in &acknowledged {
            let bound = ledger.binding(BindingKind::Tag, name).await.unwrap();
            assert_eq!(bound.map(|bound| bound.index), Some(*index), "round {round}: {name}");
        }
        clean(&ledger).await;
        let size = ledger.head().await.unwrap().size;
        assert_eq!(ledger.publish(&place.dir.path().join("log")).await.unwrap(), size, "round {round}");
        ledger.close().await;
    }
    assert!(acknowledged.len() > 100, "{} appends in 20 rounds", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&mount).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a_full_disk_refuses_and_recovers: cannot mount a tmpfs");
        return;
    }
    let ledger = SqlLedger::open(&mount.join("adamant.db"), Keys::generate().unwrap(), clock(), None).await.unwrap();
    let mut kept = Vec::new();
    let full = loop {
        let name = format!("full:{}", kept.len());
        match ledger.append(vec![tag(&name, &name)]).await {
            Ok(_) => kept.push(name),
            Err(error) => break error,
        }
        assert!(kept.len() < 50_000, "the disk never fills");
        if kept.len() == 50 {
            // Leave little room; a fact is a few kilobytes.
            std::fs::write(mount.join("ballast"), vec![1; 13 << 20]).unwrap();
        }
    };
    assert!(matches!(&full, AppendError::Ledger(LedgerError::Unavailable(text)) if text.contains("full")), "{full:?}");
    assert!(ledger.append(vec![tag("full:more", "1")]).await.is_err());
    std::fs::remove_file(mount.join("ballast")).unwrap();
    ledger.append(vec![tag("full:after", "1")]).await.unwrap();
    for name in &kept {
        assert!(!ledger.append(vec![tag(name, name)]).await.unwrap()[0].new);
    }
    clean(&ledger).await;
    ledger.close().await;
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
}
