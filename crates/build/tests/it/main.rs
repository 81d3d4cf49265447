//! Builds with real packages and the real sandbox, as root and again as an ordinary user. This
//! executable is the sandbox helper (`__sandbox`), too.

mod cases;
mod examples;
mod setup;

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__sandbox") => adamant_sandbox::entry(),
        // As an ordinary user: packages, then a file for the digest of the common program.
        Some("digest") => return cases::digest(Path::new(&args[2]), Path::new(&args[3])),
        _ => {}
    }
    let filter = args[1..].iter().find(|argument| !argument.starts_with('-'));
    let mut failed = 0;
    for (name, case) in cases::ALL.iter().chain(examples::ALL) {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        // Minutes of compiling are for those who ask for them.
        if filter.is_none() && name.starts_with("long: ") {
            eprintln!("skipped: {name}: not asked for by name");
            continue;
        }
        match std::panic::catch_unwind(case) {
            Ok(None) => eprintln!("ok: {name}"),
            Ok(Some(reason)) => eprintln!("skipped: {name}: {reason}"),
            Err(_) => {
                eprintln!("FAILED: {name}");
                failed += 1;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs this executable as user 1000, from a place that user can reach.
fn as_ordinary_user(dir: &Path, args: &[&Path]) -> Result<(), String> {
    let exe = dir.join("it");
    std::fs::copy(std::env::current_exe().expect("own path"), &exe).expect("copy");
    let output = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"])
        .arg(&exe)
        .arg("digest")
        .args(args)
        .current_dir("/")
        .env("TMPDIR", dir)
        .output()
        .map_err(|error| format!("setpriv: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}
