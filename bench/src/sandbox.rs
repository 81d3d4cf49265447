//! Start to exit of `true`: our sandbox, bubblewrap with the same mounts, and plain `unshare`.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adamant_sandbox::{Access, Fds, Kind, Limits, Mount, Sandbox, Source, Spec};
use anyhow::{Result, ensure};

use crate::process::{installed, ms};
use crate::report::{Goal, Report, median};

/// Starts measured of each.
const ROUNDS: usize = 60;
/// Starts before measuring.
const WARM_UP: usize = 5;
/// Most time for all of it.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn measure(exe: &Path, place: &Path, report: &mut Report) -> Result<()> {
    let root = tree(place)?;
    let sandbox = Sandbox::new(exe.to_owned());
    let spec = Spec {
        root: root.clone(),
        mounts: vec![Mount::Bind {
            source: Source::Path("/usr".into()),
            target: "/usr".into(),
            access: Access::ReadOnly,
        }],
        argv: vec!["/usr/bin/true".into()],
        env: vec![("PATH".into(), "/usr/bin".into())],
        cwd: "/".into(),
        hostname: "bench".into(),
        uid: 1000,
        gid: 1000,
        limits: Limits { wall_ms: Some(10_000), ..Limits::default() },
        cpus: None,
        port: None,
        aslr: true,
        kind: Kind::Build,
    };
    let ours = || -> Result<()> {
        let outcome = sandbox.spawn(&spec, Fds::default())?.wait()?;
        ensure!(outcome.success(), "the sandbox ended with {:?}", outcome.exit);
        Ok(())
    };
    let root = root.to_string_lossy().into_owned();
    let bwrap: Vec<&str> = vec![
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--ro-bind",
        &root,
        "/",
        "--ro-bind",
        "/usr",
        "/usr",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "/usr/bin/true",
    ];
    let unshare: Vec<&str> = vec![
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--net",
        "--ipc",
        "--uts",
        "/usr/bin/true",
    ];
    let mut peers: Vec<(&str, &[&str], Vec<f64>)> = Vec::new();
    for (name, words) in [("bwrap", &bwrap), ("unshare", &unshare)] {
        if !installed(name) {
            report.note(format!("{name} is not installed: nothing beside the sandbox's start"));
        } else if let Err(error) = other(words) {
            report.note(format!("{name} does not run here: {error:#}"));
        } else {
            peers.push((name, words, Vec::new()));
        }
    }
    let mut own = Vec::new();
    let begin = Instant::now();
    // Taking turns, so that what else the machine does hits all alike.
    for round in 0..WARM_UP + ROUNDS {
        if begin.elapsed() > LIMIT {
            break;
        }
        let took = timed(ours)?;
        if round >= WARM_UP {
            own.push(took);
        }
        for (_, words, times) in &mut peers {
            let took = timed(|| other(words))?;
            if round >= WARM_UP {
                times.push(took);
            }
        }
    }
    let row = report.row("sandbox, start to exit of `true` (median)", median(&mut own), "ms");
    for (name, _, times) in &mut peers {
        let peer = median(times);
        if *name == "bwrap" {
            row.goal(Goal::AtMost(peer));
        }
        row.beside(*name, peer);
    }
    Ok(())
}

fn other(words: &[&str]) -> Result<()> {
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{} ended with {status}", words[0]);
    Ok(())
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    run()?;
    Ok(ms(begin.elapsed()))
}

/// A root with mount points and the usual links into `/usr`.
fn tree(place: &Path) -> Result<PathBuf> {
    // The program's user has to pass through.
    std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755))?;
    let root = place.join("root");
    for dir in ["proc", "dev", "tmp", "usr"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    for link in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
    Ok(root)
}
