//! What this machine allows.

use std::path::PathBuf;

use serde::Serialize;

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// Whether it is there.
    pub ok: bool,
    /// Whether nothing works without it.
    pub needed: bool,
    /// What was found, or how to get it.
    pub detail: String,
}

/// Looks at everything builds and instances need. `exe` is the `adamant` binary.
pub fn doctor(exe: PathBuf) -> Vec<Check> {
    let host = adamant_sandbox::Sandbox::new(exe).capabilities();
    let check = |what: &str, needed: bool, result: Result<String, String>| {
        let ok = result.is_ok();
        let (Ok(detail) | Err(detail)) = result;
        Check { what: what.to_owned(), ok, needed, detail }
    };
    let git = std::process::Command::new("git").arg("--version").output();
    let git = match git {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{error}: install the package `git`")),
    };
    let mut checks = vec![check("git", true, git)];
    match host {
        Ok(host) => {
            let why = host.limits_reason.unwrap_or_default();
            let limit = |there: bool, what: &str| {
                if there {
                    Ok(format!("{what} is limited as a whole"))
                } else {
                    Err(format!("{what} is not limited as a whole: {why}"))
                }
            };
            let spaces = host.user_namespaces.map(|()| "user, mount, pid, network, ipc and uts".to_owned());
            checks.push(check("namespaces", true, spaces));
            checks.push(check("memory limit", false, limit(host.memory_limit, "memory of a build")));
            checks.push(check(
                "process limit",
                false,
                limit(host.pids_limit, "the number of processes of a build or instance"),
            ));
        }
        Err(error) => checks.push(check("namespaces", true, Err(error.to_string()))),
    }
    checks
}
