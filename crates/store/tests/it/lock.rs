//! One server for one data directory.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use adamant_store::{DataLock, DataLockError};

const CHILD: &str = "ADAMANT_TEST_LOCK_DIR";

/// Not a test of its own: the process that holds the lock.
#[test]
fn lock_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let _lock = DataLock::acquire(dir.as_ref()).unwrap();
    println!("locked");
    std::thread::sleep(std::time::Duration::from_mins(1));
}

#[test]
fn a_second_holder_learns_who_holds_and_death_frees() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lock::lock_child", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("locked")));
    match DataLock::acquire(dir.path()) {
        Err(error @ DataLockError::Held { pid, .. }) => {
            assert_eq!(pid, Some(child.id()));
            assert!(error.to_string().contains(&format!("in use by process {}", child.id())), "{error}");
        }
        other => panic!("{other:?}"),
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let lock = DataLock::acquire(dir.path()).unwrap();
    assert!(matches!(DataLock::acquire(dir.path()), Err(DataLockError::Held { .. })));
    drop(lock);
    DataLock::acquire(dir.path()).unwrap();
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = DataLock::acquire(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("none/lock"), "{error}");
}
