//! Runs sandboxes, as root and again as an ordinary user. This executable is the helper
//! (`__sandbox`) and the program inside (`probe <what>`), too.

mod cases;
mod probe;
mod setup;

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__sandbox") => adamant_sandbox::entry(),
        Some("probe") => return probe::run(&args[2..]),
        Some("caller") => return cases::caller(Path::new(&args[2]), &args[3]),
        _ => {}
    }
    let filter = args[1..].iter().find(|argument| !argument.starts_with('-'));
    let root = rustix::process::geteuid().is_root();
    let user = if root { "root" } else { "ordinary user" };
    let mut failed = 0;
    for (name, case) in cases::ALL {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        match std::panic::catch_unwind(case) {
            Ok(None) => eprintln!("ok: {name} ({user})"),
            Ok(Some(reason)) => eprintln!("skipped: {name} ({user}): {reason}"),
            Err(_) => {
                eprintln!("FAILED: {name} ({user})");
                failed += 1;
            }
        }
    }
    if root && !again_as_ordinary_user(&args[1..]) {
        failed += 1;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a copy of this executable, which an ordinary user can reach, as user 1000.
fn again_as_ordinary_user(args: &[String]) -> bool {
    let dir = setup::directory();
    let exe = dir.path().join("it");
    std::fs::copy(std::env::current_exe().expect("own path"), &exe).expect("copy");
    let status = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"])
        .arg(&exe)
        .args(args)
        .current_dir("/")
        .status();
    match status {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("skipped: ordinary user: setpriv: {error}");
            true
        }
    }
}
