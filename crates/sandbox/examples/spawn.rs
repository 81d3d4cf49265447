//! Times sandboxes from start to exit of `true`, beside bubblewrap and `unshare` doing the like.
//!
//! `cargo run --release -p adamant-sandbox --example spawn [rounds]`, as root or not.
#![expect(clippy::print_stdout, reason = "the output is the result")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use adamant_sandbox::{Access, Fds, Kind, Limits, Mount, Sandbox, Source, Spec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("__sandbox") {
        adamant_sandbox::entry();
    }
    let rounds: usize = argument.map_or(Ok(200), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut mounts = Vec::new();
    for name in ["proc", "dev", "tmp", "usr"] {
        std::fs::create_dir(dir.path().join(name))?;
    }
    for name in ["usr", "lib", "lib64"] {
        let host = Path::new("/").join(name);
        if host.is_symlink() {
            std::os::unix::fs::symlink(format!("usr/{name}"), dir.path().join(name))?;
        } else if host.is_dir() {
            let _ = std::fs::create_dir(dir.path().join(name));
            mounts.push(Mount::Bind {
                source: Source::Path(host),
                target: format!("/{name}"),
                access: Access::ReadOnly,
            });
        }
    }
    let sandbox = Sandbox::new(std::env::current_exe()?);
    let spec = Spec {
        root: dir.path().to_path_buf(),
        mounts,
        argv: vec!["/usr/bin/true".into()],
        env: Vec::new(),
        cwd: "/".into(),
        hostname: "bench".into(),
        uid: 1000,
        gid: 1000,
        limits: Limits::default(),
        cpus: None,
        port: None,
        aslr: false,
        kind: Kind::Build,
    };
    let limited = Spec {
        limits: Limits { memory_bytes: Some(1 << 30), processes: Some(100), ..Limits::default() },
        ..spec.clone()
    };
    let run = |spec: &Spec| -> Result<(), Box<dyn std::error::Error>> {
        let outcome = sandbox.spawn(spec, Fds::default())?.wait()?;
        if outcome.success() { Ok(()) } else { Err(format!("{outcome:?}").into()) }
    };
    let command = |line: &'static [&'static str]| {
        move || -> Result<(), Box<dyn std::error::Error>> {
            let status = Command::new(line[0]).args(&line[1..]).status()?;
            if status.success() { Ok(()) } else { Err(format!("{}: {status}", line[0]).into()) }
        }
    };
    let bwrap = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/usr",
        "/usr",
        "--symlink",
        "usr/lib",
        "/lib",
        "--symlink",
        "usr/lib64",
        "/lib64",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--chdir",
        "/",
        "/usr/bin/true",
    ];
    let bwrap: &'static [&'static str] = Box::leak(Box::new(bwrap));
    let mut contenders: Vec<Contender<'_>> = vec![
        ("adamant", Box::new(|| run(&spec))),
        ("adamant, memory and process limits", Box::new(|| run(&limited))),
        ("bwrap", Box::new(command(bwrap))),
        ("unshare -mpniuCfr", Box::new(command(&["unshare", "-mpniuCfr", "/usr/bin/true"]))),
        ("no sandbox", Box::new(command(&["/usr/bin/true"]))),
    ];
    let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
    // In turns, so that a busy moment of the machine strikes all.
    for _ in 0..rounds {
        for ((name, run), times) in contenders.iter_mut().zip(&mut times) {
            let started = Instant::now();
            match run() {
                Ok(()) => times.push(started.elapsed()),
                Err(error) => println!("{name}: {error}"),
            }
        }
    }
    for ((name, _), mut times) in contenders.into_iter().zip(times) {
        times.sort();
        let at = |part: usize| millis(times.get(times.len() * part / 100).copied().unwrap_or_default());
        println!("{name}: least {:.2} ms, median {:.2} ms, p95 {:.2} ms", at(0), at(50), at(95));
    }
    Ok(())
}

type Contender<'a> = (&'static str, Box<dyn FnMut() -> Result<(), Box<dyn std::error::Error>> + 'a>);

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
