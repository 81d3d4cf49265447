//! Starting a helper that outlives who started it.
//!
//! `exe <word> --dir D` starts itself again as `exe <word> --dir D --serve` and exits, so that the
//! helper is a child of init: it survives the end of the server and leaves no zombie. The helper
//! has a session of its own, an empty environment and a log file; it says `ready …` or `error …`
//! in one line before it lets go of the pipe.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// How a helper was called.
pub(crate) struct Call {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Whether this is the helper itself and not the process that starts it.
    serve: bool,
    /// Whether it takes over from a running one.
    pub(crate) take_over: bool,
}

/// Starts `exe word` for `dir` and waits until it is ready; the text after `ready`.
pub(crate) fn start(exe: &Path, word: &str, dir: &Path, take_over: bool, wait: Duration) -> io::Result<String> {
    let mut command = Command::new(exe);
    command.arg(word).arg("--dir").arg(dir);
    if take_over {
        command.arg("--take-over");
    }
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let deadline = Instant::now() + wait;
    let line = child.stdout.take().map_or_else(|| Ok(String::new()), |out| first_line(out, deadline));
    // The starter ends by itself as soon as the helper runs.
    let status = child.wait()?;
    let line = line?;
    if let Some(rest) = line.strip_prefix("ready") {
        return Ok(rest.trim().to_owned());
    }
    let mut said = String::new();
    if !status.success()
        && let Some(err) = child.stderr.take()
    {
        err.take(2000).read_to_string(&mut said)?;
    }
    let reason = line.strip_prefix("error ").map(str::to_owned).unwrap_or(said);
    let reason = if reason.trim().is_empty() { format!("it ended, see the log in {}", dir.display()) } else { reason };
    Err(io::Error::other(format!("{word} did not start: {}", reason.trim())))
}

/// Reads up to a newline, at most 4 KiB, until `deadline`.
fn first_line(mut out: impl io::Read + std::os::fd::AsFd, deadline: Instant) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < 4096 {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(60), tv_nsec: i64::from(left.subsec_nanos()) };
        let ready = {
            let fd = out.as_fd();
            rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout))
        };
        match ready {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it was not ready in time")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let mut byte = [0];
        if out.read(&mut byte)? == 0 || byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Reads the arguments after the word.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Call, String> {
    let (mut dir, mut serve, mut take_over) = (None, false, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--dir" => dir = arguments.next().map(PathBuf::from),
            "--serve" => serve = true,
            "--take-over" => take_over = true,
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    let dir = dir.ok_or("--dir is missing: this command is run by adamant itself")?;
    Ok(Call { dir, serve, take_over })
}

/// In the starter: starts the helper and returns `true`. In the helper: leaves the session of the
/// starter and returns `false`.
pub(crate) fn detach(call: &Call, word: &str, log: &str) -> io::Result<bool> {
    if call.serve {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        // Fails only for a group leader, which a fresh child is not.
        let _ = rustix::process::setsid();
        std::env::set_current_dir(&call.dir)?;
        return Ok(false);
    }
    let dir = call.dir.canonicalize()?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(log))?;
    // A helper's own log holds a few lines a start; it never grows past this.
    if log.metadata()?.len() > 1 << 20 {
        log.set_len(0)?;
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg(word).arg("--dir").arg(&dir).arg("--serve").env_clear().stdin(Stdio::null()).stderr(log);
    if call.take_over {
        command.arg("--take-over");
    }
    command.spawn()?;
    Ok(true)
}

/// Says that the helper is ready (or not), then lets go of the pipe.
pub(crate) fn announce(line: &str) -> io::Result<()> {
    let line = line.replace('\n', " ");
    // Whoever waits may have gone; the helper goes on without.
    let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    Ok(())
}
